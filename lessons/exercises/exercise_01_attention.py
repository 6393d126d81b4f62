"""Exercise 01: attention.

40 minutes, easy to medium. You need lesson 01 and NumPy, nothing else.

What to do: part A with pencil, paper and a calculator; parts B and C in code. Replace each `None` by
a number or, for several numbers, by a list such as [1, 2, 3]; and each `raise NotImplementedError` by your code. How
to check, as often as you like, from the folder of the clone:

    python -m lessons check 01      what is right, and what the mistake may be
    python -m lessons hint 01       a nudge; `hint 01 2` and `hint 01 3` say more
    python -m lessons solution 01   one way to do it; yours may look different
"""

import numpy as np

# Part A, by hand. One query and three keys of H = 4 numbers, and three values of two numbers:
#
#     query      2  0  2  0
#
#     key 1      1  5  1  0         value 1     10   0
#     key 2      0  1  1  3         value 2      0  10
#     key 3      1  4 -1  2         value 3     20  20
#
# Scores: the dot product of the query with each key, divided by the square root of H. Three numbers.
scores_by_hand = None

# Weights: the softmax of these scores, to two decimals. Three numbers; e^1 = 2.718, e^2 = 7.389.
weights_by_hand = None

# Answer: the mean of the values with these weights, to one decimal. Two numbers.
answer_by_hand = None


# Part B.
def softmax(scores):
    """Turn scores into weights that are positive and sum to 1, along the last axis.

    Args:
      scores: array [..., S] of any numbers, also very large ones (1,000) and very small ones (-1,000); not changed.
    Returns:
      array [..., S]: exp(score) / (sum of exp(score) over the last axis).

    softmax(np.array([0.0, 0.0])) is [0.5, 0.5]; softmax(np.array([[1000.0, 1000.0], [0.0, 0.0]])) is
    [[0.5, 0.5], [0.5, 0.5]].
    """
    raise NotImplementedError  # your answer


# Part C.
def attention(q, k, v, may_attend):
    """Scaled dot-product attention: softmax(q k^T / sqrt(H)) v.

    Args:
      q: queries, array [T, H].
      k: keys, array [S, H].
      v: values, array [S, H].
      may_attend: bool array [T, S]. True at [t, s]: query t may attend key s. A key that is closed to a query has no
        influence on its answer. The answer to a query that may attend no key at all is 0.
    Returns:
      array [T, H]: for each query the mean of the values of the keys that it may attend, with its weights.

    With q = [[2.0]], k = [[1.0], [0.0]], v = [[10.0], [20.0]] and all keys open, the scores are 2 and 0, the weights
    0.88 and 0.12, and the answer is [[11.19]]. With the first key closed it is [[20.0]]; with both closed, [[0.0]].
    """
    raise NotImplementedError  # your answer
