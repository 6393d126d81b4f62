// State of the page, which its address keeps, and the views that follow it.

const state = {
  kind: 0, // index of a map
  layer: 0,
  head: 0,
  show: "head", // head | layer | all | rollout
  sort: "layer", // or one of the scores of the map
  view: "matrix", // matrix | lines
  direction: "from", // a chosen token attends (from), or is attended by (to)
  side: "", // of the chosen tokens
  tokens: [], // indices, in the order of the choice
  preview: null, // {side, token} under the pointer or the focus
  temperature: 1,
  top_k: 0,
  top_p: 1,
};
const KEPT = ["kind", "layer", "head", "show", "sort", "view", "direction", "side", "tokens", "temperature", "top_k", "top_p"];
const followers = [];

function currentMap() {
  return data.maps[state.kind];
}

// Call `draw` after every change of one of `names`.
function follow(names, draw) {
  followers.push({ names: new Set(names.split(" ")), draw });
}

function update(changes) {
  const changed = Object.keys(changes).filter((name) => JSON.stringify(state[name]) !== JSON.stringify(changes[name]));
  if (!changed.length) return;
  Object.assign(state, changes);
  const map = currentMap();
  state.layer = Math.min(state.layer, map.num_layers - 1);
  state.head = Math.min(state.head, map.num_heads - 1);
  if (map.rows !== map.columns && state.show === "rollout") state.show = "head";
  if (changed.includes("kind")) changed.push("layer", "head", "show");
  for (const { names, draw } of followers) if (changed.some((name) => names.has(name))) draw();
  if (changed.some((name) => KEPT.includes(name))) writeAddress();
}

function drawAll() {
  for (const { draw } of followers) draw();
}

function writeAddress() {
  const values = KEPT.map((name) => [name, Array.isArray(state[name]) ? state[name].join(".") : String(state[name])]);
  try {
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
  } catch {
    // a frame of a notebook has no address
  }
}

// Read the address; a value that this page cannot have is left out.
function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most) => {
    const value = Number(values.get(name));
    if (values.has(name) && Number.isInteger(value) && value >= 0 && value <= most) state[name] = value;
  };
  const oneOf = (name, known) => { if (known.includes(values.get(name))) state[name] = values.get(name); };
  const within = (name, low, high) => {
    const value = parseFloat(values.get(name));
    if (value >= low && value <= high) state[name] = value;
  };
  whole("kind", data.maps.length - 1);
  whole("layer", currentMap().num_layers - 1);
  whole("head", currentMap().num_heads - 1);
  whole("top_k", 100);
  within("temperature", 0.1, 3);
  within("top_p", 0.05, 1);
  oneOf("show", currentMap().rows === currentMap().columns ? ["head", "layer", "all", "rollout"] : ["head", "layer", "all"]);
  oneOf("sort", ["layer", ...Object.keys(currentMap().scores)]);
  oneOf("view", ["matrix", "lines"]);
  oneOf("direction", ["from", "to"]);
  oneOf("side", Object.keys(data.sides));
  const most = state.side ? data.sides[state.side].length : 0;
  const tokens = (values.get("tokens") || "").split(".").filter(Boolean).map(Number);
  state.tokens = [...new Set(tokens.filter((t) => Number.isInteger(t) && t >= 0 && t < most))];
}

// Tokens that the views show: those chosen, or the one under the pointer or the focus.
function focused() {
  if (state.preview) return { side: state.preview.side, tokens: [state.preview.token] };
  return { side: state.side, tokens: state.tokens };
}

// Weights of the other tokens for the focused ones: their side, and the sum for each; null: nothing is focused here.
function focusedWeights() {
  const map = currentMap();
  const { side, tokens } = focused();
  const isRow = side === map.rows && (state.direction === "from" || map.rows !== map.columns);
  if (!tokens.length || !(isRow || side === map.columns)) return null;
  const weights = shownWeights();
  const values = new Float32Array(isRow ? map.S : map.T);
  for (const token of tokens) {
    for (let i = 0; i < values.length; i++) values[i] += isRow ? weights[token * map.S + i] : weights[i * map.S + token];
  }
  return { isRow, side: isRow ? map.columns : map.rows, values };
}
