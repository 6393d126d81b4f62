"""Known mistakes of exercise 11: rotary frequencies, rotation and scores, by wrong twins."""

import numpy as np

from course.grading import Exercise, Mistake, Part


def frequencies(head_dim, base, *, first=0, two=2.0, sign=-1.0, over="all", count="half", fixed=None, kind="power"):
    """Right twin; each switch makes one mistake. None where a mistake makes no sense."""
    half = head_dim // 2
    i = np.arange(half if count == "half" else head_dim) + first
    if fixed is not None:
        base = fixed
    if over == "half - 1":
        if half < 2:
            return None
        exponent = i / (half - 1)
    elif over == "half":
        exponent = two * i / half
    else:
        exponent = two * i / head_dim
    if kind == "linear":
        return 1 - exponent
    if kind == "no base":
        return np.exp(sign * exponent)
    if kind == "loose":
        return float(base) ** -two * i / head_dim
    if kind == "floor":
        return float(base) ** np.floor(sign * exponent)
    if kind == "inverse":
        return 1 / (base * np.maximum(exponent, 1e-30))
    if kind == "exp":
        return np.exp(sign * exponent * base)
    if kind == "log":
        return np.exp(sign * exponent * np.log10(base))
    if kind == "turns":
        return 2 * np.pi * base ** (sign * exponent)
    if kind == "wavelength":
        return 2 * np.pi / base ** (sign * exponent)
    if kind == "repeated":
        return np.concatenate([base ** (sign * exponent)] * 2)
    if kind == "reversed":
        return (base ** (sign * exponent))[::-1]
    return base ** (sign * exponent)


def frequency_cases():
    """Heads of 2 to 64 numbers, three bases."""
    for head_dim, base in ((4, 100.0), (2, 10000.0), (6, 8.0), (8, 10000.0), (10, 500.0), (64, 10000.0), (4, 2.0)):
        yield f"head of {head_dim}, base {base:g}", (head_dim, base)


FREQUENCIES = Part(
    "frequencies",
    frequencies,
    frequency_cases,
    (
        Mistake(
            "the base is forgotten",
            "exp(-2i / H) has the base e. base^x is base ** x, or exp(x log(base)).",
            {"kind": "no base"},
        ),
        Mistake(
            "brackets of the exponent are missing",
            "** binds before * and /: put the whole exponent, -2i / H, in brackets.",
            {"kind": "loose"},
        ),
        Mistake("exponent in whole numbers", "// cuts -2i / H to a whole number. Take /.", {"kind": "floor"}),
        Mistake(
            "odd numbers in the exponent",
            "The exponents are 0, 2, 4, ... over H: the first pair has the frequency 1.",
            {"first": 0.5},
        ),
        Mistake(
            "pairs counted from 1",
            "The first pair is number 0, so it turns by base^0 = 1 radian: it is the fastest.",
            {"first": 1},
        ),
        Mistake(
            "exponent without the 2",
            "i only goes to H/2, so i / H ends at a half, and all pairs are too fast. It is 2i / H.",
            {"two": 1.0},
        ),
        Mistake(
            "growing instead of falling",
            "The minus is missing: later pairs must turn more slowly, not faster.",
            {"sign": 1.0},
        ),
        Mistake(
            "exponent 2i over H/2",
            "With 2i above the line, H stands below it (or i over H/2). Yours falls twice as fast.",
            {"over": "half"},
        ),
        Mistake(
            "the last pair reaches the base",
            "As if by linspace: the exponents go from 0 up to but not including 1.",
            {"over": "half - 1"},
        ),
        Mistake(
            "a frequency for each number",
            "There is one for each pair: H/2, since two numbers turn together.",
            {"count": "all"},
        ),
        Mistake("each frequency twice", "H/2 numbers are asked for, one for each pair.", {"kind": "repeated"}),
        Mistake(
            "base 10000 built in", "The base is an argument: long-context models choose it larger.", {"fixed": 1e4}
        ),
        Mistake("a straight line", "Frequencies fall by the same factor from pair to pair.", {"kind": "linear"}),
        Mistake(
            "exp of the exponent times the base", "base^x is exp(x * log(base)), not exp(x * base).", {"kind": "exp"}
        ),
        Mistake("logarithm to base 10", "base^x is exp(x * np.log(base)) with the natural logarithm.", {"kind": "log"}),
        Mistake("multiplied by 2 pi", "They are radians already: pair 0 turns by 1 radian.", {"kind": "turns"}),
        Mistake(
            "wavelengths, not frequencies",
            "2 pi base^(2i/H) is the number of positions of a whole turn. Asked is the angle of one position.",
            {"kind": "wavelength"},
        ),
        Mistake("the slowest pair first", "Pair 0 is the fastest, with 1 radian.", {"kind": "reversed"}),
    ),
)


def rotate(
    x,
    positions,
    base,
    *,
    layout="halves",
    turn=1.0,
    angles="given",
    second="plus",
    crossed=True,
    rest=True,
    parts="both",
    scale=1.0,
    swap=False,
    theta=None,
):
    """Right twin; each switch makes one mistake."""
    x, positions = np.asarray(x, np.float64), np.asarray(positions, np.float64)
    T, H = x.shape
    half = H // 2
    if angles == "counted":
        positions = np.arange(T, dtype=float)
    elif angles == "counted from 1":
        positions = np.arange(1, T + 1, dtype=float)
    elif angles == "one more":
        positions = positions + 1
    elif angles == "first":
        positions = np.full(T, positions[0])
    frequency = frequencies(H, base, **(theta or {}))
    if frequency is None:
        return None
    angle = positions[:, None] * frequency[:half]
    if angles == "degrees":
        angle = np.deg2rad(angle)
    if angles == "all alike":
        angle = np.repeat(positions[:, None], half, axis=1)
    if angles == "sum":
        angle = positions[:, None] + frequency
    if angles == "divided":
        angle = positions[:, None] / frequency
    angle = turn * angle
    if angles == "interleaved":
        full = np.repeat(angle, 2, axis=-1)
        own = np.concatenate([-x[:, half:], x[:, :half]], axis=-1)
        return x * np.cos(full) + own * np.sin(full)
    cos, sin = np.cos(angle), np.sin(angle)
    if swap:
        cos, sin = sin, cos
    if layout in ("pairs", "pairs in", "pairs cut"):
        a, b = x[:, 0::2], x[:, 1::2]
    else:
        a, b = x[:, :half], x[:, half:]
    if parts == "added":
        return x + np.concatenate([sin, cos], axis=-1)
    if parts == "cosine":
        return x * np.concatenate([cos, cos], axis=-1)
    if parts == "mixed":
        return np.concatenate([a * cos, b * sin], axis=-1)
    new_a = a * cos - (b * sin if crossed else a * sin)
    new_b = b * cos + (a * sin if crossed else b * sin)
    if second == "minus":
        new_b = b * cos - a * sin
    if second == "both plus":
        new_a = a * cos + b * sin
    if second == "after":
        new_b = b * cos + new_a * sin
    if second == "order":
        new_b = a * cos + b * sin
    if not rest:
        new_b = b
    new_a, new_b = new_a * scale, new_b * scale
    if parts == "changed over":
        new_a, new_b = new_b, new_a
    if layout == "pairs" or layout == "pairs out":
        return np.stack([new_a, new_b], axis=-1).reshape(T, H)
    return np.concatenate([new_a, new_b], axis=-1)


def rotate_cases():
    """One pair by hand, position 0, then several pairs at positions that are not 0, 1, 2 ..."""
    yield "one pair at position 1", (np.array([[1.0, 0.0]]), np.array([1]), 10000.0)
    yield "the other number", (np.array([[0.0, 1.0]]), np.array([2]), 10000.0)
    yield "position 0", (np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([0]), 10000.0)
    yield "two pairs", (np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([3]), 100.0)
    random = np.random.default_rng(0)
    yield "positions from 0 on", (random.normal(size=(5, 6)), np.arange(5), 50.0)
    yield "positions in any order", (random.normal(size=(5, 6)), np.array([7, 2, 2, 0, 30]), 50.0)
    yield "a wide head", (random.normal(size=(7, 16)), np.array([3, 1, 4, 1, 5, 9, 2]), 10000.0)
    yield "below 0", (random.normal(size=(3, 4)), np.array([-2, -1, 5]), 10.0)


ROTATE = Part(
    "rotate",
    rotate,
    rotate_cases,
    (
        Mistake(
            "neighbours are paired",
            "You pair numbers 2i and 2i + 1 (GPT-J's layout). Here number i goes with number i + H/2.",
            {"layout": "pairs"},
        ),
        Mistake(
            "neighbours taken apart, halves put together",
            "The pairs are cut as x[:, 0::2] and x[:, 1::2] but joined as two halves. Here both are halves.",
            {"layout": "pairs in"},
        ),
        Mistake(
            "halves taken apart, neighbours put together",
            "After the rotation the first numbers of all pairs come first, then all the second ones.",
            {"layout": "pairs out"},
        ),
        Mistake(
            "turned backwards",
            "The signs of the sine are the wrong way round. Scores of queries and keys would still depend on the "
            "distance, but a model that was trained the other way cannot use them.",
            {"turn": -1.0},
        ),
        Mistake(
            "both sines have a minus",
            "That is no rotation: the length of the pair changes. One sine has a minus, the other a plus.",
            {"second": "minus"},
        ),
        Mistake(
            "both sines have a plus",
            "That is no rotation: the length of the pair changes. The first number gets minus b sin.",
            {"second": "both plus"},
        ),
        Mistake(
            "the second number uses the first one after its turn",
            "Compute both new numbers from the old ones; keep the old a until b is done.",
            {"second": "after"},
        ),
        Mistake(
            "a and b changed places in the second line", "The second number is b cos + a sin.", {"second": "order"}
        ),
        Mistake(
            "each number turned by itself",
            "a cos - a sin mixes nothing. The sine goes with the other number of the pair.",
            {"crossed": False},
        ),
        Mistake(
            "only the first half is turned", "The second numbers of the pairs came back unchanged.", {"rest": False}
        ),
        Mistake("the halves changed places", "The first numbers of the pairs come first.", {"parts": "changed over"}),
        Mistake(
            "sines and cosines added",
            "That is the sinusoidal scheme of lesson 04. Rotary adds nothing, it turns.",
            {"parts": "added"},
        ),
        Mistake("multiplied by the cosine alone", "The sine of the other number is missing.", {"parts": "cosine"}),
        Mistake(
            "first half times cosine, second half times sine",
            "Each new number has two terms: one of its own and one of its partner.",
            {"parts": "mixed"},
        ),
        Mistake("sine and cosine swapped", "At position 0 nothing turns: cos 0 = 1, sin 0 = 0.", {"swap": True}),
        Mistake(
            "positions counted, not read",
            "You took 0, 1, 2, ... instead of `positions`. With padding or a cache they are something else.",
            {"angles": "counted"},
        ),
        Mistake(
            "positions counted from 1, not read",
            "You took 1, 2, 3, ... instead of `positions`.",
            {"angles": "counted from 1"},
        ),
        Mistake("one position too far", "Position 0 turns nothing.", {"angles": "one more"}),
        Mistake("all by the first position", "Each row has a position of its own.", {"angles": "first"}),
        Mistake("degrees", "Frequencies are in radians, and np.cos takes radians.", {"angles": "degrees"}),
        Mistake("all pairs equally fast", "Pair i turns by positions * frequencies[i].", {"angles": "all alike"}),
        Mistake(
            "angles of neighbours, numbers of halves",
            "Each angle stands twice in a row, as for neighbours that are paired; but number i goes with i + H/2. Put "
            "the table of angles beside itself instead of repeating each.",
            {"angles": "interleaved"},
        ),
        Mistake("position plus frequency", "The angle is the product of the two.", {"angles": "sum"}),
        Mistake("position divided by frequency", "The angle is position times frequency.", {"angles": "divided"}),
        Mistake(
            "frequencies counted from 1",
            "Pair 0 turns by 1 radian a position: check `frequencies`, or call it.",
            {"theta": {"first": 1}},
        ),
        Mistake(
            "frequencies without the 2",
            "Pair i turns by base^(-2i/H): check `frequencies`, or call it.",
            {"theta": {"two": 1.0}},
        ),
        Mistake(
            "base 10000 in the rotation", "Hand the argument `base` on to the frequencies.", {"theta": {"fixed": 1e4}}
        ),
    ),
)


def rotary_scores(
    q,
    k,
    q_positions,
    k_positions,
    base,
    *,
    turned="both",
    scale="root",
    places="own",
    k_turn=1.0,
    transposed=False,
    absolute=False,
    softmax=False,
    how=None,
):
    """Right twin; each switch makes one mistake."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    T, H = q.shape
    if places == "of queries":
        if len(k) != T:
            return None
        k_positions = q_positions
    elif places == "of keys":
        if len(k) != T:
            return None
        q_positions = k_positions
    elif places == "swapped":
        if len(k) != T:
            return None
        q_positions, k_positions = k_positions, q_positions
    elif places == "counted":
        q_positions, k_positions = np.arange(T), np.arange(len(k))
    how = how or {}
    turned_q = rotate(q, q_positions, base, **how) if turned in ("both", "q") else q
    turned_k = rotate(k, k_positions, base, **(how | {"turn": k_turn} if k_turn != 1 else how))
    turned_k = turned_k if turned in ("both", "k") else k
    scores = turned_q @ turned_k.T
    scores = scores / {"root": np.sqrt(H), "none": 1.0, "H": H, "keys": np.sqrt(len(k)), "half": np.sqrt(H / 2)}[scale]
    if absolute:
        scores = np.abs(scores)
    if transposed:
        scores = scores.T
    if softmax:
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores = scores / scores.sum(axis=-1, keepdims=True)
    return scores


def score_cases():
    """One pair by hand, then more keys than queries, and positions that are shifted."""
    x = np.array
    yield "one radian apart", (x([[1.0, 0.0]]), x([[1.0, 0.0]]), x([3]), x([2]), 10000.0)
    yield "at one position", (x([[1.0, 2.0]]), x([[3.0, 4.0]]), x([5]), x([5]), 10000.0)
    random = np.random.default_rng(1)
    q, k = random.normal(size=(3, 4)), random.normal(size=(5, 4))
    yield "3 queries, 5 keys", (q, k, x([4, 9, 1]), x([0, 1, 2, 3, 7]), 100.0)
    yield "all 1000 further", (q, k, x([1004, 1009, 1001]), x([1000, 1001, 1002, 1003, 1007]), 100.0)
    q, k = random.normal(size=(2, 7, 16))
    yield "7 queries, 7 keys", (q, k, x([3, 1, 4, 1, 5, 9, 2]), x([2, 7, 1, 8, 2, 8, 1]), 10000.0)


def law_of_positions(answer):
    """The library's laws of position schemes that act on scores."""
    from transformer_jax.testing import check_positions

    def scores(q, k, q_positions, k_positions):  # [B, T, N, H], [B, S, N, H], [B, T], [B, S]
        q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
        heads = range(q.shape[2])
        return np.stack(
            [
                np.stack([answer(q[b, :, n], k[b, :, n], q_positions[b], k_positions[b], 10000.0) for n in heads])
                for b in range(len(q))
            ]
        )

    check_positions(scores)


SCORES = Part(
    "rotary_scores",
    rotary_scores,
    score_cases,
    (
        Mistake(
            "only the queries are turned",
            "Then the score depends on the query's position, not on the distance. Keys are turned by theirs.",
            {"turned": "q"},
        ),
        Mistake(
            "only the keys are turned",
            "Then the score depends on the key's position, not on the distance. Queries are turned by theirs.",
            {"turned": "k"},
        ),
        Mistake("nothing is turned", "Without a rotation the scores know no positions.", {"turned": "none"}),
        Mistake(
            "keys turned backwards",
            "The score then depends on the sum of the positions. Both turn the same way; the product takes the "
            "difference.",
            {"k_turn": -1.0},
        ),
        Mistake(
            "keys at the positions of the queries",
            "Keys have positions of their own: k_positions.",
            {"places": "of queries"},
        ),
        Mistake(
            "queries at the positions of the keys",
            "Queries have positions of their own: q_positions.",
            {"places": "of keys"},
        ),
        Mistake("positions changed over", "q_positions belong to q, k_positions to k.", {"places": "swapped"}),
        Mistake(
            "positions counted from 0",
            "You took 0, 1, 2, ... for both. Use the positions that are given.",
            {"places": "counted"},
        ),
        Mistake("no root of H", "Divide the products by the root of H, as in lesson 01.", {"scale": "none"}),
        Mistake("divided by H", "Divide by its root.", {"scale": "H"}),
        Mistake("root of the number of keys", "The root is of H, the width of the head.", {"scale": "keys"}),
        Mistake("root of the number of pairs", "The root is of H, not of H/2.", {"scale": "half"}),
        Mistake("one row for each key", "The scores are [T, S]: a row for each query.", {"transposed": True}),
        Mistake("no score is below 0", "Products may be negative; they are kept as they are.", {"absolute": True}),
        Mistake("softmax taken", "Scores are asked for, before mask and softmax.", {"softmax": True}),
        Mistake(
            "scores of neighbours that are paired",
            "Number i goes with number i + H/2. Does `rotate` pass already?",
            {"how": {"layout": "pairs"}},
        ),
    ),
    laws=(law_of_positions,),
)


def score_at_distance(q, k, distance, base, *, sign=1.0, which="q", scale="root", how=None):
    """Right twin; each switch makes one mistake."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    how = how or {}
    if which == "twice":
        distance = 2 * distance
    elif which == "next":
        distance = distance + 1
    elif which == "past only":
        distance = max(distance, 0)
    if which == "both":
        q, k = rotate(q[None], [distance], base, **how)[0], rotate(k[None], [distance], base, **how)[0]
    elif which == "absolute":
        q = rotate(q[None], [abs(distance)], base, **how)[0]
    elif which == "even":
        ahead = rotate(q[None], [distance], base, **how)[0]
        behind = rotate(q[None], [-distance], base, **how)[0]
        q = (ahead + behind) / 2
    elif which == "cosine":
        return np.cos(distance) * (q @ k) / np.sqrt(len(q))
    else:
        q = rotate(q[None], [sign * distance], base, **how)[0]
    return q @ k / {"root": np.sqrt(len(q)), "none": 1.0, "H": len(q)}[scale]


def distance_cases():
    """The worked example, distance 0, keys before and after the query."""
    x = np.array
    yield "one back", (x([1.0, 0.0]), x([0.0, 1.0]), 1, 10000.0)
    yield "its own position", (x([1.0, 2.0]), x([3.0, 4.0]), 0, 10000.0)
    yield "one ahead", (x([1.0, 0.0]), x([0.0, 1.0]), -1, 10000.0)
    random = np.random.default_rng(2)
    for distance, head_dim, base in ((3, 4, 100.0), (-7, 6, 10000.0), (120, 16, 10000.0)):
        q, k = random.normal(size=(2, head_dim))
        yield f"distance {distance}, head of {head_dim}", (q, k, distance, base)


DISTANCE = Part(
    "score_at_distance",
    score_at_distance,
    distance_cases,
    (
        Mistake(
            "turned by twice the distance",
            "Either the query turns forward, or the key backward: not both.",
            {"which": "twice"},
        ),
        Mistake("one step too far", "distance is m - n itself: 0 turns nothing.", {"which": "next"}),
        Mistake(
            "keys ahead counted as distance 0",
            "distance may be below 0: then the turn goes the other way.",
            {"which": "past only"},
        ),
        Mistake(
            "the distance has the wrong sign",
            "The distance is that of the query minus that of the key. Turn the query forwards by it, or the key "
            "backwards.",
            {"sign": -1.0},
        ),
        Mistake(
            "the distance has no effect",
            "Nothing is turned, or both are turned alike, which changes nothing. Turn one of the two.",
            {"which": "both"},
        ),
        Mistake(
            "a key after the query counts as one before it",
            "The absolute value loses the order. Rotations know left from right.",
            {"which": "absolute"},
        ),
        Mistake(
            "the sines are missing",
            "With cosines alone, before and after are the same. A pair of the query and a pair of the key make four "
            "products, two of them with the sine.",
            {"which": "even"},
        ),
        Mistake(
            "cosine of the distance",
            "That holds for one pair and equal vectors. Each pair has its own frequency.",
            {"which": "cosine"},
        ),
        Mistake("the root of H is missing", "The score is divided by the root of H, as above.", {"scale": "none"}),
        Mistake("over H, not over its root", "rotary_scores divides by the root of H; so must this.", {"scale": "H"}),
        Mistake(
            "neighbours paired in the single rotation",
            "Number i goes with number i + H/2, as in `rotate`: call it.",
            {"how": {"layout": "pairs"}},
        ),
    ),
)

EXERCISE = Exercise(
    "Exercise 11: rotary positions",
    (FREQUENCIES, ROTATE, SCORES, DISTANCE),
    (
        "Begin with H = 2: one pair, one frequency, which is 1. Draw the pair as an arrow and turn it.",
        "The angles are a table [T, H/2]: positions down, frequencies across. Cut x into two halves of the same "
        "shape; then the two lines of the rotation are products of whole tables. For the distance: what happens if "
        "both arrows are turned back by the position of the key?",
        "base ** (-np.arange(0, H, 2) / H); angle = positions[:, None] * frequencies(...); np.concatenate of "
        "(first * cos - second * sin, second * cos + first * sin). Turned back by n, the key stands still and the "
        "query is turned by m - n.",
    ),
)
