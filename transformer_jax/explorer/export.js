// Files of the shown map: its numbers as CSV, its drawing as SVG, the matrix as PNG.

function fileName(ending) {
  const { show, layer, head } = state;
  const part = { head: `layer_${layer}_head_${head}`, layer: `layer_${layer}_mean`, all: "mean", rollout: `rollout_${layer}` }[show];
  return `${currentMap().name}_${part}.${ending}`;
}

function save(blob, ending) {
  const link = element("a", { href: URL.createObjectURL(blob), download: fileName(ending) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Names of rows and columns begin with the position: no token is a formula for a spreadsheet.
function csvText() {
  const map = currentMap();
  const weights = shownWeights();
  const name = (side, i) => `"${i} ${tokenAt(side, i).replaceAll('"', '""')}"`;
  const names = data.sides[map.columns].map((_, s) => name(map.columns, s));
  const rows = data.sides[map.rows].map((_, t) => {
    const row = Array.from(weights.subarray(t * map.S, (t + 1) * map.S), (value) => number(value, 4));
    return [name(map.rows, t), ...row].join(",");
  });
  return [["", ...names].join(","), ...rows, ""].join("\r\n");
}

function matrixSvg() {
  const map = currentMap();
  const weights = shownWeights();
  const cell = 14;
  const side = 110; // pixels for the labels
  const svg = svgElement("svg", { viewBox: `0 0 ${side + cell * map.S} ${side + cell * map.T}` });
  for (let t = 0; t < map.T; t++) {
    svg.append(svgElement("text", { x: side - 4, y: side + cell * t + 11, "text-anchor": "end" }, short(tokenAt(map.rows, t))));
    for (let s = 0; s < map.S; s++) {
      const root = rootOf(weights[t * map.S + s]);
      const box = { x: side + cell * s, y: side + cell * t, width: cell, height: cell, fill: `rgb(${colours[root].join(",")})` };
      if (root) svg.append(svgElement("rect", box));
    }
  }
  for (let s = 0; s < map.S; s++) {
    const turn = `translate(${side + cell * s + 11} ${side - 4}) rotate(-90)`;
    svg.append(svgElement("text", { transform: turn }, short(tokenAt(map.columns, s))));
  }
  return svg;
}

// The drawing with its colours inside, so that it can stand alone.
function svgText() {
  const { tokens } = focused();
  const svg = state.view === "lines" ? linesDrawing(currentMap(), shownWeights(), focusedWeights(), tokens) : matrixSvg();
  const rules = [
    `svg { background: ${styleColour("--page")} }`,
    `text { fill: ${styleColour("--ink")}; font: 11px monospace; white-space: pre }`,
    `path { fill: none; stroke: ${styleColour("--accent")} }`,
  ];
  svg.prepend(svgElement("style", {}, rules.join("\n")));
  return new XMLSerializer().serializeToString(svg);
}

function makeExports() {
  byId("save-csv").addEventListener("click", () => save(new Blob(["\ufeff", csvText()], { type: "text/csv" }), "csv"));
  byId("save-svg").addEventListener("click", () => save(new Blob([svgText()], { type: "image/svg+xml" }), "svg"));
  byId("save-png").addEventListener("click", () => {
    matrixCanvas(currentMap(), shownWeights()).canvas.toBlob((blob) => save(blob, "png"), "image/png");
  });
}
