// Predictions of the model at a position: bars, which temperature, top-k and top-p change, and what really came.

const NUM_BARS = 10;
const HINTS = {
  next: "Tokens that the model finds likely after the chosen token, and the one that really came.",
  here: "Tokens that the model finds likely at the position of the chosen token. A mask token in the text hides it.",
  tag: "Labels of the chosen token.",
  class: "Labels of the whole text.",
};

const TRUTH = { next: "really came", here: "is there" }; // of the token that the text has

function predictedPosition() {
  const { kind, side } = data.predictions;
  if (kind === "class") return 0;
  const found = focused();
  return found.side === side && found.tokens.length ? found.tokens.at(-1) : data.sides[side].length - 1;
}

function drawPrediction() {
  const { kind, side, activation } = data.predictions;
  const position = predictedPosition();
  const token = tokenAt(side, position);
  const titles = { next: `Next token after ${token}`, here: `Token at ${token}`, tag: `Label of ${token}`, class: "Label of the text" };
  byId("prediction-title").textContent = titles[kind];
  const { ids, probabilities, others, kept } = distribution(position, state.temperature, state.top_k, state.top_p);
  const order = activation === "softmax" ? ids.keys() : [...ids.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const shownIds = [...order].slice(0, NUM_BARS);
  const largest = Math.max(...shownIds.map((i) => Math.abs(probabilities[i])), 1e-9);
  const unit = activation === "none" ? "output" : "probability";
  const rows = shownIds.map((i) => barRow(nameOf(ids[i]), probabilities[i], Math.abs(probabilities[i]) / largest));
  const rest = Math.max(0, sum(probabilities) - sum(shownIds.map((i) => probabilities[i])) + others);
  if (activation === "softmax" && kept > NUM_BARS) rows.push(barRow(`${kept - NUM_BARS} others`, rest, 0, "others"));
  const truth = truthAt(position);
  if (truth) {
    const isChanged = state.temperature !== 1 || state.top_k || state.top_p < 1;
    const row = barRow(nameOf(truth.id), truth.probability, truth.probability / largest, "real");
    row.firstChild.append(` ${TRUTH[kind]}, rank ${truth.rank}${isChanged ? ", at temperature 1" : ""}`);
    rows.push(row);
  }
  const caption = activation === "softmax" ? `${kept} of ${data.predictions.size} are possible` : "Outputs of the model";
  const what = kind === "next" || kind === "here" ? "token" : "label";
  byId("bars").replaceChildren(table(caption, [what, unit, "share of the largest"], rows));
}

function barRow(name, value, share, className = "") {
  const bar = element("i");
  bar.style.width = `${(100 * Math.min(1, share)).toFixed(1)}%`;
  return element("tr", { className },
    element("td", {}, className === "others" ? name : quoted(name)),
    element("td", { className: "number" }, number(value)),
    element("td", { className: "bar", "aria-hidden": "true" }, bar),
  );
}

function makeSliders() {
  const isSampled = data.predictions.activation === "softmax";
  byId("sliders").hidden = !isSampled;
  byId("prediction-hint").textContent = HINTS[data.predictions.kind];
  for (const name of ["temperature", "top_k", "top_p"]) {
    byId(name).addEventListener("input", () => update({ [name]: Number(byId(name).value) }));
  }
}

function drawSliders() {
  for (const name of ["temperature", "top_k", "top_p"]) {
    byId(name).value = state[name];
    const isOff = name === "top_k" ? state.top_k === 0 : name === "top_p" && state.top_p === 1;
    byId(name).nextElementSibling.textContent = isOff ? "off" : String(state[name]);
  }
}

follow("side tokens preview temperature top_k top_p", () => { if (data.predictions) drawPrediction(); });
follow("temperature top_k top_p", () => { if (data.predictions) drawSliders(); });
