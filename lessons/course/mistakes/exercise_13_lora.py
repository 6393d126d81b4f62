"""Known mistakes of exercise 13: LoRA forward, first values, merge, count and best low-rank change, by wrong twins."""

import numpy as np

from course.grading import Exercise, Mistake, Part

FAN_IN, FAN_OUT, RANK = 400, 150, 100  # a bound from another number gives another spread


def factor(alpha, lora_in, lora_out, scale):
    """What the change is multiplied by: alpha / r, or a mistake of that name."""
    D, r = lora_in.shape
    return {
        "alpha/r": alpha / r,
        "alpha": alpha,
        "none": 1.0,
        "1/r": 1 / r,
        "r/alpha": r / alpha,
        "alpha*r": alpha * r,
        "alpha/root r": alpha / np.sqrt(r),
        "alpha/D": alpha / D,
        "alpha/F": alpha / lora_out.shape[1],
        "floor": alpha // r,
        "squared": (alpha / r) ** 2,
    }[scale]


def lora_forward(
    x, weight, lora_in, lora_out, alpha, *, scale="alpha/r", base="kept", sign=1, between="nothing", product="matrix"
):
    """Right twin; each switch makes one mistake."""
    factor_ = factor(alpha, lora_in, lora_out, scale)
    low = x @ lora_in
    if between == "relu":
        low = np.maximum(low, 0)
    elif between == "tanh":
        low = np.tanh(low)
    change = low @ lora_out
    if product == "numbers":  # the change as factors of the kernel
        change = x @ (weight * (lora_in @ lora_out))
    elif product == "of the output":
        change = (x @ weight) * change
    out = x @ weight
    if base == "missing":
        return factor_ * change
    if base == "scaled":
        return factor_ * (out + sign * change)
    if base == "mean":
        return 0.5 * (out + sign * factor_ * change)
    return out + sign * factor_ * change


def merge(weight, lora_in, lora_out, alpha, *, scale="alpha/r", base="kept", sign=1, product="matrix", reach="once"):
    """Right twin; each switch makes one mistake."""
    change = factor(alpha, lora_in, lora_out, scale) * sign * (lora_in @ lora_out)
    if product == "numbers":
        return weight * change
    if product == "one plus":
        return weight * (1 + change)
    if base == "missing":
        return change
    if base == "scaled":
        return factor(alpha, lora_in, lora_out, scale) * (weight + sign * (lora_in @ lora_out))
    if base == "mean":
        return 0.5 * (weight + change)
    if product == "transposed":
        if weight.shape[0] != weight.shape[1]:
            return None
        return weight + change.T
    if reach == "twice":
        return weight + 2 * change
    return weight + change


def first_lora(
    fan_in,
    fan_out,
    rank,
    seed,
    *,
    bound="root of fan_in",
    zero="lora_out",
    law="uniform",
    uses_seed=True,
    shapes="right",
):
    """Right twin; each switch makes one mistake."""
    random = np.random.default_rng({True: seed, False: 0, "none": None}[uses_seed])
    size = {
        "root of fan_in": fan_in**-0.5,
        "fan_in": 1 / fan_in,
        "root of rank": rank**-0.5,
        "root of fan_out": fan_out**-0.5,
        "rank": 1 / rank,
        "none": 1.0,
        "root of 3": (3 / fan_in) ** 0.5,
        "he": (6 / fan_in) ** 0.5,
        "glorot": (6 / (fan_in + rank)) ** 0.5,
        "0.02": 0.02,
    }[bound]

    def draw(shape):
        if law == "uniform":
            return random.uniform(-size, size, shape)
        if law == "positive":
            return random.uniform(0, size, shape)
        if law == "constant":
            return np.full(shape, size)
        if law == "signs":
            return random.choice([-size, size], shape)
        if law == "column":
            return np.repeat(random.uniform(-size, size, (shape[0], 1)), shape[1], axis=1)
        if law == "row":
            return np.repeat(random.uniform(-size, size, (1, shape[1])), shape[0], axis=0)
        return random.normal(0, size, shape)

    shape_in, shape_out = {
        "right": ((fan_in, rank), (rank, fan_out)),
        "transposed": ((rank, fan_in), (fan_out, rank)),
        "exchanged": ((fan_in, rank), (rank, fan_out)),
    }[shapes]
    lora_in = np.zeros(shape_in) if zero in ("lora_in", "both") else draw(shape_in)
    lora_out = np.zeros(shape_out) if zero in ("lora_out", "both") else draw(shape_out)
    if zero == "ones":
        lora_out = np.ones(shape_out)
    return (lora_out, lora_in) if shapes == "exchanged" else (lora_in, lora_out)


def describe(answer, fan_in, fan_out, rank, seed):
    """Random first values as facts that any right answer shares, from two seeds."""
    pairs = [answer(fan_in, fan_out, rank, s) for s in (seed, seed, seed + 1)]
    if any(pair is None for pair in pairs):
        return None
    first, again, other = ([np.asarray(x, np.float64) for x in pair] for pair in pairs)
    facts = {}
    for name, array, same, changed in zip(("lora_in", "lora_out"), first, again, other, strict=True):
        is_zero = not np.any(array)
        facts[f"shape of {name}"] = str(array.shape)
        facts[f"{name} is"] = "zero" if is_zero else "random" if np.ptp(array) > 0 else "constant"
        if not is_zero and array.ndim == 2:
            facts[f"columns of {name}"] = "alike" if array.shape[1] > 1 and np.ptp(array, axis=1).max() == 0 else "own"
            facts[f"rows of {name}"] = "alike" if len(array) > 1 and np.ptp(array, axis=0).max() == 0 else "own"
        facts[f"{name} of the same seed"] = "the same" if np.array_equal(array, same) else "another"
        if is_zero or array.size < 1000:
            continue
        facts[f"{name} of another seed"] = "the same" if np.array_equal(array, changed) else "another"
        spread = array.std() * np.sqrt(3 * fan_in)  # 1 if right
        facts[f"doublings of the spread of {name}"] = float(np.round(np.log2(spread), 1)) + 0.0
        facts[f"different numbers in {name}"] = "few" if len(np.unique(array)) < 10 else "many"
        facts[f"share of negative numbers in {name}"] = float(np.round((array < 0).mean(), 1))
        facts[f"tails of {name}"] = "none" if np.abs(array - array.mean()).max() < 1.9 * array.std() else "long"
    return facts


def num_trained(shapes, rank, *, counts="both"):
    """Right twin; each switch makes one mistake."""
    of_layer = {
        "both": lambda i, o: rank * (i + o),
        "kernel": lambda i, o: i * o,
        "lora_in": lambda i, o: rank * i,
        "lora_out": lambda i, o: rank * o,
        "product": lambda i, o: rank * i * o,
        "all": lambda i, o: i * o + rank * (i + o),
        "rank once": lambda i, o: rank * i + o,
        "rank last": lambda i, o: i + rank * o,
        "no rank": lambda i, o: i + o,
        "middle": lambda i, o: rank * (i + o) + rank * rank,
        "bias": lambda i, o: rank * (i + o) + o,
        "scale": lambda i, o: rank * (i + o) + 1,
        "outer": lambda i, o: rank * i * rank * o,
        "smaller": lambda i, o: 2 * rank * min(i, o),
        "saved": lambda i, o: i * o - rank * (i + o),
        "squared": lambda i, o: rank * rank * (i + o),
        "double": lambda i, o: 2 * rank * (i + o),
    }
    if counts == "once":
        shapes = sorted(set(map(tuple, shapes)))
        counts = "both"
    if counts in ("largest", "mean"):
        numbers = [rank * (i + o) for i, o in shapes]
        return (max(numbers) if counts == "largest" else sum(numbers) / len(numbers)) if numbers else 0
    if counts == "first layer":
        return rank * sum(shapes[0]) if shapes else 0
    if counts == "last layer":
        return rank * sum(shapes[-1]) if shapes else 0
    return sum(of_layer[counts](fan_in, fan_out) for fan_in, fan_out in shapes)


def best_lora(change, rank, alpha, *, keeps="largest", sigma="once", scale="undone", v="rows"):
    """Right twin; each switch makes one mistake. None where a mistake makes no sense."""
    u, s, vh = np.linalg.svd(change, full_matrices=False)
    chosen = slice(0, rank) if keeps == "largest" else slice(len(s) - rank, len(s))
    if keeps == "without the first":
        if rank == len(s):
            return None
        chosen = slice(1, rank + 1)
    if v == "columns":
        if vh.shape[0] != vh.shape[1]:
            return None
        vh = vh.T
    factor_ = {
        "undone": rank / alpha,
        "none": 1.0,
        "twice": alpha / rank,
        "both": (rank / alpha) ** 2,
        "1/alpha": 1 / alpha,
        "rank": rank,
        "floor": rank // alpha,
        "root": (rank / alpha) ** 0.5,
    }[scale]
    if sigma == "first":
        return u[:, chosen] * s[0] * factor_, vh[chosen]
    power = {"once": 1, "none": 0, "twice": 2, "root": 0.5}[sigma]
    return u[:, chosen] * s[chosen] ** power * factor_, vh[chosen]


def product(answer, change, rank, alpha):
    """Shapes of an answer of best_lora, and the change that a layer would make with it."""
    pair = answer(change, rank, alpha)
    if pair is None:
        return None
    lora_in, lora_out = (np.asarray(x, np.float64) for x in pair)
    shapes = f"lora_in {lora_in.shape}, lora_out {lora_out.shape}"
    if lora_in.shape[-1:] != lora_out.shape[:1]:
        return {"shapes": shapes, "change": 0.0}
    return {"shapes": shapes, "change": alpha / rank * (lora_in @ lora_out)}


def layers():
    """Cases of the layer: kernel and LoRA, alpha as int and float."""
    random = np.random.default_rng(0)
    yield "by hand", np.array([[1.0], [1.0]]), np.eye(2), np.array([[3.0], [5.0]]), 4
    for name, D, F, r, alpha in (
        ("D = 5, F = 7, r = 3, alpha = 8", 5, 7, 3, 8),
        ("alpha smaller than r", 7, 5, 3, 1.5),
        ("rank 1", 5, 3, 1, 2.0),
        ("square", 6, 6, 5, 16),
    ):
        yield name, random.normal(size=(D, F)), random.normal(size=(D, r)), random.normal(size=(r, F)), alpha
    yield "lora_out still zero", random.normal(size=(5, 7)), random.normal(size=(5, 3)), np.zeros((3, 7)), 8


def forward_cases():
    random = np.random.default_rng(1)
    shapes = ((), (4,), (2, 3), (11,), (1,), (3,))
    for (name, weight, lora_in, lora_out, alpha), shape in zip(layers(), shapes, strict=True):
        x = np.array([1.0, 2.0]) if name == "by hand" else random.normal(size=(*shape, len(weight)))
        yield name, (x, weight, lora_in, lora_out, alpha)


def count_cases():
    yield "by hand", ([(4, 3), (5, 2)], 2)
    yield "one layer", ([(768, 768)], 8)
    yield "three layers", ([(11, 13), (17, 5), (7, 31)], 3)
    yield "layers of one shape", ([(6, 6), (6, 6), (6, 24), (6, 6)], 3)
    yield "rank 1", ([(11, 13), (17, 5)], 1)
    yield "no layer", ([], 4)


def change_cases():
    random = np.random.default_rng(2)
    yield "by hand", (np.diag([6.0, 1.0]), 1, 2)
    yield "square", (random.normal(size=(5, 5)), 2, 7.0)
    yield "more inputs than outputs", (random.normal(size=(7, 4)), 3, 8)
    yield "more outputs than inputs", (random.normal(size=(3, 11)), 2, 1.5)
    yield "a change of the rank asked for", (random.normal(size=(7, 2)) @ random.normal(size=(2, 5)), 2, 16)
    yield "full rank", (random.normal(size=(4, 6)), 4, 2.0)
    yield "alpha equals r", (random.normal(size=(5, 6)), 3, 3)


def scale_mistakes():
    return (
        Mistake("multiplied by alpha alone", "The change is divided by the rank as well.", {"scale": "alpha"}),
        Mistake("no factor at all", "Where is alpha? The change is multiplied by alpha / r.", {"scale": "none"}),
        Mistake("divided by r, without alpha", "alpha is the numerator; you have a 1 there.", {"scale": "1/r"}),
        Mistake(
            "the factor is upside down",
            "alpha / r, not r / alpha: a larger alpha, a larger change.",
            {"scale": "r/alpha"},
        ),
        Mistake(
            "multiplied by the rank", "Divide by r: more columns make the product larger already.", {"scale": "alpha*r"}
        ),
        Mistake(
            "divided by the root of the rank",
            "That is rsLoRA (Kalajdzievski 2023), a variant. LoRA itself divides by r.",
            {"scale": "alpha/root r"},
        ),
        Mistake(
            "divided by D", "The rank is the last axis of lora_in; you have taken its first one.", {"scale": "alpha/D"}
        ),
        Mistake(
            "divided by F", "The rank is the first axis of lora_out; you have taken its last one.", {"scale": "alpha/F"}
        ),
        Mistake("whole-number division", "alpha // r drops the remainder: 8 // 3 is 2. Write /.", {"scale": "floor"}),
        Mistake(
            "the factor twice",
            "Both thin matrices are multiplied by alpha / r. Once is enough: the factor is of their product.",
            {"scale": "squared"},
        ),
    )


FORWARD = Part(
    "lora_forward",
    lora_forward,
    forward_cases,
    (
        *scale_mistakes(),
        Mistake(
            "the base is missing", "LoRA is beside the kernel: x @ weight has to be in the sum.", {"base": "missing"}
        ),
        Mistake(
            "the base is scaled too", "alpha / r belongs to the change alone: a bracket too many?", {"base": "scaled"}
        ),
        Mistake("mean in place of sum", "Base and change are added, not averaged.", {"base": "mean"}),
        Mistake("the change is subtracted", "It is added: y = x W + ...", {"sign": -1}),
        Mistake(
            "an activation between the two", "LoRA is linear, or it could not be merged: no relu.", {"between": "relu"}
        ),
        Mistake("tanh between the two", "LoRA is linear, or it could not be merged: no tanh.", {"between": "tanh"}),
        Mistake(
            "the change multiplies the kernel number by number",
            "weight * (lora_in @ lora_out) is a product of numbers. x goes through lora_in, then through lora_out.",
            {"product": "numbers"},
        ),
        Mistake(
            "the change multiplies the output",
            "The change is added to the base's output. (Factors of outputs are another adapter, IA3.)",
            {"product": "of the output"},
        ),
    ),
)

FIRST = Part(
    "first_lora",
    lambda *arguments, **switches: describe(lambda *a: first_lora(*a, **switches), *arguments),
    lambda: [("tiny", (4, 3, 2, 0)), ("large", (FAN_IN, FAN_OUT, RANK, 5))],
    (
        Mistake(
            "a constant",
            "If all numbers are equal, all columns of lora_in stay equal for ever: draw them.",
            {"law": "constant"},
        ),
        Mistake(
            "signs of one size",
            "Each number is either the bound or minus the bound. Uniform numbers lie anywhere between.",
            {"law": "signs"},
        ),
        Mistake(
            "all columns alike",
            "With equal columns LoRA has rank 1, whatever r is: draw [D, r] numbers.",
            {"law": "column"},
        ),
        Mistake("all rows alike", "Each input needs numbers of its own: draw [D, r] numbers.", {"law": "row"}),
        Mistake("ones", "lora_out begins at 0, so that nothing is added to the base at first.", {"zero": "ones"}),
        Mistake(
            "bound with a root of 3",
            "Uniform numbers between -a and a have the spread a / sqrt(3), but a itself is asked for here.",
            {"bound": "root of 3"},
        ),
        Mistake("no seed", "Every call draws others: give the seed to np.random.default_rng.", {"uses_seed": "none"}),
        Mistake(
            "both are zero",
            "Each one's gradient is a product with the other: with two zeros neither ever moves.",
            {"zero": "both"},
        ),
        Mistake(
            "none is zero",
            "The product of two random matrices is a random change: the model starts worse than the base.",
            {"zero": "none"},
        ),
        Mistake(
            "lora_in is zero in place of lora_out",
            "It would start as the base, too; but the paper has the zeros in lora_out, and so has this exercise.",
            {"zero": "lora_in"},
        ),
        Mistake("bound 1 / fan_in", "The root is missing: 1 / sqrt(fan_in).", {"bound": "fan_in"}),
        Mistake(
            "bound from the rank", "lora_in has fan_in inputs; the bound comes from them.", {"bound": "root of rank"}
        ),
        Mistake("bound 1 / rank", "lora_in has fan_in inputs; the bound is one over their root.", {"bound": "rank"}),
        Mistake("bound from fan_out", "lora_in never sees the outputs: take fan_in.", {"bound": "root of fan_out"}),
        Mistake("numbers between -1 and 1", "Scale them: the bound is 1 / sqrt(fan_in).", {"bound": "none"}),
        Mistake(
            "He's bound", "sqrt(6 / fan_in) is for layers with a relu. Here it is 1 / sqrt(fan_in).", {"bound": "he"}
        ),
        Mistake(
            "Glorot's bound",
            "The sum of both sides is Glorot's rule. Here it is 1 / sqrt(fan_in).",
            {"bound": "glorot"},
        ),
        Mistake("only positive numbers", "uniform(low, high) begins at low: take -bound.", {"law": "positive"}),
        Mistake(
            "normal in place of uniform",
            "The docstring asks for uniform numbers, which have a bound.",
            {"law": "normal"},
        ),
        Mistake(
            "normal numbers of 0.02",
            "That is how kernels of GPT-2 start. lora_in is uniform with the bound 1 / sqrt(fan_in).",
            {"law": "normal", "bound": "0.02"},
        ),
        Mistake(
            "the seed is not used", "Give `seed` to default_rng: another seed, other numbers.", {"uses_seed": False}
        ),
        Mistake(
            "the paper's shapes",
            "Vectors are rows here: lora_in [D, r], lora_out [r, F], so that x @ lora_in @ lora_out works.",
            {"shapes": "transposed"},
        ),
        Mistake(
            "the two are exchanged",
            "lora_in reads the input: [D, r]. lora_out writes the output: [r, F]. Return them in this order.",
            {"shapes": "exchanged"},
        ),
    ),
    call=describe,
)

MERGE = Part(
    "merge",
    merge,
    lambda: [(name, tuple(arguments)) for name, *arguments in layers()],
    (
        Mistake(
            "the change transposed",
            "x lora_in lora_out: lora_in stands on the left; its rows belong to the inputs.",
            {"product": "transposed"},
        ),
        Mistake("a mean with the base", "The change is added to the kernel; nothing is halved.", {"base": "mean"}),
        *scale_mistakes(),
        Mistake("only the change", "A merged kernel is the base's with the change added.", {"base": "missing"}),
        Mistake("the kernel is scaled too", "alpha / r belongs to the change alone.", {"base": "scaled"}),
        Mistake("the change is subtracted", "That is how one takes a merged adapter out again.", {"sign": -1}),
        Mistake(
            "multiplied number by number",
            "The change is added to the kernel, not multiplied with it.",
            {"product": "numbers"},
        ),
        Mistake(
            "the change as a factor",
            "weight * (1 + change) is another adapter. The change is added.",
            {"product": "one plus"},
        ),
        Mistake("merged twice", "The change is in the sum twice.", {"reach": "twice"}),
    ),
)

COUNT = Part(
    "num_trained",
    num_trained,
    count_cases,
    (
        Mistake(
            "equal shapes counted once",
            "Two layers of one shape have parameters of their own: no set.",
            {"counts": "once"},
        ),
        Mistake(
            "the rank squared",
            "Each of the two matrices has the rank as one side: r appears once in each product.",
            {"counts": "squared"},
        ),
        Mistake("counted twice", "Add lora_in and lora_out of each layer once.", {"counts": "double"}),
        Mistake("the largest layer only", "All layers are trained: add them up.", {"counts": "largest"}),
        Mistake("a mean over layers", "A sum over layers is asked for, not a mean.", {"counts": "mean"}),
        Mistake("the kernels are counted", "The kernel is frozen. Count lora_in and lora_out.", {"counts": "kernel"}),
        Mistake("only lora_in", "lora_out is trained as well: r * fan_out.", {"counts": "lora_in"}),
        Mistake("only lora_out", "lora_in is trained as well: fan_in * r.", {"counts": "lora_out"}),
        Mistake("inputs times outputs times rank", "Two thin matrices: their sizes are added.", {"counts": "product"}),
        Mistake("frozen numbers too", "The kernel is there but not trained: leave it out.", {"counts": "all"}),
        Mistake("the rank with the inputs only", "A bracket is missing: r * (in + out).", {"counts": "rank once"}),
        Mistake("the rank with the outputs only", "lora_in has r columns, not one.", {"counts": "rank last"}),
        Mistake("no rank", "Each of the two has r rows or columns.", {"counts": "no rank"}),
        Mistake("an r x r matrix more", "There is nothing between the two thin matrices.", {"counts": "middle"}),
        Mistake("with a bias", "LoRA has no bias of its own.", {"counts": "bias"}),
        Mistake("the factor is counted", "alpha / r is a constant; it is not trained.", {"counts": "scale"}),
        Mistake("sizes multiplied", "The two matrices lie side by side: add their sizes.", {"counts": "outer"}),
        Mistake("twice the smaller side", "lora_in has fan_in rows, lora_out fan_out columns.", {"counts": "smaller"}),
        Mistake("what is saved", "The number that is trained, not how many fewer.", {"counts": "saved"}),
        Mistake("only the first layer", "Sum over all layers: a return inside the loop?", {"counts": "first layer"}),
        Mistake("only the last layer", "Add to the sum in the loop (+=), not in its place.", {"counts": "last layer"}),
    ),
)

BEST = Part(
    "best_lora",
    lambda *arguments, **switches: product(lambda *a: best_lora(*a, **switches), *arguments),
    change_cases,
    (
        Mistake("a whole number for the factor", "r // alpha is mostly 0. Take /.", {"scale": "floor"}),
        Mistake(
            "the first singular value for all", "Each direction has a singular value of its own.", {"sigma": "first"}
        ),
        Mistake("the smallest singular values", "Keep the largest; NumPy has them first.", {"keeps": "smallest"}),
        Mistake(
            "the first one is dropped", "Indices begin at 0: the largest is sigma[0].", {"keeps": "without the first"}
        ),
        Mistake("without singular values", "u @ v alone has all sizes 1. Multiply by sigma, once.", {"sigma": "none"}),
        Mistake(
            "sigma on both sides", "In both factors sigma counts twice. Once, or its root in both.", {"sigma": "twice"}
        ),
        Mistake("the root of sigma once", "A root belongs into both factors, or sigma into one.", {"sigma": "root"}),
        Mistake(
            "alpha / r is not undone",
            "The layer will multiply by alpha / r. Divide by it here, so that the change comes out.",
            {"scale": "none"},
        ),
        Mistake("alpha / r multiplied in", "The layer multiplies by it already: divide.", {"scale": "twice"}),
        Mistake("undone in both factors", "Divide once, not in lora_in and in lora_out.", {"scale": "both"}),
        Mistake(
            "divided by alpha alone",
            "The inverse of alpha / r is r / alpha: the rank is missing.",
            {"scale": "1/alpha"},
        ),
        Mistake("multiplied by r alone", "The inverse of alpha / r is r / alpha: alpha is missing.", {"scale": "rank"}),
        Mistake("the root of r / alpha once", "The root belongs into both factors.", {"scale": "root"}),
        Mistake(
            "v transposed once more",
            "np.linalg.svd returns V already transposed: its rows are the directions.",
            {"v": "columns"},
        ),
    ),
    call=product,
)

EXERCISE = Exercise(
    "Exercise 13: LoRA",
    (FORWARD, FIRST, MERGE, COUNT, BEST),
    (
        "Write down the shapes first: x [..., D], lora_in [D, r], lora_out [r, F]. Which axis of which array is the "
        "rank? Then do the worked example of each docstring by hand.",
        "alpha / r multiplies the change, and nothing else. Of the two matrices exactly one starts with zeros. Merging "
        "adds to the kernel what the layer would have added to the output. For the best change, look up "
        "np.linalg.svd with full_matrices=False.",
        "scale = alpha / lora_in.shape[-1]; y = x @ weight + scale * ((x @ lora_in) @ lora_out). bound = 1 / "
        "np.sqrt(fan_in). Count rank * (fan_in + fan_out) for each layer. u, sigma, v = np.linalg.svd(change, "
        "full_matrices=False): lora_in is u[:, :rank] * sigma[:rank], divided by the scale; lora_out is v[:rank].",
    ),
)
