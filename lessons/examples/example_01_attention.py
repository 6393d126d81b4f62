"""Attention in NumPy: a soft dictionary that answers for words that it does not contain.

Words get vectors by counting which words stand beside them in a few sentences. The dictionary knows what six words
are; then it is asked for four others. See in the output:
- each row of weights sums to 1, and the large weights are on the words that are used alike;
- the answer is a mixture, and its largest part is right;
- divided by the root of H or not: undivided weights are nearly all or nothing;
- a query that may attend nothing gets 0.
"""

import numpy as np

SENTENCES = """the cat eats fish . the dog eats meat . the horse eats grass . the cat sleeps and runs .
the dog sleeps and runs .
the horse sleeps and runs . the mouse eats cheese and sleeps . we bake bread at home . we cook soup at home .
we buy cheese and cook soup . we buy bread and cheese . we buy cake and bake bread . we bake cake at home .
the train stops at the station . the car stops at the light . the bus stops at the station . we drive the car to town .
we drive the bus to town . the train goes to town . the bus goes to town . the car goes to town .""".split()

KNOWN = {"cat": "animal", "dog": "animal", "bread": "food", "soup": "food", "train": "vehicle", "car": "vehicle"}
KINDS = ["animal", "food", "vehicle"]
ASKED = ["horse", "cheese", "cake", "bus"]


def word_vectors(words):
    """Map each word to H numbers: how often each other word is at most two places away; common words count less."""
    vocabulary = sorted(set(words))
    counts = np.zeros((len(vocabulary), len(vocabulary)))
    for i, word in enumerate(words):
        for other in words[max(0, i - 2) : i] + words[i + 1 : i + 3]:
            counts[vocabulary.index(word), vocabulary.index(other)] += 1
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    surprise = np.log(np.maximum(counts, 1e-9) / expected).clip(min=0)  # 0: no more often than by chance
    return dict(zip(vocabulary, surprise, strict=True))


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention_weights(q, k, may_attend, is_scaled=True):  # [T, H], [S, H], bool [T, S] -> [T, S]
    scores = q @ k.T
    if is_scaled:
        scores = scores / np.sqrt(q.shape[-1])
    weights = softmax(np.where(may_attend, scores, -1e30))
    return np.where(may_attend, weights, 0)


def attention(q, k, v, may_attend):  # [T, H], [S, H], [S, C], bool [T, S] -> [T, C]
    return attention_weights(q, k, may_attend) @ v


def attention_in_loops(q, k, v, may_attend):
    """The same, one number at a time."""
    out = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        open_keys = [s for s in range(len(k)) if may_attend[t, s]]
        scores = [sum(a * b for a, b in zip(q[t], k[s], strict=True)) / len(q[t]) ** 0.5 for s in open_keys]
        total = sum(np.exp(score) for score in scores)
        for s, score in zip(open_keys, scores, strict=True):
            out[t] += np.exp(score) / total * v[s]
    return out


def table(title, rows, columns, numbers):
    print(f"\n{title}\n{'':8}" + "".join(f"{column:>9}" for column in columns))
    for row, line in zip(rows, numbers, strict=True):
        print(f"{row:8}" + "".join(f"{number:9.2f}" for number in line))


if __name__ == "__main__":
    vectors = word_vectors(SENTENCES)
    q = np.array([vectors[word] for word in ASKED])  # [T, H]
    k = np.array([vectors[word] for word in KNOWN])  # [S, H]
    v = np.array([[kind == other for other in KINDS] for kind in KNOWN.values()], float)  # [S, 3]
    T, S, H = len(q), len(k), q.shape[1]
    print(f"T = {T} queries, S = {S} keys and values, H = {H} numbers in a vector")

    may_attend = np.ones((T, S), bool)
    weights = attention_weights(q, k, may_attend)
    out = attention(q, k, v, may_attend)
    table("weights: whom each word asks", ASKED, KNOWN, weights)
    table("answers: the mean of the values", ASKED, KINDS, out)
    table("weights without the root of H", ASKED, KNOWN, attention_weights(q, k, may_attend, is_scaled=False))

    may_attend[0, :2] = False  # the horse may not look at cat and dog
    may_attend[3] = False  # the bus may look at nothing
    table("answers with closed keys", ASKED, KINDS, attention(q, k, v, may_attend))

    assert [KINDS[i] for i in out.argmax(axis=1)] == ["animal", "food", "food", "vehicle"]
    assert np.allclose(weights.sum(axis=1), 1) and np.allclose(out.sum(axis=1), 1)
    assert np.allclose(attention(q, k, v, may_attend), attention_in_loops(q, k, v, may_attend))
    assert (attention(q, k, v, may_attend)[3] == 0).all()
    print("\nequal to the formula in loops, and every row of weights sums to 1")
