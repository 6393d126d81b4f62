"""Exercise 06: layer norm, the feed-forward layer, the residual connection.

About 50 minutes; medium, the last part hard. Read lesson 05 first.

Here you write all that a block has beside attention, and the gradient of layer norm by hand. NumPy is all you need
(math.erf for GELU). The letters: B texts, T tokens, D the width of a vector, F the width inside the feed-forward layer.
Do not change the arrays that come in.

Write the five functions, then:  python -m lessons check 06
Stuck?                           python -m lessons hint 06
"""

import math

import numpy as np


def layer_norm(x, scale, bias, epsilon):
    """Layer norm: (x - mean) / sqrt(variance + epsilon) * scale + bias. Ba et al. 2016, equation 4.

    Mean and variance are those of the D numbers of one vector. The variance is the mean of the squared deviations
    (divided by D, not by D - 1).

    Args:
      x: [B, T, D], integers or floats. scale, bias: [D]. epsilon: a small number above 0.
    Returns:
      float [B, T, D].

    layer_norm([[[1, 3]]], [1, 1], [0, 0], 0.0) is [[[-1, 1]]]: the mean is 2, the variance 1.
    """
    raise NotImplementedError  # your answer


def gelu(x):
    """GELU, exact: x times the probability that a standard normal number is below x. Hendrycks & Gimpel 2016.

    This probability is (1 + erf(x / sqrt(2))) / 2. The approximation with tanh is not exact enough here.

    Args:
      x: array of any shape.
    Returns:
      float, the same shape.

    gelu([0, 1, -1]) is about [0, 0.8413, -0.1587].
    """
    raise NotImplementedError  # your answer


def feed_forward(x, W_1, b_1, W_2, b_2):
    """Feed-forward layer: max(0, x W_1 + b_1) W_2 + b_2. Vaswani et al. 2017, equation 2.

    Args:
      x: [B, T, D]. W_1: [D, F]. b_1: [F]. W_2: [F, D]. b_2: [D].
    Returns:
      [B, T, D].

    With D = F = 1, x = [[[2]]], W_1 = [[3]], b_1 = [-1], W_2 = [[10]], b_2 = [4]: 2 * 3 - 1 = 5, and 5 * 10 + 4 = 54.
    With x = [[[-2]]] the inner number is negative, so the result is 4.
    """
    raise NotImplementedError  # your answer


def half_block(x, scale, bias, W_1, b_1, W_2, b_2, epsilon):
    """Second half of a block whose norm comes first ("pre-norm", as in GPT-2): x + FFN(LN(x)).

    The arguments are those of layer_norm and feed_forward.

    Returns:
      [B, T, D].

    With W_2 and b_2 all 0, the feed-forward layer adds nothing, and the result is x itself.
    """
    raise NotImplementedError  # your answer


def layer_norm_gradient(x, d_out, epsilon):
    """Gradient of layer norm without scale and bias, with respect to x.

    Let y = (x - mean) / sqrt(variance + epsilon), for each vector. Somebody tells you d_out, the gradient of a loss
    with respect to y. Return its gradient with respect to x. All D numbers of a vector depend on each other, through
    the mean and the variance.

    Args:
      x: [T, D]. d_out: [T, D]. epsilon: a small number above 0.
    Returns:
      [T, D].

    If all numbers of d_out are equal, the result is 0: to move all of x by the same amount does not change y.
    """
    raise NotImplementedError  # your answer
