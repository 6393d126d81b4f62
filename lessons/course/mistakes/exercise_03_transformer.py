"""Mistakes known to the grader of exercise 03: the order of the parts, and the five classes of a GPT."""

# ruff: noqa: E501
import numpy as np

from course.grading import Exercise, Mistake, Part

# Twins: NumPy. A switch makes one mistake.

RIGHT_ORDER = [4, 10, 7, 12, 2, 6, 9, 1, 11, 3, 8, 5]


def order(*, change="none"):
    """The right order, or one that a mistake makes of it."""
    changed = {
        "none": RIGHT_ORDER,
        "positions first": [10, 4, *RIGHT_ORDER[2:]],
        "softmax, then mask": [4, 10, 7, 12, 6, 2, 9, 1, 11, 3, 8, 5],
        "mask before scores": [4, 10, 7, 2, 12, 6, 9, 1, 11, 3, 8, 5],
        "values before softmax": [4, 10, 7, 12, 2, 9, 6, 1, 11, 3, 8, 5],
        "feed-forward first": [4, 10, 11, 3, 8, 7, 12, 2, 6, 9, 1, 5],
        "sums at the end": [4, 10, 7, 12, 2, 6, 9, 11, 3, 1, 8, 5],
        "sums swapped": [4, 10, 7, 12, 2, 6, 9, 8, 11, 3, 1, 5],
        "first linear layer before the sum": [4, 10, 7, 12, 2, 6, 9, 11, 1, 3, 8, 5],
        "places": [8, 5, 10, 1, 12, 6, 3, 11, 7, 2, 9, 4],
        "positions last": [4, 7, 12, 2, 6, 9, 1, 11, 3, 8, 10, 5],
        "backwards": RIGHT_ORDER[::-1],
        "linear layers swapped": [4, 10, 7, 12, 2, 6, 9, 1, 3, 11, 8, 5],
        "output before the last sum": [4, 10, 7, 12, 2, 6, 9, 1, 11, 3, 5, 8],
    }
    return list(changed[change])


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attend(q, k, v, width, *, scale="root", mask="past", axis="keys", values="values"):
    """Causal attention over the last two axes. `width` is D, which a wrong scale may take."""
    H = q.shape[-1]
    T = q.shape[-2]
    if values == "swapped":
        k, v = v, k
    if values == "keys":
        v = k
    if values == "exchanged":
        q, k = k, q
    if values == "queries":
        k = q
    divisors = {
        "none": 1.0,
        "H": H,
        "root D": np.sqrt(width),
        "times": H**-0.5,
        "root T": np.sqrt(T),
        "whole": int(H**0.5),
    }
    divisors |= {"root N": np.sqrt(q.shape[-3]), "root": np.sqrt(H)}
    divisor = divisors[scale]
    scores = q @ k.swapaxes(-1, -2) / divisor
    past = {"own hidden": np.tril(np.ones((T, T)), -1), "next seen": np.tril(np.ones((T, T)), 1)}.get(
        mask, np.tril(np.ones((T, T)))
    ) > 0
    past = past.T if mask == "future" else past
    fill = 0.0 if mask == "zero before" else -np.inf if mask == "own hidden, NaN" else -1e30
    if mask == "own hidden, NaN":
        past = np.tril(np.ones((T, T)), -1) > 0
    masked = scores if mask in ("none", "zero after") else np.where(past, scores, fill)
    if axis == "none":
        return np.where(past, scores, 0) @ v
    weights = softmax(masked, {"queries": -2, "heads": -3}.get(axis, -1))
    weights = np.where(past, weights, 0) if mask == "zero after" else weights
    return v + weights @ v if values == "added" else weights @ v


def self_attention(params, x, **switches):
    q, k, v = (x @ params[name]["kernel"] for name in ("query", "key", "value"))
    return attend(q, k, v, x.shape[-1], **switches)


def multi_head(params, x, *, split="swap", join="swap", out="projected", heads="given", **switches):
    B, T, D = x.shape
    N = params_heads(params)
    N = 1 if heads == "one" else N

    def split_heads(y):
        if split == "no swap":
            return y.reshape(B, N, T, D // N)
        if split == "interleaved":
            return y.reshape(B, T, D // N, N).transpose(0, 3, 1, 2)
        return y.reshape(B, T, N, D // N).swapaxes(1, 2)

    q, k, v = (split_heads(x @ params[name]["kernel"]) for name in ("query", "key", "value"))
    y = attend(q, k, v, D, **switches)  # [B, N, T, H]
    if join == "interleaved":
        y = y.transpose(0, 2, 3, 1).reshape(B, T, D)
        return y if out == "none" else y @ params["out"]["kernel"]
    y = y.reshape(B, T, D) if join == "no swap" else y.swapaxes(1, 2).reshape(B, T, D)
    return y if out == "none" else y @ params["out"]["kernel"]


def params_heads(params):
    return int(params["num_heads"])


def gelu(x, kind="tanh"):
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "none":
        return x
    if kind == "tanh alone":
        return np.tanh(x)
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if kind == "leaky":
        return np.where(x > 0, x, 0.01 * x)
    if kind == "quick":
        return x / (1 + np.exp(-1.702 * x))
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "exact":
        from math import erf

        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def feed_forward(params, x, *, activation="tanh", where="middle", bias="both"):
    up, down = params["up"], params["down"]
    up_bias = 0 if bias in ("none", "down only") else up["bias"]
    down_bias = 0 if bias in ("none", "up only") else down["bias"]
    x = gelu(x) if where == "before" else x
    hidden = x @ up["kernel"] + up_bias
    hidden = hidden if where in ("before", "after") else gelu(hidden, activation)
    y = hidden @ down["kernel"] + down_bias
    y = gelu(y) if where in ("after", "twice") else y
    return x + y if where == "residual" else y


def layer_norm(x, p):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return y * p["scale"] + p["bias"]


def block(params, x, *, norms="pre", residual="both", parts="attention first", scale="root"):
    names = ("norm_1", "norm_2")
    names = {"shared": ("norm_1", "norm_1"), "exchanged": ("norm_2", "norm_1")}.get(norms, names)
    norm_1, norm_2 = (lambda y, name=name: layer_norm(y, params[name]) for name in names)

    def attention(y):
        return multi_head(params["attention"], y, scale=scale)

    def ffn(y):
        return feed_forward(params["feed_forward"], y)

    if norms == "post":
        x = norm_1(x + attention(x))
        return norm_2(x + ffn(x))
    if norms == "of output":
        x = x + norm_1(attention(x))
        return x + norm_2(ffn(x))
    if norms == "none":
        norm_1 = norm_2 = lambda y: y
    if norms == "second missing":
        norm_2 = lambda y: y  # noqa: E731
    if parts == "feed-forward first":
        x = x + ffn(norm_2(x))
        return x + attention(norm_1(x))
    if parts == "parallel":
        return x + attention(norm_1(x)) + ffn(norm_2(x))
    if residual == "of the norm":
        y = norm_1(x)
        x = y + attention(y)
        y = norm_2(x)
        return y + ffn(y)
    if residual == "first input":
        return x + ffn(norm_2(x + attention(norm_1(x))))
    y = attention(norm_1(x))
    x = y if residual in ("second only", "none") else x + y
    y = ffn(norm_2(x))
    return y if residual in ("first only", "none") else x + y


def gpt(params, tokens, *, positions="from 0", final="norm", scale=1.0, stack="in order", output="logits"):
    T = tokens.shape[1]
    table = params["tokens"]["embedding"]
    places = params["positions"]["embedding"]
    x = table[tokens] * (np.sqrt(table.shape[1]) if scale == "root D" else 1.0)
    L = sum(name.startswith("block_") for name in params)
    shift = {
        "backward": places[:T][::-1],
        "from 0": places[:T],
        "from 1": places[1 : T + 1],
        "none": 0.0,
        "by token": places[tokens % len(places)],
    }
    if positions == "multiplied":
        x = x * places[:T]
    elif positions != "at the end":
        x = x + shift["from 0" if positions == "in each block" else positions]
    order = {"backwards": range(L)[::-1], "first again": [0] * L, "one": [0], "none": []}.get(stack, range(L))
    for turn, i in enumerate(order):
        x = x + places[:T] if positions == "in each block" and turn else x
        x = block(params[f"block_{i}"], x)
    x = x + places[:T] if positions == "at the end" else x
    x = layer_norm(x, params["norm"]) if final == "norm" else x
    logits = x @ table.T
    if output == "softmax":
        return softmax(logits)
    if output == "log softmax":
        return np.log(softmax(logits))
    if output == "divided":
        return logits / np.sqrt(table.shape[1])
    return logits[:, -1] if output == "last" else logits


# Cases: from tiny to large; sizes are different, so that no axis can be mistaken for another.


def draw(random, *shape, std=1.0):
    return (std * random.normal(size=shape)).astype(np.float32)


def dense(random, num_in, num_out, bias=False):
    kernel = {"kernel": draw(random, num_in, num_out, std=1.3 / np.sqrt(num_in))}
    return kernel | ({"bias": draw(random, num_out, std=0.5)} if bias else {})


def attention_params(random, D, H, names):
    return {name: dense(random, D, H) for name in names}


def self_attention_cases():
    random = np.random.default_rng(0)
    for label, B, T, D, H in (("one token", 1, 1, 1, 1), ("three tokens", 1, 3, 2, 2), ("two texts", 2, 5, 7, 5)):
        params = attention_params(random, D, H, ("query", "key", "value"))
        yield label, (params, draw(random, B, T, D, std=2.0))


def multi_head_cases():
    random = np.random.default_rng(1)
    for label, B, T, N, H in (("one token", 1, 1, 1, 2), ("two heads", 1, 3, 2, 2), ("two texts", 2, 5, 3, 5)):
        params = attention_params(random, N * H, N * H, ("query", "key", "value", "out"))
        yield label, (params | {"num_heads": np.int64(N)}, draw(random, B, T, N * H, std=2.0))


def feed_forward_params(random, D, F):
    return {"up": dense(random, D, F, bias=True), "down": dense(random, F, D, bias=True)}


def feed_forward_cases():
    random = np.random.default_rng(2)
    for label, B, T, D, F in (("one token", 1, 1, 1, 2), ("two texts", 2, 3, 4, 7), ("large", 1, 3, 5, 11)):
        std = 3.0 if label == "large" else 1.0
        yield label, (feed_forward_params(random, D, F), draw(random, B, T, D, std=std))


def norm_params(random, D):
    return {"scale": 1 + draw(random, D, std=0.3), "bias": draw(random, D, std=0.3)}


def block_params(random, N, H):
    D = N * H
    attention = attention_params(random, D, D, ("query", "key", "value", "out")) | {"num_heads": np.int64(N)}
    norms = {name: norm_params(random, D) for name in ("norm_1", "norm_2")}
    return norms | {"attention": attention, "feed_forward": feed_forward_params(random, D, 4 * D)}


def block_cases():
    random = np.random.default_rng(3)
    for label, B, T, N, H in (("one token", 1, 1, 1, 2), ("two texts", 2, 5, 2, 3)):
        yield label, (block_params(random, N, H), draw(random, B, T, N * H, std=2.0))


def gpt_params(random, V, max_len, L, N, H):
    D = N * H
    table = {"tokens": {"embedding": draw(random, V, D)}, "positions": {"embedding": draw(random, max_len, D)}}
    blocks = {f"block_{i}": block_params(random, N, H) for i in range(L)}
    return table | blocks | {"norm": norm_params(random, D)}


def gpt_cases():
    random = np.random.default_rng(4)
    for label, B, T, V, max_len, L, N, H in (("one token", 1, 1, 3, 4, 1, 1, 2), ("two texts", 2, 5, 13, 7, 2, 2, 3)):
        yield label, (gpt_params(random, V, max_len, L, N, H), random.integers(0, V, (B, T)))


# How an answer is used: its class with the given parameters, by JAX.


def given(params):
    """Parameters for Flax: without the number of heads, which is a setting and no array."""
    if not isinstance(params, dict):
        return params
    return {name: given(value) for name, value in params.items() if name != "num_heads"}


def apply(module, params, x):
    import jax

    return np.asarray(jax.jit(module.apply)({"params": given(params)}, x))


def call_self_attention(answer, params, x):
    return apply(answer(head_dim=params["query"]["kernel"].shape[1]), params, x)


def call_multi_head(answer, params, x):
    return apply(answer(num_heads=params_heads(params)), params, x)


def call_feed_forward(answer, params, x):
    return apply(answer(hidden_dim=len(params["up"]["bias"])), params, x)


def call_block(answer, params, x):
    return apply(answer(num_heads=params_heads(params["attention"])), params, x)


def make_gpt(answer, params):
    (V, D), max_len = params["tokens"]["embedding"].shape, len(params["positions"]["embedding"])
    L = sum(name.startswith("block_") for name in params)
    N = params_heads(params["block_0"]["attention"])
    return answer(vocab_size=V, max_len=max_len, num_layers=L, d_model=D, num_heads=N)


def call_gpt(answer, params, tokens):
    return apply(make_gpt(answer, params), params, tokens)


def is_causal_lm(answer):
    """The laws of a causal language model; the GPT of the exercise reads no padding, so it is taken away before."""
    import jax

    from transformer_jax import testing

    params = gpt_params(np.random.default_rng(5), V=11, max_len=11, L=1, N=2, H=2)
    model = make_gpt(answer, params)
    compiled = jax.jit(model.apply)

    def logits(tokens, is_token):
        tokens, is_token = np.asarray(tokens), np.asarray(is_token)
        order = np.argsort(~is_token, axis=1, kind="stable")  # tokens first; whatever comes after them is not seen
        padded = np.zeros((3, 11), int)
        padded[: len(tokens), : tokens.shape[1]] = np.take_along_axis(tokens, order, 1)
        out = np.asarray(compiled({"params": given(params)}, padded))[: len(tokens), : tokens.shape[1]]
        return np.take_along_axis(out, np.argsort(order, axis=1)[:, :, None], 1)

    testing.check_causal_lm(logits, vocab_size=11, has_positions=True)


def mistakes(switch, *rows, prefix):
    return tuple(Mistake(f"{prefix}: {name}", hint, {switch: value}) for value, name, hint in rows)


ORDER_MISTAKES = mistakes(
    "change",
    ("positions first", "position before token", "There must be a vector before another can be added to it: begin with the table."),
    ("softmax, then mask", "mask after the softmax", "Masked after the softmax, the rest no longer sums to 1. A mask belongs on the scores."),
    ("mask before scores", "mask before there are scores", "A mask hides scores. Which part makes them?"),
    ("values before softmax", "values averaged before the softmax", "The mean of the values needs weights that sum to 1. Which part makes weights of scores?"),
    ("feed-forward first", "feed-forward before attention", "In a block tokens first talk with each other; then each computes for itself."),
    ("sums at the end", "both sums at the end", "The feed-forward part reads the stream after attention was added (both sums at the end is a parallel block, such as GPT-J's)."),
    ("places", "the place of each part", "The first number is the part that comes first, not the place of part 1."),
    ("positions last", "positions after the block", "Attention needs to know where the tokens are: positions come in before the block."),
    ("sums swapped", "sums exchanged", "Each result is added as soon as it is there: first that of attention."),
    ("first linear layer before the sum", "feed-forward begins before attention was added", "The second norm reads the residual stream, so the sum comes before it."),
    ("backwards", "from the end to the start", "The order is right, but begins with the logits. A token comes in first."),
    ("linear layers swapped", "linear layers exchanged", "The activation stands between the two linear layers: which part has no activation yet?"),
    ("output before the last sum", "output before the last sum", "The last norm reads the whole residual stream. What has not yet been added to it?"),
    prefix="order",
)  # fmt: skip

SCALE = {
    "none": ("no 1 / sqrt(H)", "Scores grow with H; the paper divides by its root (section 3.2.1)."),
    "H": ("divided by H", "Products of H numbers have a standard deviation of sqrt(H), not of H."),
    "whole": ("divided by a whole number", "The root of H must not be cut to a whole number: no int, no //."),
    "times": ("multiplied by sqrt(H)", "It is a division: larger heads need smaller factors."),
    "root T": (
        "divided by sqrt(T)",
        "The size of a product depends on the numbers in a head, H, not on the length of the text.",
    ),
    "root D": ("divided by sqrt(D)", "The sum runs over the numbers of one head. How many are these?"),
}
MASK = {
    "none": ("the future is seen", "The model could copy the next word. Hide keys after the query before the softmax."),
    "future": ("mask transposed", "Each token sees itself and what follows. Rows are queries, columns are keys: which triangle is it?"),
    "own hidden": ("own token hidden", "The diagonal belongs to what may be seen; the first token would have nothing else."),
    "own hidden, NaN": ("own token hidden, with NaN", "The first row has no key left, so its softmax is 0 / 0. The diagonal may be seen."),
    "next seen": ("next token seen", "The triangle is one column too wide: the token after the query is the one to be predicted."),
    "zero after": ("zeros after the softmax", "The weights no longer sum to 1. Hide scores, before the softmax, by a large negative number."),
    "zero before": ("zeros before the softmax", "exp(0) is 1, so a score of 0 still gets weight. It takes a large negative number."),
}  # fmt: skip
AXIS = {
    "queries": ("softmax over the queries", "For each query the weights of its keys sum to 1: that is the last axis."),
    "none": ("no softmax", "Scores are no weights: they may be negative, and do not sum to 1."),
}
ROLES = (
    ("swapped", "keys and values swapped", "Scores come from keys; what is averaged are the values."),
    ("keys", "keys averaged", 'The weights are right, and they belong to the values: the layer "value".'),
    ("exchanged", "queries and keys exchanged", "q k^T has a row for each query. Yours has a row for each key."),
    (
        "queries",
        "queries compared with queries",
        'Scores are products of queries with keys: the layer "key" has no influence.',
    ),
    ("added", "values added to the result", "Nothing is added here: the residual connection belongs to the block."),
)


def attention_mistakes(prefix, where):
    """Mistakes of attention, for one head or several; each has a hint of its own."""
    rows = [("scale", value, *row) for value, row in SCALE.items()]
    rows += [("mask", value, *row) for value, row in MASK.items()]
    rows += [("axis", value, *row) for value, row in AXIS.items()] + [("values", *row) for row in ROLES]
    return tuple(Mistake(f"{prefix}: {name}", f"{where}{hint}", {switch: value}) for switch, value, name, hint in rows)


MULTI_HEAD_MISTAKES = (
    *mistakes(
        "split",
        ("no swap", "reshaped without a swap", "[B, T, D] reshaped to [B, N, T, H] mixes tokens. Reshape to [B, T, N, H], then swap T and N."),
        ("interleaved", "heads interleaved", "Head 0 has the first H numbers, not every N-th one: [B, T, N, H], not [B, T, H, N]."),
        prefix="heads",
    ),
    *mistakes("axis", ("heads", "softmax over the heads", "The axes are [B, N, T, S]: the softmax goes over S, the last one."), prefix="heads"),
    *mistakes("scale", ("root N", "divided by sqrt(N)", "It is the width of a head that counts, not the number of heads: q.shape[-1]."), prefix="heads"),
    *mistakes("join", ("interleaved", "joined number by number", "Join whole heads: [B, T, N, H] to [B, T, D], with H last."), prefix="heads"),
    *mistakes("join", ("no swap", "joined without a swap", "From [B, N, T, H] swap back to [B, T, N, H] before the reshape to [B, T, D]."), prefix="heads"),
    *mistakes("out", ("none", "no output projection", "The joined heads go through the layer \"out\" (the paper's W^O)."), prefix="heads"),
    *mistakes("heads", ("one", "one head of width D", "The projections must be split into num_heads parts, each with a softmax of its own."), prefix="heads"),
)  # fmt: skip

FEED_FORWARD_MISTAKES = (
    *mistakes(
        "activation",
        ("relu", "ReLU", "The exercise asks for GELU, as GPT-2 has; ReLU is the first paper's."),
        ("none", "no activation", "Two linear layers without an activation are one linear layer."),
        ("tanh alone", "tanh", "GELU grows without limit on the right: nn.gelu, not a tanh."),
        ("sigmoid", "a sigmoid", "A sigmoid lies between 0 and 1; GELU is x times something like it: nn.gelu."),
        ("leaky", "a leaky ReLU", "nn.leaky_relu has a bend at 0; the exercise asks for nn.gelu."),
        ("quick", "GELU by a sigmoid", "x sigmoid(1.702 x) is a rougher approximation than that of nn.gelu."),
        ("silu", "SiLU", "nn.silu (swish) looks alike, but the exercise asks for nn.gelu."),
        ("exact", "GELU with erf", "nn.gelu as it comes is the approximation with tanh; approximate=False is another function."),
        prefix="feed-forward",
    ),
    *mistakes(
        "where",
        ("before", "activation before both layers", "First up, then GELU, then down."),
        ("after", "activation after both layers", "GELU belongs between the layers, and the result may be negative."),
        ("twice", "activation after down as well", "There is one activation. What down gives goes to the residual stream as it is."),
        ("residual", "residual inside", "The block adds x; the feed-forward layer itself does not."),
        prefix="feed-forward",
    ),
    *mistakes(
        "bias",
        ("none", "no biases", "Both layers have a bias here: leave use_bias as it is."),
        ("up only", "no bias of down", "\"down\" has a bias as well as \"up\"."),
        ("down only", "no bias of up", "\"up\" has a bias as well as \"down\"."),
        prefix="feed-forward",
    ),
)  # fmt: skip

BLOCK_MISTAKES = (
    *mistakes(
        "norms",
        ("post", "norm after the sum", "That is the first paper's post-norm. Pre-norm normalizes what a part reads."),
        ("of output", "norm of the output", "Here the norm is on the result of each part; pre-norm normalizes its input."),
        ("none", "no norms", "Each part reads norm(x), not x."),
        ("second missing", "no second norm", "The feed-forward part reads a norm of x as well."),
        ("shared", "one norm for both", "norm_1 and norm_2 are two layers with parameters of their own."),
        ("exchanged", "norms exchanged", "norm_1 is before attention, norm_2 before the feed-forward part."),
        prefix="block",
    ),
    *mistakes(
        "residual",
        ("none", "no residuals", "The results are added to x, not put in its place."),
        ("second only", "no residual around attention", "x + attention(...): x itself must go on."),
        ("first only", "no residual around the feed-forward part", "x + feed_forward(...): what attention added would be lost."),
        ("of the norm", "the normalized x is added", "The residual stream is never normalized: add to x, not to norm(x)."),
        ("first input", "the block's input in the second sum", "After attention x has changed; the second sum adds to the new x."),
        prefix="block",
    ),
    *mistakes(
        "parts",
        ("feed-forward first", "feed-forward first", "Attention comes first, then the feed-forward part."),
        ("parallel", "both parts read the input", "That is a parallel block, as in GPT-J. The feed-forward part reads x after attention was added."),
        prefix="block",
    ),
)  # fmt: skip

GPT_MISTAKES = (
    *mistakes(
        "positions",
        ("none", "no positions", "The vectors of the positions must be added to those of the tokens."),
        ("multiplied", "positions multiplied", "The two vectors of a token are added."),
        ("at the end", "positions after the blocks", "Attention needs the positions: add them before the first block."),
        ("backward", "positions backward", "The first token has position 0, the next one 1: no [::-1]."),
        ("from 1", "positions counted from 1", "The first token has position 0: jnp.arange(T)."),
        ("by token", "positions looked up by token id", "A position is the place in the text, not the id: the ids of this layer are 0 to T - 1."),
        ("in each block", "positions added before each block", "They are added once, before the first block."),
        prefix="GPT",
    ),
    *mistakes("final", ("none", "no last norm", "A pre-norm stack ends with a norm: the residual stream has grown."), prefix="GPT"),
    *mistakes("scale", ("root D", "embeddings times sqrt(D)", "The first paper does so (section 3.4); this GPT, like GPT-2, does not."), prefix="GPT"),
    *mistakes(
        "stack",
        ("backwards", "blocks in reverse", "block_0 is the first one."),
        ("first again", "one block used for all", "Each block has parameters of its own: the name must change in the loop."),
        ("one", "a block is missing", "num_layers says how many blocks there are: range(num_layers) has that many."),
        ("none", "no blocks", "Between embedding and last norm there are num_layers blocks."),
        prefix="GPT",
    ),
    *mistakes(
        "output",
        ("softmax", "probabilities", "Return logits; the loss and the sampler take the softmax themselves."),
        ("log softmax", "log-probabilities", "Close, but logits are asked for: no log_softmax."),
        ("last", "the last token only", "Training needs the logits at every position, [B, T, V]."),
        ("divided", "logits divided by sqrt(D)", "T5 does so; a GPT takes the products as they are."),
        prefix="GPT",
    ),
)  # fmt: skip

CLASSES = (
    Part("SelfAttention", self_attention, self_attention_cases, attention_mistakes("one head", ""), call=call_self_attention, tolerance=1e-4),
    Part("MultiHeadAttention", multi_head, multi_head_cases, (*MULTI_HEAD_MISTAKES, *attention_mistakes("heads", "In each head: ")), call=call_multi_head, tolerance=1e-4),
    Part("FeedForward", feed_forward, feed_forward_cases, FEED_FORWARD_MISTAKES, call=call_feed_forward, tolerance=1e-4),
    Part("TransformerBlock", block, block_cases, BLOCK_MISTAKES, call=call_block, tolerance=1e-4),
    Part("GPT", gpt, gpt_cases, GPT_MISTAKES, laws=(is_causal_lm,), call=call_gpt, tolerance=1e-4),
)  # fmt: skip

EXERCISE = Exercise(
    "A Transformer from its parts",
    (Part("ORDER", order, lambda: [("", ())], ORDER_MISTAKES), *CLASSES),
    hints=(
        "Write shapes beside every line: [B, T, D], [B, N, T, H], [B, N, T, T]. Most mistakes are a wrong axis.",
        "Build each class of the one before. Multi-head attention is the one-head class with a reshape to "
        "[B, T, N, H] and a swap before, and the swap and reshape back after it.",
        "The block is two lines, x = x + part(norm(x)), with attention and then with the feed-forward layer. The GPT is "
        "table(tokens) + positions(arange(T)), a loop over blocks named f\"block_{i}\", a norm, and table.attend.",
    ),
)  # fmt: skip
