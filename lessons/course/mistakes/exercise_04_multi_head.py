"""Known mistakes of exercise 04: split, join, attend in heads, all together, grouped heads."""

import numpy as np

from course.grading import Exercise, Part, mistake


def split_heads(x, N, *, kind="right", order="forward"):
    """Split into heads, with its mistakes as switches."""
    x = np.asarray(x)
    B, T, D = x.shape
    H = D // N
    cut = x.reshape(B, T, N, H)
    kinds = {
        "right": lambda: cut.swapaxes(1, 2),
        "reshape": lambda: x.reshape(B, N, T, H),
        "no_swap": lambda: cut,
        "interleaved": lambda: np.moveaxis(x.reshape(B, T, H, N), 3, 1),
        "width_N": lambda: x.reshape(B, T, H, N).swapaxes(1, 2),
        "transposed": lambda: np.moveaxis(cut, 1, 3),
        "first_axis": lambda: np.moveaxis(cut, 2, 0),
        "batch_joined": lambda: cut.swapaxes(1, 2).reshape(B * N, T, H),
        "copies": lambda: np.repeat(x[:, None], N, axis=1),
        "first_head": lambda: np.repeat(x[:, None, :, :H], N, axis=1),
        "tokens": lambda: x.reshape(B, N, T // N, D) if T % N == 0 else None,
        "swap_then_reshape": lambda: x.swapaxes(1, 2).reshape(B, N, T, H),
        "batch_swapped": lambda: x.swapaxes(0, 1).reshape(B, N, T, H),
    }
    heads = kinds[kind]()
    if order == "backward":
        if kind != "right":
            return None
        heads = heads[:, ::-1]
    return heads


def join_heads(heads, *, kind="right", order="forward"):
    """Join heads, with its mistakes as switches."""
    heads = np.asarray(heads)
    if order == "backward":
        heads = heads[:, ::-1]
    B, N, T, H = heads.shape
    kinds = {
        "right": lambda: heads.swapaxes(1, 2).reshape(B, T, N * H),
        "reshape": lambda: heads.reshape(B, T, N * H),
        "interleaved": lambda: np.moveaxis(heads, 1, 3).reshape(B, T, N * H),
        "mean": lambda: heads.mean(axis=1),
        "sum": lambda: heads.sum(axis=1),
        "swap_alone": lambda: heads.swapaxes(1, 2),
        "tokens": lambda: heads.reshape(B, N * T, H),
        "batch_joined": lambda: heads.swapaxes(1, 2).reshape(B * T, N * H),
        "last_axes": lambda: heads.swapaxes(2, 3).reshape(B, T, N * H),
        "first_axes": lambda: heads.swapaxes(0, 1).reshape(B, T, N * H),
        "first_head": lambda: heads[:, 0],
        "all_reversed": lambda: heads.transpose(0, 3, 2, 1).reshape(B, T, N * H),
        "channels_first": lambda: heads.swapaxes(2, 3).reshape(B, N * H, T),
    }
    return kinds[kind]()


def attend_heads(
    q,
    k,
    v,
    may_attend,
    *,
    scale="root H",
    axis="keys",
    mask="before",
    unseen="zero",
    safe=True,
    divided=True,
    roles="qkv",
    heads="own",
    texts="own",
):
    """Attention in heads, with its mistakes as switches."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, N, T, H = q.shape
    S = k.shape[2]
    if roles == "qvk":
        k, v = v, k
    elif roles == "kqv":
        if T != S:
            return None
        q, k = k, q
    elif roles == "qkk":
        v = k
    factor = {
        "root H": H**-0.5,
        "none": 1.0,
        "H": 1 / H,
        "root D": (N * H) ** -0.5,
        "root S": S**-0.5,
        "root T": T**-0.5,
        "root N": N**-0.5,
        "times": H**0.5,
        "after": 1.0,
    }[scale]
    may_attend = np.asarray(may_attend)
    if texts == "first":
        may_attend = np.repeat(may_attend[:1], B, axis=0)
    elif texts == "as heads":
        if B != N:
            return None
        may_attend = np.broadcast_to(may_attend[None], (B, B, T, S))
    if mask == "transposed":
        if T != S:
            return None
        may_attend = may_attend.swapaxes(1, 2)
    elif mask == "inverted":
        may_attend = ~may_attend
    may = np.broadcast_to(may_attend if texts == "as heads" else may_attend[:, None], (B, N, T, S))
    scores = np.einsum("bnth,bnsh->bnts", q, k) * factor
    if heads == "summed":
        scores = np.broadcast_to(scores.sum(axis=1, keepdims=True), scores.shape)
    elif heads == "first keys":
        scores = np.einsum("bnth,bsh->bnts", q, k[:, 0]) * factor
    elif heads == "first values":
        v = np.broadcast_to(v[:, :1], v.shape)
    axes = {"keys": -1, "queries": -2, "heads": 1, "all": (-1, -2), "none": -1}[axis]
    if mask == "zero before":
        scores = np.where(may, scores, 0.0)
    elif mask == "fill":
        scores = np.where(may, scores, -1e4)
    elif mask in ("before", "inverted", "transposed"):
        scores = np.where(may, scores, -np.inf if unseen == "nan" else -1e300)
    if axis == "none":
        return np.where(may, scores, 0.0) @ v
    if safe:
        top = scores.max(axis=axes, keepdims=True)
        weights = np.exp(scores - top)
    else:
        weights = np.exp(scores)
    if mask == "caught":
        weights = np.where(may, weights, 0.0)
        return weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30) @ v
    if not divided:
        return np.where(may, weights if not safe else np.exp(scores), 0.0) @ v
    weights = weights / weights.sum(axis=axes, keepdims=True)
    if scale == "after":
        weights = weights * H**-0.5
    if mask == "zero after" or (mask in ("before", "inverted", "transposed") and unseen == "zero"):
        weights = np.where(may, weights, 0.0)
    if mask == "renormalized":
        weights = np.where(may, weights, 0.0)
        weights = weights / weights.sum(axis=-1, keepdims=True)
    if unseen == "whole rows":
        weights = np.where(may.any(axis=-1, keepdims=True), weights, 0.0)
    return weights @ v


def multi_head(
    x,
    W_q,
    W_k,
    W_v,
    W_o,
    N,
    *,
    scale="root H",
    split="right",
    join="right",
    out="W_o",
    values="W_v",
    keys="W_k",
    queries="W_q",
    axis="keys",
    kernels="right",
    heads="N",
    residual=False,
    causal=False,
):
    """Multi-head self-attention, with its mistakes as switches."""
    x, W_q, W_k, W_v, W_o = (np.asarray(a, np.float64) for a in (x, W_q, W_k, W_v, W_o))
    B, T, D = x.shape
    given = x
    if heads == "one":
        N = 1
    elif heads == "width N":
        N = D // N
    if kernels == "transposed":
        W_q, W_k, W_v = W_q.T, W_k.T, W_v.T
    named = {"W_q": W_q, "W_k": W_k, "W_v": W_v, "none": np.eye(D)}
    projected = [x @ named[name] for name in (queries, keys, values)]
    if split == "over heads":
        q, k, v = (split_heads(a, N, kind="no_swap") for a in projected)
        result = attend_heads(q, k, v, np.ones((B, N, N), bool), scale=scale).reshape(B, T, D) @ W_o
        return given + result if residual else result
    if split in ("interleaved", "reshape"):
        q, k, v = (split_heads(a, N, kind=split) for a in projected)
    else:
        q, k, v = (split_heads(a, N) for a in projected)
    may = np.tril(np.ones((T, T), bool)) if causal else np.ones((T, T), bool)
    result = attend_heads(q, k, v, np.broadcast_to(may, (B, T, T)), scale=scale, axis=axis)
    if join == "undo":
        joined = join_heads(result, kind=split)
    elif join in ("mean", "sum"):
        joined = np.tile(join_heads(result, kind=join), N)
    else:
        joined = join_heads(result, kind=join)
    outs = {"W_o": lambda: joined @ W_o, "none": lambda: joined, "transposed": lambda: joined @ W_o.T}
    outs["before"] = lambda: join_heads(
        attend_heads(q, k, split_heads(projected[2] @ W_o, N), np.broadcast_to(may, (B, T, T)), scale=scale, axis=axis)
    )
    result = outs[out]()
    return given + result if residual else result


def grouped_heads(q, k, v, *, keys="repeat", values="repeat", scale="root H", axis="keys", result="all", safe=True):
    """Grouped heads, with its mistakes as switches."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    B, N, T, H = q.shape
    K, S = k.shape[1:3]
    G = N // K
    order = {
        "repeat": np.arange(N) // G,
        "tile": np.arange(N) % K,
        "first": np.zeros(N, int),
        "last": np.full(N, K - 1),
        "over K": np.minimum(np.arange(N) // K, K - 1),
        "clipped": np.minimum(np.arange(N), K - 1),
        "reversed": K - 1 - np.arange(N) // G,
    }
    if keys == "mean":
        k = np.repeat(k.mean(axis=1, keepdims=True), K, axis=1)
    if values == "mean":
        v = np.repeat(v.mean(axis=1, keepdims=True), K, axis=1)
    if keys == "row-major" or values == "row-major":  # [B, K, S, H] repeated as one long axis, then cut again
        k, v = (np.repeat(a, G, axis=2).reshape(B, N, S, H) for a in (k, v))
        keys = values = "own"
    order["own"] = np.arange(N)
    order["mean"] = order["repeat"]
    may = np.ones((B, T, S), bool)
    out = attend_heads(q, k[:, order[keys]], v[:, order[values]], may, scale=scale, axis=axis, safe=safe)
    if result == "mean":  # the query heads of a group are averaged
        return out.reshape(B, K, G, T, H).mean(axis=2)
    if result == "first":  # only K query heads
        return out[:, :K] if keys != "repeat" else attend_heads(q[:, :K], k, v, np.ones((B, T, S), bool))
    if result == "queries averaged":
        shared = q.reshape(B, K, G, T, H).mean(axis=2)
        return np.repeat(attend_heads(shared, k, v, np.ones((B, T, S), bool)), G, axis=1)
    if result == "one softmax":  # all query heads of a group share one softmax over G * S scores
        scores = np.einsum("bnth,bnsh->bnts", q, k[:, order["repeat"]]) / np.sqrt(H)
        scores = scores.reshape(B, K, G, T, S)
        weights = np.exp(scores - scores.max(axis=(2, 4), keepdims=True))
        weights = (weights / weights.sum(axis=(2, 4), keepdims=True)).reshape(B, N, T, S)
        return weights @ v[:, order["repeat"]]
    return out


# Cases, from tiny to large


def _random():
    return np.random.default_rng(4)


def _split_cases():
    random = _random()
    yield "two tokens, two heads", (np.arange(1, 9).reshape(1, 2, 4), 2)
    yield "two tokens, three heads of width 2", (np.arange(12).reshape(1, 2, 6), 3)
    yield "two texts", (np.arange(24).reshape(2, 3, 4), 2)
    yield "one head", (random.normal(size=(2, 3, 5)), 1)
    yield "heads of width 1", (random.normal(size=(2, 3, 5)), 5)
    yield "one token", (random.normal(size=(3, 1, 10)), 2)
    yield "as many heads as tokens", (random.normal(size=(2, 3, 15)), 3)
    yield "large", (random.normal(size=(5, 7, 33)), 3)


def _join_cases():
    random = _random()
    yield "two tokens, two heads", (np.array([[[[1, 2], [5, 6]], [[3, 4], [7, 8]]]]),)
    yield "two tokens, three heads", (np.arange(12).reshape(1, 3, 2, 2),)
    yield "two texts", (np.arange(24).reshape(2, 2, 3, 2),)
    yield "one head", (random.normal(size=(2, 1, 3, 5)),)
    yield "heads of width 1", (random.normal(size=(2, 5, 3, 1)),)
    yield "one token", (random.normal(size=(3, 2, 1, 5)),)
    yield "large", (random.normal(size=(5, 3, 7, 11)),)


def _attend_cases():
    random = _random()
    n = random.normal
    two = np.array([[[[5.0], [7.0]]]]), np.array([[[[1.0], [3.0]]]])
    yield "two keys", (np.zeros((1, 1, 1, 1)), *two, np.array([[[True, True]]]))
    yield "one of two keys", (np.zeros((1, 1, 1, 1)), *two, np.array([[[False, True]]]))
    yield "two heads", (n(size=(1, 2, 1, 3)), n(size=(1, 2, 2, 3)), n(size=(1, 2, 2, 3)), np.ones((1, 1, 2), bool))
    B, N, T, S, H = 2, 3, 5, 7, 4
    everything = np.ones((B, T, S), bool)
    arrays = n(size=(B, N, T, H)), n(size=(B, N, S, H)), n(size=(B, N, S, H))
    yield "no mask", (*arrays, everything)
    some = random.random((B, T, S)) < 0.6
    some[:, :, 2] = True
    yield "a mask for each text", (*arrays, some)
    causal = np.broadcast_to(np.tril(np.ones((S, S), bool)), (B, S, S))
    yield "causal", (*(n(size=(B, N, S, H)) for _ in range(3)), causal)
    three = np.stack([np.tril(np.ones((5, 5), bool)), np.eye(5, dtype=bool), np.ones((5, 5), bool)])
    yield "as many texts as heads", (*(n(size=(3, 3, 5, 2)) for _ in range(3)), three)
    unseen = some.copy()
    unseen[0, 3] = False
    unseen[1] = False
    yield "queries that may attend to nothing", (*arrays, unseen)
    whole = (
        random.integers(-3, 4, (B, N, T, H)),
        random.integers(-3, 4, (B, N, S, H)),
        random.integers(0, 9, (B, N, S, H)),
    )
    yield "whole numbers", (*whole, some)
    q = np.array([1.0, -1.0]).reshape(1, 1, 2, 1) * np.array([1024.0, 0, 0, 0])
    k = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1) * np.array([512.0, 0, 0, 0])
    v = np.array([[1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 4.0], [0.0, 0.0, 1.0, 8.0]]).reshape(1, 1, 3, 4)
    yield "scores of a million", (q, k, v, np.array([[[True, True, False], [False, True, True]]]))
    B, N, T, S, H = 3, 5, 11, 13, 7
    arrays = n(size=(B, N, T, H)), n(size=(B, N, S, H)), n(size=(B, N, S, H))
    yield "large", (*arrays, random.random((B, T, S)) < 0.5)


def _multi_head_cases():
    random = _random()

    def case(B, T, D, N):
        kernels = random.normal(size=(4, D, D)) * (1.5 / D**0.5)
        return (random.normal(size=(B, T, D)), *kernels, N)

    yield "one token", case(1, 1, 4, 2)
    yield "one head", case(1, 3, 2, 1)
    yield "two heads", case(1, 3, 4, 2)
    yield "two texts, three heads", case(2, 5, 6, 3)
    yield "heads of width 1", case(2, 4, 5, 5)
    yield "large", case(3, 7, 20, 4)


def _grouped_cases():
    random = _random()

    def case(B, N, K, T, S, H):
        return tuple(random.normal(size=shape) for shape in ((B, N, T, H), (B, K, S, H), (B, K, S, H)))

    yield "a single key", case(1, 4, 2, 1, 1, 2)
    yield "one key-value head for each query head", case(1, 3, 3, 2, 5, 2)
    yield "one key-value head for all", case(1, 3, 1, 2, 5, 2)
    yield "groups of three", case(2, 6, 2, 4, 5, 3)
    large = np.eye(4)[:1] * np.array([1.0, 2.0, 3.0]).reshape(3, 1)
    yield (
        "scores of a million",
        (1024 * large.reshape(1, 3, 1, 4), 512 * large.reshape(1, 1, 3, 4), np.arange(12.0).reshape(1, 1, 3, 4)),
    )
    yield "groups of two", case(2, 6, 3, 4, 7, 5)
    yield "large", case(3, 12, 4, 5, 11, 7)


# Laws


def _check_split(answer):
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 3, 4 * 5))
    changed = x.copy()
    changed[:, :, 5:10] += 1
    same = (np.asarray(answer(x.copy(), 4)) == np.asarray(answer(changed, 4))).all(axis=(0, 2, 3))
    assert same.tolist() == [True, False, True, True], "the numbers of head 1 change head 1 and no other."


def _check_heads(answer):
    random = np.random.default_rng(2)
    q, k, v = (random.normal(size=(2, 3, 4, 5)) for _ in range(3))
    may_attend = np.ones((2, 4, 4), bool)
    out = np.asarray(answer(q, k, v, may_attend))
    ones = np.asarray(answer(q, k, np.ones_like(v), may_attend))
    assert np.allclose(ones, 1, atol=1e-5), "where all values are 1, the answer is 1: weights sum to 1."
    order = [2, 0, 1]
    swapped = np.asarray(answer(q[:, order], k[:, order], v[:, order], may_attend))
    assert np.allclose(swapped, out[:, order], atol=1e-5), "heads in another order give the same answers in that order."


EXERCISE = Exercise(
    "Multi-head attention",
    (
        Part(
            "split_heads",
            split_heads,
            _split_cases,
            (
                mistake(
                    "reshaped without a swap",
                    "The shape is right, but head 0 has the first tokens, whole, where it needs a piece of every "
                    "token. "
                    "Cut each vector first, [B, T, N, H], and then exchange two axes.",
                    kind="reshape",
                ),
                mistake(
                    "the swap is missing",
                    "You have [B, T, N, H]: cut correctly, but tokens come before heads. Which two axes change places?",
                    kind="no_swap",
                ),
                mistake(
                    "every N-th number",
                    "Your head 0 takes the numbers 0, N, 2N, ... It needs the first H numbers in a row: in the "
                    "reshape, "
                    "which of N and H comes last?",
                    kind="interleaved",
                ),
                mistake(
                    "N is taken for the width of a head",
                    "You made heads of width N. N is how many there are; their width is D / N.",
                    kind="width_N",
                ),
                mistake(
                    "tokens and numbers exchanged",
                    "You have [B, N, H, T]. Each head needs a row for each token, so T comes before H.",
                    kind="transposed",
                ),
                mistake(
                    "heads before texts", "You have [N, B, T, H]. The batch stays the first axis.", kind="first_axis"
                ),
                mistake(
                    "texts and heads in one axis",
                    "You have [B * N, T, H]. Some programs do that on purpose, but here the four axes stay apart.",
                    kind="batch_joined",
                ),
                mistake(
                    "every head gets the whole vector",
                    "You copied the vectors N times. Heads share the numbers out: each gets D / N of them.",
                    kind="copies",
                ),
                mistake(
                    "every head gets the first piece",
                    "All your heads are equal to head 0. Head n begins at the number n * H.",
                    kind="first_head",
                ),
                mistake(
                    "the tokens are shared out",
                    "You cut the text, and each head got a part of the tokens. Cut the vectors; each head sees all "
                    "tokens.",
                    kind="tokens",
                ),
                mistake(
                    "swapped, then reshaped",
                    "You exchanged tokens and numbers of the whole vectors, and then cut. First cut the last axis into "
                    "N and H, then swap.",
                    kind="swap_then_reshape",
                ),
                mistake(
                    "texts mixed",
                    "Numbers of one text are in another. Exchange tokens and heads; leave the first axis, the batch, "
                    "alone.",
                    kind="batch_swapped",
                ),
                mistake("heads in backward order", "Head 0 takes the first numbers of a vector.", order="backward"),
            ),
            (_check_split,),
        ),
        Part(
            "join_heads",
            join_heads,
            _join_cases,
            (
                mistake(
                    "joined without a swap",
                    "The shape is right, but the pieces of a vector now belong to different tokens. Bring the heads "
                    "next to the numbers first: [B, T, N, H].",
                    kind="reshape",
                ),
                mistake(
                    "the heads are interleaved",
                    "Your vectors have the first number of every head, then the second of every head. The heads stand "
                    "one after the other: before the reshape, N has to come before H.",
                    kind="interleaved",
                ),
                mistake("the mean of the heads", "Joining keeps every number: N * H of them for a token.", kind="mean"),
                mistake(
                    "the sum of the heads",
                    "Heads are put side by side here. They are added up only later, when W_O multiplies.",
                    kind="sum",
                ),
                mistake(
                    "not yet reshaped",
                    "You have [B, T, N, H]. One step is missing: the last two axes become one.",
                    kind="swap_alone",
                ),
                mistake(
                    "heads joined as tokens",
                    "You have [B, N * T, H]: the heads of a token stand below each other. They belong into one vector.",
                    kind="tokens",
                ),
                mistake(
                    "texts and tokens in one axis",
                    "You have [B * T, N * H]. The batch stays an axis of its own.",
                    kind="batch_joined",
                ),
                mistake(
                    "the last two axes swapped",
                    "You exchanged tokens and numbers. Exchange heads and tokens: axes 1 and 2.",
                    kind="last_axes",
                ),
                mistake(
                    "the first two axes swapped",
                    "You exchanged texts and heads. Count the axes from 0: heads are axis 1, tokens are axis 2.",
                    kind="first_axes",
                ),
                mistake(
                    "only the first head",
                    "The other N - 1 heads are gone. All of them have an answer.",
                    kind="first_head",
                ),
                mistake(
                    "all axes reversed",
                    "`.T` and a reversed transpose move the numbers in front of the heads. Move only the token axis.",
                    kind="all_reversed",
                ),
                mistake(
                    "tokens last",
                    "You have [B, N * H, T]. A token is a row here: [B, T, N * H].",
                    kind="channels_first",
                ),
                mistake("heads joined backward", "The numbers of head 0 come first.", order="backward"),
            ),
        ),
        Part(
            "attend_heads",
            attend_heads,
            _attend_cases,
            (
                mistake(
                    "closed keys leave after exp",
                    "A closed key with a far larger score leaves nothing of the others. Close keys before the maximum.",
                    **{"mask": "caught"},
                ),
                mistake(
                    "exp without the maximum, 0 / 0 caught",
                    "exp of a million is infinite, exp of minus a million is 0. Take each row's largest score away.",
                    **{"mask": "caught", "safe": False},
                ),
                mistake(
                    "closed scores not far enough below",
                    "-1e4 is far above a score of minus a million: take -inf, or the lowest number there is.",
                    **{"mask": "fill", "unseen": "whole rows"},
                ),
                mistake(
                    "closed scores set to 0, empty rows are right",
                    "exp(0) is 1: a closed key with the score 0 is still read. Take a score whose exponential is 0.",
                    **{"mask": "zero before", "unseen": "whole rows"},
                ),
                mistake(
                    "not scaled",
                    "A product of two vectors adds up H numbers, so it grows with H. What is divided away?",
                    scale="none",
                ),
                mistake("divided by H", "That is too much: typical products grow like the root of H.", scale="H"),
                mistake(
                    "scaled by the width of the model",
                    "You divide by the root of N * H, the whole vector. A head adds up only its own numbers.",
                    scale="root D",
                ),
                mistake(
                    "scaled by the number of keys",
                    "The axis that the product adds up is the width of a head, not the keys. Which shape did you read?",
                    scale="root S",
                ),
                mistake(
                    "scaled by the number of queries",
                    "You divide by the root of T. Look at which axis of q is the width: it is the last one.",
                    scale="root T",
                ),
                mistake(
                    "scaled by the number of heads",
                    "How many heads there are does not change the size of a product.",
                    scale="root N",
                ),
                mistake("multiplied by the root", "The root makes the scores smaller, so it divides.", scale="times"),
                mistake(
                    "scaled after the softmax",
                    "Your weights no longer sum to 1. Scale the scores, then apply the softmax.",
                    scale="after",
                ),
                mistake(
                    "softmax over the queries",
                    "Each query has a budget of 1 for its keys. In [B, N, T, S], which axis are the keys?",
                    axis="queries",
                ),
                mistake(
                    "softmax over the heads",
                    "Your weights sum to 1 over the heads, as if heads voted. Heads do not share a budget.",
                    axis="heads",
                ),
                mistake(
                    "softmax over queries and keys", "Your whole matrix sums to 1. Every single row must.", axis="all"
                ),
                mistake("the mask is forgotten", "Your answer does not depend on may_attend.", mask="none"),
                mistake("the mask is inverted", "True means that the query may attend to the key.", mask="inverted"),
                mistake(
                    "the mask is transposed",
                    "In may_attend queries are rows and keys are columns, as in the scores.",
                    mask="transposed",
                ),
                mistake(
                    "zeroed after the softmax",
                    "The weights that remain do not sum to 1: hidden keys had taken their share. Hide them before.",
                    mask="zero after",
                ),
                mistake(
                    "hidden scores set to 0",
                    "exp(0) is 1, so a score of 0 (or of -1e-9) still has a weight. Which score has the weight 0?",
                    mask="zero before",
                ),
                mistake(
                    "hidden after the softmax, then divided again",
                    "That works until all weights of the keys that are allowed are rounded to 0, or there is no such "
                    "key: "
                    "then you divide 0 by 0. Hide the scores before the softmax.",
                    mask="renormalized",
                ),
                mistake(
                    "no softmax",
                    "You average the values with raw scores. Weights are positive and sum to 1.",
                    axis="none",
                ),
                mistake(
                    "hidden scores not low enough",
                    "The scores that are allowed can be lower than your number for hidden ones. Take the lowest number "
                    "that there is.",
                    mask="fill",
                ),
                mistake(
                    "nothing to attend to: uniform",
                    "Where all keys are hidden, all scores are equal, and the softmax spreads over all of them. Such a "
                    "query gets zeros.",
                    unseen="uniform",
                ),
                mistake(
                    "nothing to attend to: NaN",
                    "A row of -inf has no maximum to subtract, and no sum to divide by. Such a query gets zeros.",
                    unseen="nan",
                ),
                mistake(
                    "overflow",
                    "exp of a large score is infinite. Subtract the largest score of each row first: the softmax stays "
                    "the same.",
                    safe=False,
                ),
                mistake(
                    "not divided by the sum",
                    "The exponentials are positive, but their sum over the keys is not 1 yet.",
                    divided=False,
                ),
                mistake("keys and values exchanged", "Queries meet keys. Values are what is averaged.", roles="qvk"),
                mistake("queries and keys exchanged", "Your scores are transposed: rows are queries.", roles="kqv"),
                mistake(
                    "the keys are averaged", "The weights come from the keys, but they average the values.", roles="qkk"
                ),
                mistake(
                    "one matrix for all heads",
                    "You added up the scores of all heads. Then all heads look at the same keys, and there is no point "
                    "in having several.",
                    heads="summed",
                ),
                mistake("all heads use the first keys", "Each head has keys of its own, k[:, n].", heads="first keys"),
                mistake(
                    "all heads average the first values",
                    "Each head has values of its own, v[:, n].",
                    heads="first values",
                ),
                mistake(
                    "the mask of the first text for all",
                    "may_attend[0] belongs to text 0. Give the mask an axis for the heads, and keep its batch axis.",
                    texts="first",
                ),
                mistake(
                    "the mask of a text for a head",
                    "[B, T, S] was broadcast against [B, N, T, S] from the right, so text b's mask went to head b. "
                    "Where "
                    "must the new axis stand?",
                    texts="as heads",
                ),
            ),
            (_check_heads,),
        ),
        Part(
            "multi_head",
            multi_head,
            _multi_head_cases,
            (
                mistake(
                    "the queries are projected by W_k", "A copied line: queries are x @ W_q.", **{"queries": "W_k"}
                ),
                mistake(
                    "heads attend to heads",
                    "Your attention mixes the heads of a token with each other: exchange tokens and heads first.",
                    **{"split": "over heads"},
                ),
                mistake(
                    "the whole is scaled by the root of D",
                    "After the split a product adds up H = D / N numbers, no longer D.",
                    scale="root D",
                ),
                mistake("the scale is missing", "The scores of each head are divided by the root of H.", scale="none"),
                mistake("the whole is scaled by H", "Of the width of a head, take the root.", scale="H"),
                mistake(
                    "split by reshape alone",
                    "Your split (and your join) mix tokens. Test split_heads on the example in its docstring.",
                    split="reshape",
                    join="undo",
                ),
                mistake(
                    "only the split lacks its swap",
                    "The join is right, but the heads that come into it are pieces of the text. Test split_heads "
                    "alone.",
                    split="reshape",
                ),
                mistake(
                    "the heads take every N-th number",
                    "Split and join undo each other, but head n has to own the columns n * H to (n + 1) * H of W_q.",
                    split="interleaved",
                    join="undo",
                ),
                mistake(
                    "the join lacks its swap",
                    "The heads attend correctly, but their answers are put together by a reshape alone.",
                    join="reshape",
                ),
                mistake(
                    "the joined heads are interleaved",
                    "After the heads have attended, the numbers of one head must stand together again.",
                    join="interleaved",
                ),
                mistake(
                    "heads averaged and repeated",
                    "The heads are not a vote. Their answers stand side by side, each H numbers wide.",
                    join="mean",
                ),
                mistake("W_o is missing", "One matrix still has to mix the answers of the heads.", out="none"),
                mistake("W_o is transposed", "W_o is used as joined @ W_o.", out="transposed"),
                mistake(
                    "W_o comes too early",
                    "You multiplied the values by W_o before the split. It mixes heads, so it must come after the "
                    "join.",
                    out="before",
                ),
                mistake(
                    "the projections are transposed",
                    "W_q, W_k and W_v are used as x @ W. In PyTorch, a layer stores W transposed; here it is not.",
                    kernels="transposed",
                ),
                mistake("the values are not projected", "Where is W_v used?", values="none"),
                mistake("the keys are not projected", "Where is W_k used?", keys="none"),
                mistake("the queries are not projected", "Where is W_q used?", queries="none"),
                mistake("the keys are projected by W_q", "Keys have a matrix of their own, W_k.", keys="W_q"),
                mistake("the keys are projected by W_v", "W_v makes values. Which matrix makes keys?", keys="W_v"),
                mistake("the values are projected by W_k", "Check the order of your three matrices.", values="W_k"),
                mistake("the values are projected by W_q", "W_q makes queries. Values have W_v.", values="W_q"),
                mistake(
                    "W_q and W_k exchanged",
                    "Your scores are transposed: the word that asks and the word that is asked have changed places.",
                    queries="W_k",
                    keys="W_q",
                ),
                mistake(
                    "softmax over the wrong tokens", "Each query's weights sum to 1 over the keys.", axis="queries"
                ),
                mistake(
                    "softmax across heads",
                    "Heads do not share one budget; each query has one in every head.",
                    axis="heads",
                ),
                mistake(
                    "one head", "Your result does not depend on N. It is attention with one wide head.", heads="one"
                ),
                mistake(
                    "heads of width N", "You made D / N heads of width N. It is the other way round.", heads="width N"
                ),
                mistake(
                    "x is added",
                    "The residual connection comes later, in the block. Return only what attention adds.",
                    residual=True,
                ),
                mistake("causal", "Here every token may look at all tokens: no mask was asked for.", causal=True),
            ),
        ),
        Part(
            "grouped_heads",
            grouped_heads,
            _grouped_cases,
            (
                mistake(
                    "head number divided by K",
                    "Query head n uses key-value head n // G, where G is the size of a group, N / K.",
                    **{"keys": "over K", "values": "over K"},
                ),
                mistake(
                    "grouped scores overflow",
                    "exp of a million is infinite here as well: take each row's largest score away.",
                    **{"safe": False},
                ),
                mistake(
                    "tiled",
                    "You gave the key-value heads out in turns: 0, 1, 0, 1. Consecutive query heads share one: 0, 0, "
                    "1, "
                    "1. NumPy has another function for that than np.tile.",
                    keys="tile",
                    values="tile",
                ),
                mistake(
                    "keys tiled, values repeated", "Keys and values of a query head have the same index.", keys="tile"
                ),
                mistake(
                    "values tiled, keys repeated",
                    "The weights are right, but they average the values of another head.",
                    values="tile",
                ),
                mistake(
                    "one key-value head for everything",
                    "You use key-value head 0 alone. There are K of them.",
                    keys="first",
                    values="first",
                ),
                mistake(
                    "the last key-value head for the rest",
                    "Your first K query heads have one key-value head each, and all others share the last.",
                    keys="clipped",
                    values="clipped",
                ),
                mistake(
                    "groups in backward order",
                    "Query head 0 uses key-value head 0.",
                    keys="reversed",
                    values="reversed",
                ),
                mistake(
                    "averaged keys and values",
                    "You averaged the key-value heads into one. They stay different; query heads choose by their "
                    "index.",
                    keys="mean",
                    values="mean",
                ),
                mistake(
                    "repeated along the tokens",
                    "You repeated keys along the axis of tokens and cut again. Repeat whole heads: axis 1.",
                    keys="row-major",
                    values="row-major",
                ),
                mistake(
                    "query heads of a group averaged at the end",
                    "The result has N heads. Sharing keys does not mean that the queries share an answer.",
                    result="mean",
                ),
                mistake(
                    "query heads left out",
                    "You used only the first K query heads. All N have an answer.",
                    result="first",
                ),
                mistake(
                    "queries of a group averaged before",
                    "Each query head keeps its own queries, and so its own weights.",
                    result="queries averaged",
                ),
                mistake(
                    "a group shares its softmax",
                    "Each query head has a budget of 1, not each group. Normalize over the keys alone.",
                    result="one softmax",
                ),
                mistake(
                    "grouped heads not scaled", "The scores are divided by the root of H here as well.", scale="none"
                ),
                mistake(
                    "grouped scores divided by H itself",
                    "The scale is the root of H, in grouped heads, too.",
                    scale="H",
                ),
                mistake(
                    "grouped softmax over the queries",
                    "In grouped heads, too, the weights of a query sum to 1 over its keys.",
                    axis="queries",
                ),
            ),
        ),
    ),
    (
        "Write down the shape after every step. A reshape may only cut or join axes that stand next to each other; to "
        "exchange axes you need swapaxes or transpose.",
        "Split: [B, T, D] -> [B, T, N, H] -> [B, N, T, H]. Join goes the same way back. `@` works on the last two "
        "axes, so "
        "attention in heads is attention with two more axes in front; the mask needs one axis more, for the heads.",
        "split: x.reshape(B, T, N, D // N).swapaxes(1, 2). join: heads.swapaxes(1, 2).reshape(B, T, N * H). The mask: "
        "may_attend[:, None]; after the softmax, set hidden weights to 0, and a query without keys gets zeros. "
        "Grouped: "
        "np.repeat(k, N // K, axis=1), the same for v, then attend as before.",
    ),
)
