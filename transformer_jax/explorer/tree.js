// Continuations as a tree: those that begin alike share a branch, until they differ.

// A list item for each different token at `depth`: the tokens that all of a branch share, and its probability.
function branches(continuations, depth) {
  const groups = new Map();
  for (const each of continuations) {
    const id = each.tokens[depth];
    groups.set(id, [...(groups.get(id) ?? []), each]);
  }
  const made = [...groups.values()].map((group) => branch(group, depth));
  return made.sort((a, b) => b.probability - a.probability).map(({ item }) => item);
}

function branch(group, depth) {
  const [first] = group;
  let end = depth + 1;
  while (group.every((each) => each.tokens.length > end && each.tokens[end] === first.tokens[end])) end += 1;
  const ended = group.filter((each) => each.tokens.length === end);
  const others = group.filter((each) => each.tokens.length > end);
  const probability = Math.exp(sum(first.log_probs.slice(depth, end)));
  const words = first.tokens.slice(depth, end).map((id) => nameOf(id)).join("");
  const names = ended.map((each) => `${each.name} (log-probability ${number(sum(each.log_probs), 2)})`);
  const item = element("li", {}, element("span", { className: "token long" }, words), ` ${probability < 0.001 ? probability.toExponential(1) : number(probability)} `);
  if (names.length) item.append(element("small", {}, names.join(", ")));
  if (others.length) item.append(element("ul", {}, ...branches(others, end)));
  return { item, probability };
}

function makeTree() {
  const { continuations } = data;
  byId("tree").hidden = !continuations.length;
  byId("branches").replaceChildren(...branches(continuations.filter((each) => each.tokens.length), 0));
}
