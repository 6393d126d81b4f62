"""Example 06: a GPT in NumPy, trained with a gradient written by hand.

    python lessons/examples/example_06_mini_gpt.py

It learns from little stories such as "anna gives bob the ball . bob thanks anna for the ball ." Who gives what to whom
is drawn at random, and the second sentence follows from the first. So the smallest possible loss, the entropy of the
text, is known. To see: the loss goes down almost to that floor, which takes attention (a word must be looked up six
words back); one head has learned to look there; and the stories that it invents are right.

Letters: B rows, T tokens, N heads, H width of a head, D width of the model, F feed-forward width, V words, L layers.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for products this small, a second thread only costs time
import numpy as np  # noqa: E402

NAMES, THINGS = "anna bob carl dora emil fay gus hana".split(), "ball book coat drum egg fish".split()
VERBS = {"gives": ("thanks", 0.6), "sells": ("pays", 0.3), "shows": ("asks", 0.1)}  # verb: its answer, and how often
WORDS = [*NAMES, *THINGS, *VERBS, *(answer for answer, _ in VERBS.values()), "the", "for", "."]
LENGTH = 13  # words of a story


def story(random):
    """Words of a random story, and its surprisal: minus the log of its probability, in nats."""
    giver, taker = random.choice(NAMES, 2, replace=False)
    thing, verb = random.choice(THINGS), random.choice(list(VERBS), p=[p for _, p in VERBS.values()])
    answer, p = VERBS[verb]
    text = f"{giver} {verb} {taker} the {thing} . {taker} {answer} {giver} for the {thing} ."
    return text.split(), np.log(len(NAMES) * (len(NAMES) - 1) * len(THINGS) / p)


def draw(random, B):
    """Tokens [B, T + 1] of three stories a row, after a full stop; and their surprisal per predicted word."""
    rows = [[story(random) for _ in range(3)] for _ in range(B)]
    tokens = [[WORDS.index(word) for words, _ in row for word in words] for row in rows]
    tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=WORDS.index("."))
    return tokens, np.sum([nats for row in rows for _, nats in row]) / tokens[:, 1:].size


def init(random, V, T, D, L):
    """Small random parameters. Those of the blocks have a first axis for the layer."""
    shapes = {"tokens": (V, D), "positions": (T, D), "up": (L, D, 4 * D), "down": (L, 4 * D, D)}
    shapes |= {name: (L, D, D) for name in ("query", "key", "value", "out")}
    p = {name: 0.08 * random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return p | {"norm_1": np.ones((L, D), np.float32), "norm_2": np.ones((L, D), np.float32), "norm": np.ones(D, "f")}


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, scale):
    """LayerNorm without a bias: y = (x - mean) / root of the variance, times a scale; and what its gradient needs."""
    y = x - x.mean(-1, keepdims=True)
    root = np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    return y / root * scale, (y / root, root, scale)


def norm_back(d, saved):
    """Gradients of x and of the scale, from d, that of the output."""
    y, root, scale = saved
    dy = d * scale
    return (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)) / root, (d * y).sum((0, 1))


def linear_back(d, x, w):
    """Gradients of x and of w, from d, that of x @ w."""
    return d @ w.T, x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1])


def split(x, N):  # [B, T, D] -> [B, N, T, H]
    return x.reshape(*x.shape[:2], N, -1).swapaxes(1, 2)


def join(x):  # [B, N, T, H] -> [B, T, D]
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def forward(p, tokens, N):
    """Logits [B, T, V] of each next word, and all that the gradient needs."""
    T = tokens.shape[1]
    x = p["tokens"][tokens] + p["positions"][:T]
    past = np.tril(np.ones((T, T), bool))
    saved = []
    for i in range(len(p["query"])):
        y, norm_1 = norm(x, p["norm_1"][i])
        q, k, v = (split(y @ p[name][i], N) for name in ("query", "key", "value"))
        a = softmax(np.where(past, q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), -1e30))  # [B, N, T, T]
        heads = join(a @ v)
        x = x + heads @ p["out"][i]
        z, norm_2 = norm(x, p["norm_2"][i])
        hidden = np.maximum(z @ p["up"][i], 0)
        x = x + hidden @ p["down"][i]
        saved.append((y, norm_1, q, k, v, a, heads, z, norm_2, hidden))
    x, last = norm(x, p["norm"])
    return x @ p["tokens"].T, (saved, x, last)


def backward(p, tokens, d_logits, everything):
    """Gradients of all parameters: the lines of `forward` from the last to the first."""
    saved, x, last = everything
    g = {name: np.zeros_like(value) for name, value in p.items()}
    d, d_output = linear_back(d_logits, x, p["tokens"].T)
    d, g["norm"] = norm_back(d, last)
    for i in reversed(range(len(saved))):
        y, norm_1, q, k, v, a, heads, z, norm_2, hidden = saved[i]
        dz, g["down"][i] = linear_back(d, hidden, p["down"][i])
        dz, g["up"][i] = linear_back(dz * (hidden > 0), z, p["up"][i])
        dz, g["norm_2"][i] = norm_back(dz, norm_2)
        d = d + dz  # the residual: both ways lead back to x
        dh, g["out"][i] = linear_back(d, heads, p["out"][i])
        dh = split(dh, q.shape[1])
        da = dh @ v.swapaxes(2, 3)
        ds = a * (da - (da * a).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])  # softmax and 1 / sqrt(H)
        dy = 0
        for name, dw in ("query", ds @ k), ("key", ds.swapaxes(2, 3) @ q), ("value", a.swapaxes(2, 3) @ dh):
            part, g[name][i] = linear_back(join(dw), y, p[name][i])
            dy = dy + part
        dy, g["norm_1"][i] = norm_back(dy, norm_1)
        d = d + dy
    g["positions"][: d.shape[1]] = d.sum(0)
    np.add.at(g["tokens"], tokens, d)
    g["tokens"] += d_output.T  # the table is used twice: to read words and to write them
    return g


def loss_and_gradient(p, tokens, N):
    """Mean of -log p(next word), and its gradient. tokens: [B, T + 1]."""
    x, targets = tokens[:, :-1], tokens[:, 1:, None]
    logits, everything = forward(p, x, N)
    probabilities = softmax(logits)
    loss = -np.log(np.take_along_axis(probabilities, targets, 2)).mean()
    d_logits = (probabilities - (np.arange(logits.shape[-1]) == targets)) / targets.size
    return loss, backward(p, x, d_logits.astype(np.float32), everything)


def adam(p, g, m, v, step, lr):
    """One step of Adam, in place: m and v are running means of the gradient and of its square."""
    for name in p:
        m[name] += 0.1 * (g[name] - m[name])
        v[name] += 0.01 * (g[name] ** 2 - v[name])
        p[name] -= lr * (m[name] / (1 - 0.9**step)) / (np.sqrt(v[name] / (1 - 0.99**step)) + 1e-8)


def write(p, random, N, rows, num):
    """Sample `num` words in each row: choose one, append it, read again."""
    tokens = np.full((rows, 1), WORDS.index("."))
    for _ in range(num):
        logits = forward(p, tokens, N)[0][:, -1]
        gumbel = random.gumbel(size=logits.shape)  # the largest sum is a draw from the softmax
        tokens = np.concatenate([tokens, (logits + gumbel).argmax(-1)[:, None]], 1)
    return [" ".join(WORDS[i] for i in row[1:]) for row in tokens]


def is_right(text):
    """Whether the second sentence of a story follows from the first."""
    giver, verb, taker, _, thing, *rest = text.split()
    answer = VERBS.get(verb, ("", 0))[0]
    return giver != taker and rest == f". {taker} {answer} {giver} for the {thing} .".split()


if __name__ == "__main__":
    random = np.random.default_rng(0)
    steps, N = 800, 4
    p = init(random, V=len(WORDS), T=3 * LENGTH, D=32, L=2)
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in "mv")
    print(f"{sum(value.size for value in p.values()):,} parameters; log V = {np.log(len(WORDS)):.3f} nats")
    for step in range(1, steps + 1):
        loss, g = loss_and_gradient(p, draw(random, 16)[0], N)
        adam(p, g, m, v, step, lr=5e-3 * min(1, step / 20) * (1 - step / (steps + 1)))
        if step in (1, 10, 50, 100, 200, 400, 800):
            print(f"step {step:4d}  loss {loss:.3f}")

    tokens, floor = draw(np.random.default_rng(1), 200)
    loss, _ = loss_and_gradient(p, tokens, N)
    print(f"new stories: {loss:.4f} nats a word; the floor is {floor:.4f}; the gap is {loss - floor:.4f}")
    assert 0 < loss - floor < 0.05  # never below: no model can be, on average

    words = ". anna gives bob the ball . bob thanks".split()  # the next word was the second one
    saved = forward(p, np.array([[WORDS.index(word) for word in words]]), N)[1][0]
    a = np.stack([layer[5][0, :, -1] for layer in saved])  # [L, N, T]: where each head looks from "thanks"
    layer, head = np.unravel_index(a[:, :, 1].argmax(), a.shape[:2])
    print(f"{' '.join(words[1:])} ...: head {head} of layer {layer} puts {a[layer, head, 1]:.2f} on 'anna'")

    stories = write(p, random, N, rows=200, num=LENGTH)
    print(*stories[:5], sep="\n")
    share = np.mean([is_right(text) for text in stories])
    print(f"{share:.0%} of 200 invented stories are right")
    assert share > 0.8  # most of the others give something to themselves
