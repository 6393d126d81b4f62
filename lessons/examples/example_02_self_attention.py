"""Self-attention in NumPy: whom does "it" mean?

    the animal did not cross the street because it was too tired
    the animal did not cross the street because it was too wide

One word decides whether "it" is the animal or the street, and that word comes *after* "it". The vectors and the three
matrices are written by hand, so that every number can be followed. See in the output:
- without a mask, "it" reads the animal in the first sentence and the street in the second; two steps are needed: first
  "it" reads what is said of it (tired, wide), then it looks for a noun of which this can be said;
- with the causal mask, both rows of "it" are equal: when a GPT reads "it", the last word does not exist yet;
- each row sums to 1, also where padding is closed.
It shows that two layers are enough for this, not that a trained model does it in this way.
"""

import numpy as np

SENTENCES = [
    "the animal did not cross the street because it was too tired".split(),
    "the animal did not cross the street because it was too wide".split(),
]
# What a word is, in eight numbers, 1 or 0.
FEATURES = ["noun", "pronoun", "adjective", "living", "place", "says living", "says place", "other"]
MEANINGS = {
    "animal": ["noun", "living"],
    "street": ["noun", "place"],
    "it": ["pronoun"],
    "tired": ["adjective", "says living"],
    "wide": ["adjective", "says place"],
}


def vector(word):  # -> [D]
    return np.array([float(feature in MEANINGS.get(word, ["other"])) for feature in FEATURES])


def matrix(*links):
    """Matrix [D, D] with numbers at (from, to) and zeros elsewhere."""
    W = np.zeros((len(FEATURES), len(FEATURES)))
    for source, target, number in links:
        W[FEATURES.index(source), FEATURES.index(target)] = number
    return W


IDENTITY = np.eye(len(FEATURES))
# Layer 1: a pronoun looks for adjectives, and takes over what they say. All other words look for nothing special.
LAYER_1 = matrix(("pronoun", "adjective", 20.0)), IDENTITY, matrix(
    ("says living", "says living", 1.0), ("says place", "says place", 1.0)
)  # fmt: skip
# Layer 2: who is said to be living looks for the living, who is said to be a place looks for places.
LAYER_2 = matrix(("says living", "living", 12.0), ("says place", "place", 12.0)), IDENTITY, IDENTITY


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def self_attention(x, w_q, w_k, w_v, may_attend):  # [B, T, D], [D, H] three times, bool [B, T, T]
    q, k, v = x @ w_q, x @ w_k, x @ w_v  # all three from the same x
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])  # [B, T, T]
    weights = softmax(np.where(may_attend, scores, -1e30))
    weights = np.where(may_attend, weights, 0)
    return weights @ v, weights


def read(x, may_attend):
    """Two layers; each adds what it read to what was there. Returns the weights of the second."""
    out, _ = self_attention(x, *LAYER_1, may_attend)
    _, weights = self_attention(x + out, *LAYER_2, may_attend)
    return weights


def print_row(name, words, row):
    print(f"\n{name}: weights of 'it' (the others: 0.01 or less)")
    for word, weight in zip(words, row, strict=True):
        if weight > 0.015:
            print(f"    {word:8} {weight:.2f} {'#' * round(20 * weight)}")


if __name__ == "__main__":
    x = np.array([[vector(word) for word in words] for words in SENTENCES])  # [B, T, D]
    B, T, D = x.shape
    it, animal, street = (SENTENCES[0].index(word) for word in ("it", "animal", "street"))

    everything = np.ones((B, T, T), bool)
    weights = read(x, everything)
    for words, row in zip(SENTENCES, weights[:, it], strict=True):
        print_row(f"... too {words[-1]}, no mask", words, row)

    causal = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    causal_weights = read(x, causal)
    print_row("either sentence, causal mask", SENTENCES[0], causal_weights[0, it])

    # Padding: a short sentence in the same array. Its two last slots are closed columns.
    is_token = np.ones((B, T), bool)
    is_token[1, -2:] = False
    padded_weights = read(x, everything & is_token[:, None, :])
    print("\nwith 'too wide' closed as padding, 'it' gives animal and street", end=" ")
    print(padded_weights[1, it, [animal, street]].round(2))

    assert weights[0, it].argmax() == animal and weights[1, it].argmax() == street
    assert np.allclose(causal_weights[0, it], causal_weights[1, it])
    assert (causal_weights[:, it, it + 1 :] == 0).all() and (padded_weights[1, :, -2:] == 0).all()
    for found in (weights, causal_weights, padded_weights):
        assert np.allclose(found.sum(axis=-1), 1)
    # Self-attention by hand, for one word: the same numbers.
    out, _ = self_attention(x, *LAYER_1, causal)
    w_q, w_k, w_v = LAYER_1
    by_hand = softmax(x[0, : it + 1] @ w_k @ (x[0, it] @ w_q) / np.sqrt(D)) @ (x[0, : it + 1] @ w_v)
    assert np.allclose(out[0, it], by_hand)
    print("equal to the formula for one word, rows sum to 1, nobody reads what is closed")
