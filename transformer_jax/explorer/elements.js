// Elements made from text, never from markup; numbers, names of tokens, and the colours of weights.

function byId(id) {
  return document.getElementById(id);
}

// An element with properties, and children that are elements or texts.
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  return element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...rows));
}

function number(value, digits = 3) {
  return value.toFixed(digits);
}

const VISIBLE = { " ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥" };

// Text of a token in which every character can be seen.
function visible(token) {
  const seen = [...token].map((c) => VISIBLE[c] ?? (/[\p{C}\p{Z}]/u.test(c) ? `\\u{${c.codePointAt(0).toString(16)}}` : c));
  return seen.length ? seen.join("") : "∅";
}

function tokenAt(side, index) {
  return visible(data.sides[side][index]);
}

function nameOf(id) {
  return visible(data.names[id] ?? `<${id}>`);
}

const MAX_UNBROKEN = 14; // characters

function quoted(text) {
  return element("span", { className: [...text].length > MAX_UNBROKEN ? "token long" : "token" }, text);
}

// Move the focus among `items` by arrows, Home and End; one of them is in the order of Tab.
function roving(group, items, vertical) {
  const focus = (item) => {
    for (const other of items()) other.tabIndex = other === item ? 0 : -1;
    item.focus();
  };
  group.addEventListener("keydown", (event) => {
    const all = items();
    const index = all.indexOf(document.activeElement);
    if (index < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: vertical(all, index, 1), ArrowUp: vertical(all, index, -1) };
    let next = index + (steps[event.key] ?? NaN);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = all.length - 1;
    if (Number.isNaN(next)) return;
    event.preventDefault();
    focus(all[Math.max(0, Math.min(all.length - 1, next))]);
  });
  group.addEventListener("focusin", (event) => {
    const item = items().find((each) => each === event.target);
    if (item) for (const other of items()) other.tabIndex = other === item ? 0 : -1;
  });
}

// Steps to the item above or below, by where the items are on the screen.
function nearestRow(all, index, sign) {
  const here = all[index].getBoundingClientRect();
  let best = 0;
  let distance = Infinity;
  all.forEach((item, i) => {
    const there = item.getBoundingClientRect();
    const down = sign * (there.top - here.top);
    if (down < 4) return;
    const far = down * 1000 + Math.abs(there.left + there.width / 2 - here.left - here.width / 2);
    if (far < distance) { distance = far; best = i - index; }
  });
  return best;
}

// Colours of stored bytes, 0 to 255, from the three of the style sheet: [r, g, b], and which ink is read on them.
let colours = [];

// Colour of the style sheet as rgb(...), also where it is one of the system's.
function styleColour(name) {
  const probe = element("span", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function readColours() {
  const parts = (name) => styleColour(name).match(/[\d.]+/g).slice(0, 3).map(Number);
  const [low, middle, high] = ["--low", "--middle", "--high"].map(parts);
  const mix = (a, b, share) => a.map((value, i) => Math.round(value + (b[i] - value) * share));
  colours = Array.from({ length: 256 }, (_, i) => (i < 128 ? mix(low, middle, i / 128) : mix(middle, high, (i - 128) / 127)));
}

function rootOf(weight) {
  return Math.min(255, Math.round(255 * Math.sqrt(Math.max(0, weight))));
}

// Shade an element by a weight, with the ink, light or dark, that has the higher contrast.
function shade(made, weight) {
  const colour = colours[rootOf(weight)];
  made.style.backgroundColor = `rgb(${colour.join(" ")})`;
  made.style.color = luminance(colour) > 0.18 ? "#000000" : "#ffffff";
}

function luminance(colour) {
  const [r, g, b] = colour.map((value) => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Draw weights [T, S], given as stored bytes, one pixel each; cells above the diagonal of a causal map stay empty.
function paint(canvas, map, roots) {
  canvas.width = map.S;
  canvas.height = map.T;
  const context = canvas.getContext("2d");
  const image = context.createImageData(map.S, map.T);
  for (let t = 0; t < map.T; t++) {
    const end = map.is_causal ? t + 1 : map.S;
    for (let s = 0; s < end; s++) {
      const i = t * map.S + s;
      const colour = colours[roots[i]];
      image.data[4 * i] = colour[0];
      image.data[4 * i + 1] = colour[1];
      image.data[4 * i + 2] = colour[2];
      image.data[4 * i + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}
