"""Exercise 12: online softmax and attention in blocks.

60 minutes, difficulty 3 of 5. NumPy only.

Attention that never holds the matrix of its weights: one score at a time, then two blocks joined, then all of it.

Check:  python -m lessons check 12      Hints:  python -m lessons hint 12
"""

import numpy as np


def update(largest, total, score):
    """Take one more score into a running softmax.

    `largest` is the largest score so far, and `total` is the sum over all scores so far of exp(score - largest).
    Before the first score they are -inf and 0. A score may be -inf (a key that may not be attended): it counts as
    exp(-inf) = 0, also if it is the first one.

    Args:
      largest, total, score: floats. Scores may be as large as 1e4: nothing may overflow.
    Returns:
      (largest, total) with the new score.

    Example: (2, 1) and the score 3: the new largest is 3, and the total is exp(2 - 3) + exp(3 - 3) = 1.3679.
    """
    raise NotImplementedError  # your answer


def merge(left, right):
    """Join the results of attention over two blocks of keys, for the same queries.

    A result is (largest, total, out). `largest` [T] has each query's largest score in its block, `total` [T] the sum
    of exp(score - largest) over the block, and `out` [T, H] the sum of exp(score - largest) * value: it has not been
    divided yet. A block in which a query may attend nothing has -inf, 0 and zeros for this query.

    Args:
      left, right: (largest [T], total [T], out [T, H]) each; they stay as they are.
    Returns:
      (largest, total, out) of both blocks together, of the same shapes. Not divided by the total.

    Example: T = H = 1, left ([0], [1], [[5]]), right ([1], [1], [[7]]): the largest is 1, the left side shrinks by
    exp(0 - 1) = 0.3679, so the total is 1.3679 and the out is 5 * 0.3679 + 7 = 8.8394.
    """
    raise NotImplementedError  # your answer


def attention_in_blocks(q, k, v, block):
    """softmax(q k^T / sqrt(H)) v, with at most `block` keys at a time.

    The keys are read in blocks from the first to the last; the last block may be smaller. Every query attends to all
    keys. (The grader cannot see whether you build the whole matrix of scores. You can.)

    Args:
      q: [T, H] float; k: [S, H] float; v: [S, J] float, whose width J need not be H. Scores may be as large as 1e4.
      block: int from 1 on; may be larger than S.
    Returns:
      [T, J] float, the same as plain attention, whatever the block.

    Example: q [[0]], k [[1], [2], [3]], v [[3], [6], [9]], block 2: all scores are 0, so the result is the mean of the
    values, [[6]].
    """
    raise NotImplementedError  # your answer
