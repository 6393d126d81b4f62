"""Wrong twins of exercise 02: self-attention."""

import numpy as np

from course.grading import Exercise, Mistake, Part


def causal_twin(T, *, which="up to own"):
    distance = np.arange(T)[:, None] - np.arange(T)  # how far key s is before query t
    return {
        "up to own": distance >= 0,
        "own hidden": distance > 0,
        "next seen": distance >= -1,
        "upside down": distance <= 0,
        "forbidden": distance < 0,
        "everything": distance == distance,
        "own only": distance == 0,
        "previous only": distance == 1,
        "own and previous": (distance >= 0) & (distance <= 1),
        "mirrored": (distance >= 0)[:, ::-1],
        "scores": np.where(distance >= 0, 0.0, -np.inf),
        "large numbers": np.where(distance >= 0, 0.0, -1e9),
        "equal share": (distance >= 0) / np.arange(1, T + 1)[:, None],
        "one larger": np.tril(np.ones((T + 1, T + 1), bool)),
    }[which]


def masks_twin(is_token, *, causal="up to own", padding="keys", join="and"):
    is_token = np.asarray(is_token, bool)
    B, T = is_token.shape
    if padding == "no axis":
        return causal_twin(T, which=causal) & is_token
    of_texts = np.broadcast_to(causal_twin(T, which=causal), (B, T, T))
    of_padding = {
        "keys": is_token[:, None, :],
        "queries": is_token[:, :, None],
        "both": is_token[:, None, :] & is_token[:, :, None],
        "same kind": is_token[:, None, :] == is_token[:, :, None],
        "inverted": ~is_token[:, None, :],
        "forgotten": np.ones((B, 1, T), bool),
        "first text": np.broadcast_to(is_token[:1, None, :], (B, 1, T)),
        "everywhere": np.broadcast_to(is_token.all(axis=0), (B, 1, T)),
        "anywhere": np.broadcast_to(is_token.any(axis=0), (B, 1, T)),
        "whole text": np.broadcast_to(is_token.all(axis=1)[:, None, None], (B, 1, T)),
    }[padding]
    if join == "number of tokens":  # as if padding were always on the right
        of_padding = np.arange(T) < is_token.sum(axis=1)[:, None, None]
    if join == "own always":
        return of_texts & (of_padding | np.eye(T, dtype=bool))
    return of_texts | of_padding if join == "or" else of_texts & of_padding


def projections_twin(x, w_q, w_k, w_v, *, q="x w_q", k="x w_k", v="x w_v", order="qkv", turned=False, scaled=False):
    x = np.asarray(x, float)
    if turned:
        w_q, w_k, w_v = w_q.T, w_k.T, w_v.T
    queries = {"x w_q": lambda: x @ w_q, "x": lambda: x, "x w_k": lambda: x @ w_k}[q]()
    keys = {
        "x w_k": lambda: x @ w_k,
        "x": lambda: x,
        "x w_q": lambda: x @ w_q,
        "q w_k": lambda: queries @ w_k,
        "x w_v": lambda: x @ w_v,
    }[k]()
    values = {
        "x w_v": lambda: x @ w_v,
        "x": lambda: x,
        "x w_k": lambda: x @ w_k,
        "x w_q": lambda: x @ w_q,
        "k w_v": lambda: keys @ w_v,
    }[v]()
    if scaled:
        queries = queries / np.sqrt(queries.shape[-1])
    found = {"q": queries, "k": keys, "v": values}
    return tuple(found[letter] for letter in order)


def attention_twin(
    x,
    w_q,
    w_k,
    w_v,
    is_token,
    *,
    q="x w_q",
    k="x w_k",
    v="x w_v",
    order="qkv",
    causal="up to own",
    padding="keys",
    join="and",
    place="before",
    scale="root",
    axis=-1,
    largest="row",
    unseen="zero",
    kind="softmax",
    result="answer",
    turn="last two",
):
    B, T, D = np.shape(x)
    queries, keys, values = projections_twin(x, w_q, w_k, w_v, q=q, k=k, v=v, order=order)
    H = np.shape(w_q)[1]
    may = masks_twin(is_token, causal=causal, padding=padding, join=join)
    divisor = {"root": H**0.5, "none": 1, "H": H, "D": D**0.5, "T": T**0.5, "times": H**-0.5, "after": 1}[scale]
    turned = {"last two": keys.swapaxes(-1, -2), "all": keys.T, "first two": keys.swapaxes(0, 1)}[turn]
    if place == "turned":
        may = may.swapaxes(1, 2)
    if place == "inverted":
        may = ~may
    scores = queries @ turned / divisor
    if place == "added":
        scores = scores + may
    closed = -np.inf if unseen == "nan" else -1e30
    if place in ("zero before", "zero before and after", "zero, caught"):
        closed = 0.0
    if place == "low":
        closed = -100.0
    if place in ("before", "zero, caught", "zero before", "zero before and after", "turned", "inverted", "low"):
        scores = np.where(may, scores, closed)
    highest = {
        "row": lambda: scores.max(axis=axis, keepdims=True),
        "none": lambda: 0.0,
        "all": lambda: scores.max(),
        "text": lambda: scores.max(axis=(1, 2), keepdims=True),
    }[largest]()
    exponentials = np.exp(scores - highest)
    weights = {
        "softmax": lambda: exponentials / exponentials.sum(axis=axis, keepdims=True),
        "scores": lambda: np.where(may, scores, 0.0),
        "mean": lambda: may / np.maximum(may.sum(axis=-1, keepdims=True), 1),
        "undivided": lambda: exponentials,
    }[kind]()
    if place in ("caught", "zero, caught"):
        exponentials = np.where(may, exponentials, 0)
        weights = exponentials / np.maximum(exponentials.sum(axis=-1, keepdims=True), 1e-30)
    if "renormalized" in place:
        left = np.where(may, weights, 0).sum(axis=-1, keepdims=True)
        weights = np.where(may, weights, 0) / (np.maximum(left, 1e-12) if "caught" in place else left)
    elif unseen == "zero" and place not in ("zero before", "added", "low"):
        weights = np.where(may, weights, 0)
    if place == "low":
        weights = np.where(may.any(axis=-1, keepdims=True), weights, 0)
    if scale == "after":
        weights = weights / np.sqrt(H)
    if result == "weights":
        return weights
    if result == "turned":
        return weights.swapaxes(-1, -2) @ values
    answer = weights @ values
    if result == "with residual":
        return x + answer
    if result == "plus values":
        return values + answer
    if result == "last token":
        return answer[:, -1]
    if result == "no padding rows":
        return np.where(np.asarray(is_token)[:, :, None], answer, 0)
    return answer


def causal_cases():
    for T in (1, 2, 3, 7):
        yield f"T = {T}", (T,)


def masks_cases():
    yield "one token", (np.array([[True]]),)
    yield "a token and padding", (np.array([[True, False]]),)
    yield "padding on the left", (np.array([[False, True, True]]),)
    yield "three texts", (np.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]], bool),)
    yield "another three texts", (np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool),)
    yield "three texts of three", (np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool),)


def projections_cases():
    random = np.random.default_rng(1)
    one = (np.array([[[1.0, 2.0]]]), *(np.array(w) for w in ([[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [1.0]])))
    yield "the example", one
    yield "D = H = 3", tuple(random.normal(size=shape) for shape in ((2, 5, 3), (3, 3), (3, 3), (3, 3)))
    yield "D = 7, H = 3", tuple(random.normal(size=shape) for shape in ((2, 5, 7), (7, 3), (7, 3), (7, 3)))


def attention_cases():
    random = np.random.default_rng(2)

    def numbers(B, T, D, H):
        return tuple(random.normal(size=shape) for shape in ((B, T, D), (D, H), (D, H), (D, H)))

    yield "one token", (*numbers(1, 1, 2, 2), np.ones((1, 1), bool))
    yield "two tokens", (*numbers(1, 2, 2, 2), np.ones((1, 2), bool))
    yield "D = H = 3, no padding", (*numbers(2, 5, 3, 3), np.ones((2, 5), bool))
    yield "D = 7, H = 3, no padding", (*numbers(2, 5, 7, 3), np.ones((2, 5), bool))
    right = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 1, 0]], bool)
    yield "D = H = 3, padding on the right and within", (*numbers(3, 5, 3, 3), right)
    left = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]], bool)
    yield "D = 2, H = 3, padding on the left", (*numbers(2, 5, 2, 3), left)
    yield "B = T = D = H = 3", (*numbers(3, 3, 3, 3), np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1]], bool))
    yield "padding only", (*numbers(2, 3, 3, 3), np.zeros((2, 3), bool))
    large = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, -1.0], [1.0, -1.0], [0.0, 2.0]]])
    eye = np.eye(2)
    yield "large scores", (large, 64 * eye, 64 * eye, eye, np.array([[1, 1, 1], [1, 1, 0]], bool))
    low = np.array([[[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    yield "scores far below 0", (low, 640 * eye, -640 * eye, eye + 1, np.array([[0, 1, 1]], bool))
    apart = np.array([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    yield "rows of very different size", (apart, 64 * eye, -64 * eye, eye, np.ones((2, 3), bool))


def later_tokens_change_nothing(self_attention):
    """Causality: results up to a token do not depend on the tokens after it, nor any result on padding."""
    random = np.random.default_rng(3)
    x, w_q, w_k, w_v = (random.normal(size=shape) for shape in ((2, 6, 5), (5, 3), (5, 3), (5, 3)))
    is_token = np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1]], bool)
    before = np.asarray(self_attention(x.copy(), w_q, w_k, w_v, is_token))
    for t in range(1, 6):
        other = x.copy()
        other[:, t:] += 7.0
        after = np.asarray(self_attention(other, w_q, w_k, w_v, is_token))
        assert np.allclose(after[:, :t], before[:, :t], atol=1e-5), f"tokens from {t} on change a result before them"
    other = np.where(is_token[:, :, None], x, 9.0)
    after = np.asarray(self_attention(other, w_q, w_k, w_v, is_token))
    assert np.allclose(after[is_token], before[is_token], atol=1e-5), "what stands in padding changes a result"


def _three(answer, *arguments):
    found = answer(*arguments)
    return tuple(found) if hasattr(found, "shape") else found  # one stacked array is good enough


EXERCISE = Exercise(
    "self-attention",
    parts=(
        Part(
            "causal_mask",
            causal_twin,
            causal_cases,
            (
                Mistake(
                    "own token hidden",
                    "A token may attend itself; so the diagonal is True, and the first row is not empty.",
                    {"which": "own hidden"},
                ),
                Mistake(
                    "next token seen",
                    "A token may read the one after it: one diagonal too many. It could copy its answer.",
                    {"which": "next seen"},
                ),
                Mistake(
                    "upside down",
                    "Tokens read those after them, not before. Rows are queries: row 0 has only its first column.",
                    {"which": "upside down"},
                ),
                Mistake(
                    "True where forbidden",
                    "This says which tokens are hidden. Here True means: may attend.",
                    {"which": "forbidden"},
                ),
                Mistake("everything open", "No token is hidden from any other.", {"which": "everything"}),
                Mistake("itself only", "Each token attends itself and nobody before it.", {"which": "own only"}),
                Mistake(
                    "only the token before",
                    "One diagonal is open. All tokens before may be attended, and the own one.",
                    {"which": "previous only"},
                ),
                Mistake(
                    "itself and one before",
                    "This is a window of two. All tokens before may be attended, however far.",
                    {"which": "own and previous"},
                ),
                Mistake(
                    "mirrored",
                    "The triangle hangs at the wrong side: the first token is the first column.",
                    {"which": "mirrored"},
                ),
                Mistake(
                    "numbers to be added to scores",
                    "0 and minus infinity is another form of mask, to be added. Here True and False are asked.",
                    {"which": "scores"},
                ),
                Mistake(
                    "large negative numbers",
                    "0 and -1e9 would be added to scores. Here a bool is asked, which says yes or no.",
                    {"which": "large numbers"},
                ),
                Mistake(
                    "weights in place of a mask",
                    "Rows that sum to 1 are weights. The mask only says yes or no.",
                    {"which": "equal share"},
                ),
                Mistake("one row too many", "T tokens: T rows and T columns.", {"which": "one larger"}),
            ),
        ),
        Part(
            "both_masks",
            masks_twin,
            masks_cases,
            (
                Mistake(
                    "padding forgotten",
                    "All texts have the same mask: is_token has no influence.",
                    {"padding": "forgotten"},
                ),
                Mistake("causal mask forgotten", "Tokens after t are open to it.", {"causal": "everything"}),
                Mistake(
                    "rows closed, not columns",
                    "Padding may read nobody here, but everybody reads it. It is the key that must be a token: "
                    "is_token "
                    "goes along the last axis.",
                    {"padding": "queries"},
                ),
                Mistake(
                    "rows and columns closed",
                    "Nobody reads padding, that is right. But the rows of padding are closed as well; only columns "
                    "should be.",
                    {"padding": "both"},
                ),
                Mistake(
                    "no axis for the queries",
                    "is_token is [B, T], and was joined with [T, T] as if its texts were queries. It needs an axis of "
                    "length 1 between the two.",
                    {"padding": "no axis"},
                ),
                Mistake(
                    "padding reads padding",
                    "Tokens read tokens, and padding reads padding. Nobody may read padding.",
                    {"padding": "same kind"},
                ),
                Mistake(
                    "only padding open",
                    "The columns of tokens are closed, those of padding open: one `not` too many.",
                    {"padding": "inverted"},
                ),
                Mistake(
                    "or in place of and", "A key is open here if either mask allows it; both must.", {"join": "or"}
                ),
                Mistake(
                    "the first text's padding for all",
                    "Each text has padding of its own; keep the axis of the texts.",
                    {"padding": "first text"},
                ),
                Mistake(
                    "padding of any text closes all",
                    "A column is closed in all texts as soon as it is padding in one of them.",
                    {"padding": "everywhere"},
                ),
                Mistake(
                    "open if it is a token in any text",
                    "A column is open in all texts as soon as it is a token in one of them.",
                    {"padding": "anywhere"},
                ),
                Mistake(
                    "whole texts closed",
                    "A text with any padding is closed altogether; `all` or `any` went over the wrong axis.",
                    {"padding": "whole text"},
                ),
                Mistake(
                    "padding taken to be on the right",
                    "The number of tokens does not say where they are: padding may be on the left, or within.",
                    {"join": "number of tokens"},
                ),
                Mistake(
                    "padding reads itself",
                    "The diagonal was opened again: padding may not be attended by anyone, not even by itself.",
                    {"join": "own always"},
                ),
                Mistake(
                    "the own token is hidden",
                    "The diagonal is closed. A token may attend itself.",
                    {"causal": "own hidden"},
                ),
                Mistake("the next token is seen", "One diagonal too many is open.", {"causal": "next seen"}),
                Mistake(
                    "the causal mask is upside down",
                    "Tokens after t are open, and those before it are closed.",
                    {"causal": "upside down"},
                ),
            ),
        ),
        Part(
            "queries_keys_values",
            projections_twin,
            projections_cases,
            (
                Mistake("queries are not projected", "q is x itself. What makes x a query?", {"q": "x"}),
                Mistake("keys are not projected", "k is x itself. What makes x a key?", {"k": "x"}),
                Mistake("values are not projected", "v is x itself. What makes x a value?", {"v": "x"}),
                Mistake("queries by w_k", "The queries were made with the matrix of the keys.", {"q": "x w_k"}),
                Mistake("keys by w_q", "The keys were made with the matrix of the queries.", {"k": "x w_q"}),
                Mistake("values by w_k", "The values were made with the matrix of the keys.", {"v": "x w_k"}),
                Mistake("values by w_q", "The values were made with the matrix of the queries.", {"v": "x w_q"}),
                Mistake("keys by w_v", "The keys were made with the matrix of the values.", {"k": "x w_v"}),
                Mistake(
                    "one matrix for all three",
                    "All three are alike, made with w_q; each has a matrix of its own.",
                    {"k": "x w_q", "v": "x w_q"},
                ),
                Mistake(
                    "keys made from the queries",
                    "w_k was applied to q; all three are made from the same x.",
                    {"k": "q w_k"},
                ),
                Mistake(
                    "values made from the keys",
                    "w_v was applied to k; all three are made from the one x.",
                    {"v": "k w_v"},
                ),
                Mistake("keys first", "The order of the result is q, k, v; keys come first here.", {"order": "kqv"}),
                Mistake("values before keys", "The order of the result is q, k, v, not q, v, k.", {"order": "qvk"}),
                Mistake("values first", "The order of the result is q, k, v, not v, k, q.", {"order": "vkq"}),
                Mistake(
                    "matrices transposed",
                    "The matrices are [D, H] already, and x ends with D: no transpose.",
                    {"turned": True},
                ),
                Mistake(
                    "queries divided already",
                    "The root of H belongs to the scores; here only the projections are asked.",
                    {"scaled": True},
                ),
            ),
            call=_three,
        ),
        Part(
            "self_attention",
            attention_twin,
            attention_cases,
            (
                Mistake(
                    "exponentials overflow, 0 / 0 caught",
                    "exp of a large score is infinite, exp of a very low one is 0. Take each row's largest score away.",
                    {"place": "caught", "largest": "none"},
                ),
                Mistake(
                    "closed scores set to 0, then divided by what is left",
                    "Right, until all open scores are far below 0: then 0 is the largest, and nothing is left of them. "
                    "Take a score whose exponential is 0, before the maximum.",
                    {"place": "zero, caught"},
                ),
                Mistake(
                    "both masks transposed",
                    "Rows of the mask are queries, columns are keys, as in the scores: no transpose.",
                    {"place": "turned"},
                ),
                Mistake(
                    "both masks upside down",
                    "True means that a key may be attended. You close the open ones.",
                    {"place": "inverted"},
                ),
                Mistake(
                    "the mask added to the scores",
                    "True counts as 1: open keys get a little more, and closed ones are still read.",
                    {"place": "added"},
                ),
                Mistake(
                    "closed scores not low enough",
                    "-100 is far above an open score of minus a million. Take -1e30 or minus infinity.",
                    {"place": "low"},
                ),
                Mistake(
                    "the own value added",
                    "The residual connection is no part of this function, and it would add x, not the values.",
                    {"result": "plus values"},
                ),
                Mistake(
                    "no causal mask",
                    "Each token reads the whole text, also what comes after it.",
                    {"causal": "everything"},
                ),
                Mistake("no padding mask", "Padding is read like any token.", {"padding": "forgotten"}),
                Mistake(
                    "no mask at all",
                    "Neither mask has an influence: later tokens and padding are read.",
                    {"causal": "everything", "padding": "forgotten"},
                ),
                Mistake(
                    "own token hidden from itself",
                    "Each token reads only those before it. The first one then reads nobody.",
                    {"causal": "own hidden"},
                ),
                Mistake("one token too far", "Each token also reads the next one.", {"causal": "next seen"}),
                Mistake("future in place of past", "Each token reads those after it.", {"causal": "upside down"}),
                Mistake(
                    "padding may not read",
                    "It is closed for padding to read; it should be closed for others to read padding.",
                    {"padding": "queries"},
                ),
                Mistake(
                    "tokens closed, padding open",
                    "Padding is read and tokens are not: is_token is True for tokens.",
                    {"padding": "inverted"},
                ),
                Mistake(
                    "rows of padding set to 0",
                    "A padding token that may read something gets a result, too; only who may attend nothing gets 0.",
                    {"result": "no padding rows"},
                ),
                Mistake(
                    "closed after the softmax only",
                    "Rows no longer sum to 1, and later tokens still count in the sums. Close scores, not weights.",
                    {"place": "after"},
                ),
                Mistake(
                    "closed scores are 0",
                    "A score of 0 is a fair score: its exponential is 1. Closed ones must be far below all others.",
                    {"place": "zero before"},
                ),
                Mistake(
                    "closed scores are 0, then closed weights, too",
                    "A score of 0 adds 1 to the sum of its row, also if its weight is set to 0 afterwards.",
                    {"place": "zero before and after"},
                ),
                Mistake(
                    "divided by what is left",
                    "Softmax over all, then open weights divided by their sum: 0 / 0 where all is closed, or where a "
                    "later token has a very large score. Close scores before the softmax.",
                    {"place": "renormalized"},
                ),
                Mistake(
                    "divided by what is left, 0 / 0 caught",
                    "Softmax over all, then open weights divided by their sum: nothing is left of them where a later "
                    "token has a very large score. Close the scores first.",
                    {"place": "renormalized, caught"},
                ),
                Mistake(
                    "texts taken for queries",
                    "is_token [B, T] was joined with [T, T] as it is; both_masks must be [B, T, T].",
                    {"padding": "no axis"},
                ),
                Mistake(
                    "one mask is enough",
                    "A key is read if it is either not later or no padding; it must be both.",
                    {"join": "or"},
                ),
                Mistake(
                    "all axes turned around",
                    "`.T` reverses all three axes; only the last two of the keys change places: swapaxes(-1, -2).",
                    {"turn": "all"},
                ),
                Mistake(
                    "batch and tokens exchanged",
                    "Of the keys [B, T, H] the last two axes change places, not the first two.",
                    {"turn": "first two"},
                ),
                Mistake(
                    "nothing projected",
                    "x itself is query, key and value: the three matrices have no influence.",
                    {"q": "x", "k": "x", "v": "x"},
                ),
                Mistake(
                    "w_q three times", "Queries, keys and values were all made with w_q.", {"k": "x w_q", "v": "x w_q"}
                ),
                Mistake("values not projected", "The weights average x; they should average x @ w_v.", {"v": "x"}),
                Mistake("keys not projected", "Queries are compared with x, not with x @ w_k.", {"k": "x"}),
                Mistake("queries not projected", "Keys are compared with x, not with x @ w_q.", {"q": "x"}),
                Mistake("keys averaged", "The weights are right, but they average the keys.", {"v": "x w_k"}),
                Mistake(
                    "queries compared with queries",
                    "The scores are symmetric: both sides were made with w_q.",
                    {"k": "x w_q"},
                ),
                Mistake(
                    "queries and keys exchanged",
                    "Row t of the scores belongs to query t; you have k q^T, whose row t belongs to key t.",
                    {"order": "kqv"},
                ),
                Mistake(
                    "keys and values exchanged",
                    "Queries are compared with the values, and the keys are averaged.",
                    {"order": "qvk"},
                ),
                Mistake("not scaled", "Scores are not divided by the root of H.", {"scale": "none"}),
                Mistake("scaled by H", "Scores are divided by H; take its root.", {"scale": "H"}),
                Mistake(
                    "scaled by the root of D",
                    "Scores are sums of H products, the last axis of q, and not of x.",
                    {"scale": "D"},
                ),
                Mistake(
                    "scaled by the root of T",
                    "The number of tokens has nothing to do with the size of scores.",
                    {"scale": "T"},
                ),
                Mistake(
                    "multiplied by the root", "The root of H makes scores smaller, not larger.", {"scale": "times"}
                ),
                Mistake(
                    "scaled after the softmax",
                    "Weights that are divided by the root of H no longer sum to 1.",
                    {"scale": "after"},
                ),
                Mistake(
                    "softmax over the queries",
                    "Columns of [T, T] sum to 1; each row should: the last axis.",
                    {"axis": -2},
                ),
                Mistake(
                    "softmax over the texts",
                    "Axis 0 is the batch: texts of one batch have become dependent on each other.",
                    {"axis": 0},
                ),
                Mistake(
                    "softmax over all tokens of a text",
                    "All weights of a text together sum to 1; each row should, alone.",
                    {"axis": (-2, -1)},
                ),
                Mistake(
                    "softmax over everything at once",
                    "All weights of the whole batch sum to 1; each row should, alone.",
                    {"axis": None},
                ),
                Mistake("no softmax", "The values are summed with the scores themselves.", {"kind": "scores"}),
                Mistake(
                    "the mean of all open values",
                    "All open keys count the same: scores have no influence.",
                    {"kind": "mean"},
                ),
                Mistake(
                    "exponentials not divided",
                    "Each row of the exponentials must still be divided by its sum.",
                    {"kind": "undivided"},
                ),
                Mistake(
                    "exponentials overflow",
                    "exp of a few thousand is infinite: take the largest score of each row away first.",
                    {"largest": "none"},
                ),
                Mistake(
                    "one maximum for the batch",
                    "Where a row is far below the largest score of all, it becomes 0 / 0. Each row has its own "
                    "maximum.",
                    {"largest": "all"},
                ),
                Mistake(
                    "one maximum for each text",
                    "Rows of a text may be far apart; those far below its largest score become 0 / 0.",
                    {"largest": "text"},
                ),
                Mistake(
                    "padding at the start reads the mean",
                    "A row with everything closed has equal scores, so it reads all values alike. It must be 0.",
                    {"unseen": "mean"},
                ),
                Mistake(
                    "padding at the start is NaN",
                    "A row of minus infinity alone is 0 / 0. Such a row must be 0.",
                    {"unseen": "nan"},
                ),
                Mistake(
                    "weights returned", "These are the weights; average the values with them.", {"result": "weights"}
                ),
                Mistake(
                    "weights turned around",
                    "weights @ v: row t of the weights belongs to token t.",
                    {"result": "turned"},
                ),
                Mistake(
                    "x added",
                    "The residual connection, x + ..., belongs to the block (lesson 05), not to attention.",
                    {"result": "with residual"},
                ),
                Mistake(
                    "only the last token",
                    "All T tokens ask at once: the result is [B, T, H].",
                    {"result": "last token"},
                ),
            ),
            laws=(later_tokens_change_nothing,),
        ),
    ),
    hints=(
        "Rows are queries, columns are keys, in the mask, in the scores and in the weights. Draw the mask of three "
        "tokens, of which the first is padding, before you write it.",
        "`is_token[:, None, :]` is [B, 1, T]: the same row for all queries of a text, so it closes columns. `&` "
        "joins it "
        "with the causal [T, T]. For a batch, `.T` turns all axes around; take `k.swapaxes(-1, -2)`.",
        "causal_mask: np.tril of ones. both_masks: `causal_mask(T) & is_token[:, None, :]`. self_attention: the "
        "attention "
        "of exercise 01 with `k.swapaxes(-1, -2)` for `k.T`, and `both_masks(is_token)` for may_attend.",
    ),
)
