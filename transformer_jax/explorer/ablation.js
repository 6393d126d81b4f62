// Head ablation: what changes when the output of the chosen head is zero.

const MEASURES = { loss: "loss, in nats a token", divergence: "predictions (divergence, in nats)", outputs: "outputs" };
const MAX_CHANGES = 8;

function drawAblation() {
  const map = currentMap();
  const { layer, head } = state;
  byId("ablation").hidden = !map.measure;
  if (!map.measure) return;
  const change = map.scores.effect[layer][head];
  byId("ablation-title").textContent = `Without layer ${layer}, head ${head}`;
  const word = map.measure === "loss" ? (change >= 0 ? "rises" : "falls") : "changes";
  byId("ablation-hint").textContent =
    `The mean ${MEASURES[map.measure]}, ${word} by ${number(Math.abs(change), 4)} when the output of the head is zero.`;
  const { num_positions: T, num_top: K, before, before_values } = data.effects;
  const index = layer * map.num_heads + head;
  const positions = data[`effects_${map.name}`].subarray(index * T, (index + 1) * T);
  byId("ablation-positions").replaceChildren(T > 1 ? positionsTable(map, positions) : "");
  const ids = data[`effects_${map.name}_top`].subarray(index * K, (index + 1) * K);
  const values = data[`effects_${map.name}_values`].subarray(index * K, (index + 1) * K);
  const rows = before.map((id, i) => element("tr", {},
    element("td", {}, quoted(nameOf(id))),
    element("td", { className: "number" }, number(before_values[i])),
    element("td", {}, quoted(nameOf(ids[i]))),
    element("td", { className: "number" }, number(values[i])),
  ));
  const caption = data.predictions.kind === "class" ? "Outputs" : "Predictions at the last position";
  byId("ablation-top").replaceChildren(table(caption, ["with it", "value", "without it", "value without"], rows));
}

function positionsTable(map, positions) {
  const { side, kind, truth } = data.predictions;
  const order = [...positions.keys()].sort((a, b) => Math.abs(positions[b]) - Math.abs(positions[a]) || a - b).slice(0, MAX_CHANGES);
  const rows = order.map((position) => element("tr", {},
    element("td", { className: "number" }, String(position)),
    element("td", {}, quoted(tokenAt(side, position)), ...(kind === "next" && truth[position] !== null ? [" → ", quoted(nameOf(truth[position]))] : [])),
    element("td", { className: "number" }, `${positions[position] > 0 ? "+" : ""}${number(positions[position])}`),
  ));
  return table("Tokens with the largest change", ["position", "token", "change"], rows);
}

follow("kind layer head", drawAblation);
