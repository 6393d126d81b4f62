"""Example 05: the Transformer block in NumPy, with the norm after the sum (2017) and with the norm before (2020).

    python lessons/examples/example_05_transformer_block.py

A block adds two things to each word's vector: what attention collects from other words, and what the feed-forward
layer makes of the vector itself. The first paper normalizes after each sum, as LayerNorm(x + Sublayer(x)); models since
GPT-2 normalize before each part, as x + Sublayer(LayerNorm(x)). To see: after 24 blocks of the first kind almost
nothing of a word is left in its vector; in blocks of the second kind a straight way leads through them all.

Letters: T words, D width, N heads, H = D / N width of a head, F = 4 D feed-forward width.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for products this small, a second thread only costs time
import numpy as np  # noqa: E402


def norm(x):
    """LayerNorm: each vector gets mean 0 and variance 1. Its scale and bias are left out: they begin as 1 and 0."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, p, may_attend):
    """Multi-head attention: [T, D] -> [T, D]. p["query"] and the others: [D, N, H]; p["out"]: [N, H, D]."""
    q, k, v = (np.einsum("td,dnh->nth", x, p[name]) for name in ("query", "key", "value"))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])  # [N, T, T]
    weights = softmax(np.where(may_attend, scores, -1e30))
    return np.einsum("nth,nhd->td", weights @ v, p["out"])


def feed_forward(x, p):
    """Two linear layers with a ReLU between them, for each word alone: [T, D] -> [T, D]."""
    return np.maximum(x @ p["up"], 0) @ p["down"]


def post_norm_block(x, p, may_attend):
    """Vaswani et al. 2017, section 3.1: LayerNorm(x + Sublayer(x)), twice."""
    x = norm(x + attention(x, p, may_attend))
    return norm(x + feed_forward(x, p))


def pre_norm_block(x, p, may_attend):
    """Xiong et al. 2020, figure 1 (b): x + Sublayer(LayerNorm(x)), twice."""
    x = x + attention(norm(x), p, may_attend)
    return x + feed_forward(norm(x), p)


def random_parameters(random, D, N):
    """Random kernels which keep the size of what goes through them."""
    H, F = D // N, 4 * D
    shapes = {name: (D, N, H) for name in ("query", "key", "value")}
    shapes |= {"out": (N, H, D), "up": (D, F), "down": (F, D)}
    inputs = {"out": D, "down": F / 2}  # ReLU lets one half through
    return {name: random.normal(size=shape) / np.sqrt(inputs.get(name, D)) for name, shape in shapes.items()}


def correlation(a, b):
    """Mean correlation of the vectors in a and b, word by word: 1, the same direction; 0, nothing in common."""
    return np.mean(norm(a) * norm(b))


if __name__ == "__main__":
    words = "the cat sat on the mat".split()
    random = np.random.default_rng(0)
    T, D, N = len(words), 256, 8
    table = {word: random.normal(size=D) for word in sorted(set(words))}
    x = np.array([table[word] for word in words])  # [T, D]; no positions, so the two "the" are alike
    everywhere, past = np.ones((T, T), bool), np.tril(np.ones((T, T), bool))

    p = random_parameters(random, D, N)
    after = pre_norm_block(x, p, past)
    print("One pre-norm block, each word seeing itself and the past:")
    for t, word in enumerate(words):
        change = np.linalg.norm(after[t] - x[t]) / np.linalg.norm(x[t])
        print(f"  {word:4s} is changed by {change:.2f} of its own size")
    print(
        "The two 'the' were alike; now they differ by",
        f"{np.linalg.norm(after[0] - after[4]):.2f}",
        "(their pasts differ)",
    )

    print("\nHow much of a word is left, and how large its vector is:")
    print("  blocks   post-norm          pre-norm")
    left = {}
    post = pre = x
    for depth in range(1, 25):
        p = random_parameters(random, D, N)
        post, pre = post_norm_block(post, p, past), pre_norm_block(pre, p, past)
        left[depth] = correlation(post, x), correlation(pre, x)
        if depth in (1, 2, 4, 8, 16, 24):
            of_post, of_pre = left[depth]
            print(f"  {depth:6d}   {of_post:5.2f}  size {post.std():.1f}   {of_pre:5.2f}  size {pre.std():.1f}")

    p = random_parameters(random, D, N)
    order = random.permutation(T)
    for block in (post_norm_block, pre_norm_block):
        np.testing.assert_allclose(block(x[order], p, everywhere), block(x, p, everywhere)[order])  # a set, no order
        np.testing.assert_allclose(block(x[:3], p, past[:3, :3]), block(x, p, past)[:3])  # later words do not count
    np.testing.assert_allclose(post_norm_block(x, p, past).var(-1), 1, atol=1e-4)  # a post-norm block ends in a norm
    silent = p | {"out": 0 * p["out"], "down": 0 * p["down"]}
    np.testing.assert_array_equal(pre_norm_block(x, silent, past), x)  # nothing added: the identity
    assert abs(left[24][0]) < 0.1 < 0.12 < left[24][1]
    print("\nBoth blocks passed: order, causality, size, and the identity for pre-norm.")
