// Logit lens: what the model would predict after each layer, at a position; and a map of all layers and positions.

function lensRow(layer, position) {
  const { num_positions, num_top } = data.lens;
  const start = (layer * num_positions + position) * num_top;
  return {
    name: layer === 0 ? "embedding" : `layer ${layer - 1}`,
    ids: [...data.lens_top.subarray(start, start + num_top)],
    values: [...data.lens_values.subarray(start, start + num_top)],
    truth: data.lens_truth_values[layer * num_positions + position],
    rank: data.lens_truth_ranks[layer * num_positions + position],
  };
}

function makeLens() {
  const canvas = byId("lens-map");
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const position = Math.floor(((event.clientX - box.left) / box.width) * data.lens.num_positions);
    update({ side: data.predictions.side, tokens: [position], preview: null });
  });
}

// The map: the value of the token that really came, or of the likeliest one, by layer (rows) and position (columns).
function drawLensMap() {
  const { num_layers: T, num_positions: S, has_truth } = data.lens;
  const roots = new Uint8Array(T * S);
  for (let i = 0; i < roots.length; i++) {
    roots[i] = rootOf(has_truth ? data.lens_truth_values[i] : data.lens_values[i * data.lens.num_top]);
  }
  paint(byId("lens-map"), { T, S, is_causal: false }, roots);
  byId("lens-map").hidden = S < 2;
}

function drawLens() {
  const position = predictedPosition();
  const token = data.predictions.kind === "class" ? "the text" : tokenAt(data.predictions.side, position);
  const { num_layers, has_truth } = data.lens;
  const rows = [...Array(num_layers).keys()].map((layer) => lensRow(layer, position));
  const isKnown = has_truth && rows[0].rank > 0;
  const cells = rows.map(({ name, ids, values, truth, rank }) => element("tr", {},
    element("th", { scope: "row" }, name),
    ...ids.map((id, i) => element("td", {}, quoted(nameOf(id)), ` ${number(values[i], 2)}`)),
    ...(isKnown ? [element("td", { className: "number" }, number(truth)), element("td", { className: "number" }, String(rank))] : []),
  ));
  const heads = ["after", ...rows[0].ids.map((_, i) => `${i + 1}.`)];
  if (isKnown) heads.push(TRUTH[data.predictions.kind], "rank");
  byId("lens-table").replaceChildren(table(element("span", {}, "At ", quoted(token)), heads, cells));
}

follow("side tokens preview", () => { if (data.lens) drawLens(); });
