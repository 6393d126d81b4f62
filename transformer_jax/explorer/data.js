// Data of the page: arrays from deflated base64 blocks; weights of a head, of means, and of the rollout.

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };
const data = {};
const WEIGHT = Float32Array.from({ length: 256 }, (_, root) => (root / 255) ** 2); // of a stored byte

async function inflate(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function load() {
  Object.assign(data, JSON.parse(new TextDecoder().decode(await inflate("data"))));
  const read = async ([name, type]) => { data[name] = new TYPES[type](await inflate(name)); };
  await Promise.all(Object.entries(data.arrays).map(read));
  for (const map of data.maps) {
    map.roots = data[`weights_${map.name}`];
    map.T = data.sides[map.rows].length;
    map.S = data.sides[map.columns].length;
    map.size = map.is_causal ? (map.T * (map.T + 1)) / 2 : map.T * map.S;
  }
}

// Stored bytes of a head, as [T, S]: 0 where a causal map has nothing.
function rootsOf(map, layer, head) {
  const start = (layer * map.num_heads + head) * map.size;
  const stored = map.roots.subarray(start, start + map.size);
  if (!map.is_causal) return stored;
  const roots = new Uint8Array(map.T * map.S);
  for (let t = 0, i = 0; t < map.T; i += ++t) roots.set(stored.subarray(i, i + t + 1), t * map.S);
  return roots;
}

function headWeights(map, layer, head) {
  return Float32Array.from(rootsOf(map, layer, head), (root) => WEIGHT[root]);
}

function meanWeights(map, layers) {
  const sum = new Float32Array(map.T * map.S);
  for (const layer of layers) {
    for (let head = 0; head < map.num_heads; head++) {
      const roots = rootsOf(map, layer, head);
      for (let i = 0; i < sum.length; i++) sum[i] += WEIGHT[roots[i]];
    }
  }
  return sum.map((value) => value / (layers.length * map.num_heads));
}

// Attention rollout, Abnar and Zuidema 2020: the product of (mean map + identity) / 2 over the layers.
function rollout(map, layer) {
  const T = map.T;
  let product = null;
  for (let l = 0; l <= layer; l++) {
    const mixed = meanWeights(map, [l]).map((value) => value / 2);
    for (let t = 0; t < T; t++) {
      let sum = 0.5;
      for (let s = 0; s < T; s++) sum += mixed[t * T + s];
      mixed[t * T + t] += 0.5;
      for (let s = 0; s < T; s++) mixed[t * T + s] /= sum; // stored weights sum to nearly 1
    }
    product = product ? multiply(mixed, product, T) : mixed;
  }
  return product;
}

function multiply(a, b, T) {
  const out = new Float32Array(T * T);
  for (let t = 0; t < T; t++) {
    for (let k = 0; k < T; k++) {
      const factor = a[t * T + k];
      if (factor === 0) continue;
      for (let s = 0; s < T; s++) out[t * T + s] += factor * b[k * T + s];
    }
  }
  return out;
}

// Weights [T, S] that the page shows; those of the last choice are kept.
const shown = { key: "", weights: null };

function shownWeights() {
  const map = currentMap();
  const { show, layer, head } = state;
  const key = [map.name, show, layer, head].join();
  if (shown.key !== key) {
    shown.key = key;
    if (show === "head") shown.weights = headWeights(map, layer, head);
    else if (show === "layer") shown.weights = meanWeights(map, [layer]);
    else if (show === "all") shown.weights = meanWeights(map, [...Array(map.num_layers).keys()]);
    else shown.weights = rollout(map, layer);
  }
  return shown.weights;
}
