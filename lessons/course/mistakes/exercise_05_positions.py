"""Known mistakes of exercise 05: sines and cosines, the shift as a rotation, similarity, adding positions."""

import numpy as np

from course.grading import Exercise, Part, mistake


def _speeds(D, base=10000.0, exponent="2i/D"):
    """Angle by which each pair turns for one position, for its sine and for its cosine: [D / 2] each."""
    i = np.arange(D // 2)
    exponents = {
        "2i/D": (2 * i / D, 2 * i / D),
        "misprint": (2 * i / D, (2 * i + 1) / D),
        "misprint 2": (2 * i / D, 2 * (2 * i + 1) / D),
        "sines too": ((2 * i + 1) / D, (2 * i + 1) / D),
        "i/D": (i / D, i / D),
        "4i/D": (4 * i / D, 4 * i / D),
        "each": (2 * (2 * i) / D, 2 * (2 * i + 1) / D),
        "2i/(D-2)": (2 * i / max(D - 2, 1), 2 * i / max(D - 2, 1)),
        "2i/(D-1)": (2 * i / (D - 1), 2 * i / (D - 1)),
        "from 1": (2 * (i + 1) / D, 2 * (i + 1) / D),
        "2i": (2.0 * i, 2.0 * i),
        "no logarithm": (2e4 * i / D / np.log(base), 2e4 * i / D / np.log(base)),
        "decimal": (2 * i / D * np.log10(base) / np.log(base), 2 * i / D * np.log10(base) / np.log(base)),
        "inverted": (-2 * i / D, -2 * i / D),
        "floor": (2 * i // D, 2 * i // D),
        "backward": ((2 * i / D)[::-1], (2 * i / D)[::-1]),
        "none": (0.0 * i, 0.0 * i),
    }[exponent]
    return tuple(float(base) ** -e for e in exponents)


def sinusoids(
    positions, D, *, base=10000.0, exponent="2i/D", first=0, layout="pairs", functions="sin cos", unit=1.0, own=True
):
    """Sines and cosines, with their mistakes as switches."""
    positions = np.asarray(positions)
    if not own:
        positions = np.arange(len(positions))
    if own == "absolute":
        positions = np.abs(positions)
    if first == "row":
        positions = positions - positions[0]
        first = 0
    p = (positions + first)[:, None] * unit
    of_sine, of_cosine = _speeds(D, base, exponent)
    f, g = {
        "sin cos": (np.sin, np.cos),
        "cos sin": (np.cos, np.sin),
        "sin sin": (np.sin, np.sin),
        "cos cos": (np.cos, np.cos),
        "sin -cos": (np.sin, lambda a: -np.cos(a)),
        "minus sin": (lambda a: -np.sin(a), np.cos),
    }[functions]
    a, b = f(p * of_sine), g(p * of_cosine)
    if layout == "halves":
        return np.concatenate([a, b], axis=-1)
    if layout == "over the root":
        return np.stack([a, b], axis=-1).reshape(len(a), D) / np.sqrt(D)
    if layout == "transposed":
        return np.stack([a, b], axis=-1).reshape(len(a), D).T
    return np.stack([a, b], axis=-1).reshape(len(a), D)


def shift_rotation(
    k, D, *, base=10000.0, exponent="2i/D", layout="pairs", direction=1, signs="rotation", step="k", unit=1.0
):
    """The matrix of a shift, with its mistakes as switches."""
    k = {"k": k, "1": 1, "k+1": k + 1, "k-1": k - 1, "absolute": abs(k)}[step]
    of_sine, of_cosine = _speeds(D, base, exponent)
    angle, angle_2 = k * of_sine * direction * unit, k * of_cosine * direction * unit
    up, down = {"rotation": (-1, 1), "both plus": (1, 1), "both minus": (-1, -1), "none": (0, 0)}[signs]
    blocks = np.zeros((D // 2, 2, 2))
    blocks[:, 0, 0], blocks[:, 1, 1] = np.cos(angle), np.cos(angle_2)
    blocks[:, 0, 1], blocks[:, 1, 0] = up * np.sin(angle_2), down * np.sin(angle)
    matrix = np.zeros((D, D))
    index = np.arange(D).reshape(2, D // 2).T if layout == "halves" else np.arange(D).reshape(D // 2, 2)
    for pair, block in zip(index, blocks, strict=True):
        matrix[np.ix_(pair, pair)] = block
    if layout == "first pair alone":
        matrix[2:] = 0
    elif layout == "last pair missing":
        matrix[-2:] = 0
    elif layout == "ones outside":
        pair = np.arange(D) // 2
        matrix = np.where(pair[:, None] == pair, matrix, 1.0)
    elif layout == "mirror":
        matrix[index[:, 1]] *= -1
    elif layout == "exchanged":
        matrix = np.zeros((D, D))
        for (i, j), a in zip(index, angle, strict=True):
            matrix[i, i] = matrix[j, j] = np.sin(a)
            matrix[i, j], matrix[j, i] = -np.cos(a), np.cos(a)
    if layout == "blocks alone":
        return blocks
    return matrix


def similarity(distances, D, *, base=10000.0, exponent="2i/D", function="cos", collect="sum", absolute=False):
    """Product of two positions by their distance, with its mistakes as switches."""
    d = np.asarray(distances)[:, None] * 1.0
    if absolute:
        d = d + 1
    of_sine, of_cosine = _speeds(D, base, exponent)
    if exponent == "misprint":
        values = (np.cos(d * of_sine) + np.cos(d * of_cosine)) / 2
    else:
        values = {
            "cos": lambda: np.cos(d * of_sine),
            "sin": lambda: np.sin(d * of_sine),
            "both": lambda: np.sin(d * of_sine) + np.cos(d * of_sine),
            "product": lambda: np.sin(d * of_sine) * np.cos(d * of_sine),
            "square": lambda: np.cos(d * of_sine) ** 2,
            "absolute": lambda: np.abs(np.cos(d * of_sine)),
            "distance squared": lambda: np.cos(d**2 * of_sine),
            "none": lambda: np.ones_like(d * of_sine),
        }[function]()
    collects = {
        "sum": lambda: values.sum(axis=1),
        "mean": lambda: values.mean(axis=1),
        "half": lambda: values.sum(axis=1) / D,
        "double": lambda: 2 * values.sum(axis=1),
        "root": lambda: values.sum(axis=1) / np.sqrt(D),
        "first": lambda: values[:, 0],
        "product": lambda: values.prod(axis=1),
        "angles first": lambda: np.cos((d * of_sine).sum(axis=1)),
        "all": lambda: values.sum(),
        "apart": lambda: values,
        "length": lambda: np.sqrt(np.maximum(D - 2 * values.sum(axis=1), 0)),
    }
    return collects[collect]()


def embed(ids, embeddings, positions, *, scale="words", index="token", how="add", first=0, batch="all"):
    """Embeddings and positions, with its mistakes as switches."""
    ids, embeddings, positions = (np.asarray(x) for x in (ids, embeddings, positions))
    B, T = ids.shape
    V, D = embeddings.shape
    P = len(positions)
    root = D**0.5
    words = embeddings[ids]
    if index == "token":
        if T + first > P:
            return None
        place = np.broadcast_to(np.arange(T) + first, (B, T))
    elif index == "ids":
        if V > P:
            return None
        place = ids
    elif index == "text":
        if B > P:
            return None
        place = np.broadcast_to(np.arange(B)[:, None], (B, T))
    elif index == "last":
        place = np.broadcast_to(np.arange(P - T, P), (B, T))
    elif index == "backward":
        place = np.broadcast_to(np.arange(T)[::-1], (B, T))
    elif index == "same":
        place = np.zeros((B, T), int)
    else:  # counted on through the texts
        if B * T > P:
            return None
        place = np.arange(B * T).reshape(B, T)
    places = positions[place]
    if batch == "first":
        places = np.where(np.arange(B)[:, None, None] == 0, places, 0)
    if how == "multiply":
        return words * root * places
    if how == "concatenate":
        return np.concatenate([words * root, places], axis=-1)
    if how == "words alone":
        return words * root
    if how == "positions alone":
        return places * 1.0
    if how == "subtract":
        return words * root - places
    return {
        "words": lambda: words * root + places,
        "none": lambda: words + places,
        "D": lambda: words * D + places,
        "whole": lambda: words * int(root) + places,
        "divided": lambda: words / root + places,
        "both": lambda: (words + places) * root,
        "positions": lambda: words + places * root,
        "root V": lambda: words * V**0.5 + places,
        "root T": lambda: words * T**0.5 + places,
        "half": lambda: (words * root + places) / 2,
    }[scale]()


# Cases, from tiny to large


def _random():
    return np.random.default_rng(5)


def _sinusoid_cases():
    yield "position 0", (np.array([0]), 4)
    yield "position 1", (np.array([1]), 4)
    yield "position 3 of width 2", (np.array([3]), 2)
    yield "three positions", (np.arange(3), 6)
    yield "not from 0 on", (np.array([7, 2, 40]), 8)
    yield "a negative position", (np.array([-3, 5]), 6)
    yield "far away", (np.array([1000, 2017]), 10)
    yield "large", (np.arange(60), 64)


def _shift_cases():
    yield "one pair", (1, 2)
    yield "one pair, by 2", (2, 2)
    yield "two pairs", (1, 4)
    yield "no shift", (0, 6)
    yield "backward", (-3, 6)
    yield "large", (11, 32)
    yield "very far", (500, 10)


def _similarity_cases():
    yield "the same position", (np.array([0]), 2)
    yield "distance 3, one pair", (np.array([3]), 2)
    yield "the same position, three pairs", (np.array([0]), 6)
    yield "forward and backward", (np.array([2, -2, 5]), 8)
    yield "large", (np.arange(50), 64)


def _embed_cases():
    random = _random()
    n = random.normal
    table = np.zeros((3, 4))
    table[2, 0] = 1
    yield "two equal tokens", (np.array([[2, 2]]), table, np.array([[0.0, 1, 0, 1], [5, 5, 5, 5], [9, 9, 9, 9]]))
    yield "one token", (np.array([[1]]), n(size=(2, 9)), n(size=(5, 9)))
    yield "two texts", (np.array([[0, 3, 1], [2, 0, 3]]), n(size=(4, 6)), n(size=(7, 6)))
    yield "as many positions as tokens", (np.array([[4, 0, 1, 1, 2]] * 3), n(size=(5, 3)), n(size=(5, 3)))
    yield "whole numbers", (np.array([[0, 1]]), np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.arange(12).reshape(3, 4))
    yield "large", (random.integers(0, 13, (5, 7)), n(size=(13, 24)), n(size=(40, 24)))


# Laws


def _check_sinusoids(answer):
    p = np.arange(37)
    table, shifted = (np.asarray(answer(positions, 18), np.float64) for positions in (p, p + 5))
    matrix = np.linalg.lstsq(table, shifted, rcond=None)[0]
    error = np.abs(table @ matrix - shifted).max()
    assert error < 1e-4, f"no matrix shifts the positions by 5: the best misses by {error:.3g}."


def _check_rotation(answer):
    one, two, back = (np.asarray(answer(k, 12), np.float64) for k in (1, 2, -1))
    assert np.allclose(one @ one, two, atol=1e-5), "twice by 1 is not by 2."
    assert np.allclose(one @ back, np.eye(12), atol=1e-5), "forward and back is not where it began."


EXERCISE = Exercise(
    "Positions",
    (
        Part(
            "sinusoids",
            sinusoids,
            _sinusoid_cases,
            (
                mistake(
                    "exp without a logarithm",
                    "10000^x is exp(x log 10000): the logarithm of 10000 is what x is multiplied by.",
                    **{"exponent": "no logarithm"},
                ),
                mistake(
                    "exp with a logarithm to base 10",
                    "exp belongs to the natural logarithm, np.log.",
                    **{"exponent": "decimal"},
                ),
                mistake(
                    "positions without their sign",
                    "Position -3 has the sines of -3, which are below those of 3: no absolute value.",
                    **{"own": "absolute"},
                ),
                mistake(
                    "divided by the root of D",
                    "The root of D belongs to the embeddings; sines and cosines stay as they are.",
                    **{"layout": "over the root"},
                ),
                mistake(
                    "the misprint",
                    "Your cosine has the exponent (2i + 1) / D. A sine and its cosine share one angle, so both have 2i "
                    "/ D; else a shift is no rotation.",
                    exponent="misprint",
                ),
                mistake(
                    "the cosine of another angle",
                    "You put the index of each number, even or odd, into 2i. In the formula, i counts pairs: the "
                    "numbers 2i and 2i + 1 have the same i.",
                    exponent="each",
                ),
                mistake(
                    "the cosine is twice a step ahead",
                    "The exponent of your cosines has an odd number in it where its sine has an even one. Compute the "
                    "angle once, and use it for both.",
                    exponent="misprint 2",
                ),
                mistake(
                    "exponents from 1 / D on",
                    "Your first pair does not turn by 1 for each position. Its exponent is 0.",
                    exponent="sines too",
                ),
                mistake(
                    "the exponent is half as large",
                    "Your waves reach only the wavelength of the root of 10000. The exponent is 2i / D, where i counts "
                    "pairs.",
                    exponent="i/D",
                ),
                mistake(
                    "the exponent is twice as large",
                    "You multiplied by 2 twice. np.arange(0, D, 2) is 2i already.",
                    exponent="4i/D",
                ),
                mistake(
                    "divided by D - 2",
                    "Some programs spread the waves so that the last one has exactly the base. The paper divides by D.",
                    exponent="2i/(D-2)",
                ),
                mistake("divided by D - 1", "The exponent of the paper is 2i / D.", exponent="2i/(D-1)"),
                mistake(
                    "pairs counted from 1",
                    "The first pair has i = 0, so it turns by one radian for each position.",
                    exponent="from 1",
                ),
                mistake(
                    "D is forgotten",
                    "The exponent is 2i / D. Yours grows so fast that all waves but the first stand still.",
                    exponent="2i",
                ),
                mistake(
                    "multiplied in place of divided",
                    "Your waves get faster from pair to pair. p is divided by 10000^(2i / D).",
                    exponent="inverted",
                ),
                mistake(
                    "a whole exponent", "`//` cuts the exponent to a whole number, here always 0.", exponent="floor"
                ),
                mistake("slow waves first", "The first pair is the fastest one.", exponent="backward"),
                mistake("another base: 1000", "Count the zeros of the base: 10000 has four.", base=1000.0),
                mistake("another base: 100000", "Your base has one zero too many: it is 10000.", base=100000.0),
                mistake("another base: e", "np.exp needs a logarithm: 10000^a is exp(a log 10000).", base=np.e),
                mistake(
                    "positions counted from 1", "Position p is p, not p + 1: at position 0 all sines are 0.", first=1
                ),
                mistake(
                    "the positions are not used",
                    "You counted 0, 1, 2, ... The positions are an argument: they may begin anywhere.",
                    own=False,
                ),
                mistake(
                    "positions relative to the first",
                    "You subtracted the first position. A vector says where a token is, not how far from the start of "
                    "the list.",
                    first="row",
                ),
                mistake(
                    "all sines first",
                    "You put all sines before all cosines. Here they alternate: sine, cosine, sine, cosine.",
                    layout="halves",
                ),
                mistake("the table is transposed", "One row a position: [T, D].", layout="transposed"),
                mistake("cosines first", "Even numbers are sines, odd numbers are cosines.", functions="cos sin"),
                mistake("no cosines", "All your numbers are sines. The odd ones are cosines.", functions="sin sin"),
                mistake("no sines", "All your numbers are cosines. The even ones are sines.", functions="cos cos"),
                mistake(
                    "degrees", "np.sin takes radians, and so does the paper: no conversion is needed.", unit=np.pi / 180
                ),
                mistake(
                    "whole turns",
                    "There is no 2 pi in this formula: the first wave turns by one radian.",
                    unit=2 * np.pi,
                ),
            ),
            (_check_sinusoids,),
        ),
        Part(
            "shift_rotation",
            shift_rotation,
            _shift_cases,
            (
                mistake(
                    "a shift without direction",
                    "k = -2 shifts backward: the sign of k decides on the sign of the sines.",
                    **{"step": "absolute"},
                ),
                mistake(
                    "the first pair alone",
                    "Each of the D / 2 pairs has its block on the diagonal.",
                    **{"layout": "first pair alone"},
                ),
                mistake(
                    "the last pair is missing",
                    "There are D // 2 pairs, so range(D // 2).",
                    **{"layout": "last pair missing"},
                ),
                mistake(
                    "outside of the blocks it is not 0",
                    "Pairs do not mix: begin with np.zeros.",
                    **{"layout": "ones outside"},
                ),
                mistake(
                    "the second row has the wrong sign",
                    "The rows are [cos, -sin] and [sin, cos]: yours is a reflection.",
                    **{"layout": "mirror"},
                ),
                mistake(
                    "sines on the diagonal",
                    "For k = 0 nothing moves, so the diagonal has the cosines.",
                    **{"layout": "exchanged"},
                ),
                mistake(
                    "turned backward",
                    "Your matrix goes k positions back (or it is made for a column vector on its right: transpose it).",
                    direction=-1,
                ),
                mistake(
                    "a mirror in place of a turn",
                    "Both sines have a plus. Of the two, cos(a + b) has the minus: cos a cos b - sin a sin b.",
                    signs="both plus",
                ),
                mistake(
                    "two minus signs",
                    "Only one of the two sines is negative: sin(a + b) = sin a cos b + cos a sin b has none.",
                    signs="both minus",
                ),
                mistake(
                    "no sines in the matrix",
                    "Your matrix is diagonal. Sines and cosines of a pair mix when it turns.",
                    signs="none",
                ),
                mistake(
                    "halves",
                    "Your matrix turns number i with number i + D / 2. Here the pairs are neighbours: 0 and 1, 2 and "
                    "3.",
                    layout="halves",
                ),
                mistake(
                    "one angle for all pairs",
                    "Every pair has a speed of its own; only the first turns by k.",
                    exponent="none",
                ),
                mistake(
                    "the misprint in the matrix",
                    "The two columns of a block have different angles. A pair turns as a whole, by one angle.",
                    exponent="misprint",
                ),
                mistake(
                    "the matrix with half the exponent", "The angle of pair i is k / 10000^(2i / D).", exponent="i/D"
                ),
                mistake(
                    "the matrix with twice the exponent",
                    "The angles shrink too fast from pair to pair: is there a 2 too many?",
                    exponent="4i/D",
                ),
                mistake(
                    "fast pairs last", "The first block turns by k, and the later ones by less.", exponent="backward"
                ),
                mistake("angles that grow", "Later pairs turn more slowly: divide k.", exponent="inverted"),
                mistake("pairs from 1 on", "The first block turns by exactly k: its exponent is 0.", exponent="from 1"),
                mistake("always by 1", "Your matrix does not depend on k.", step="1"),
                mistake("by k + 1", "With k = 0 the matrix is the identity.", step="k+1"),
                mistake("by k - 1", "You turn by one position too few: k = 0 must give the identity.", step="k-1"),
                mistake("base 1000 in the matrix", "The base has four zeros, as in sinusoids.", base=1000.0),
                mistake("degrees in the matrix", "Angles are in radians.", unit=np.pi / 180),
            ),
            (_check_rotation,),
        ),
        Part(
            "similarity",
            similarity,
            _similarity_cases,
            (
                mistake(
                    "cosines without their sign",
                    "A cosine may be negative: far positions may point away from each other.",
                    **{"function": "absolute"},
                ),
                mistake(
                    "the distance is squared",
                    "Each pair turns by its speed times the distance itself.",
                    **{"function": "distance squared"},
                ),
                mistake(
                    "a vector times itself",
                    "The two positions differ by the distance: only for 0 are the vectors equal.",
                    **{"function": "none"},
                ),
                mistake(
                    "cosines are multiplied",
                    "Each pair adds its cosine: a sum, not a product.",
                    **{"collect": "product"},
                ),
                mistake(
                    "angles added before the cosine",
                    "Each pair has a cosine of its own; add these up.",
                    **{"collect": "angles first"},
                ),
                mistake(
                    "sines in place of cosines",
                    "At distance 0 a vector meets itself, and the product is its squared length, not 0. sin a sin b + "
                    "cos a cos b is which function of a - b?",
                    function="sin",
                ),
                mistake(
                    "sines and cosines of the distance",
                    "Do not multiply with position 0's vector of ones only: sin a sin b + cos a cos b is one cosine.",
                    function="both",
                ),
                mistake("sine times cosine", "The sines meet sines, and the cosines meet cosines.", function="product"),
                mistake(
                    "squared cosines", "One factor comes from each position: there is no square.", function="square"
                ),
                mistake("the mean of the pairs", "A product of vectors adds up; it does not average.", collect="mean"),
                mistake("divided by D", "Nothing is divided: at distance 0 the result is D / 2.", collect="half"),
                mistake(
                    "every pair counted twice",
                    "At distance 0 you have D, but sin^2 + cos^2 = 1 for each of the D / 2 pairs.",
                    collect="double",
                ),
                mistake("scaled as in attention", "No root here: it is the plain product.", collect="root"),
                mistake("the first pair alone", "All D / 2 pairs count.", collect="first"),
                mistake(
                    "one number for all distances",
                    "Each distance has a result of its own: sum over pairs only.",
                    collect="all",
                ),
                mistake(
                    "not added up", "You have a row of D / 2 cosines for each distance. Add them up.", collect="apart"
                ),
                mistake(
                    "the distance of the vectors",
                    "That is how far apart the two vectors lie. The product was asked for.",
                    collect="length",
                ),
                mistake(
                    "similarity with half the exponent", "The speed of pair i is 1 / 10000^(2i / D).", exponent="i/D"
                ),
                mistake(
                    "similarity with twice the exponent", "Is there a 2 too many in your exponent?", exponent="4i/D"
                ),
                mistake(
                    "similarity with the misprint",
                    "With one angle for each pair, the product is a sum of D / 2 cosines, not of D halves.",
                    exponent="misprint",
                ),
                mistake(
                    "similarity with pairs from 1",
                    "i begins at 0: the first cosine is that of the distance itself.",
                    exponent="from 1",
                ),
                mistake("similarity with base 1000", "The base is the same as in sinusoids.", base=1000.0),
                mistake("the distance plus 1", "Distance 0 means the same position.", absolute=True),
            ),
        ),
        Part(
            "embed",
            embed,
            _embed_cases,
            (
                mistake(
                    "the root cut to a whole number", "The root of 6 is 2.449, not 2: no int.", **{"scale": "whole"}
                ),
                mistake(
                    "the root is forgotten",
                    "Small embeddings drown in positions of size 1. What does section 3.4 multiply them by?",
                    scale="none",
                ),
                mistake("multiplied by D", "The factor is the root of D.", scale="D"),
                mistake(
                    "divided by the root",
                    "The root makes embeddings larger here. It divides in attention.",
                    scale="divided",
                ),
                mistake(
                    "positions are scaled, too",
                    "You multiplied the sum. Scale the embeddings first, then add the positions as they are.",
                    scale="both",
                ),
                mistake(
                    "positions are scaled in place of words",
                    "It is the embeddings that are multiplied.",
                    scale="positions",
                ),
                mistake(
                    "the root of the vocabulary",
                    "embeddings.shape[0] is V. The width is the other axis.",
                    scale="root V",
                ),
                mistake(
                    "the root of the length", "The factor does not depend on how long the text is.", scale="root T"
                ),
                mistake("the mean of both", "Positions are added, nothing is halved.", scale="half"),
                mistake(
                    "positions looked up by token id",
                    "The position of a token is its index in the text, not its id in the vocabulary.",
                    index="ids",
                ),
                mistake(
                    "positions looked up by text",
                    "All tokens of a text got the same position, that of the text in the batch. Which axis of ids is "
                    "T?",
                    index="text",
                ),
                mistake(
                    "the last rows of the table",
                    "Token 0 has row 0. The rows that are too many are at the end.",
                    index="last",
                ),
                mistake("positions counted backward", "The first token has position 0.", index="backward"),
                mistake("all tokens at position 0", "Every token got the first row of the table.", index="same"),
                mistake(
                    "positions counted on through the batch",
                    "The second text begins at position 0 again.",
                    index="batch",
                ),
                mistake("token positions counted from 1", "Row 0 of the table is for the first token.", first=1),
                mistake("multiplied by positions", "The position is added.", how="multiply"),
                mistake("positions appended", "The vectors stay D wide: add, do not concatenate.", how="concatenate"),
                mistake("positions subtracted", "The sign: positions are added.", how="subtract"),
                mistake("no positions", "Your result is the embeddings alone.", how="words alone"),
                mistake(
                    "no words",
                    "Your result has the positions, but not the embeddings of the tokens.",
                    how="positions alone",
                ),
                mistake("positions for the first text only", "All B texts get positions.", batch="first"),
            ),
        ),
    ),
    (
        "Compute all angles first, an array [T, D / 2]: position times speed. Then think about where sines and "
        "cosines go.",
        "speed = 1 / 10000 ** (np.arange(0, D, 2) / D). The table has sines at [:, 0::2] and cosines at [:, 1::2]. "
        "For the "
        "shift, write down sin(a + b) and cos(a + b): each pair has a block of 2 by 2.",
        "Block of pair i with b = k * speed[i]: [[cos b, -sin b], [sin b, cos b]], on the diagonal at 2i. "
        "Similarity: the "
        "sum of cos(distance * speed). embed: embeddings[ids] * D ** 0.5 + positions[:T].",
    ),
)
