// The whole page: load the data, make the views, and listen to the keys.

function makeControls() {
  byId("kind").append(...data.maps.map((map, i) => element("option", { value: i }, map.title)));
  byId("kind").addEventListener("change", () => update({ kind: Number(byId("kind").value) }));
  byId("sort").addEventListener("change", () => update({ sort: byId("sort").value }));
  byId("show").addEventListener("change", () => update({ show: byId("show").value }));
  for (const name of ["direction", "view"]) {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) {
      input.addEventListener("change", () => update({ [name]: input.value }));
    }
  }
  byId("clear").addEventListener("click", () => update({ tokens: [], preview: null }));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  makeExports();
  byId("figure").addEventListener("keydown", moveRow);
  roving(byId("heads"), () => headButtons, nearestRow);
}

function drawControls() {
  byId("kind").value = state.kind;
  byId("direction").hidden = currentMap().rows !== currentMap().columns;
  for (const name of ["direction", "view"]) {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) input.checked = input.value === state[name];
  }
}

follow("kind direction view", drawControls);

function step(name, count, by) {
  update({ [name]: (state[name] + by + count) % count, show: name === "head" ? "head" : state.show });
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || byId("help").open) return;
  if (event.key === "Escape") return update({ tokens: [], preview: null });
  if (!byId("shortcuts").checked) return;
  const map = currentMap();
  if (event.key === "[") step("layer", map.num_layers, -1);
  else if (event.key === "]") step("layer", map.num_layers, 1);
  else if (event.key === ",") step("head", map.num_heads, -1);
  else if (event.key === ".") step("head", map.num_heads, 1);
  else if (event.key === "?") byId("help").showModal();
}

function redrawColours() {
  readColours();
  for (const button of Object.values(tokenButtons).flat()) delete button.dataset.look;
  drawAll();
}

async function main() {
  await load();
  readColours();
  state.kind = data.maps.length - 1; // of a Seq2Seq, cross-attention
  readAddress();
  const map = data.maps[0];
  const tokens = Object.entries(data.sides).map(([side, all]) => `${all.length} tokens${side === "text" ? "" : ` of ${side}`}`);
  const name = data.name ? `${data.name}: ` : "";
  byId("summary").textContent = `${name}${data.model}, ${map.num_layers} layers of ${map.num_heads} heads, ${tokens.join(", ")}`;
  document.title = `${data.name || data.model} · attention explorer`;
  makeControls();
  makeTexts();
  byId("prediction").hidden = !data.predictions;
  byId("lens").hidden = !data.lens;
  if (data.lens) makeLens();
  makeTree();
  if (data.predictions) makeSliders();
  document.querySelector("main").hidden = false;
  drawAll();
  if (data.lens) drawLensMap();
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", () => { measureCanvas(); drawBand(); });
  for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
    matchMedia(query).addEventListener("change", () => { redrawColours(); if (data.lens) drawLensMap(); });
  }
  document.documentElement.dataset.ready = "yes";
}

main().catch((error) => {
  byId("summary").textContent = `This page could not be opened: ${error}`;
  throw error;
});
