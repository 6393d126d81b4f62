"""Example 03: multi-head attention with eight heads, in NumPy.

Run it:  python lessons/examples/example_03_multi_head.py

What to see: eight heads read the same sentence, and each ranks the words in its own way. The output of the layer is the
sum of what the heads write. Taking one head away changes the output by exactly what that head wrote. And a reshape
without a swap, the classic mistake, gives the right shape and other numbers. All matrices are random: this shows how
heads compute, not what they learn (lesson 03 trains some).
"""

import numpy as np


def softmax(x):
    """Softmax over the last axis."""
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def split(x, num_heads):
    """Cut vectors into heads: [T, D] -> [N, T, H]."""
    T, D = x.shape
    return x.reshape(T, num_heads, D // num_heads).swapaxes(0, 1)


def join(heads):
    """Put heads side by side: [N, T, H] -> [T, D]."""
    N, T, H = heads.shape
    return heads.swapaxes(0, 1).reshape(T, N * H)


def attend(q, k, v):
    """Scaled dot-product attention in all heads at once; returns the heads [N, T, H] and their weights [N, T, T]."""
    weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
    return weights @ v, weights


def multi_head(x, W_q, W_k, W_v, W_o, num_heads):
    """Multi-head self-attention; returns the output [T, D], the heads and their weights."""
    q, k, v = (split(x @ W, num_heads) for W in (W_q, W_k, W_v))
    heads, weights = attend(q, k, v)
    return join(heads) @ W_o, heads, weights


def by_formula(x, W_q, W_k, W_v, W_o, num_heads):
    """The paper's formula, with a loop over heads, queries and keys, and no reshape at all."""
    T, D = x.shape
    H = D // num_heads
    joined = np.zeros((T, D))
    for n in range(num_heads):
        columns = slice(n * H, (n + 1) * H)
        q, k, v = x @ W_q[:, columns], x @ W_k[:, columns], x @ W_v[:, columns]
        for t in range(T):
            exp = np.array([np.exp(q[t] @ k[s] / H**0.5) for s in range(T)])
            joined[t, columns] = sum(exp[s] * v[s] for s in range(T)) / exp.sum()
    return joined @ W_o


def main():
    """Eight heads on one sentence."""
    words = "the cat that the dog chased slept".split()
    D, N = 64, 8
    H = D // N
    random = np.random.default_rng(0)
    vectors = {word: random.normal(size=D) for word in dict.fromkeys(words)}
    x = np.array([vectors[word] for word in words])  # [T, D]
    matrices = random.normal(size=(4, D, D)) / np.sqrt(D)
    out, heads, weights = multi_head(x, *matrices, N)
    print(f"{len(words)} words of width {D}, {N} heads of width {H}: weights {weights.shape}, output {out.shape}\n")

    query = words.index("slept")
    print("For the query 'slept', each head looks most at:")
    for n in range(N):
        best = np.argsort(-weights[n, query])[:3]
        print(f"  head {n}: " + ", ".join(f"{words[s]} ({s}) {weights[n, query, s]:.2f}" for s in best))
    first, second = (words.index("the"), 3)
    print(f"\nBoth 'the' get the same weight in every head: {np.allclose(weights[..., first], weights[..., second])}.")
    print("Their vectors are equal, and nothing says who stands where. That is the subject of example 04.")

    contributions = heads @ matrices[3].reshape(N, H, D)  # [N, T, D]: what each head writes
    print("\nLength of what each head writes for 'slept':")
    print("  " + "  ".join(f"{np.linalg.norm(contribution[query]):.2f}" for contribution in contributions))
    without = heads.copy()
    without[5] = 0
    lost = out - join(without) @ matrices[3]
    print(f"without head 5 the output changes by {np.linalg.norm(lost[query]):.2f}: exactly what head 5 wrote")

    wrong_heads, _ = attend(*((x @ W).reshape(N, len(words), H) for W in matrices[:3]))
    wrong = wrong_heads.reshape(len(words), D) @ matrices[3]
    print(f"\nreshape without a swap: the right shape, {wrong.shape}, and wrong by {np.abs(wrong - out).max():.2f}")

    assert np.allclose(out, by_formula(x, *matrices, N))
    assert np.allclose(weights.sum(axis=-1), 1)
    assert np.allclose(contributions.sum(axis=0), out)
    assert np.allclose(lost, contributions[5])
    assert (join(split(x, N)) == x).all()
    assert np.abs(wrong - out).max() > 0.1


if __name__ == "__main__":
    main()
