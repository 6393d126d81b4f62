"""Known mistakes of exercise 06: layer norm, GELU, the feed-forward layer, the residual connection, a gradient."""

import math

import numpy as np

from course.grading import Exercise, Part, mistake


def layer_norm(
    x,
    scale,
    bias,
    epsilon,
    *,
    axis="numbers",
    center="mean",
    spread="variance",
    ddof=0,
    where="inside",
    fixed=False,
    scaled="times",
    biased="after",
):
    """Layer norm, with its mistakes as switches."""
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, scale, bias))
    axis = {"numbers": -1, "tokens": 1, "texts": 0, "vectors": (1, 2), "batch": (0, 1), "all": (0, 1, 2)}[axis]
    if fixed:
        epsilon = 1e-5
    if np.prod([x.shape[i] for i in np.atleast_1d(axis)]) <= ddof:
        return None
    mean = x.mean(axis=axis, keepdims=True)
    centers = {"mean": mean, "none": 0.0, "median": np.median(x, axis=axis, keepdims=True)}
    if scaled == "first":
        return layer_norm(x * scale, np.ones_like(scale), bias, epsilon)
    centered = x - centers[center]
    spreads = {
        "variance": lambda: x.var(axis=axis, keepdims=True, ddof=ddof),
        "squares": lambda: np.mean(x**2, axis=axis, keepdims=True),
        "sum": lambda: np.sum((x - mean) ** 2, axis=axis, keepdims=True),
        "length": lambda: np.sum(x**2, axis=axis, keepdims=True),
        "absolute": lambda: np.mean(np.abs(x - mean), axis=axis, keepdims=True) ** 2,
        "largest": lambda: np.max(np.abs(x - mean), axis=axis, keepdims=True) ** 2,
        "none": lambda: np.ones_like(mean),
    }
    variance = spreads[spread]()
    with np.errstate(all="ignore"):
        roots = {
            "inside": lambda: np.sqrt(variance + epsilon),
            "twice": lambda: np.sqrt(variance + epsilon) + epsilon,
            "outside": lambda: np.sqrt(variance) + epsilon,
            "forgotten": lambda: np.sqrt(variance),
            "squared": lambda: np.sqrt(variance + epsilon**2),
            "no root": lambda: variance + epsilon,
            "largest": lambda: np.sqrt(np.maximum(variance, epsilon)),
            "subtracted": lambda: np.sqrt(np.maximum(variance - epsilon, 0)),
            "multiplied": lambda: 1 / np.sqrt(variance + epsilon),
        }
        y = centered / roots[where]()
    if biased == "before":
        y = y + bias
    y = {
        "times": lambda: y * scale,
        "none": lambda: y,
        "plus one": lambda: y * (1 + scale),
        "divided": lambda: y / np.where(scale == 0, np.nan, scale),
        "exchanged": lambda: y * bias,
    }[scaled]()
    if biased == "after":
        y = y + (scale if scaled == "exchanged" else bias)
    elif biased == "minus":
        y = y - bias
    return y


def _erf(x):
    return np.vectorize(math.erf, otypes=[float])(x)


def _gelu(x):
    return x / 2 * (1 + _erf(x / math.sqrt(2)))


def gelu(x, *, kind="right"):
    """GELU, with its mistakes as switches."""
    x = np.asarray(x, np.float64)
    root = math.sqrt(2)
    with np.errstate(over="ignore"):
        return {
            "right": lambda: _gelu(x),
            "tanh": lambda: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "sigmoid": lambda: x / (1 + np.exp(-1.702 * x)),
            "silu": lambda: x / (1 + np.exp(-x)),
            "relu": lambda: np.maximum(x, 0),
            "P alone": lambda: (1 + _erf(x / root)) / 2,
            "no root": lambda: x / 2 * (1 + _erf(x)),
            "halved": lambda: x / 2 * (1 + _erf(x / 2)),
            "no one": lambda: x / 2 * _erf(x / root),
            "no half": lambda: x * (1 + _erf(x / root)),
            "times root": lambda: x / 2 * (1 + _erf(x * root)),
            "no brackets": lambda: x + _erf(x / root) / 2,
            "not below 0": lambda: np.maximum(_gelu(x), 0),
            "minus": lambda: x / 2 * (1 - _erf(x / root)),
            "erf": lambda: x * _erf(x / root),
            "density": lambda: x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
            "elu": lambda: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
            "leaky": lambda: np.where(x > 0, x, 0.01 * x),
            "softplus": lambda: np.logaddexp(0, x),
            "tanh alone": lambda: np.tanh(x),
            "sigmoid alone": lambda: 1 / (1 + np.exp(-x)),
            "tanh without root": lambda: x / 2 * (1 + np.tanh(2 / math.pi * (x + 0.044715 * x**3))),
        }[kind]()


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "none": lambda x: x,
    "gelu": _gelu,
    "gelu tanh": lambda x: gelu(x, kind="tanh"),
    "silu": lambda x: gelu(x, kind="silu"),
    "leaky": lambda x: np.where(x > 0, x, 0.01 * x),
    "abs": np.abs,
    "min": lambda x: np.minimum(x, 0),
    "step": lambda x: (x > 0) * 1.0,
    "square": lambda x: np.maximum(x, 0) ** 2,
    "below 1": lambda x: np.maximum(x, 1),
    "six": lambda x: np.clip(x, 0, 6),
    "one": lambda x: np.clip(x, 0, 1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "row": lambda x: np.maximum(x, x.min(axis=-1, keepdims=True) * 0 + x.mean(axis=-1, keepdims=True)),
    "softmax": lambda x: (
        np.exp(x - x.max(axis=-1, keepdims=True))
        / np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
    ),
}


def feed_forward(
    x, W_1, b_1, W_2, b_2, *, activation="relu", where="inside", first_bias="after", second_bias=True, residual=False
):
    """Feed-forward layer, with its mistakes as switches."""
    x, W_1, b_1, W_2, b_2 = (np.asarray(a, np.float64) for a in (x, W_1, b_1, W_2, b_2))
    f = ACTIVATIONS[activation]
    with np.errstate(over="ignore"):
        hidden = (f(x) if where == "input" else x) @ W_1
        if first_bias == "after":
            hidden = hidden + b_1
        elif first_bias == "minus":
            hidden = hidden - b_1
        if where in ("inside", "both"):
            hidden = f(hidden)
        if first_bias == "late":
            hidden = hidden + b_1
        out = hidden @ W_2
        if where == "before the last bias":
            out = f(out)
        if second_bias is None:
            out = hidden @ (W_2 + b_2)
        elif second_bias:
            out = out + b_2
        if where in ("output", "both"):
            out = f(out)
    return x + out if residual else out


def half_block(
    x,
    scale,
    bias,
    W_1,
    b_1,
    W_2,
    b_2,
    epsilon,
    *,
    order="pre",
    activation="relu",
    axis="numbers",
    center="mean",
    spread="variance",
    where="inside",
    ddof=0,
    scaled="times",
    biased="after",
    fixed=False,
):
    """The second half of a block, with its mistakes as switches."""
    x = np.asarray(x, np.float64)

    def norm(x):
        return layer_norm(
            x,
            scale,
            bias,
            epsilon,
            axis=axis,
            center=center,
            spread=spread,
            where=where,
            ddof=ddof,
            scaled=scaled,
            biased=biased,
            fixed=fixed,
        )

    def f(x):
        return feed_forward(x, W_1, b_1, W_2, b_2, activation=activation)

    return {
        "pre": lambda: x + f(norm(x)),
        "post": lambda: norm(x + f(x)),
        "no residual": lambda: f(norm(x)),
        "no norm": lambda: x + f(x),
        "normed residual": lambda: norm(x) + f(norm(x)),
        "beside": lambda: norm(x) + f(x),
        "output": lambda: x + norm(f(x)),
        "both": lambda: x + norm(f(norm(x))),
        "pre and post": lambda: norm(x + f(norm(x))),
        "twice": lambda: 2 * x + f(norm(x)),
        "minus": lambda: x - f(norm(x)),
        "f minus": lambda: f(norm(x)) - x,
        "mean": lambda: (x + f(norm(x))) / 2,
        "product": lambda: x * f(norm(x)),
        "inside": lambda: f(x + norm(x)),
        "inside and around": lambda: x + f(x + norm(x)),
        "bent": lambda: np.maximum(x + f(norm(x)), 0),
        "applied twice": lambda: x + f(norm(x + f(norm(x)))),
        "x alone": lambda: x + norm(x),
    }[order]()


def layer_norm_gradient(
    x,
    d_out,
    epsilon,
    *,
    mean_term="mean",
    y_term="mean",
    factor="root",
    of="y",
    sign=-1,
    axis=-1,
    where="inside",
    ddof=0,
    center=True,
):
    """Gradient of layer norm, with its mistakes as switches."""
    x, d_out = np.asarray(x, np.float64), np.asarray(d_out, np.float64)
    if ddof and x.shape[-1] == 1:
        return None
    centered = x - x.mean(axis=axis, keepdims=True) if center else x
    variance = np.sum(centered**2, axis=axis, keepdims=True) / (x.shape[axis] - ddof)
    root = {
        "inside": np.sqrt(variance + epsilon),
        "outside": np.sqrt(variance) + epsilon,
        "forgotten": np.sqrt(np.where(variance == 0, np.nan, variance)),
    }[where]
    y = {"y": centered / root, "centered": centered, "x": x, "variance": centered / root**2}[of]
    reduce = {
        "mean": lambda a: a.mean(axis=axis, keepdims=True),
        "sum": lambda a: a.sum(axis=axis, keepdims=True),
        "none": lambda a: 0.0,
        "all": lambda a: a.mean(),
        "double": lambda a: 2 * a.mean(axis=axis, keepdims=True),
        "D - 1": lambda a: a.sum(axis=axis, keepdims=True) / max(a.shape[axis] - 1, 1),
    }
    d_x = d_out - reduce[mean_term](d_out)
    inner = {
        "all": d_out * y,
        "double": d_out * y,
        "D - 1": d_out * y,
        "mean": d_out * y,
        "sum": d_out * y,
        "none": y,
        "apart": y,
    }[y_term]
    if y_term == "apart":  # the mean of d_out times the mean of y squared
        d_x = d_x + sign * y * d_out.mean(axis=axis, keepdims=True)
    else:
        d_x = d_x + sign * y * reduce[y_term](inner)
    return {
        "root": lambda: d_x / root,
        "none": lambda: d_x,
        "times": lambda: d_x * root,
        "variance": lambda: d_x / root**2,
        "negative": lambda: -d_x / root,
        "product": lambda: d_out * (x - x.mean(axis=axis, keepdims=True)) / root,
        "forward": lambda: (x - x.mean(axis=axis, keepdims=True)) / root,
        "as of tanh": lambda: d_out * (1 - (centered / root) ** 2) / root,
        "d_out": lambda: d_out * 1.0,
    }[factor]()


# Cases, from tiny to large


def _random():
    return np.random.default_rng(6)


def _norm_cases():
    random = _random()
    n = random.normal
    yield "two numbers", (np.array([[[1.0, 3.0]]]), np.ones(2), np.zeros(2), 1e-12)
    yield "two numbers, scale and bias", (np.array([[[1.0, 3.0]]]), np.array([2.0, 3.0]), np.array([10.0, 20.0]), 1e-12)
    yield "a large epsilon", (np.array([[[1.0, 3.0, 8.0]]]), np.array([1.0, 2.0, 0.5]), np.array([0.5, 0.0, -1.0]), 0.5)
    yield "three tokens", (n(size=(1, 3, 5)), n(size=5), n(size=5), 1e-5)
    yield "as many tokens as numbers", (n(size=(2, 3, 3)), n(size=3), n(size=3), 1e-5)
    yield "equal numbers", (np.full((1, 2, 4), 7.0), n(size=4), n(size=4), 1e-5)
    yield "tiny numbers", (1e-3 * n(size=(2, 3, 8)), n(size=8), n(size=8), 1e-5)
    yield "whole numbers", (random.integers(-5, 9, (2, 3, 4)), np.array([1, 2, 3, 4]), np.array([0, 1, 0, 1]), 1e-3)
    far = 3000 + random.integers(0, 5, (2, 3, 8))
    yield "numbers far from 0", (far.astype(float), np.linspace(0.5, 2, 8), np.arange(8.0), 1e-5)
    yield "large", (3 * n(size=(5, 7, 31)) + 2, n(size=31), n(size=31), 1e-5)


def _gelu_cases():
    random = _random()
    yield "0, 1 and -1", (np.array([0.0, 1.0, -1.0]),)
    yield "one half", (np.array([0.5, -0.5]),)
    yield "whole numbers", (np.array([3, -2, 7]),)
    yield "far from 0", (np.array([10.0, -10.0, 40.0, -40.0]),)
    yield "a matrix", (random.normal(size=(5, 7)) * 2,)


def _feed_forward_cases():
    random = _random()
    n = random.normal
    ones = np.array([[3.0]]), np.array([-1.0]), np.array([[10.0]]), np.array([4.0])
    yield "54", (np.array([[[2.0]]]), *ones)
    yield "a negative inner number", (np.array([[[-2.0]]]), *ones)
    yield "two tokens", (n(size=(1, 2, 3)), n(size=(3, 5)), n(size=5), n(size=(5, 3)), n(size=3))
    yield "as wide inside", (n(size=(2, 3, 4)), n(size=(4, 4)), n(size=4), n(size=(4, 4)), n(size=4))
    whole = (random.integers(-3, 4, shape) for shape in ((2, 3, 2), (2, 5), (5,), (5, 2), (2,)))
    yield "whole numbers", tuple(whole)
    yield "large", (3 * n(size=(3, 5, 7)), n(size=(7, 29)), n(size=29), n(size=(29, 7)), n(size=7))


def _half_block_cases():
    random = _random()
    n = random.normal

    def case(B, T, D, F, epsilon=1e-5):
        kernels = n(size=(D, F)) / D**0.5, n(size=F), n(size=(F, D)) / F**0.5, n(size=D)
        return (2 * n(size=(B, T, D)) + 1, n(size=D), n(size=D), *kernels, epsilon)

    zero = case(1, 2, 3, 4)
    yield "a layer that adds nothing", (*zero[:5], np.zeros((4, 3)), np.zeros(3), 1e-5)
    yield "one token", case(1, 1, 3, 5)
    yield "two texts", case(2, 3, 4, 4)
    yield "large", case(3, 5, 7, 29, 1e-2)


def _gradient_cases():
    random = _random()
    n = random.normal
    yield "equal gradients", (np.array([[1.0, 2.0, 6.0]]), np.ones((1, 3)), 1e-5)
    yield "one gradient", (np.array([[0.0, 3.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 0.0, 0.0]]), 1e-5)
    yield "a large epsilon", (np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, -1.0, 2.0]]), 0.5)
    yield "as many tokens as numbers", (2 * n(size=(4, 4)) + 1, n(size=(4, 4)), 1e-5)
    yield "equal numbers", (np.full((2, 4), 3.0), n(size=(2, 4)), 1e-2)
    yield "whole numbers", (random.integers(-4, 9, (3, 5)), random.integers(-2, 3, (3, 5)), 1e-3)
    yield "large", (3 * n(size=(5, 31)) + 2, n(size=(5, 31)), 1e-3)


# Laws


def _check_norm(answer):
    random = np.random.default_rng(1)
    x = random.normal(size=(2, 3, 7))
    ones, zeros = np.ones(7), np.zeros(7)
    y = np.asarray(answer(x, ones, zeros, 1e-12), np.float64)
    assert np.allclose(y.mean(axis=-1), 0, atol=1e-5), "without scale and bias each vector has mean 0."
    assert np.allclose(y.var(axis=-1), 1, atol=1e-4), "without scale and bias each vector has variance 1."
    again = np.asarray(answer(5 * x + 3, ones, zeros, 1e-12), np.float64)
    assert np.allclose(again, y, atol=1e-4), "5 x + 3 has the same norm as x."


def _check_gradient(answer):
    """The gradient equals the slope between two points nearby."""
    random = np.random.default_rng(2)
    x, d_out = random.normal(size=(2, 3, 5))
    ones, zeros = np.ones(5), np.zeros(5)
    given = np.asarray(answer(x.copy(), d_out.copy(), 0.1), np.float64)
    for t, d in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[t, d] = 1e-5
        above, below = (np.sum(d_out * layer_norm((x + sign * step)[None], ones, zeros, 0.1)[0]) for sign in (1, -1))
        slope = (above - below) / 2e-5
        assert abs(given[t, d] - slope) < 1e-4, f"at ({t}, {d}) the slope is {slope:.5f}, not {given[t, d]:.5f}."


EXERCISE = Exercise(
    "Layer norm, feed-forward layer, residual connection",
    (
        Part(
            "layer_norm",
            layer_norm,
            _norm_cases,
            (
                mistake(
                    "the scale comes first",
                    "The scale is multiplied at the end; what comes first is changed by the norm.",
                    **{"scaled": "first"},
                ),
                mistake(
                    "epsilon added twice", "epsilon stands in the root once, and nowhere else.", **{"where": "twice"}
                ),
                mistake(
                    "normalized over the tokens",
                    "Each token is normalized alone, over its own D numbers: the last axis.",
                    axis="tokens",
                ),
                mistake(
                    "normalized over the texts",
                    "You averaged over the batch: that is batch norm. A text must not depend on its neighbours.",
                    axis="texts",
                ),
                mistake(
                    "normalized over a whole text",
                    "All tokens of a text share your mean. Take the last axis alone.",
                    axis="vectors",
                ),
                mistake(
                    "normalized over all tokens of the batch",
                    "Each of the D numbers got the mean of all tokens. It is the other way: each token, over its "
                    "numbers.",
                    axis="batch",
                ),
                mistake(
                    "normalized over everything",
                    "One mean for the whole array. Give mean and variance an axis, and keep the dimension.",
                    axis="all",
                ),
                mistake(
                    "the mean is not subtracted",
                    "You divided x itself. First subtract the mean, then divide.",
                    center="none",
                ),
                mistake(
                    "RMS norm",
                    "No mean is subtracted, and the squares are those of x: that is RMSNorm, of newer models.",
                    center="none",
                    spread="squares",
                ),
                mistake(
                    "the mean of the squares",
                    "The variance is the mean of the squared deviations from the mean, not of the squared numbers.",
                    spread="squares",
                ),
                mistake(
                    "divided by the length",
                    "You made vectors of length 1. The norm makes numbers of mean 0 and variance 1.",
                    center="none",
                    spread="length",
                ),
                mistake("the median is subtracted", "The center is the mean.", center="median"),
                mistake(
                    "divided by D - 1",
                    "That is the estimate of statisticians (ddof=1, and PyTorch's default for var). Here it is D.",
                    ddof=1,
                ),
                mistake("the sum of squares", "The variance is a mean: divide the sum of squares by D.", spread="sum"),
                mistake("the mean absolute deviation", "Squares, their mean, and a root.", spread="absolute"),
                mistake("divided by the largest", "The norm divides by the standard deviation.", spread="largest"),
                mistake("not divided", "Your vectors are centered, but their variance is not 1.", spread="none"),
                mistake("divided by the variance", "The root is missing.", where="no root"),
                mistake(
                    "epsilon outside of the root",
                    "sqrt(variance) + epsilon is another number than sqrt(variance + epsilon).",
                    where="outside",
                ),
                mistake("epsilon is forgotten", "Where all numbers are equal, you divide 0 by 0.", where="forgotten"),
                mistake("epsilon squared", "epsilon is added to the variance as it is.", where="squared"),
                mistake(
                    "epsilon as a lower bound",
                    "epsilon is added always, not only where the variance is small.",
                    where="largest",
                ),
                mistake("epsilon subtracted", "The sign: variance + epsilon.", where="subtracted"),
                mistake(
                    "multiplied by the root", "You multiply by the standard deviation. Divide.", where="multiplied"
                ),
                mistake("a fixed epsilon", "epsilon is an argument; do not write 1e-5 yourself.", fixed=True),
                mistake("the scale is forgotten", "Where is scale used?", scaled="none"),
                mistake(
                    "1 + scale", "Some models store scale - 1. Here scale is the factor itself.", scaled="plus one"
                ),
                mistake("divided by the scale", "The result is multiplied by scale.", scaled="divided"),
                mistake("scale and bias exchanged", "scale multiplies, bias is added.", scaled="exchanged"),
                mistake("the bias is forgotten", "Where is bias used?", biased="none"),
                mistake("the bias comes before the scale", "Multiply by scale first, then add bias.", biased="before"),
                mistake("the bias is subtracted", "The last sign is a plus.", biased="minus"),
            ),
            (_check_norm,),
        ),
        Part(
            "gelu",
            gelu,
            _gelu_cases,
            (
                mistake(
                    "brackets are missing",
                    "(1 + erf(...)) / 2 is one number, and x is multiplied by all of it.",
                    **{"kind": "no brackets"},
                ),
                mistake(
                    "GELU cut off at 0",
                    "GELU goes a little below 0 for small negative numbers: no maximum with 0.",
                    **{"kind": "not below 0"},
                ),
                mistake(
                    "the approximation with tanh",
                    "GPT-2 computes it so, and it is off by up to 0.0005. Use math.erf, for each number.",
                    kind="tanh",
                ),
                mistake(
                    "the approximation with a sigmoid",
                    "x sigmoid(1.702 x) is a rough approximation. The exact one has erf.",
                    kind="sigmoid",
                ),
                mistake("SiLU", "x sigmoid(x) is SiLU, also called swish.", kind="silu"),
                mistake("ReLU", "That has a corner. GELU at -1 is not 0.", kind="relu"),
                mistake("the probability alone", "You have P(X <= x). Multiply it by x.", kind="P alone"),
                mistake(
                    "the root of 2 is forgotten",
                    "erf is made for a variance of 1/2. What must x be divided by?",
                    kind="no root",
                ),
                mistake("divided by 2 inside erf", "Inside erf, x is divided by the root of 2.", kind="halved"),
                mistake("the 1 is forgotten", "erf goes from -1 to 1, a probability from 0 to 1.", kind="no one"),
                mistake("the half is forgotten", "For large x, GELU is x, not 2 x.", kind="no half"),
                mistake(
                    "multiplied by the root of 2",
                    "Divide by the root of 2 inside erf; you multiplied.",
                    kind="times root",
                ),
                mistake("the probability above x", "For large x the probability is 1, not 0: a sign.", kind="minus"),
                mistake("x times erf", "erf(x / sqrt 2) is not yet a probability: it is negative below 0.", kind="erf"),
                mistake(
                    "x times the density",
                    "You took the bell curve. GELU has the area below it, up to x.",
                    kind="density",
                ),
                mistake("ELU", "exp(x) - 1 below 0 is ELU.", kind="elu"),
                mistake("leaky ReLU", "A line with a small slope below 0 is leaky ReLU.", kind="leaky"),
                mistake("softplus", "log(1 + exp(x)) is softplus.", kind="softplus"),
                mistake("tanh", "tanh is bounded; GELU grows like x.", kind="tanh alone"),
                mistake(
                    "a sigmoid",
                    "A sigmoid is bounded, and it is only near the probability. GELU is x times it.",
                    kind="sigmoid alone",
                ),
                mistake(
                    "tanh without its root",
                    "The approximation has the root of 2 / pi, and the exact GELU has no tanh at all.",
                    kind="tanh without root",
                ),
            ),
        ),
        Part(
            "feed_forward",
            feed_forward,
            _feed_forward_cases,
            (
                mistake(
                    "b_2 added to the matrix",
                    "b_2 is added to the result, after the product with W_2.",
                    **{"second_bias": None},
                ),
                mistake("no bend", "Without max(0, ...) two matrices are only one.", activation="none"),
                mistake("GELU", "Here the bend is the paper's: max(0, ...).", activation="gelu"),
                mistake(
                    "GELU by tanh", "ReLU was asked for, and this is an approximation of GELU.", activation="gelu tanh"
                ),
                mistake(
                    "SiLU inside", "x sigmoid(x) is used in newer models. Here it is max(0, x).", activation="silu"
                ),
                mistake("a leak", "Below 0, ReLU is exactly 0.", activation="leaky"),
                mistake("absolute values", "Negative numbers become 0; they do not turn positive.", activation="abs"),
                mistake(
                    "min in place of max",
                    "You kept the negative numbers. It is the larger of 0 and x.",
                    activation="min",
                ),
                mistake("a step", "`x > 0` is 0 or 1. Above 0, ReLU is x.", activation="step"),
                mistake("squared", "ReLU is not squared here.", activation="square"),
                mistake("not below 1", "The bend is at 0: max(0, x).", activation="below 1"),
                mistake("clipped at 6", "ReLU has no upper bound.", activation="six"),
                mistake("clipped at 1", "You clipped to the range from 0 to 1; above, ReLU goes on.", activation="one"),
                mistake("a sigmoid inside", "The inner activation is max(0, x), not a sigmoid.", activation="sigmoid"),
                mistake("tanh inside", "The inner activation is max(0, x), not tanh.", activation="tanh"),
                mistake("softmax inside", "Softmax belongs to attention.", activation="softmax"),
                mistake("bent by the mean", "max(0, x) compares with 0, not with the mean.", activation="row"),
                mistake("the bend at the end", "ReLU stands between the two matrices, not after them.", where="output"),
                mistake(
                    "the bend before the last bias",
                    "ReLU comes before W_2, not after it.",
                    where="before the last bias",
                ),
                mistake("the bend at the start", "First W_1 and b_1, then ReLU.", where="input"),
                mistake("two bends", "The output is not bent: it may be negative.", where="both"),
                mistake("b_1 is forgotten", "Where is b_1 used?", first_bias="none"),
                mistake(
                    "b_1 comes after the bend",
                    "b_1 decides where the bend is, so it is added before.",
                    first_bias="late",
                ),
                mistake("b_1 is subtracted", "It is x W_1 + b_1.", first_bias="minus"),
                mistake("b_2 is forgotten", "Where is b_2 used?", second_bias=False),
                mistake(
                    "x added to the layer",
                    "The residual connection is not a part of this layer; half_block has it.",
                    residual=True,
                ),
            ),
        ),
        Part(
            "half_block",
            half_block,
            _half_block_cases,
            (
                mistake(
                    "a fixed epsilon in the half-block",
                    "epsilon is an argument: hand it on to layer_norm.",
                    **{"fixed": True},
                ),
                mistake(
                    "scale and bias of the norm exchanged",
                    "layer_norm(x, scale, bias, epsilon): in this order.",
                    **{"scaled": "exchanged"},
                ),
                mistake(
                    "x inside and outside",
                    "The layer reads the norm of x alone; x itself is added afterwards.",
                    **{"order": "inside and around"},
                ),
                mistake(
                    "a bend after the sum",
                    "The stream may be negative: there is no max after the sum.",
                    **{"order": "bent"},
                ),
                mistake(
                    "post-norm",
                    "You normalized the sum, as in the first paper. Here the norm is on the way into the layer only.",
                    order="post",
                ),
                mistake(
                    "no residual connection", "The layer adds to x. Where is x in your result?", order="no residual"
                ),
                mistake("no norm", "The layer reads LN(x), not x.", order="no norm"),
                mistake(
                    "the norm is in the stream",
                    "You added to LN(x). The stream itself, x, stays as it is.",
                    order="normed residual",
                ),
                mistake(
                    "the norm is on the wrong x",
                    "You normalized the x that is added, and the layer read the raw one. Exchange the two.",
                    order="beside",
                ),
                mistake("the norm is on the output", "The norm comes before the layer, not after it.", order="output"),
                mistake(
                    "norms on both sides", "One norm is too many: nothing follows the layer but the sum.", order="both"
                ),
                mistake(
                    "a norm after the sum, too", "After x + FFN(LN(x)) there is nothing more.", order="pre and post"
                ),
                mistake("x added twice", "Does your feed_forward, or you, add x one more time?", order="twice"),
                mistake("the layer is subtracted", "The output of the layer is added, with a plus.", order="minus"),
                mistake("x is subtracted", "The layer's output and x are added.", order="f minus"),
                mistake("the mean with x", "Nothing is halved.", order="mean"),
                mistake("multiplied by x", "The output of the layer is added to x.", order="product"),
                mistake("the sum is inside", "x is added outside of the layer, at the very end.", order="inside"),
                mistake("the layer is applied twice", "Once is enough.", order="applied twice"),
                mistake("no feed-forward layer", "You added the norm itself. The layer reads it.", order="x alone"),
                mistake("GELU in the half-block", "feed_forward has ReLU.", activation="gelu"),
                mistake(
                    "no bend in the half-block", "The ReLU between the two matrices is missing.", activation="none"
                ),
                mistake(
                    "the half-block's norm over tokens",
                    "In LN(x), each token is normalized over its own numbers.",
                    axis="tokens",
                ),
                mistake(
                    "the half-block's norm over everything", "In LN(x), each token has a mean of its own.", axis="all"
                ),
                mistake("the half-block's norm divides by D - 1", "The variance divides by D.", ddof=1),
                mistake("the half-block's epsilon outside", "epsilon belongs inside of the root.", where="outside"),
                mistake("the half-block's norm has no scale", "scale is an argument; multiply by it.", scaled="none"),
                mistake("the half-block's norm has no bias", "bias is an argument; add it in the norm.", biased="none"),
                mistake(
                    "RMS norm in the half-block",
                    "Your norm does not subtract the mean.",
                    center="none",
                    spread="squares",
                ),
            ),
        ),
        Part(
            "layer_norm_gradient",
            layer_norm_gradient,
            _gradient_cases,
            (
                mistake(
                    "means over everything",
                    "Each vector has its own two means: axis -1, keepdims.",
                    **{"mean_term": "all", "y_term": "all"},
                ),
                mistake(
                    "a factor of 2 in the variance's part",
                    "The 2 of the square and the half of the root cancel.",
                    **{"y_term": "double"},
                ),
                mistake(
                    "D - 1 in the mean of the products",
                    "The variance is divided by D, and so is its gradient.",
                    **{"y_term": "D - 1"},
                ),
                mistake(
                    "the derivative of each number alone",
                    "1 - y^2 belongs to tanh. Here all numbers of a vector depend on each other.",
                    **{"factor": "as of tanh"},
                ),
                mistake(
                    "as if the mean were fixed",
                    "Moving one number moves the mean as well. If all of d_out is equal, your result is not 0.",
                    mean_term="none",
                ),
                mistake(
                    "as if the variance were fixed",
                    "Moving one number changes the variance, too. Along y itself, y hardly changes: that part of d_out "
                    "must go.",
                    y_term="none",
                ),
                mistake(
                    "as if mean and variance were fixed",
                    "d_out / root is only the first of three parts: x also acts through the mean and the variance.",
                    mean_term="none",
                    y_term="none",
                ),
                mistake(
                    "a sum in place of the mean of d_out",
                    "The mean of x has a factor 1 / D. Yours is missing it.",
                    mean_term="sum",
                ),
                mistake(
                    "a sum in place of the mean of d_out y",
                    "The variance is a mean as well, so there is a 1 / D in its part.",
                    y_term="sum",
                ),
                mistake(
                    "two sums",
                    "Both parts, that of the mean and that of the variance, need a factor 1 / D.",
                    mean_term="sum",
                    y_term="sum",
                ),
                mistake(
                    "the mean of d_out times y",
                    "The mean is of the products d_out * y, not of d_out alone.",
                    y_term="apart",
                ),
                mistake(
                    "not divided by the root", "If x is ten times as large, the gradient is a tenth.", factor="none"
                ),
                mistake(
                    "multiplied by the root of the variance",
                    "The gradient is divided by the root, as y was.",
                    factor="times",
                ),
                mistake("divided by the variance itself", "In the end there is one root, not two.", factor="variance"),
                mistake(
                    "centered numbers in place of y",
                    "The part of the variance has y, the normalized numbers, twice.",
                    of="centered",
                ),
                mistake("x in place of y", "You used x where the normalized y belongs.", of="x"),
                mistake(
                    "the root is divided away twice",
                    "Your y is divided by the variance. It is divided by the root.",
                    of="variance",
                ),
                mistake(
                    "the sign of the variance's part",
                    "All of d_out that lies along y is taken away, not added.",
                    sign=1,
                ),
                mistake("the gradient over the tokens", "Means run over the last axis, as in the norm.", axis=0),
                mistake("epsilon outside, in the gradient", "The root is sqrt(variance + epsilon).", where="outside"),
                mistake(
                    "no epsilon in the gradient",
                    "Where all numbers are equal, only epsilon is left in the root.",
                    where="forgotten",
                ),
                mistake("D - 1 in the gradient", "The variance divides by D here as well.", ddof=1),
                mistake("the gradient of RMS norm", "x has to be centered, for y and for the root.", center=False),
                mistake(
                    "the gradient of RMS norm, complete",
                    "You neither center x nor take the mean of d_out away: that is RMSNorm's gradient.",
                    center=False,
                    mean_term="none",
                ),
                mistake("the sign of everything", "Your result is the gradient times -1.", factor="negative"),
                mistake(
                    "d_out times the norm",
                    "A gradient is d_out times the *slopes* of y, not times y.",
                    factor="product",
                ),
                mistake(
                    "the norm, not its gradient", "You returned y. The gradient depends on d_out.", factor="forward"
                ),
                mistake(
                    "d_out itself", "The norm is not the identity: d_out has to go back through it.", factor="d_out"
                ),
            ),
            (_check_gradient,),
        ),
    ),
    (
        "Keep dimensions: mean(axis=-1, keepdims=True) has a shape that broadcasts. For the gradient, write down "
        "through "
        "which three paths a number of x reaches the loss: directly, through the mean, through the variance.",
        "The norm needs two lines, the centered numbers and their mean square. In the gradient, two things do not "
        "change y: "
        "adding the same number to all of x, and (nearly) stretching x. So those two parts of d_out are taken away.",
        "gelu: x / 2 * (1 + erf(x / sqrt 2)), with np.vectorize(math.erf). half_block: x + "
        "feed_forward(layer_norm(...)). "
        "Gradient: (d_out - mean(d_out) - y * mean(d_out * y)) / sqrt(variance + epsilon).",
    ),
)
