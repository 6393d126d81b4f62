"""Wrong twins of exercise 01: attention."""

import numpy as np

from course.grading import Exercise, Mistake, Part

# Part A

QUERY = np.array([2, 0, 2, 0])
KEYS = np.array([[1, 5, 1, 0], [0, 1, 1, 3], [1, 4, -1, 2]])
VALUES = np.array([[10, 0], [0, 10], [20, 20]])


def scores_twin(*, scale="root", product="dot"):
    products = {
        "dot": KEYS @ QUERY,
        "sum of sums": KEYS.sum(axis=1) * QUERY.sum(),
        "no sum over all": KEYS[:, 0] * QUERY[0],
        "length of the difference": np.sqrt(((KEYS - QUERY) ** 2).sum(axis=1)),
    }[product]
    return products / {"root": 2, "none": 1, "H": 4, "S": np.sqrt(3), "square": 16}[scale]


def weights_twin(*, scores="scaled", kind="softmax"):
    x = scores_twin(scale={"scaled": "root", "unscaled": "none", "by H": "H"}[scores])
    exponentials = np.exp(x)
    return {
        "softmax": exponentials / exponentials.sum(),
        "shares of the scores": x / x.sum(),
        "not divided": exponentials,
        "by the largest": exponentials / exponentials.max(),
        "powers of two": 2.0**x / (2.0**x).sum(),
        "signs": np.exp(-x) / np.exp(-x).sum(),
        "all to the best": (x == x.max()) * 1.0,
        "by the number": exponentials / len(x),
    }[kind]


def answer_twin(*, weights="softmax", order="by row"):
    w = {
        "softmax": weights_twin(),
        "unscaled": weights_twin(scores="unscaled"),
        "equal": np.full(3, 1 / 3),
        "best": np.array([1.0, 0.0, 0.0]),
        "scores": scores_twin(),
        "exponentials": weights_twin(kind="not divided"),
        "two only": weights_twin() * [1, 1, 0],
    }[weights]
    answer = w @ VALUES
    return {"by row": answer, "exchanged": answer[::-1], "divided by S": answer / 3}[order]


# Part B


def softmax_twin(scores, *, over="last", shift="largest", power="e", divide="sum", dtype="float", after="nothing"):
    x = np.asarray(scores, float)
    if over == "second" and x.ndim == 1:
        return None
    axis = {"last": -1, "first": 0, "all": None, "second": 1}[over]
    shifts = {
        "largest": lambda: x.max(axis=axis, keepdims=True),
        "nothing": lambda: 0.0,
        "one for all": lambda: x.max(),
        "columns": lambda: x.max(axis=axis),  # keepdims forgotten
        "mean": lambda: x.mean(axis=axis, keepdims=True),
        "smallest": lambda: x.min(axis=axis, keepdims=True),
    }
    shifted = x - shifts[shift]()
    exponentials = {
        "e": lambda: np.exp(shifted),
        "two": lambda: 2.0**shifted,
        "minus": lambda: np.exp(-(x - x.min(axis=axis, keepdims=True))),
        "minus of shifted": lambda: np.exp(-shifted),
        "none": lambda: x,
        "shifted": lambda: shifted,
        "absolute": lambda: np.abs(x),
        "square": lambda: shifted**2,
    }[power]()
    weights = {
        "sum": lambda: exponentials / exponentials.sum(axis=axis, keepdims=True),
        "columns": lambda: exponentials / exponentials.sum(axis=axis),  # keepdims forgotten
        "nothing": lambda: exponentials,
        "number": lambda: exponentials / x.shape[-1],
        "length": lambda: exponentials / np.sqrt((exponentials**2).sum(axis=axis, keepdims=True)),
        "whole array": lambda: exponentials / exponentials.sum(),
        "plus one": lambda: exponentials / (1 + exponentials.sum(axis=axis, keepdims=True)),
        "of e^0": lambda: 1 / (1 + np.exp(-x)),
    }[divide]()
    if after == "log":
        return np.log(weights) if weights.min() > 0 else None  # -inf or a number, by how it is computed
    if after == "root":
        weights = weights / np.sqrt(x.shape[-1])
    if dtype == "int" and np.asarray(scores).dtype.kind in "iu":
        weights = np.trunc(weights)
    return weights


def softmax_cases():
    random = np.random.default_rng(1)
    yield "one score", (np.array([3.0]),)
    yield "two equal scores", (np.array([0.0, 0.0]),)
    yield "scores 1, 2, 3", (np.array([1.0, 2.0, 3.0]),)
    yield "a negative score", (np.array([-1.0, 2.0]),)
    yield "two rows", (np.array([[0.0, 1.0, 3.0], [2.0, 2.0, 0.5]]),)
    yield "three rows, three columns", (random.normal(size=(3, 3)),)
    yield "three axes", (random.normal(size=(2, 5, 3)),)
    yield "three axes of one size", (random.normal(size=(3, 3, 3)),)
    yield "whole numbers", (np.array([[0, 2], [1, 1], [3, 1]]),)
    yield "large scores", (np.array([[1000.0, 1001.0], [1003.0, 1001.0]]),)
    yield "rows of very different size", (np.array([[900.0, 901.0], [-900.0, -902.0]]),)
    yield "two scores far apart", (np.array([0.0, 1000.0]),)
    yield "three scores far apart", (np.array([0.0, -3000.0, 1.0]),)


# Part C


def attention_twin(
    q,
    k,
    v,
    may_attend,
    *,
    scale="root",
    over="keys",
    weights_from="exp",
    largest="row",
    mask="before",
    unseen="zero",
    swap="no",
    result="answer",
):
    (T, H), S = q.shape, len(k)
    q, k, v = (np.asarray(x, float) for x in (q, k, v))
    if swap == "keys and values":
        k, v = v, k
    if swap == "keys are also values":
        v = k
    if swap == "values are also keys":
        k = v
    may = np.asarray(may_attend)
    if mask == "transposed":
        if T != S:
            return None
        may = may.T
    if mask == "inverted":
        may = ~may
    if mask == "causal":
        may = may & np.tri(T, S, dtype=bool)
    factor = {
        "root": H**-0.5,
        "none": 1.0,
        "H": 1 / H,
        "root of S": S**-0.5,
        "root of T": T**-0.5,
        "times": H**0.5,
        "fourth root": H**-0.25,
        "after": 1.0,
        "whole root": 1 / int(H**0.5),
        "floor": 1.0,
        "cosine": 1.0,
        "two": 0.5,
    }[scale]
    scores = q @ k.T * factor
    if scale == "floor":
        scores = q @ k.T // H**0.5
    closed = {"zero before": 0.0, "zero before and after": 0.0, "low": -100.0}.get(
        mask, -np.inf if unseen == "nan" else -1e30
    )
    if scale == "cosine":
        lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(k, axis=1)
        scores = q @ k.T / lengths
    if mask == "added":
        scores = scores + may
    elif mask == "open ones lowered":
        scores = scores - 1e9 * may
    elif mask not in ("forgotten", "after", "renormalized", "renormalized, caught"):
        scores = np.where(may, scores, closed)
    axis = {"keys": 1, "queries": 0, "all": None}[over]
    highest = {"row": lambda: scores.max(axis=axis, keepdims=True), "all": lambda: scores.max(), "none": lambda: 0.0}[
        largest
    ]()
    exponentials = np.exp(scores - highest)
    total = exponentials.sum(axis=axis, keepdims=True)
    weights = {
        "exp": lambda: exponentials / total,
        "scores": lambda: np.where(may, q @ k.T * factor, 0.0),
        "sigmoid": lambda: 1 / (1 + np.exp(-scores)),
        "best": lambda: (np.arange(S) == scores.argmax(axis=1)[:, None]) * 1.0,
        "undivided": lambda: exponentials,
        "mean": lambda: np.full((T, S), 1.0),
        "twice": lambda: exponentials / total,
        "twice, then closed": lambda: exponentials / total,
    }[weights_from]()
    if weights_from == "mean":
        weights = may / np.maximum(may.sum(axis=1, keepdims=True), 1)
    if mask in ("renormalized", "renormalized, caught"):
        weights = np.where(may, weights, 0)
        left = weights.sum(axis=1, keepdims=True)
        weights = weights / (np.maximum(left, 1e-12) if "caught" in mask else left)
    elif unseen == "zero" and mask not in ("forgotten", "zero before", "added", "open ones lowered"):
        weights = np.where(may, weights, 0)
    if weights_from == "twice":
        weights = np.exp(weights) / np.exp(weights).sum(axis=1, keepdims=True)
    if weights_from == "twice, then closed":
        weights = np.where(may, np.exp(weights) / np.exp(weights).sum(axis=1, keepdims=True), 0)
    if unseen == "whole rows":
        weights = np.where(may.any(axis=1, keepdims=True), weights, 0)
    if scale == "after":
        weights = weights / np.sqrt(H)
    if result == "weights":
        return weights
    if result == "weights transposed":
        return weights.T @ v if T == S else None
    if result == "answer transposed":
        return (weights @ v).T
    return weights @ v


def attention_cases():
    random = np.random.default_rng(2)
    yield "one query, one key", (np.array([[3.0]]), np.array([[2.0]]), np.array([[5.0]]), np.ones((1, 1), bool))
    two_keys = np.array([[2.0]]), np.array([[1.0], [0.0]]), np.array([[10.0], [20.0]])
    yield "two keys, by hand", (*two_keys, np.array([[True, True]]))
    yield "two keys, the first closed", (*two_keys, np.array([[False, True]]))
    numbers = QUERY[None].astype(float), KEYS.astype(float), np.pad(VALUES, ((0, 0), (0, 2))).astype(float)
    yield "part A", (*numbers, np.ones((1, 3), bool))
    T, S, H = 5, 7, 3
    q, k, v = (random.normal(size=(length, H)) for length in (T, S, S))
    yield "T = 5, S = 7, H = 3, all open", (q, k, v, np.ones((T, S), bool))
    may_attend = random.random((T, S)) < 0.6
    may_attend[:, 2] = True
    yield "T = 5, S = 7, H = 3, some closed", (q, k, v, may_attend)
    square = tuple(random.normal(size=(4, 3)) for _ in range(3))
    yield "T = S = 4, keys up to the query's own", (*square, np.tril(np.ones((4, 4), bool)))
    nothing = may_attend.copy()
    nothing[3] = False
    yield "a query that may attend nothing", (q, k, v, nothing)
    yield "all keys closed", (q[:2], k[:3], v[:3], np.zeros((2, 3), bool))
    large = np.array([[4000.0, 0.0], [0.0, -4000.0]]), np.array([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0]]), np.eye(3, 2)
    yield "large scores", (*large, np.array([[True, True, True], [True, True, False]]))
    yield "a large score that is closed", (*large, np.array([[True, True, False], [True, False, False]]))
    apart = np.array([[2000.0, 0.0, 0.0, 0.0], [-2000.0, -1.0, 0.0, 0.0]]), np.eye(4)[:2] + np.eye(4)[0]  # exact floats
    yield "rows of very different size", (*apart, np.array([[1.0, 2, 4, 8], [3, 5, 7, 9]]), np.ones((2, 2), bool))
    low = np.array([[-4e5, 0.0], [0.0, -4e5]]), np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 1.0]]), np.eye(3, 2)
    yield "open scores far below 0", (*low, np.array([[True, True, False], [False, True, True]]))


EXERCISE = Exercise(
    "attention",
    parts=(
        Part(
            "scores_by_hand",
            scores_twin,
            lambda: [("", ())],
            (
                Mistake(
                    "not divided",
                    "These are the plain dot products. What does the paper divide them by, for H = 4?",
                    {"scale": "none"},
                ),
                Mistake("divided by H", "Divided by 4; look at the formula again: by what of H?", {"scale": "H"}),
                Mistake(
                    "divided by the root of 3",
                    "There are three keys, but it is the width of the vectors that makes scores large.",
                    {"scale": "S"},
                ),
                Mistake(
                    "the sums multiplied",
                    "Multiply number by number first, and add the products up; not the other way round.",
                    {"product": "sum of sums"},
                ),
                Mistake(
                    "only the first numbers multiplied",
                    "A dot product has one product for each of the four numbers; add all four up.",
                    {"product": "no sum over all"},
                ),
                Mistake(
                    "distances",
                    "This is how far the keys are from the query. A score is a dot product: multiply and add up.",
                    {"product": "length of the difference"},
                ),
            ),
            tolerance=6e-3,
        ),
        Part(
            "weights_by_hand",
            weights_twin,
            lambda: [("", ())],
            (
                Mistake(
                    "shares of the scores",
                    "The scores themselves were divided by their sum. First raise e to each of them.",
                    {"kind": "shares of the scores"},
                ),
                Mistake(
                    "not divided by their sum",
                    "These are the exponentials. Weights sum to 1: what must each one be divided by?",
                    {"kind": "not divided"},
                ),
                Mistake(
                    "divided by the largest",
                    "The largest weight is not 1; it is the sum of all that must be 1.",
                    {"kind": "by the largest"},
                ),
                Mistake("powers of two", "The base is e, 2.718, not 2.", {"kind": "powers of two"}),
                Mistake(
                    "smallest score, largest weight",
                    "The order is upside down: a large score gives a large weight.",
                    {"kind": "signs"},
                ),
                Mistake(
                    "all to the best key",
                    "That is what a dictionary does. A softmax gives some weight to every key.",
                    {"kind": "all to the best"},
                ),
                Mistake(
                    "divided by the number of keys",
                    "Dividing by 3 does not make them sum to 1; divide by the sum of the three exponentials.",
                    {"kind": "by the number"},
                ),
                Mistake(
                    "softmax of scores that were not divided",
                    "The softmax is right, but it was taken of the plain dot products.",
                    {"scores": "unscaled"},
                ),
                Mistake(
                    "softmax of scores that were divided by H",
                    "The softmax is right, but the scores were divided by 4 and not by the root of 4.",
                    {"scores": "by H"},
                ),
            ),
            tolerance=6e-3,
        ),
        Part(
            "answer_by_hand",
            answer_twin,
            lambda: [("", ())],
            (
                Mistake(
                    "the third value is missing",
                    "Its weight is small, but it is not 0: it belongs to both numbers.",
                    {"weights": "two only"},
                ),
                Mistake("the plain mean", "All values count the same here; use your weights.", {"weights": "equal"}),
                Mistake(
                    "the value of the best key",
                    "That is what a dictionary answers; attention mixes all three values.",
                    {"weights": "best"},
                ),
                Mistake(
                    "values multiplied by scores",
                    "It is the weights that the values are multiplied by, the numbers that sum to 1.",
                    {"weights": "scores"},
                ),
                Mistake(
                    "values multiplied by exponentials",
                    "The exponentials do not sum to 1 yet; divide them by their sum first.",
                    {"weights": "exponentials"},
                ),
                Mistake(
                    "weights of scores that were not divided",
                    "The last step is right. The weights come from the plain dot products.",
                    {"weights": "unscaled"},
                ),
                Mistake(
                    "the two numbers exchanged",
                    "The first number is the mean of the first numbers of the three values.",
                    {"order": "exchanged"},
                ),
                Mistake(
                    "divided by three as well",
                    "The weights sum to 1 already, so nothing is left to divide by.",
                    {"order": "divided by S"},
                ),
            ),
            tolerance=1.2e-2,
        ),
        Part(
            "softmax",
            softmax_twin,
            softmax_cases,
            (
                Mistake(
                    "over the first axis",
                    "Columns sum to 1, rows do not. Which axis do `max` and `sum` go along?",
                    {"over": "first"},
                ),
                Mistake(
                    "over the axis 1",
                    "It is right for two axes. The text says the last axis, whatever their number: that one is -1.",
                    {"over": "second"},
                ),
                Mistake(
                    "over everything at once",
                    "The whole array sums to 1, instead of each row. `sum` without an axis adds all numbers up.",
                    {"over": "all"},
                ),
                Mistake(
                    "overflow",
                    "It is right for small scores, and exp(1000) is infinite. What can be taken away from all scores "
                    "of a row without changing their softmax?",
                    {"shift": "nothing"},
                ),
                Mistake(
                    "one maximum for all rows",
                    "The largest score of the whole array was taken away. A row far below it becomes exp(-1800) = 0, "
                    "and 0 / 0. Each row needs its own maximum.",
                    {"shift": "one for all"},
                ),
                Mistake(
                    "keepdims forgotten at the maximum",
                    "`x.max(axis=-1)` loses its axis, and each row's maximum is taken from a column. See `keepdims`.",
                    {"shift": "columns"},
                ),
                Mistake(
                    "the smallest taken away",
                    "Taking the smallest score away leaves the large ones large: exp still overflows. Take the "
                    "largest.",
                    {"shift": "smallest"},
                ),
                Mistake(
                    "the mean taken away",
                    "Far above the mean, exp still overflows. Take away a number that no score is above.",
                    {"shift": "mean"},
                ),
                Mistake(
                    "no exponential",
                    "Scores divided by their sum: negative scores have no share.",
                    {"power": "none", "shift": "nothing"},
                ),
                Mistake("powers of two", "2 ** x grows more slowly than e ** x; take np.exp.", {"power": "two"}),
                Mistake(
                    "upside down",
                    "A large score got a small weight: there is a minus too many before exp.",
                    {"power": "minus"},
                ),
                Mistake(
                    "upside down, and it overflows",
                    "A large score got a small weight: the score is taken from the maximum, and not the other way "
                    "round.",
                    {"power": "minus of shifted"},
                ),
                Mistake(
                    "keepdims forgotten",
                    "The sum of each row lost its axis, so it was divided along columns. See `keepdims`.",
                    {"divide": "columns"},
                ),
                Mistake(
                    "the exponentials alone",
                    "Positive they are, but they do not sum to 1 yet.",
                    {"divide": "nothing", "shift": "nothing"},
                ),
                Mistake(
                    "not divided by the sum",
                    "The largest number of each row is 1 now; it is their sum that should be 1.",
                    {"divide": "nothing"},
                ),
                Mistake(
                    "divided by the sum of all rows",
                    "Each row has its own sum: `sum` needs an axis, and `keepdims`.",
                    {"divide": "whole array"},
                ),
                Mistake(
                    "divided by the number of scores",
                    "That is a mean. Divide by the sum of the exponentials.",
                    {"divide": "number"},
                ),
                Mistake(
                    "divided by the length",
                    "The squares sum to 1 now, as for a vector of length 1. The numbers themselves should.",
                    {"divide": "length"},
                ),
                Mistake(
                    "sigmoid",
                    "1 / (1 + exp(-x)) looks at each score alone. A softmax compares it with the others.",
                    {"divide": "of e^0"},
                ),
                Mistake("logarithm", "This is the log-softmax; the weights themselves are asked.", {"after": "log"}),
                Mistake(
                    "whole numbers",
                    "For whole numbers all weights are 0 or 1: they were written into an array of whole numbers.",
                    {"dtype": "int"},
                ),
                Mistake(
                    "divided by a root",
                    "The root of H belongs into attention, before the softmax; weights must sum to 1.",
                    {"after": "root"},
                ),
            ),
        ),
        Part(
            "attention",
            attention_twin,
            attention_cases,
            (
                Mistake(
                    "a causal mask as well",
                    "may_attend says all that is to be hidden; keys after the query may be open.",
                    {"mask": "causal"},
                ),
                Mistake(
                    "not divided by the root of H",
                    "The dot products go into the softmax as they are. Which factor keeps them near 1 for wide "
                    "vectors?",
                    {"scale": "none"},
                ),
                Mistake(
                    "divided by H, not by its root",
                    "A sum of H products has standard deviation sqrt(H), not H: weights become too equal.",
                    {"scale": "H"},
                ),
                Mistake(
                    "divided by the root of the number of keys",
                    "Scores grow with the width of the vectors, not with the number of keys. Which axis of q is that?",
                    {"scale": "root of S"},
                ),
                Mistake(
                    "divided by the root of the number of queries",
                    "q.shape[0] or len(q) is T, the number of queries. The width is the last axis.",
                    {"scale": "root of T"},
                ),
                Mistake(
                    "multiplied by the root of H",
                    "Wide vectors make scores large; the root should make them smaller.",
                    {"scale": "times"},
                ),
                Mistake(
                    "divided by the fourth root",
                    "A root too many, or only one of queries and keys was divided by the fourth root.",
                    {"scale": "fourth root"},
                ),
                Mistake(
                    "divided by a whole number",
                    "The root of H was cut to a whole number, such as 1 for 1.73.",
                    {"scale": "whole root"},
                ),
                Mistake(
                    "scores cut to whole numbers", "// is a division without remainder. Take /.", {"scale": "floor"}
                ),
                Mistake(
                    "divided after the softmax",
                    "The weights were divided by the root of H, so they no longer sum to 1. Divide the scores, before.",
                    {"scale": "after"},
                ),
                Mistake(
                    "cosines",
                    "Queries and keys were divided by their lengths. The paper divides by the root of H and by nothing "
                    "else.",
                    {"scale": "cosine"},
                ),
                Mistake(
                    "divided by 2, whatever H is",
                    "The root is 2 for the H of part A. Take it from the shape of q or k.",
                    {"scale": "two"},
                ),
                Mistake(
                    "softmax taken twice",
                    "The weights went through a softmax once more, which makes them nearly equal.",
                    {"weights_from": "twice"},
                ),
                Mistake(
                    "softmax taken twice, then closed",
                    "The weights went through a softmax once more, and closed keys took a part of the sum there.",
                    {"weights_from": "twice, then closed"},
                ),
                Mistake(
                    "softmax over the queries",
                    "For each key the weights of all queries sum to 1. It is each query's own weights that should: "
                    "rows of [T, S], the last axis.",
                    {"over": "queries"},
                ),
                Mistake(
                    "softmax over everything",
                    "All weights of all queries together sum to 1. Each row should.",
                    {"over": "all"},
                ),
                Mistake(
                    "no softmax",
                    "The values are multiplied by the scores themselves. Scores become weights by the softmax.",
                    {"weights_from": "scores"},
                ),
                Mistake(
                    "sigmoid in place of the softmax",
                    "Each weight looks at its own score only, so they do not sum to 1.",
                    {"weights_from": "sigmoid"},
                ),
                Mistake(
                    "only the best key",
                    "argmax answers like a dictionary, with one value. The softmax gives every open key a weight.",
                    {"weights_from": "best"},
                ),
                Mistake(
                    "not divided by the sum",
                    "The exponentials are right. Each row must still be divided by its sum.",
                    {"weights_from": "undivided"},
                ),
                Mistake(
                    "the same weight for all open keys",
                    "Queries and keys have no influence here: a mean over the open keys.",
                    {"weights_from": "mean"},
                ),
                Mistake(
                    "mask forgotten",
                    "Closed keys are read like all others: may_attend has no influence.",
                    {"mask": "forgotten"},
                ),
                Mistake(
                    "mask forgotten, except where nothing is open",
                    "Queries that may attend nothing are right. All others still read every key: the mask must change "
                    "their scores.",
                    {"mask": "forgotten", "unseen": "whole rows"},
                ),
                Mistake(
                    "scores multiplied by the mask",
                    "A closed key has the score 0 now, and exp(0) is 1: it is read. Queries that may attend nothing "
                    "are right.",
                    {"mask": "zero before", "unseen": "whole rows"},
                ),
                Mistake(
                    "closed scores are not low enough",
                    "-100 or -10000 is not far below every score. Next to an open score of -280000 such a key wins. "
                    "Take a number like -1e30, or minus infinity.",
                    {"mask": "low"},
                ),
                Mistake(
                    "open keys were lowered",
                    "A large number was taken away from the scores where may_attend is True. Those are the open ones.",
                    {"mask": "open ones lowered"},
                ),
                Mistake(
                    "mask upside down",
                    "The closed keys are read and the open ones are not. True means: may attend.",
                    {"mask": "inverted"},
                ),
                Mistake(
                    "mask transposed",
                    "may_attend[t, s] has a row for each query, and a column for each key, as the scores have.",
                    {"mask": "transposed"},
                ),
                Mistake(
                    "weights set to 0 after the softmax only",
                    "What is left no longer sums to 1: closed keys took a part of it. Close them before the softmax.",
                    {"mask": "after"},
                ),
                Mistake(
                    "scores of closed keys set to 0",
                    "exp(0) is 1, so a score of 0 is quite a good one. Which score has the exponential 0?",
                    {"mask": "zero before"},
                ),
                Mistake(
                    "scores set to 0, then weights set to 0",
                    "A score of 0 still takes its part of the sum, exp(0) = 1. Which score has the exponential 0?",
                    {"mask": "zero before and after"},
                ),
                Mistake(
                    "mask added to the scores",
                    "True counts as 1 here: open keys get a score that is larger by 1, closed ones are still read. "
                    "What "
                    "must be added to a score to make its exponential 0?",
                    {"mask": "added"},
                ),
                Mistake(
                    "divided by what is left",
                    "Softmax over all keys first, then the open ones divided by their sum: right, until a closed key "
                    "has "
                    "a very large score, or all are closed. Then it is 0 / 0. Close keys before the softmax.",
                    {"mask": "renormalized"},
                ),
                Mistake(
                    "divided by what is left, 0 / 0 caught",
                    "Softmax over all keys first, then the open ones divided by their sum. Where a closed key has a "
                    "very "
                    "large score, nothing is left of the open ones: all 0. Close keys before the softmax.",
                    {"mask": "renormalized, caught"},
                ),
                Mistake(
                    "mean of everything where nothing is open",
                    "A query that may attend nothing has equal scores, so it reads all closed keys alike. Its answer "
                    "must be 0.",
                    {"unseen": "mean"},
                ),
                Mistake(
                    "NaN where nothing is open",
                    "A row of minus infinity alone has the sum 0, and 0 / 0 is NaN. The answer there must be 0.",
                    {"unseen": "nan"},
                ),
                Mistake(
                    "overflow",
                    "It is right for small scores, but exp(4000) is infinite. Take the largest score of a row away "
                    "first.",
                    {"largest": "none"},
                ),
                Mistake(
                    "one maximum for all rows",
                    "The maximum of all scores was taken away. A row far below it becomes 0 / 0: each row needs its "
                    "own.",
                    {"largest": "all"},
                ),
                Mistake(
                    "keys and values exchanged",
                    "The query is compared with the keys; what is averaged is the values.",
                    {"swap": "keys and values"},
                ),
                Mistake(
                    "keys averaged, not values",
                    "The weights are right, but they were multiplied by k.",
                    {"swap": "keys are also values"},
                ),
                Mistake(
                    "compared with the values",
                    "The scores were computed with v. Queries are compared with keys.",
                    {"swap": "values are also keys"},
                ),
                Mistake(
                    "the weights returned",
                    "These are the weights [T, S]. One step is left: the mean of the values.",
                    {"result": "weights"},
                ),
                Mistake(
                    "weights transposed",
                    "A row of the weights belongs to a query: weights @ v, without a transpose.",
                    {"result": "weights transposed"},
                ),
                Mistake(
                    "the answer transposed",
                    "The answer has a row for each query, [T, H]; yours has one for each number.",
                    {"result": "answer transposed"},
                ),
            ),
        ),
    ),
    hints=(
        "Follow the shapes. Scores have a row for each query and a column for each key, [T, S]; so have the weights "
        "and "
        "may_attend. A softmax goes along a row. The answer has a row for each query, [T, H].",
        "Large scores: a softmax does not change when the same number is taken away from all scores of a row; take the "
        "largest. Closed keys: give them a score so low that its exponential is 0, before the softmax. A query that "
        "may "
        "attend nothing: after that, all its scores are equal; set its weights to 0 at the end.",
        "softmax: `exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))`, then divide by their sum "
        "along the "
        "same axis. attention: scores `q @ k.T / np.sqrt(...)`, then `np.where(may_attend, scores, -1e30)`, softmax, "
        "`np.where(may_attend, weights, 0)`, and the product with v.",
    ),
)
