"""Exercise 04: multi-head attention.

About 45 minutes; medium. Read lesson 03 first.

Here you cut vectors into heads, let every head attend on its own, and join the heads again. At the end, groups of
query heads share keys and values. NumPy is all you need; no loop over heads is needed, but a loop is not wrong.

The letters: B texts, T queries, S keys, D the width of a vector, N heads, K key-value heads, H the width of a head. Do
not change the arrays that come in.

Write the five functions, then:  python -m lessons check 04
Stuck?                           python -m lessons hint 04
"""

import numpy as np


def split_heads(x, N):
    """Cut each vector into N heads: head 0 gets the first H = D / N numbers of every token, head 1 the next H, ...

    Args:
      x: [B, T, D]. N: int, which divides D.
    Returns:
      [B, N, T, H].

    One text of two tokens, [[[1, 2, 3, 4], [5, 6, 7, 8]]], and N = 2: head 0 is [[1, 2], [5, 6]] and head 1 is
    [[3, 4], [7, 8]], so the result is [[[[1, 2], [5, 6]], [[3, 4], [7, 8]]]].
    """
    raise NotImplementedError  # your answer


def join_heads(heads):
    """Put the heads of each token side by side again: join_heads(split_heads(x, N)) is x.

    Args:
      heads: [B, N, T, H].
    Returns:
      [B, T, N * H].

    [[[[1, 2], [5, 6]], [[3, 4], [7, 8]]]] becomes [[[1, 2, 3, 4], [5, 6, 7, 8]]].
    """
    raise NotImplementedError  # your answer


def attend_heads(q, k, v, may_attend):
    """Attention in every head: softmax(q k^T / sqrt(H)) v.

    Only keys that a query may attend to count, and the weights of these sum to 1. A query that may attend to no key at
    all gets zeros. Scores may be as large as a million, and no number may overflow.

    Args:
      q: [B, N, T, H]. k, v: [B, N, S, H].
      may_attend: bool [B, T, S], the same for all heads. True: query t of text b may attend to key s.
    Returns:
      [B, N, T, H].

    With one text, head, query and number each, q = [[[[0]]]], two keys k = [[[[5], [7]]]], v = [[[[1], [3]]]], and both
    allowed: both scores are 0, so the result is [[[[2]]]]. With may_attend = [[[False, True]]] it is [[[[3]]]].
    """
    raise NotImplementedError  # your answer


def multi_head(x, W_q, W_k, W_v, W_o, N):
    """Multi-head self-attention without a mask: project, split, attend, join, project.

    Args:
      x: [B, T, D]. W_q, W_k, W_v, W_o: [D, D], each used as x @ W. N: int, which divides D.
    Returns:
      [B, T, D].

    With one text of one token there is nothing to choose: whatever W_q, W_k and N are, the result is x @ W_v @ W_o.
    """
    raise NotImplementedError  # your answer


def grouped_heads(q, k, v):
    """Attention without a mask in which groups of G = N / K consecutive query heads share a key-value head.

    Query heads 0 to G - 1 use key-value head 0, the next G query heads use key-value head 1, and so on.

    Args:
      q: [B, N, T, H]. k, v: [B, K, S, H], where K divides N.
    Returns:
      [B, N, T, H].

    With N = 4, K = 2 and a single key (S = 1), every query gets the only value of its key-value head: query heads 0 and
    1 return v[:, 0], query heads 2 and 3 return v[:, 1].
    """
    raise NotImplementedError  # your answer
