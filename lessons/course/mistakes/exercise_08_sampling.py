"""Known mistakes of exercise 08: temperature, top-k, top-p, the draw."""

import numpy as np

from course.grading import Exercise, Mistake, Part


def with_temperature(
    logits, temperature, *, factor="divide", where="before", overflow=False, axis="tokens", zero="first"
):
    """Softmax at a temperature, with its mistakes as switches."""
    logits = np.asarray(logits, np.float64)
    axis = {"tokens": -1, "rows": 0, "all": None}[axis]
    if temperature == 0 and zero == "first":
        return np.eye(logits.shape[1])[logits.argmax(axis=1)]
    if temperature == 0 and zero == "shared":
        is_largest = logits == logits.max(axis=1, keepdims=True)
        return is_largest / is_largest.sum(axis=1, keepdims=True)
    if temperature == 0 and zero == "equal":
        return np.full(logits.shape, 1 / logits.shape[1])
    if temperature == 0 and zero == "last":
        return np.eye(logits.shape[1])[logits.shape[1] - 1 - logits[:, ::-1].argmax(axis=1)]
    if temperature == 0 and zero == "off":
        temperature = 1.0
    if temperature == 0 and factor == "power":
        return None
    factors = {"divide": lambda: 1 / temperature, "multiply": lambda: temperature, "forgotten": lambda: 1.0}
    factors |= {"root": lambda: 1 / np.sqrt(temperature), "square": lambda: 1 / temperature**2}
    if factor == "floor":
        return _softmax(logits // temperature, axis, overflow) if temperature else None
    with np.errstate(all="ignore"):
        scale = np.float64(np.inf) if temperature == 0 and factor in ("divide", "root", "square") else factors[factor]()
        if where == "after":
            p = _softmax(logits, axis, overflow)
            return p / temperature if temperature else p * np.inf
        scores = logits / 0.0 if np.isinf(scale) else logits * scale
        if where == "no_softmax":
            return scores / scores.sum(axis=axis, keepdims=True)
        if where == "log":
            return scores - scores.max(axis=-1, keepdims=True) - np.log(_sums(scores))
        return _softmax(scores, axis, overflow)


def _sums(scores):
    return np.exp(scores - scores.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)


def _softmax(scores, axis, overflow):
    weights = np.exp(scores if overflow else scores - scores.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def _ranked(probabilities, ties="smaller", direction="down"):
    """Order of the tokens, most likely first: [B, V] ids."""
    V = probabilities.shape[1]
    key = -probabilities if direction == "down" else probabilities
    if ties == "smaller":
        return np.argsort(key, axis=1, kind="stable")
    return V - 1 - np.argsort(key[:, ::-1], axis=1, kind="stable")


def top_k(
    probabilities, k, *, ties="smaller", direction="down", renormalize="sum", more=0, pool="rows", back=True, soft=False
):
    """Top-k, with its mistakes as switches."""
    probabilities = np.asarray(probabilities, np.float64)
    B, V = probabilities.shape
    k = max(k + more, pool == "at least one")
    if pool == "all":
        rank = np.argsort(np.argsort(-probabilities.reshape(-1), kind="stable"), kind="stable").reshape(B, V)
        is_kept = rank < k
    elif pool == "first_row":
        is_kept = np.tile(np.isin(np.arange(V), _ranked(probabilities)[0, :k]), (B, 1))
    elif ties in ("all", "none"):
        kth = -np.sort(-probabilities, axis=1)[:, min(k, V) - 1, None]
        is_kept = probabilities >= kth if ties == "all" else probabilities > kth
    else:
        order = np.tile(np.arange(V), (B, 1)) if pool == "ids" else _ranked(probabilities, ties, direction)
        is_kept = np.zeros((B, V), bool)
        np.put_along_axis(is_kept, order[:, :k], True, axis=1)
    kept = np.where(is_kept, probabilities, 0)
    if not back:
        kept = -np.sort(-kept, axis=1)
    return _normalized(kept, renormalize, soft, is_kept)


def _normalized(kept, renormalize, soft=False, is_kept=None):
    if renormalize == "no":
        return kept
    if renormalize == "softmax":
        weights = np.exp(kept) if soft else np.where(is_kept, np.exp(kept), 0)
        return weights / weights.sum(axis=1, keepdims=True)
    if renormalize == "uniform":
        return is_kept / is_kept.sum(axis=1, keepdims=True)
    if renormalize == "batch":
        return kept / kept.sum()
    return kept / kept.sum(axis=1, keepdims=True)


def top_p(
    probabilities,
    p,
    *,
    ties="smaller",
    direction="down",
    renormalize="sum",
    crossing="kept",
    order_of="rank",
    back=True,
):
    """Top-p, with its mistakes as switches."""
    probabilities = np.asarray(probabilities, np.float64)
    B, V = probabilities.shape
    if order_of == "threshold":
        is_kept = probabilities >= p
        return _normalized(np.where(is_kept, probabilities, 0), renormalize, is_kept=is_kept)
    if order_of == "min_p":
        is_kept = probabilities >= p * probabilities.max(axis=1, keepdims=True)
        return _normalized(np.where(is_kept, probabilities, 0), renormalize, is_kept=is_kept)
    smaller_first = ties != "larger"
    order = _ranked(probabilities, "smaller" if smaller_first else "larger", direction)
    if order_of == "id":
        order = np.tile(np.arange(V), (B, 1))
    in_order = np.take_along_axis(probabilities, order, axis=1)
    total = np.cumsum(in_order, axis=1)
    if order_of == "one less p":
        is_kept = (probabilities >= 1 - p) | (np.arange(V) == probabilities.argmax(axis=1)[:, None])
        return _normalized(np.where(is_kept, probabilities, 0), renormalize, is_kept=is_kept)
    if order_of == "texts":
        total = np.cumsum(in_order, axis=0)
    elif order_of == "flat":
        total = np.cumsum(in_order).reshape(B, V)
    if crossing == "dropped":
        is_first = total <= p
    elif crossing == "dropped_below":
        is_first = total < p
    elif crossing == "dropped_but_one":
        is_first = total <= p
        is_first[:, 0] = True
    elif crossing == "dropped_below_but_one":
        is_first = total < p
        is_first[:, 0] = True
    elif crossing == "exact_continues":
        is_first = total - in_order <= p
    elif crossing == "one_more":
        is_first = np.concatenate([np.ones((B, 1), bool), (total - in_order < p)[:, :-1]], axis=1)
    else:
        is_first = total - in_order < p
    if back == "ranks":
        is_kept = np.take_along_axis(is_first, order, axis=1)
    elif not back:
        is_kept = is_first
    else:
        is_kept = np.zeros((B, V), bool)
        np.put_along_axis(is_kept, order, is_first, axis=1)
    if ties == "all":
        least = np.where(is_kept, probabilities, np.inf).min(axis=1, keepdims=True)
        is_kept = probabilities >= least
    return _normalized(np.where(is_kept, probabilities, 0), renormalize, is_kept=is_kept)


def draw(probabilities, u, *, rule="below", first=0, sums="row", from_left=True):
    """Draw by the inverse of the cumulative distribution, with its mistakes as switches."""
    probabilities = np.asarray(probabilities, np.float64)
    V = probabilities.shape[1]
    u = np.asarray(u, np.float64)[:, None]
    if rule == "largest":
        return probabilities.argmax(axis=1) + first
    if rule == "density":
        return (probabilities > u).argmax(axis=1) + first
    if rule == "nearest":
        return np.abs(np.cumsum(probabilities, axis=1) - u).argmin(axis=1) + first
    if rule == "uniform":
        return np.floor(u[:, 0] * V).astype(int) + first
    if not from_left:
        probabilities = probabilities[:, ::-1]
    if sums == "texts":
        return (np.cumsum(probabilities, axis=0) > u).argmax(axis=1) + first
    if rule == "above":
        return (np.cumsum(probabilities, axis=1) > u).sum(axis=1) + first
    if sums == "batch":
        total = np.cumsum(probabilities).reshape(probabilities.shape)
    elif sums == "first_u":
        total, u = np.cumsum(probabilities, axis=1), u[:1]
    elif sums == "sorted":
        order = np.argsort(-probabilities, axis=1, kind="stable")
        total = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
        ids = (total <= u).sum(axis=1)
        return np.take_along_axis(order, np.minimum(ids, V - 1)[:, None], axis=1)[:, 0] + first
    elif sums == "sorted_rank":
        total = np.cumsum(-np.sort(-probabilities, axis=1), axis=1)
    else:
        total = np.cumsum(probabilities, axis=1)
    ids = (total < u if rule == "right_end" else total <= u).sum(axis=1)
    return (ids if from_left else V - 1 - ids) + first


def next_token(logits, temperature, k, p, u, *, order="tkp", largest=False):
    """All together, with its mistakes as switches."""
    if order == "none":
        probabilities = with_temperature(logits, temperature)
    elif order in ("tkp", "1 - u"):
        probabilities = top_p(top_k(with_temperature(logits, temperature), k), p)
    elif order == "tpk":
        probabilities = top_k(top_p(with_temperature(logits, temperature), p), k)
    elif order == "tk":
        probabilities = top_k(with_temperature(logits, temperature), k)
    elif order == "tp":
        probabilities = top_p(with_temperature(logits, temperature), p)
    elif order == "kp":
        probabilities = top_p(top_k(with_temperature(logits, 1.0), k), p)
    else:  # the temperature at the end
        kept = top_p(top_k(with_temperature(logits, 1.0), k), p)
        with np.errstate(divide="ignore"):
            probabilities = with_temperature(np.log(kept), temperature)
    if order == "1 - u":
        u = 1 - np.asarray(u)
    return draw(probabilities, u, rule="largest" if largest else "below")


# Cases, from tiny to large


def _random():
    return np.random.default_rng(8)


def _temperature_cases():
    random = _random()
    yield "two tokens", (np.array([[0.0, 2.0]]), 2.0)
    yield "two rows, temperature 1", (np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 1.0]]), 1.0)
    yield "temperature 0.25", (random.normal(size=(3, 5)), 0.25)
    yield "whole numbers", (np.array([[1, 2, 4], [0, 7, 3]]), 2)
    yield "temperature 3", (random.normal(size=(2, 7)), 3.0)
    yield "temperature 0", (np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -1.0]]), 0)
    yield "temperature 0, two largest", (np.array([[1.0, 4.0, 4.0, 0.0]]), 0.0)
    yield "logits of 1,000", (np.array([[1000.0, 999.0, -1000.0], [0.0, -999.0, -1000.0]]), 1.0)
    yield "logits of 1,000, temperature 0.5", (np.array([[1000.0, 999.0, -1000.0], [0.0, -999.0, -1000.0]]), 0.5)
    yield "one token", (np.array([[3.0], [2.0]]), 0.7)
    yield "many", (random.normal(size=(5, 31)) * 3, 0.8)


def _probabilities(random, B, V):
    return random.dirichlet(np.full(V, 0.5), size=B)


def _with_ties(random, B, V):
    """Probabilities in steps of 1 / 256, so that sums are exact and many tokens are equally likely."""
    return random.multinomial(256, np.full(V, 1 / V), size=B) / 256


def _top_k_cases():
    random = _random()
    yield "a tie", (np.array([[0.25, 0.5, 0.25]]), 2)
    yield "no tie", (np.array([[0.1, 0.2, 0.3, 0.4]]), 2)
    yield "k = 1", (np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), 1)
    yield "k = 1, all equal", (np.full((2, 4), 0.25), 1)
    yield "k = V", (np.array([[0.2, 0.5, 0.3]]), 3)
    yield "k above V", (np.array([[0.2, 0.5, 0.3]]), 10)
    yield "three equal at the border", (np.array([[0.125, 0.25, 0.125, 0.375, 0.125]]), 3)
    yield "a token of probability 0", (np.array([[0.0, 0.5, 0.5, 0.0]]), 3)
    yield "three rows", (_probabilities(random, 3, 7), 3)
    yield "many", (_probabilities(random, 5, 31), 11)
    yield "many equal ones", (_with_ties(random, 3, 101), 40)


def _top_p_cases():
    random = _random()
    exact = np.array([[0.125, 0.5, 0.25, 0.125]])
    yield "p is reached exactly", (exact, 0.75)
    yield "the first token is enough", (exact, 0.25)
    yield "the first token is exactly enough", (exact, 0.5)
    yield "a tie", (exact, 0.8)
    yield "a tie of three", (np.array([[0.125, 0.25, 0.125, 0.375, 0.125]]), 0.7)
    yield "all equal", (np.full((2, 4), 0.25), 0.5)
    yield "p = 1", (np.array([[0.125, 0.5, 0.25, 0.125], [0.25, 0.25, 0.25, 0.25]]), 1.0)
    yield "a small p", (np.array([[0.25, 0.125, 0.625], [0.5, 0.25, 0.25]]), 0.01)
    yield "certain", (np.array([[0.0, 1.0, 0.0]]), 0.9)
    yield "one token", (np.array([[1.0]]), 0.5)
    yield "three rows", (_probabilities(random, 3, 7), 0.6)
    yield "many", (_probabilities(random, 5, 31), 0.9)
    yield "many equal ones", (_with_ties(random, 3, 101), 0.6)


def _draw_cases():
    random = _random()
    yield "three tokens", (np.array([[0.2, 0.3, 0.5]]), np.array([0.4]))
    yield "at a border", (np.array([[0.5, 0.5]]), np.array([0.5]))
    yield "u = 0", (np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0.0, 0.0]))
    yield "u = 0, an impossible token first", (np.array([[0.0, 0.75, 0.25]]), np.array([0.0]))
    yield "an impossible token between", (np.array([[0.5, 0.0, 0.5]]), np.array([0.5]))
    yield "impossible tokens last", (np.array([[0.5, 0.5, 0.0, 0.0]]), np.array([0.99]))
    yield "two rows", (np.array([[0.125, 0.75, 0.125], [0.625, 0.125, 0.25]]), np.array([0.9, 0.1]))
    yield "one token", (np.array([[1.0]]), np.array([0.7]))
    yield "many", (_probabilities(random, 37, 11), random.random(37))


def _next_token_cases():
    random = _random()
    yield "the largest", (np.array([[0.0, 1.0, 3.0]]), 1.0, 1, 1.0, np.array([0.5]))
    yield "top-p after top-k", (np.log([[0.4, 0.3, 0.2, 0.1]]), 1.0, 2, 0.55, np.array([0.95]))
    for temperature, k, p in (
        (1.0, 5, 0.7),
        (0.5, 7, 0.95),
        (2.0, 7, 0.6),
        (1.5, 4, 0.85),
        (0, 3, 0.9),
        (1.0, 99, 1.0),
    ):
        logits = random.normal(size=(200, 11)) * 1.5
        yield f"temperature {temperature:g}, k = {k}, p = {p:g}", (logits, temperature, k, p, random.random(200))


# Laws


def _check_top_k(answer):
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(13), size=40)
    for k in (1, 5, 13):
        kept = np.asarray(answer(probabilities.copy(), k))
        counts = (kept > 0).sum(axis=1)
        assert (counts == k).all(), f"with k = {k} exactly {k} tokens stay, not {counts[counts != k][0]}."


def _check_top_p(answer):
    """The support is the smallest set: it reaches p, and without its least likely token it does not."""
    random = np.random.default_rng(2)
    probabilities = random.dirichlet(np.ones(13), size=40)
    for p in (0.05, 0.5, 0.9, 0.99):
        is_kept = np.asarray(answer(probabilities.copy(), p)) > 0
        inside = np.where(is_kept, probabilities, 0)
        total = inside.sum(axis=1)
        least = np.where(is_kept, probabilities, np.inf).min(axis=1)
        assert (total >= p - 1e-6).all(), f"the tokens that stay have probability {total.min():.4f}, less than p = {p}."
        assert (total - least < p + 1e-6).all(), f"with p = {p} the set is not the smallest: one token more could go."


EXERCISE = Exercise(
    "From logits to the next token",
    (
        Part(
            "with_temperature",
            with_temperature,
            _temperature_cases,
            (
                Mistake(
                    "temperature 0 makes all equal",
                    "That is the limit of a very high temperature. Towards 0 the largest logit takes all.",
                    {"zero": "equal"},
                ),
                Mistake(
                    "a division in whole numbers", "// cuts off what follows the point. Take /.", {"factor": "floor"}
                ),
                Mistake(
                    "the temperature is a factor",
                    "Hot means flat: as the temperature grows, the logits must come nearer to each other. Do yours?",
                    {"factor": "multiply"},
                ),
                Mistake(
                    "the temperature is ignored",
                    "The result must change with the temperature. Where does it enter?",
                    {"factor": "forgotten"},
                ),
                Mistake(
                    "the root of the temperature",
                    "The root belongs to the width of a head, in attention. Here it is the temperature itself.",
                    {"factor": "root"},
                ),
                Mistake(
                    "the temperature divides probabilities",
                    "Your rows do not sum to 1. Divide the logits, before the softmax: then the softmax normalizes.",
                    {"where": "after"},
                ),
                Mistake(
                    "no softmax",
                    "You divide by the sum, but logits may be negative. What makes positive numbers of them?",
                    {"where": "no_softmax"},
                ),
                Mistake(
                    "log-probabilities",
                    "These are the logarithms of the probabilities that are asked for.",
                    {"where": "log"},
                ),
                Mistake(
                    "overflow",
                    "exp(1000) is infinite. A softmax does not change if one number is subtracted from a whole row: "
                    "which number makes all of them safe?",
                    {"overflow": True},
                ),
                Mistake(
                    "softmax over the texts",
                    "Your columns sum to 1. Each text has a distribution over the tokens: which axis is that?",
                    {"axis": "rows"},
                ),
                Mistake(
                    "softmax over everything",
                    "Your whole array sums to 1, but each row must. Give the sum an axis, and keep the dimension.",
                    {"axis": "all"},
                ),
                Mistake(
                    "divided by temperature 0",
                    "0 / 0 is NaN. Temperature 0 needs a line of its own.",
                    {"zero": "divided"},
                ),
                Mistake(
                    "temperature 0 shares between the largest",
                    "Two logits are equally large, and at temperature 0 only the one with the smaller id counts.",
                    {"zero": "shared"},
                ),
                Mistake(
                    "temperature 0 takes the last of the largest",
                    "Two logits are equally large, and you take the one with the larger id.",
                    {"zero": "last"},
                ),
                Mistake(
                    "temperature 0 taken for none",
                    "With temperature 0 you compute what temperature 1 gives. 0 is the cold end: greedy.",
                    {"zero": "off"},
                ),
            ),
        ),
        Part(
            "top_k",
            top_k,
            _top_k_cases,
            (
                Mistake(
                    "one token less, at least one",
                    "k tokens stay: a slice [:k] has k of them.",
                    {"more": -1, "pool": "at least one"},
                ),
                Mistake(
                    "the first ids stay",
                    "Sort by probability first: the most likely ones stay, whatever their ids.",
                    {"pool": "ids"},
                ),
                Mistake(
                    "ties at the border all stay",
                    "Where the k-th and the next token are equally likely, a threshold keeps both. Keep k by their "
                    "rank, not by their size.",
                    {"ties": "all"},
                ),
                Mistake(
                    "strictly above the k-th",
                    "The k-th most likely token belongs to the k most likely ones, too.",
                    {"ties": "none"},
                ),
                Mistake(
                    "ties go to the larger id",
                    "A sort that is reversed also reverses equal tokens. Sort the negative numbers with a stable sort.",
                    {"ties": "larger"},
                ),
                Mistake(
                    "the least likely stay", "You keep the k smallest: np.argsort sorts upwards.", {"direction": "up"}
                ),
                Mistake("not divided by what is left", "The rows must sum to 1 again.", {"renormalize": "no"}),
                Mistake(
                    "softmax of probabilities",
                    "The probabilities that stay keep their ratios: divide by their sum. A softmax changes the ratios.",
                    {"renormalize": "softmax"},
                ),
                Mistake(
                    "equal probabilities for all that stay",
                    "The tokens that stay are not equally likely: they keep their ratios.",
                    {"renormalize": "uniform"},
                ),
                Mistake(
                    "divided by the sum of the batch",
                    "Each row must sum to 1, not the batch as a whole.",
                    {"renormalize": "batch"},
                ),
                Mistake("k - 1 tokens stay", "One token too few stays: look at your slice.", {"more": -1}),
                Mistake("k + 1 tokens stay", "One token too many stays: look at your slice.", {"more": 1}),
                Mistake(
                    "k tokens of the whole batch", "Each row keeps k tokens of its own: use an axis.", {"pool": "all"}
                ),
                Mistake(
                    "the first row chooses for all",
                    "All rows keep the tokens that are likely in row 0. Each row has an order of its own.",
                    {"pool": "first_row"},
                ),
                Mistake(
                    "sorted, and left so",
                    "The numbers are right, but they stand in the order of their size, and a position is an id. Put "
                    "them back.",
                    {"back": False},
                ),
            ),
            laws=(_check_top_k,),
        ),
        Part(
            "top_p",
            top_p,
            _top_p_cases,
            (
                Mistake(
                    "each token compared with 1 - p",
                    "It is the sum of the most likely tokens that must reach p.",
                    {"order_of": "one less p"},
                ),
                Mistake(
                    "sums go down the batch",
                    "Each row is summed by itself: cumsum along axis 1.",
                    {"order_of": "texts"},
                ),
                Mistake(
                    "sums run on through the batch",
                    "cumsum without an axis flattens: each row begins at 0 again.",
                    {"order_of": "flat"},
                ),
                Mistake(
                    "the order is applied twice",
                    "To go back from ranks to ids, put values at order (put_along_axis), or take argsort(order).",
                    {"back": "ranks"},
                ),
                Mistake(
                    "the token that reaches p is dropped, sometimes all are",
                    "The set must have probability p or more, so the token that crosses p belongs to it. With a first "
                    "token above p you keep nothing at all.",
                    {"crossing": "dropped"},
                ),
                Mistake(
                    "the sum must stay below p",
                    "You keep tokens while the sum with them is below p. Ask for the sum before them.",
                    {"crossing": "dropped_below"},
                ),
                Mistake(
                    "the token that reaches p is dropped, except the first",
                    "It is not enough to keep the first token: the set must reach p, so the one that crosses p stays.",
                    {"crossing": "dropped_but_one"},
                ),
                Mistake(
                    "the sum must stay below p, except for the first token",
                    "It is not enough to keep the first token: a set with a sum below p has not reached it.",
                    {"crossing": "dropped_below_but_one"},
                ),
                Mistake(
                    "goes on where p is reached exactly",
                    "0.5 + 0.25 is 0.75 or more, so with p = 0.75 the set is complete. Compare strictly.",
                    {"crossing": "exact_continues"},
                ),
                Mistake(
                    "one token too many",
                    "Your set would reach p without its last token: it is shifted by one.",
                    {"crossing": "one_more"},
                ),
                Mistake(
                    "equally likely tokens all stay",
                    "A threshold on the size keeps all tokens of that size. The smallest set has fewer: go by rank.",
                    {"ties": "all"},
                ),
                Mistake(
                    "ties go to the larger id",
                    "A sort that is reversed also reverses equal tokens. Sort the negative numbers with a stable sort.",
                    {"ties": "larger"},
                ),
                Mistake(
                    "begins with the least likely",
                    "np.argsort sorts upwards, so you collect the tail. Begin with the most likely token.",
                    {"direction": "up"},
                ),
                Mistake("not divided by what is left", "The rows must sum to 1 again.", {"renormalize": "no"}),
                Mistake(
                    "softmax of probabilities",
                    "The probabilities that stay keep their ratios: divide by their sum. A softmax changes the ratios.",
                    {"renormalize": "softmax"},
                ),
                Mistake(
                    "equal probabilities for all that stay",
                    "The tokens that stay are not equally likely: they keep their ratios.",
                    {"renormalize": "uniform"},
                ),
                Mistake(
                    "summed in the order of the ids",
                    "The sum begins with the most likely token, not with id 0: sort first.",
                    {"order_of": "id"},
                ),
                Mistake(
                    "p as a threshold for each token",
                    "You keep tokens that alone have probability p. It is their sum that must reach p.",
                    {"order_of": "threshold"},
                ),
                Mistake(
                    "min-p",
                    "You compare each token with the largest one. That is another method, min-p. Here the sum counts.",
                    {"order_of": "min_p"},
                ),
                Mistake(
                    "the mask stays in sorted order",
                    "You know which ranks stay, and use that as if rank were id. Bring the mask back to the ids.",
                    {"back": False},
                ),
            ),
            laws=(_check_top_p,),
        ),
        Part(
            "draw",
            draw,
            _draw_cases,
            (
                Mistake(
                    "sums over the batch",
                    "The pieces of a row lie side by side: cumsum along axis 1.",
                    {"sums": "texts"},
                ),
                Mistake(
                    "borders above u are counted",
                    "The id is the number of borders at or below u: those that lie before it.",
                    {"rule": "above"},
                ),
                Mistake(
                    "the most likely token",
                    "That is greedy: u makes no difference. A draw must give each token its share.",
                    {"rule": "largest"},
                ),
                Mistake(
                    "u compared with single probabilities",
                    "u says where on the line from 0 to 1 we are, so compare it with the running sum.",
                    {"rule": "density"},
                ),
                Mistake(
                    "the nearest border",
                    "You look for the border nearest to u. Which piece has u in it?",
                    {"rule": "nearest"},
                ),
                Mistake(
                    "all tokens equally likely",
                    "You draw each token equally often: the probabilities make no difference.",
                    {"rule": "uniform"},
                ),
                Mistake(
                    "a piece has its right end",
                    "At a border the next piece begins: with [0.5, 0.5], u = 0.5 draws token 1. And u = 0 must not "
                    "draw a token of probability 0.",
                    {"rule": "right_end"},
                ),
                Mistake("ids from 1", "Ids are counted from 0, and yours are one too large.", {"first": 1}),
                Mistake("ids one too small", "Your ids are one too small.", {"first": -1}),
                Mistake(
                    "summed over the whole batch",
                    "The running sum goes on from one row to the next. It needs an axis.",
                    {"sums": "batch"},
                ),
                Mistake("one u for all rows", "Every row has a random number of its own.", {"sums": "first_u"}),
                Mistake(
                    "pieces in the order of their size",
                    "That is a right way to draw as well, but here the pieces lie in the order of the ids.",
                    {"sums": "sorted"},
                ),
                Mistake(
                    "a rank in place of an id",
                    "You sort, and return the rank. And the pieces lie in the order of the ids, so nothing is sorted.",
                    {"sums": "sorted_rank"},
                ),
                Mistake(
                    "pieces from the right",
                    "You begin with the last token. The piece of token 0 begins at 0.",
                    {"from_left": False},
                ),
            ),
        ),
        Part(
            "next_token",
            next_token,
            _next_token_cases,
            (
                Mistake(
                    "1 - u in place of u", "Hand u on as it is: another number draws another token.", {"order": "1 - u"}
                ),
                Mistake(
                    "top-p does not see what top-k left",
                    "Top-p must see what top-k left, divided by its sum: then p is reached earlier. You have the order "
                    "reversed, or do not divide in between, which is the same.",
                    {"order": "tpk"},
                ),
                Mistake(
                    "the temperature comes last",
                    "The temperature changes which tokens top-p keeps, so it comes first.",
                    {"order": "kpt"},
                ),
                Mistake("top-p is forgotten", "There is no top-p.", {"order": "tk"}),
                Mistake("top-k is forgotten", "There is no top-k.", {"order": "tp"}),
                Mistake("the temperature is forgotten", "There is no temperature.", {"order": "kp"}),
                Mistake("neither top-k nor top-p", "You draw from all tokens.", {"order": "none"}),
                Mistake(
                    "the most likely token", "You do all the work, and then take the largest: draw.", {"largest": True}
                ),
            ),
        ),
    ),
    (
        "Write with_temperature first and look at its rows: they sum to 1. top_k and top_p then take rows that sum to "
        "1 and give rows that sum to 1.",
        "For top_k and top_p find the order of the tokens, most likely first: np.argsort of the negative "
        'probabilities, with kind="stable", so that equal ones stay in the order of their ids. Decide by rank who '
        "stays, and put that back to the ids with np.put_along_axis. For top_p ask of every token: "
        "what is the sum of those before it?",
        "top_p: order = np.argsort(-probabilities, axis=-1, kind='stable'); in_order = "
        "np.take_along_axis(probabilities, order, axis=-1); before = np.cumsum(in_order, axis=-1) - in_order; a token "
        "stays if before < p. draw: count the running sums that are <= u.",
    ),
)
