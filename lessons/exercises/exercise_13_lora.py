"""Exercise 13: LoRA.

60 minutes, difficulty 2 of 5. NumPy only. After lesson 15.

LoRA adapts a linear layer y = x W by two thin matrices beside its kernel. You write the layer, its first values, the
merge, the count of trained numbers, and, with the singular value decomposition, the best change that a rank allows.
Vectors are rows here, as everywhere in the project: lora_in is the paper's A transposed, lora_out its B transposed.

Check:  python -m lessons check 13      Hints:  python -m lessons hint 13
"""

import numpy as np


def lora_forward(x, weight, lora_in, lora_out, alpha):
    """Output of a linear layer with LoRA beside it: y = x W + (alpha / r) x lora_in lora_out.

    The kernel itself stays as it is. Do not build a matrix [D, F] for the change: two thin products are enough.

    Args:
      x: [..., D] float; any number of axes before the last one, also none.
      weight: [D, F] float, the kernel W of the base.
      lora_in: [D, r] float; lora_out: [r, F] float.
      alpha: a number, int or float.
    Returns:
      [..., F].

    Example: x [1, 2], weight [[1], [1]], lora_in [[1, 0], [0, 1]], lora_out [[3], [5]], alpha 4. The base gives 3.
    x lora_in is [1, 2], times lora_out 13, and alpha / r is 2. So y is [3 + 26] = [29].
    """
    raise NotImplementedError  # your answer


def first_lora(fan_in, fan_out, rank, seed):
    """First values of LoRA, with which the layer computes exactly what the base computes, and still can learn.

    As in the paper: lora_in is random, lora_out is zero. The random numbers are uniform between -1 / sqrt(fan_in) and
    1 / sqrt(fan_in).

    Args:
      fan_in: D, number of inputs of the layer; fan_out: F, number of its outputs.
      rank: r.
      seed: int, for np.random.default_rng: another seed, other numbers.
    Returns:
      lora_in [D, r] and lora_out [r, F].

    Example: fan_in 4, fan_out 3, rank 2: lora_in has the shape [4, 2] and numbers between -0.5 and 0.5; lora_out is
    np.zeros((2, 3)).
    """
    raise NotImplementedError  # your answer


def merge(weight, lora_in, lora_out, alpha):
    """Kernel of the layer with LoRA merged into it: x @ merge(...) equals lora_forward(x, ...).

    Args:
      weight: [D, F] float; must not be changed: return a new array.
      lora_in: [D, r] float; lora_out: [r, F] float.
      alpha: a number, int or float.
    Returns:
      [D, F].

    Example: weight [[1], [1]], lora_in [[1, 0], [0, 1]], lora_out [[3], [5]], alpha 4 gives [[7], [11]].
    """
    raise NotImplementedError  # your answer


def num_trained(shapes, rank):
    """Number of trained parameters of LoRA on several layers: those of lora_in and lora_out of each.

    Args:
      shapes: list of pairs (fan_in, fan_out), one for each layer.
      rank: r, the same for all layers.
    Returns:
      An int; 0 for an empty list.

    Example: shapes [(4, 3), (5, 2)], rank 2: 2 * 4 + 2 * 3 + 2 * 5 + 2 * 2 = 28.
    """
    raise NotImplementedError  # your answer


def best_lora(change, rank, alpha):
    """LoRA that comes as close as it can to a given change of a kernel.

    The best matrix of rank r, in the sum of squares, keeps the r largest singular values of the change and drops the
    rest (Eckart & Young 1936). Remember that the layer multiplies by alpha / r: (alpha / r) lora_in @ lora_out is to be
    that matrix. How you divide the factors between the two is up to you.

    Args:
      change: [D, F] float.
      rank: r, at most min(D, F).
      alpha: a number above 0.
    Returns:
      lora_in [D, r] and lora_out [r, F].

    Example: change [[6, 0], [0, 1]], rank 1, alpha 2: the best matrix of rank 1 is [[6, 0], [0, 0]], so lora_in @
    lora_out is to be [[3, 0], [0, 0]], for example lora_in [[3], [0]] and lora_out [[1, 0]].
    """
    raise NotImplementedError  # your answer
