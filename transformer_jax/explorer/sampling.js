// Predictions at a position: temperature, top-k and top-p, from the largest logits and a histogram of the others.

// Ids and logits of a position, the largest first, less the largest; and bins of the others.
function candidates(position) {
  const { size, step, activation, num_candidates: K, num_bins: bins } = data.predictions;
  if (activation !== "softmax") {
    const logits = [...data.logits.subarray(position * size, (position + 1) * size)];
    return { ids: logits.map((_, id) => id), logits, tail: [] };
  }
  const below = data.logits.subarray(position * K, (position + 1) * K);
  const ids = data.ids ? [...data.ids.subarray(position * K, (position + 1) * K)] : [...below.keys()];
  if (!data.ids) ids.sort((a, b) => below[a] - below[b] || a - b);
  const logits = data.ids ? Array.from(below, (x) => -x * step) : ids.map((id) => -below[id] * step);
  const tail = [];
  if (data.ids) {
    for (let i = position * bins; i < (position + 1) * bins; i++) {
      if (data.tail_counts[i]) tail.push({ count: data.tail_counts[i], logit: -data.tail_logits[i] * step });
    }
    tail.sort((a, b) => b.logit - a.logit);
  }
  return { ids, logits, tail };
}

// Probabilities in the order of the ids; `others` is what the tokens of the histogram have together.
function distribution(position, temperature, topK, topP) {
  const { activation } = data.predictions;
  const { ids, logits, tail } = candidates(position);
  if (activation === "none") return { ids, probabilities: logits, others: 0, kept: ids.length };
  if (activation === "sigmoid") {
    return { ids, probabilities: logits.map((x) => 1 / (1 + Math.exp(-x))), others: 0, kept: ids.length };
  }
  const probabilities = logits.map((x, i) => (topK && i >= topK ? 0 : Math.exp(x / temperature)));
  const bins = topK ? [] : tail.map(({ count, logit }) => ({ count, mass: count * Math.exp(logit / temperature) }));
  const total = sum(probabilities) + sum(bins.map((bin) => bin.mass));
  let before = 0; // mass of the likelier tokens: a token stays while they have less than top-p
  let kept = 0;
  let mass = 0;
  const limit = topP >= 1 ? Infinity : topP * total * (1 - 4e-6);
  probabilities.forEach((value, i) => {
    if (before >= limit) probabilities[i] = 0;
    else if (value > 0) { kept += 1; mass += value; }
    before += value;
  });
  let others = 0;
  for (const bin of bins) { // of a bin only the mean is known, so the last one is taken in part
    if (before >= limit) break;
    const part = Math.min(1, (limit - before) / bin.mass);
    others += part * bin.mass;
    kept += Math.ceil(part * bin.count);
    before += bin.mass;
  }
  mass += others;
  return { ids, probabilities: probabilities.map((value) => value / mass), others: others / mass, kept };
}

// Token that really came at a position: its id, rank, and probability at temperature 1 among all.
function truthAt(position) {
  const id = data.predictions.truth[position];
  if (id === null || id === undefined) return null;
  const { ids, logits, tail } = candidates(position);
  const total = sum(logits.map(Math.exp)) + sum(tail.map(({ count, logit }) => count * Math.exp(logit)));
  if (data.truth_ranks) {
    const logit = -data.truth_logits[position] * data.predictions.step;
    return { id, rank: data.truth_ranks[position], probability: Math.exp(logit) / total };
  }
  const index = ids.indexOf(id);
  const rank = logits.findIndex((value) => value === logits[index]) + 1;
  return { id, rank, probability: Math.exp(logits[index]) / total };
}

function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
