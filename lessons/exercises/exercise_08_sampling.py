"""Exercise 08: from logits to the next token.

About 45 minutes; medium. Read lesson 08 first.

A decoder gives a number for each token of the vocabulary. Here you choose the next token from them: temperature, top-k,
top-p, and the draw itself. NumPy is all you need. B is the number of texts that are written at once, V the size of the
vocabulary. Do not change the arrays that come in.

Write the five functions, then:  python -m lessons check 08
Stuck?                           python -m lessons hint 08
"""

import numpy as np


def with_temperature(logits, temperature):
    """Probabilities of the next token at a temperature: the softmax of logits / temperature.

    Temperature 0 means the limit: the whole probability is on the largest logit, and where several are equally large,
    on the one with the smallest id. Logits may be as large as 1,000, and no number may overflow.

    Args:
      logits: float [B, V].
      temperature: a number, 0 or more.
    Returns:
      float [B, V], each row sums to 1.

    with_temperature([[0, 2]], 2.0) is the softmax of [[0, 1]]: about [[0.269, 0.731]].
    """
    raise NotImplementedError  # your answer


def top_k(probabilities, k):
    """Keep exactly the k most likely tokens of each row, and divide by what is left, so that rows sum to 1 again.

    Where tokens are equally likely, those with the smaller id stay. With k above V, all stay.

    Args:
      probabilities: float [B, V], each row sums to 1.
      k: int, 1 or more.
    Returns:
      float [B, V], at most k numbers of a row are not 0.

    top_k([[0.25, 0.5, 0.25]], 2) is [[1/3, 2/3, 0]].
    """
    raise NotImplementedError  # your answer


def top_p(probabilities, p):
    """Keep the smallest set of most likely tokens that together have probability p or more; rows sum to 1 again.

    Add tokens from the most likely one on, and stop as soon as the sum is p or more. So at least one token stays, and
    the token that reaches p stays, too. Where tokens are equally likely, those with the smaller id come first.

    Args:
      probabilities: float [B, V], each row sums to 1.
      p: a number above 0, at most 1.
    Returns:
      float [B, V].

    top_p([[0.125, 0.5, 0.25, 0.125]], 0.75) is [[0, 2/3, 1/3, 0]]: 0.5 + 0.25 reaches 0.75.
    """
    raise NotImplementedError  # your answer


def draw(probabilities, u):
    """Draw a token of each row with the help of a uniform random number.

    Lay the probabilities of a row side by side on the line from 0 to 1, in the order of the ids: each token has a
    piece as long as its probability. The drawn token is the one whose piece has u in it. A piece has its left end, not
    its right one: for [0.5, 0.5], u = 0.5 draws token 1. A token of probability 0 is never drawn.

    Args:
      probabilities: float [B, V], each row sums to 1.
      u: float [B], one number for each row, from 0 up to, but not including, 1.
    Returns:
      int [B], ids.

    draw([[0.2, 0.3, 0.5]], [0.4]) is [1], since 0.2 <= 0.4 < 0.5.
    """
    raise NotImplementedError  # your answer


def next_token(logits, temperature, k, p, u):
    """All together, in the usual order: temperature, then top-k, then top-p of what top-k left, then the draw.

    Args:
      logits: float [B, V].
      temperature, k, p, u: as above.
    Returns:
      int [B], ids.
    """
    raise NotImplementedError  # your answer
