// Drawings of one map: a matrix on a canvas, and lines between two columns of tokens as SVG.

const LABEL = 11; // pixels: the font of the labels of a matrix
const MAX_LABEL = 12; // characters

function short(text) {
  const characters = [...text];
  return characters.length > MAX_LABEL ? `${characters.slice(0, MAX_LABEL - 1).join("")}…` : text;
}

// Canvas of a matrix with labels, and its measures in its own pixels: cell, left, above.
function matrixCanvas(map, weights) {
  const cell = Math.max(3, Math.min(26, Math.floor(460 / Math.max(map.T, map.S))));
  const rows = data.sides[map.rows].map((_, i) => short(tokenAt(map.rows, i)));
  const columns = data.sides[map.columns].map((_, i) => short(tokenAt(map.columns, i)));
  const canvas = element("canvas", { tabIndex: 0 });
  const context = canvas.getContext("2d");
  context.font = `${LABEL}px ui-monospace, monospace`;
  const width = (labels) => Math.ceil(Math.max(...labels.map((label) => context.measureText(label).width))) + 6;
  const measures = { cell, left: width(rows), above: width(columns) };
  const scale = Math.min(2, Math.ceil(window.devicePixelRatio || 1));
  const across = measures.left + cell * map.S;
  const down = measures.above + cell * map.T;
  canvas.width = scale * across;
  canvas.height = scale * down;
  canvas.style.width = `${across}px`;
  Object.assign(measures, { across, down });
  context.scale(scale, scale);
  const pixels = element("canvas");
  paint(pixels, map, Uint8Array.from(weights, rootOf));
  context.imageSmoothingEnabled = false;
  context.drawImage(pixels, measures.left, measures.above, cell * map.S, cell * map.T);
  context.strokeStyle = context.fillStyle = getComputedStyle(document.body).color;
  context.lineWidth = 0.5;
  context.strokeRect(measures.left, measures.above, cell * map.S, cell * map.T);
  context.font = `${LABEL}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  const every = Math.ceil(12 / cell); // of more tokens than have room, not every one has a label
  context.textAlign = "right";
  for (let t = 0; t < map.T; t += every) context.fillText(rows[t], measures.left - 3, measures.above + cell * (t + 0.5));
  context.textAlign = "left";
  for (let s = 0; s < map.S; s += every) {
    context.save();
    context.translate(measures.left + cell * (s + 0.5), measures.above - 3);
    context.rotate(-Math.PI / 2);
    context.fillText(columns[s], 0, 0);
    context.restore();
  }
  return { canvas, measures };
}

const SVG = "http://www.w3.org/2000/svg";
const LINE = 18; // pixels from a token to the next
const LEAST = 0.02; // a weight below is no line, unless its token is in focus
const MAX_LINES = 2500;

function svgElement(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Lines from the tokens that attend, left, to those that they attend to; of the focused tokens alone, if there are any.
function linesDrawing(map, weights, found, tokens) {
  const width = 420;
  const height = LINE * Math.max(map.T, map.S) + 8;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.setAttribute("aria-label", "Lines from each token to those that it attends to; the table has the numbers");
  const column = (side, x, anchor, isFocused) => data.sides[side].forEach((_, i) => {
    const attributes = { x, y: LINE * i + 14, "text-anchor": anchor, "data-side": side, "data-token": i };
    if (isFocused && tokens.includes(i)) attributes.class = "focus";
    svg.append(svgElement("text", attributes, short(tokenAt(side, i))));
  });
  const lines = [];
  for (let t = 0; t < map.T; t++) {
    for (let s = 0; s < map.S; s++) {
      const weight = weights[t * map.S + s];
      const isFocused = found && tokens.includes(found.isRow ? t : s);
      if (found ? isFocused && weight >= 0.005 : weight >= LEAST) lines.push({ t, s, weight });
    }
  }
  lines.sort((a, b) => b.weight - a.weight).splice(MAX_LINES);
  for (const { t, s, weight } of lines.reverse()) {
    const d = `M120 ${LINE * t + 10} C200 ${LINE * t + 10} 220 ${LINE * s + 10} 300 ${LINE * s + 10}`;
    const strength = found ? Math.sqrt(weight) : weight; // few lines may be seen better
    const stroke = { "stroke-width": number(0.5 + 2.5 * strength, 2), "stroke-opacity": number(0.08 + 0.92 * Math.min(1, strength), 2) };
    svg.append(svgElement("path", { d, ...stroke }));
  }
  column(map.rows, 116, "end", found && found.isRow);
  column(map.columns, 304, "start", found && !found.isRow);
  return svg;
}
