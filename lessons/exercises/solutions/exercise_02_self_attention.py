"""Exercise 02: self-attention.

45 minutes, medium. You need lesson 02 and NumPy.

What to do: four functions, each of which may use those before it. Replace each `raise NotImplementedError`.
How to check, as often as you like, from the folder of the clone:

    python -m lessons check 02      what is right, and what the mistake may be
    python -m lessons hint 02       a nudge; `hint 02 2` and `hint 02 3` say more
    python -m lessons solution 02   one way to do it; yours may look different

Letters: B texts, T tokens in each, D numbers in the vector of a token, H numbers in queries, keys and values.
"""

import numpy as np


def causal_mask(T):
    """Causal mask for a text of T tokens.

    Args:
      T: int, at least 1.
    Returns:
      bool array [T, T]. True at [t, s]: token t may attend token s, which is itself or before it.

    causal_mask(3) is [[True, False, False], [True, True, False], [True, True, True]].
    """
    # answer
    return np.tril(np.ones((T, T), bool))
    # end


def both_masks(is_token):
    """Causal mask and padding mask together, for a batch of texts.

    Args:
      is_token: bool array [B, T], False where a text is filled up with padding: on the right, on the left, anywhere.
    Returns:
      bool array [B, T, T]. True at [b, t, s]: in text b, token t may attend token s: s is not after t, and s is not
      padding. Whether t itself is padding does not matter.

    both_masks([[True, False]]) is [[[True, False], [True, False]]].
    """
    # answer
    is_token = np.asarray(is_token)
    return causal_mask(is_token.shape[1]) & is_token[:, None, :]
    # end


def queries_keys_values(x, w_q, w_k, w_v):
    """Queries, keys and values of the same texts.

    Args:
      x: array [B, T, D], a vector for each token.
      w_q, w_k, w_v: arrays [D, H].
    Returns:
      three arrays (q, k, v), each [B, T, H].

    With x = [[[1.0, 2.0]]], w_q = [[1.0], [0.0]], w_k = [[0.0], [1.0]], w_v = [[1.0], [1.0]]:
    ([[[1.0]]], [[[2.0]]], [[[3.0]]]).
    """
    # answer
    return x @ w_q, x @ w_k, x @ w_v
    # end


def self_attention(x, w_q, w_k, w_v, is_token):
    """Causal self-attention with padding: softmax(q k^T / sqrt(H)) v, by both masks.

    Args:
      x: array [B, T, D]; w_q, w_k, w_v: arrays [D, H].
      is_token: bool array [B, T].
    Returns:
      array [B, T, H]. Where a token may attend nothing (padding at the start of a text), the result is 0.

    With a text of one token its only weight is 1, so the result is its value, x @ w_v.
    """
    # answer
    q, k, v = queries_keys_values(x, w_q, w_k, w_v)
    may_attend = both_masks(is_token)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])  # [B, T, T]
    scores = np.where(may_attend, scores, -1e30)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return np.where(may_attend, weights, 0) @ v
    # end
