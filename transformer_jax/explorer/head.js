// One head: its drawing, which the pointer and the arrows move over, and a table of the largest weights.

const drawing = { canvas: null, measures: null, band: null, factor: 1 };

function title() {
  const map = currentMap();
  const { show, layer, head } = state;
  const group = map.num_kv_heads < map.num_heads ? `, key-value head ${Math.floor((head * map.num_kv_heads) / map.num_heads)}` : "";
  if (show === "head") return `Layer ${layer}, head ${head}${group}`;
  if (show === "layer") return `Layer ${layer}, mean of its heads`;
  return show === "all" ? "Mean of all heads" : `Rollout of layers 0 to ${layer}`;
}

function drawHead() {
  const map = currentMap();
  byId("head-title").textContent = `${title()}: ${map.title}`;
  const scores = Object.entries(map.scores).map(([name, of]) => `${SCORES[name].split(",")[0]} ${number(of[state.layer][state.head])}`);
  byId("head-scores").textContent = state.show === "head" ? `${scores.join(", ")}. Rows attend to columns.` : "Rows attend to columns.";
  byId("show").value = state.show;
  byId("show").querySelector("[value=rollout]").disabled = map.rows !== map.columns;
  if (state.view === "lines") return drawLines();
  byId("figure").removeAttribute("tabindex");
  const { canvas, measures } = matrixCanvas(map, shownWeights());
  const hadFocus = drawing.canvas && document.activeElement === drawing.canvas;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${title()}, a map of ${map.T} by ${map.S} weights. Arrows up and down choose a row; the table has its numbers.`);
  const band = element("div", { className: "band", hidden: true });
  Object.assign(drawing, { canvas, measures, band });
  canvas.addEventListener("pointermove", (event) => pointAt(event, false));
  canvas.addEventListener("pointerleave", () => update({ preview: null }));
  canvas.addEventListener("click", (event) => pointAt(event, true));
  byId("figure").replaceChildren(element("div", { className: "frame" }, canvas, band));
  if (hadFocus) canvas.focus();
  measureCanvas();
  drawBand();
}

function drawLines() {
  const { tokens } = focused();
  const svg = linesDrawing(currentMap(), shownWeights(), focusedWeights(), tokens);
  svg.addEventListener("click", ({ target }) => {
    if (target.dataset.side) update({ side: target.dataset.side, tokens: [Number(target.dataset.token)], preview: null });
  });
  drawing.canvas = null;
  byId("figure").replaceChildren(svg);
  byId("figure").tabIndex = 0;
}

// Cell of a pointer event: the row if tokens attend, the column if they are attended by.
function pointAt(event, isChoice) {
  const map = currentMap();
  const box = drawing.canvas.getBoundingClientRect();
  const factor = drawing.measures.across / box.width;
  const at = (value, start, most) => {
    const index = Math.floor((value * factor - start) / drawing.measures.cell);
    return index >= 0 && index < most ? index : null;
  };
  const row = at(event.clientY - box.top, drawing.measures.above, map.T);
  const column = at(event.clientX - box.left, drawing.measures.left, map.S);
  const isRow = state.direction === "from" || map.rows !== map.columns;
  const token = isRow ? row : column;
  const side = isRow ? map.rows : map.columns;
  if (token === null) return update({ preview: null });
  update(isChoice ? { side, tokens: [token], preview: null } : { preview: { side, token } });
}

function moveRow(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const map = currentMap();
  const isRow = state.direction === "from" || map.rows !== map.columns;
  const side = isRow ? map.rows : map.columns;
  const last = state.side === side && state.tokens.length ? state.tokens.at(-1) + step : 0;
  update({ side, tokens: [Math.max(0, Math.min((isRow ? map.T : map.S) - 1, last))], preview: null });
}

// Measured when the canvas is made or the window changes: in a hover it would wait for a layout of the page.
function measureCanvas() {
  if (drawing.canvas) drawing.factor = drawing.canvas.getBoundingClientRect().width / drawing.measures.across;
}

function drawBand() {
  if (state.view === "lines") return;
  const { band, factor, measures } = drawing;
  const found = focusedWeights();
  band.hidden = !found;
  if (!found) return;
  const start = focused().tokens.at(-1) * measures.cell;
  const box = found.isRow
    ? [0, measures.above + start, measures.across, measures.cell]
    : [measures.left + start, 0, measures.cell, measures.down];
  const [left, top, width, height] = box.map((value) => value * factor);
  Object.assign(band.style, { left: `${left + 3}px`, top: `${top + 3}px`, width: `${width}px`, height: `${height}px` });
}

const TOP = 8;

// The largest weights for the tokens in focus; the last token, if there are none.
function drawTop() {
  const map = currentMap();
  const weights = shownWeights();
  let found = focusedWeights();
  let words = focused().tokens.map((token) => tokenAt(focused().side, token)).join(" + ");
  if (!found) {
    found = { isRow: true, side: map.columns, values: weights.slice(-map.S) };
    words = tokenAt(map.rows, map.T - 1);
  }
  const best = [...found.values.keys()].sort((a, b) => found.values[b] - found.values[a] || a - b).slice(0, TOP);
  const rows = best.filter((i) => found.values[i] > 0).map((i) => element("tr", {},
    element("td", { className: "number" }, String(i)),
    element("td", {}, quoted(tokenAt(found.side, i))),
    element("td", { className: "number" }, number(found.values[i])),
  ));
  const caption = element("span", {}, quoted(words), found.isRow ? " attends most to" : " is attended most by");
  byId("top").replaceChildren(table(caption, ["position", "token", "weight"], rows));
}

follow("kind layer head show view", drawHead);
follow("direction side tokens preview", () => (state.view === "lines" ? drawLines() : drawBand()));
follow("kind layer head show direction side tokens preview", drawTop);
