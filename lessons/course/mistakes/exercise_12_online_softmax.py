"""Known mistakes of exercise 12: a running softmax, two blocks joined, attention in blocks, by wrong twins."""

import numpy as np

from course.grading import Exercise, Mistake, Part


def update(
    largest,
    total,
    score,
    *,
    old="shrinks",
    new="relative",
    peak="max",
    empty="kept",
    first="all",
    keeps="new",
    base="e",
):
    """Right twin; each switch makes one mistake."""
    with np.errstate(all="ignore"):
        largest, total, score = np.float64(largest), np.float64(total), np.float64(score)
        is_odd = old in ("grows", "linear", "difference") or new in ("old", "shrinks too") or peak in ("score", "min")
        if is_odd and -np.inf in (largest, score):
            return None  # a matter of how it is written
        if empty == "score" and score == -np.inf:
            return largest, 0.0
        if empty == "one" and largest == score == -np.inf:
            return largest, 1.0
        m = {"max": max(largest, score), "score": score, "old": largest, "min": min(largest, score)}[peak]
        if largest == -np.inf and peak in ("old", "min"):
            m = score
        if peak == "sum":
            m = largest + score
        if m == -np.inf and empty in ("kept", "score", "one"):
            return largest, total
        exp = np.exp2 if base == "two" else np.exp
        factor = {
            "shrinks": exp(largest - m),
            "stays": 1.0,
            "grows": exp(m - largest) if largest > -np.inf else 0.0,
            "by score": exp(largest - score) if score > -np.inf else 1.0,
            "difference": largest - m,
            "linear": m - largest if largest > -np.inf else 1.0,
            "twice": exp(2 * (largest - m)),
        }[old]
        weight = {
            "relative": exp(score - m),
            "absolute": exp(score),
            "old": exp(score - largest) if largest > -np.inf else 1.0,
            "one": 1.0,
            "shrinks too": exp(score - m) * factor if largest > -np.inf else 1.0,
            "score": score,
            "none": 0.0,
        }[new]
        z = total * factor + weight
        if first == "late" and score <= largest:
            z = total
        if first == "reset" and score > largest:
            z = 1.0
        if keeps == "log":
            return m, np.log(z)
        if keeps == "exchanged":
            return z, m
        if keeps == "old":
            m = largest
        if keeps == "mean":
            z = z / 2
        return m, z


def update_cases():
    """The worked example, a smaller, an equal and a much larger score, and scores of -inf."""
    inf = np.inf
    yield "the example", (2.0, 1.0, 3.0)
    yield "a smaller score", (2.0, 1.0, 1.5)
    yield "the first score", (-inf, 0.0, 5.0)
    yield "a negative first score", (-inf, 0.0, -700.0)
    yield "an equal score", (2.0, 3.5, 2.0)
    yield "a large total", (-1.0, 40.0, 0.5)
    yield "a far larger score", (1e4, 7.0, 1.2e4)
    yield "a far smaller score", (1e4, 7.0, 9e3)
    yield "large and close", (1e4, 7.0, 10001.0)
    yield "a key that may not be attended", (2.0, 1.7, -inf)
    yield "nothing so far, and a key that may not be attended", (-inf, 0.0, -inf)


UPDATE = Part(
    "update",
    update,
    update_cases,
    (
        Mistake(
            "the total begins anew",
            "When the largest rises, the old total is not lost: it shrinks by exp(old - new).",
            {"first": "reset"},
        ),
        Mistake("the logarithm of the total", "The total itself is asked for.", {"keeps": "log"}),
        Mistake("the total comes first", "Return (largest, total) in this order.", {"keeps": "exchanged"}),
        Mistake(
            "exp is missing in the factor",
            "The old total is multiplied by exp(old - new), not by the difference.",
            {"old": "difference"},
        ),
        Mistake(
            "a closed key empties the total", "A score of -inf adds 0, and what was there stays.", {"empty": "score"}
        ),
        Mistake(
            "a total of 1 from nothing",
            "Nothing so far and a closed key: the sum has no term, so it is 0.",
            {"empty": "one"},
        ),
        Mistake(
            "the old total is not put right",
            "It was summed relative to the old largest score. When that rises, all old terms must shrink.",
            {"old": "stays"},
        ),
        Mistake(
            "the old total grows",
            "The factor is upside down: exp(old - new) is at most 1, since the new largest is at least the old one.",
            {"old": "grows"},
        ),
        Mistake(
            "shrunk by the score, not by the new largest",
            "If the score is smaller than the largest so far, nothing should change for the old total.",
            {"old": "by score"},
        ),
        Mistake(
            "multiplied by a difference",
            "The factor is exp of the difference of the two largest scores.",
            {"old": "linear"},
        ),
        Mistake("shrunk twice", "One factor exp(old - new) is enough.", {"old": "twice"}),
        Mistake(
            "exp of the bare score",
            "exp(1000) overflows. Every term is relative to the largest score: exp(score - largest).",
            {"new": "absolute"},
        ),
        Mistake(
            "the new term is relative to the old largest",
            "Compute the new largest first, then both terms relative to it.",
            {"new": "old"},
        ),
        Mistake("the new term is always 1", "It is 1 only if the new score is the largest.", {"new": "one"}),
        Mistake(
            "the new term shrinks as well",
            "Only the old total is multiplied by the factor; the new term is relative to the new largest already.",
            {"new": "shrinks too"},
        ),
        Mistake("the score itself is added", "Its exp is added: exp(score - largest).", {"new": "score"}),
        Mistake("the new score is not added", "The total must gain exp(score - largest).", {"new": "none"}),
        Mistake(
            "smaller scores are dropped",
            "A score that is not the largest still adds exp(score - largest).",
            {"first": "late"},
        ),
        Mistake(
            "the new score is always the largest",
            "Take the larger of the two; otherwise terms above 1 pile up and overflow.",
            {"peak": "score"},
        ),
        Mistake(
            "the first score stays the largest",
            "The largest must rise with the scores; otherwise exp(score - largest) overflows.",
            {"peak": "old"},
        ),
        Mistake("the smallest instead of the largest", "Relative to the smallest, exp overflows.", {"peak": "min"}),
        Mistake(
            "the old largest is returned",
            "The total was put right for the new largest, so return that one with it.",
            {"keeps": "old"},
        ),
        Mistake("powers of 2", "exp2 is not exp. (Fast kernels use it, with scaled scores.)", {"base": "two"}),
        Mistake("halved", "It is a sum, no mean.", {"keeps": "mean"}),
        Mistake(
            "NaN where nothing may be attended",
            "-inf - (-inf) is NaN. If the new largest is -inf, nothing has been seen yet: return what came in.",
            {"empty": "nan"},
        ),
    ),
)


def merge(
    left,
    right,
    *,
    largest="max",
    factors="both",
    total="sum",
    out="both",
    divided="no",
    empty="zero",
    base=1,
    keeps="max",
):
    """Right twin; each switch makes one mistake."""
    with np.errstate(all="ignore"):
        (m1, z1, o1), (m2, z2, o2) = ([np.asarray(x, np.float64) for x in side] for side in (left, right))
        m = {
            "max": np.maximum(m1, m2),
            "min": np.minimum(m1, m2),
            "sum": m1 + m2,
            "left": m1,
            "right": m2,
            "logs": np.logaddexp(m1, m2),
            "global": np.full_like(m1, max(m1.max(), m2.max())),
        }[largest]
        anchor = np.where(m == -np.inf, 0.0, m) if empty == "zero" else m
        f1, f2 = np.exp(base * (m1 - anchor)), np.exp(base * (m2 - anchor))
        if factors == "none":
            f1, f2 = np.ones_like(f1), np.ones_like(f2)
        elif factors == "left":
            f2 = np.ones_like(f2)
        elif factors == "right":
            f1 = np.ones_like(f1)
        elif factors == "bare":
            f1, f2 = np.exp(m1), np.exp(m2)
        elif factors == "right as base":
            f1, f2 = np.exp(m1 - m2), np.ones_like(f2)
        elif factors == "inverted":
            f1, f2 = 1 / f1, 1 / f2
        elif factors == "each other":
            f1, f2 = np.exp(m1 - m2), np.exp(m2 - m1)
        elif factors == "swapped":
            f1, f2 = f2, f1
        z = z1 * f1 + z2 * f2
        if total == "plain":
            z = z1 + z2
        elif total == "mean":
            z = z / 2
        elif total == "max":
            z = np.maximum(z1 * f1, z2 * f2)
        elif total == "product":
            z = z1 * f1 * z2 * f2
        g1, g2 = f1[:, None], f2[:, None]
        if out == "plain":
            o = o1 + o2
        elif out == "weighted":
            o = o1 * (z1 * f1)[:, None] + o2 * (z2 * f2)[:, None]
        elif out == "halves":
            o = (o1 * g1 + o2 * g2) / 2
        elif out == "left alone":
            o = o1 * g1
        elif out == "left":
            o = o1 * g1 + o2
        else:
            o = o1 * g1 + o2 * g2
        if divided == "yes":
            o = o / z[:, None]
        elif divided == "safe":
            o = o / np.where(z == 0, 1, z)[:, None]
        elif divided == "first":
            o = o1 / z1[:, None] * g1 + o2 / z2[:, None] * g2
        if keeps == "sum":
            m = m1 + m2
        if keeps == "zero":
            m = anchor
        return m, z, o


def merge_cases():
    """The worked example, then several queries, large scores, and blocks in which nothing may be attended."""
    x = np.array
    yield "the example", ((x([0.0]), x([1.0]), x([[5.0]])), (x([1.0]), x([1.0]), x([[7.0]])))
    yield "the other way round", ((x([1.0]), x([1.0]), x([[7.0]])), (x([0.0]), x([1.0]), x([[5.0]])))
    random = np.random.default_rng(0)

    def side(T, H, scale=1.0):
        return scale * random.normal(size=T), 1 + random.random(T), random.normal(size=(T, H))

    yield "5 queries", (side(5, 3), side(5, 3))
    yield "as many queries as numbers", (side(4, 4), side(4, 4))
    yield "large scores", (side(5, 3, 3000.0), side(5, 3, 3000.0))
    nothing = np.full(5, -np.inf), np.zeros(5), np.zeros((5, 3))
    yield "nothing on the left", (nothing, side(5, 3))
    yield "nothing on the right", (side(5, 3), nothing)
    yield "nothing on either side", (nothing, nothing)


MERGE = Part(
    "merge",
    merge,
    merge_cases,
    (
        Mistake(
            "exp of the bare largest scores",
            "exp(3000) is infinite, and the sums are relative already: exp(own - larger) puts them right.",
            {"factors": "bare"},
        ),
        Mistake(
            "put right to the right side only",
            "If the left side has the larger score, the right one must shrink.",
            {"factors": "right as base"},
        ),
        Mistake("the out of the left side only", "Both outs are added, each with its factor.", {"out": "left alone"}),
        Mistake(
            "the sum of the largest scores is returned",
            "Of the two largest scores the larger one counts.",
            {"keeps": "sum"},
        ),
        Mistake(
            "0 for the largest of nothing",
            "Where neither block has a key, the largest stays -inf; only in exp it may be replaced.",
            {"keeps": "zero"},
        ),
        Mistake(
            "nothing is put right",
            "Both sides are relative to largest scores of their own. Before they are added, both must be relative to "
            "the same one.",
            {"factors": "none"},
        ),
        Mistake(
            "only the left side is put right",
            "The larger score may be on either side: both need a factor, one of which is 1.",
            {"factors": "left"},
        ),
        Mistake(
            "only the right side is put right",
            "The larger score may be on the left as well: both sides need a factor, one of which is 1.",
            {"factors": "right"},
        ),
        Mistake(
            "the factors are upside down",
            "exp(own largest - common largest) is at most 1. Yours is at least 1.",
            {"factors": "inverted"},
        ),
        Mistake(
            "each side relative to the other",
            "Relative to the common largest, which is the larger of the two.",
            {"factors": "each other"},
        ),
        Mistake("factors swapped", "Each side is multiplied by the factor of its own largest.", {"factors": "swapped"}),
        Mistake("factors squared", "The factor is exp of the difference, once.", {"base": 2}),
        Mistake("the totals are added as they are", "They need the same factors as the outs.", {"total": "plain"}),
        Mistake("mean of the totals", "The total is a sum over both blocks.", {"total": "mean"}),
        Mistake("the larger total", "The total is the sum of both, after the factors.", {"total": "max"}),
        Mistake("the totals are multiplied", "The total is a sum over the keys of both blocks.", {"total": "product"}),
        Mistake(
            "the outs are added as they are",
            "Each of their terms has the factor exp(score - largest) in it, so they must shrink like the totals.",
            {"out": "plain"},
        ),
        Mistake("only the left out is put right", "Both outs need the factor of their side.", {"out": "left"}),
        Mistake(
            "outs weighted by their totals",
            "That is right for outs that were divided already. These were not.",
            {"out": "weighted"},
        ),
        Mistake("mean of the outs", "The out is a sum over both blocks.", {"out": "halves"}),
        Mistake(
            "divided by the total",
            "The result is to be joined with further blocks, so it is not divided yet.",
            {"divided": "safe"},
        ),
        Mistake(
            "divided by the total, also by 0",
            "The division comes at the very end; here it makes NaN out of a block without keys.",
            {"divided": "yes"},
        ),
        Mistake(
            "each side is divided by its own total",
            "Then both blocks weigh the same, whatever their scores. Nothing is divided here.",
            {"divided": "first"},
        ),
        Mistake(
            "the smaller of the largest scores", "The largest of both blocks is the larger one.", {"largest": "min"}
        ),
        Mistake(
            "the same largest score for all queries",
            "Each query has its own: np.maximum compares element by element, .max() mixes the queries.",
            {"largest": "global"},
        ),
        Mistake("the largest scores are added", "Take the larger one of the two.", {"largest": "sum"}),
        Mistake("largest of the left side", "The right side may have the larger one.", {"largest": "left"}),
        Mistake("largest of the right side", "The left side may have the larger one.", {"largest": "right"}),
        Mistake("logarithm of the sum", "logaddexp is not the maximum. Take the larger one.", {"largest": "logs"}),
        Mistake(
            "NaN where neither block has a key",
            "-inf - (-inf) is NaN. Where both are -inf, subtract 0 instead: exp(-inf) is 0.",
            {"empty": "nan"},
        ),
    ),
)


def attention_in_blocks(
    q, k, v, block, *, scale="root", last="kept", join="online", stable=True, shrink="both", end="divided", starts="all"
):
    """Right twin; each switch makes one mistake. None where a mistake makes no sense."""
    with np.errstate(all="ignore"):
        q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
        (T, H), S = q.shape, len(k)
        root = {
            "root": np.sqrt(H),
            "none": 1.0,
            "H": H,
            "causal": np.sqrt(H),
            "block": np.sqrt(block),
            "J": np.sqrt(v.shape[1]),
            "keys": np.sqrt(S),
        }[scale]
        firsts = list(range(0, S, block))
        if last == "dropped":
            firsts = [first for first in firsts if first + block <= S]
        elif last == "only":
            firsts = firsts[-1:]
        elif last == "first":
            firsts = firsts[:1]
        if starts == "overlap":
            firsts = list(range(0, S, max(1, block - 1)))
        if starts == "every key":
            firsts = list(range(S))
        if starts == "queries":
            firsts = list(range(0, T, block))
        if starts == "second":
            firsts = firsts[1:]
        if not firsts:
            return np.full((T, v.shape[1]), np.nan) if last != "dropped" else None
        m, z, o = np.full(T, -np.inf), np.zeros(T), np.zeros((T, v.shape[1]))
        if join == "from zero":
            m = np.zeros(T)
        pieces = []
        for first in firsts:
            width = block + (last == "one more")
            x = q @ k[first : first + width].T / root
            value = v[first : first + width]
            if scale == "causal":
                x = np.where(np.arange(first, first + x.shape[1]) <= np.arange(T)[:, None], x, -1e30)
            here = x.max(axis=1)
            if not stable:
                here = np.zeros(T)
            if join in ("mean", "sum", "weighted"):
                w = np.exp(x - here[:, None])
                pieces.append((w / w.sum(axis=1, keepdims=True) @ value, len(value)))
                continue
            if join == "own":
                w = np.exp(x - here[:, None])
                z, o = z + w.sum(axis=1), o + w @ value
                m = here
                continue
            if join == "first":
                here = here if first == 0 else m
            if join == "one number":
                here = np.full(T, x.max())
            new = np.maximum(m, here) if stable else here
            if join == "latest":
                new = here
            factor = np.exp(m - new) if stable else np.ones(T)
            w = np.exp(x - new[:, None])
            z = z * (factor if shrink in ("both", "total") else 1.0) + w.sum(axis=1)
            o = o * (factor if shrink in ("both", "out") else np.ones(T))[:, None] + w @ value / (
                np.exp(x - here[:, None]).sum(axis=1)[:, None] if end == "in each block" else 1.0
            )
            if end == "each":
                o = o / z[:, None]
            m = new
        if join == "mean":
            return np.mean([piece for piece, _ in pieces], axis=0)
        if join == "sum":
            return np.sum([piece for piece, _ in pieces], axis=0)
        if join == "weighted":
            return sum(piece * number for piece, number in pieces) / S
        if end == "none" or end == "each":
            return o
        if end == "keys":
            return o / S
        if end == "all queries":
            return o / z.sum()
        if end == "number":
            return o / len(firsts)
        if end == "last total":
            return o / w.sum(axis=1)[:, None]
        return o / z[:, None]


def block_cases():
    """The worked example, then blocks that divide the keys and that do not, of 1, and larger than all."""
    x = np.array
    yield "the example", (x([[0.0]]), x([[1.0], [2.0], [3.0]]), x([[3.0], [6.0], [9.0]]), 2)
    random = np.random.default_rng(1)
    n = random.normal
    yield "one block", (n(size=(2, 3)), n(size=(4, 3)), n(size=(4, 5)), 4)
    yield "two blocks", (n(size=(2, 3)), n(size=(4, 3)), n(size=(4, 5)), 2)
    yield "blocks of one key", (n(size=(5, 3)), n(size=(4, 3)), n(size=(4, 3)), 1)
    yield "11 keys in blocks of 4", (2 * n(size=(5, 6)), n(size=(11, 6)), n(size=(11, 2)), 4)
    yield "a block larger than all keys", (n(size=(5, 6)), n(size=(11, 6)), n(size=(11, 2)), 64)
    k = np.sort(n(size=(13, 1)), axis=0) * np.ones((1, 7))
    yield "scores that rise", (np.ones((3, 7)) * x([[1.0], [2.0], [0.5]]), k, n(size=(13, 7)), 3)
    yield "scores that fall", (np.ones((3, 7)) * x([[1.0], [2.0], [0.5]]), k[::-1].copy(), n(size=(13, 7)), 3)
    yield "large scores", (100 * n(size=(5, 6)), 100 * n(size=(11, 6)), n(size=(11, 2)), 4)
    yield "very negative scores", (-np.ones((2, 4)), 1000 + 5 * n(size=(9, 4)), n(size=(9, 3)), 5)


BLOCKS = Part(
    "attention_in_blocks",
    attention_in_blocks,
    block_cases,
    (
        Mistake("root of the width of the values", "The root is of H, the width of queries and keys.", {"scale": "J"}),
        Mistake(
            "a mask that nobody asked for", "Every query attends to all keys: no causal mask here.", {"scale": "causal"}
        ),
        Mistake(
            "blocks that begin at every key",
            "range(0, S, block): without the step each key counts many times.",
            {"starts": "every key"},
        ),
        Mistake(
            "as many blocks as for the queries",
            "It is the keys that are read in blocks: range(0, len(k), block).",
            {"starts": "queries"},
        ),
        Mistake(
            "blocks overlap by a key",
            "A slice ends before its second number: [first : first + block].",
            {"last": "one more"},
        ),
        Mistake(
            "the largest of the first block for all",
            "A later block may have far larger scores: exp overflows. Raise the largest as you go.",
            {"join": "first"},
        ),
        Mistake(
            "the outs of the blocks are divided",
            "The out of a block must stay undivided until the very end; it is divided twice now.",
            {"end": "in each block"},
        ),
        Mistake("divided by the number of keys", "What the weights sum up to is the total, not S.", {"end": "keys"}),
        Mistake("one total for all queries", "Each query has its own total.", {"end": "all queries"}),
        Mistake(
            "the last keys are lost",
            "If the block does not divide the number of keys, a smaller block remains at the end.",
            {"last": "dropped"},
        ),
        Mistake("only the last block counts", "Each block is added to those before it.", {"last": "only"}),
        Mistake("only the first block counts", "The loop must go on to the last key.", {"last": "first"}),
        Mistake("the first block is left out", "Blocks begin at key 0.", {"starts": "second"}),
        Mistake("blocks overlap", "The next block begins `block` keys later.", {"starts": "overlap"}),
        Mistake(
            "a mean of the blocks' results",
            "A softmax of its own in each block makes all blocks equally important. A block with larger scores must "
            "weigh more.",
            {"join": "mean"},
        ),
        Mistake("a sum of the blocks' results", "The weights of all keys together must sum to 1.", {"join": "sum"}),
        Mistake(
            "blocks weighted by their number of keys",
            "What counts is the sum of exp(score), not how many keys a block has.",
            {"join": "weighted"},
        ),
        Mistake(
            "each block relative to its own largest score",
            "Sums of different blocks may be added only if they are relative to the same score. Put the old ones right "
            "when the largest rises.",
            {"join": "own"},
        ),
        Mistake(
            "the largest of the latest block",
            "If a later block has smaller scores, the largest so far must stay, or the factor overflows.",
            {"join": "latest"},
        ),
        Mistake(
            "the largest score begins at 0",
            "If all scores are far below 0, every exp is 0, and 0 / 0 is NaN. Begin with -inf.",
            {"join": "from zero"},
        ),
        Mistake(
            "one largest score for all queries",
            "A query whose scores are all far below it gets sums of 0, and 0 / 0. Each query has its own.",
            {"join": "one number"},
        ),
        Mistake(
            "exp overflows without the largest score",
            "Take each query's largest score so far away before exp.",
            {"stable": False},
        ),
        Mistake(
            "the out is not put right",
            "When the largest score rises, the out so far must shrink like the total.",
            {"shrink": "total"},
        ),
        Mistake(
            "the total is not put right",
            "When the largest score rises, the total so far must shrink like the out.",
            {"shrink": "out"},
        ),
        Mistake(
            "neither out nor total is put right",
            "When the largest score rises, both must be multiplied by exp(old - new).",
            {"shrink": "neither"},
        ),
        Mistake("never divided", "At the very end the out is divided by the total.", {"end": "none"}),
        Mistake(
            "divided after each block",
            "Divide once, after the last block: the next block adds to the undivided sum.",
            {"end": "each"},
        ),
        Mistake("divided by the number of blocks", "Divide by the total.", {"end": "number"}),
        Mistake(
            "divided by the last block's total",
            "The total of all blocks is needed: z = z * shrink + the new sum.",
            {"end": "last total"},
        ),
        Mistake("scores without the root of H", "Scores are q k^T / sqrt(H).", {"scale": "none"}),
        Mistake("scores over H", "Scores are divided by the root of H.", {"scale": "H"}),
        Mistake("scores over the root of the block", "The root is of H, the width of a key.", {"scale": "block"}),
        Mistake("scores over the root of the keys", "It is the width of a key, H, that counts.", {"scale": "keys"}),
    ),
)

EXERCISE = Exercise(
    "Exercise 12: online softmax and attention in blocks",
    (UPDATE, MERGE, BLOCKS),
    (
        "Compute an example by hand: scores 2, then 3. What does the sum look like relative to 2, what relative to 3?",
        "Everything that was summed relative to the old largest score is multiplied by exp(old - new): the total and "
        "the out alike. `merge` does that on both sides. The third function can call the second.",
        "new = max(largest, score); total * exp(largest - new) + exp(score - new); only if new is -inf return what "
        "came in. In merge, np.where(m == -np.inf, 0, m) is subtracted. In the loop: range(0, len(k), block) and "
        "slices [first : first + block]; a slice past the end is simply shorter.",
    ),
)
