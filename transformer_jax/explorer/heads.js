// All heads as a grid of small maps, sorted by layer or by a score.

const SCORES = {
  layer: "layer",
  effect: "effect of its absence, the largest first",
  entropy: "entropy, the lowest first",
  previous: "weight of the token before",
  first: "weight of the first token",
};
let headButtons = []; // in the order of the grid

function makeSorts() {
  const known = ["layer", ...Object.keys(currentMap().scores)];
  byId("sort").replaceChildren(...known.map((name) => element("option", { value: name }, SCORES[name])));
  if (!known.includes(state.sort)) state.sort = "layer";
  byId("sort").value = state.sort;
}

function sortedHeads() {
  const map = currentMap();
  const heads = [];
  for (let layer = 0; layer < map.num_layers; layer++) {
    for (let head = 0; head < map.num_heads; head++) heads.push({ layer, head });
  }
  const scores = map.scores[state.sort];
  const sign = state.sort === "entropy" ? 1 : -1;
  return scores ? heads.sort((a, b) => sign * (scores[a.layer][a.head] - scores[b.layer][b.head])) : heads;
}

function makeHeads() {
  makeSorts();
  const map = currentMap();
  const group = byId("heads");
  group.style.setProperty("--across", state.sort === "layer" ? Math.min(map.num_heads, 12) : "auto-fill");
  headButtons = sortedHeads().map(({ layer, head }) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    paint(canvas, map, rootsOf(map, layer, head));
    const score = map.scores[state.sort];
    const label = score ? `${layer}.${head}  ${number(score[layer][head], 2)}` : `${layer}.${head}`;
    const scores = Object.entries(map.scores).map(([name, of]) => `${name} ${number(of[layer][head], 2)}`);
    const name = `Layer ${layer}, head ${head}: ${scores.join(", ")}`;
    const button = element("button", { type: "button", title: name, "aria-label": `${label}. ${name}` }, canvas, label);
    button.addEventListener("click", () => update({ layer, head, show: "head" }));
    Object.assign(button.dataset, { layer, head });
    return button;
  });
  group.replaceChildren(...headButtons);
  drawChosenHead();
}

function drawChosenHead() {
  for (const button of headButtons) {
    const isChosen = Number(button.dataset.layer) === state.layer && Number(button.dataset.head) === state.head;
    button.setAttribute("aria-pressed", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
  }
}

follow("kind sort", makeHeads);
follow("layer head", drawChosenHead);
