"""Exercise 11: rotary positions.

60 minutes, difficulty 3 of 5. NumPy only.

Queries and keys are rotated by their positions, and the product of the two depends on the distance alone. Write the
frequencies, the rotation, the scores, and then the same score a second time, from the distance only.

Check:  python -m lessons check 11      Hints:  python -m lessons hint 11
"""

import numpy as np


def frequencies(head_dim, base):
    """Angle by which each pair of a head turns from one position to the next, in radians.

    A head of H numbers has H/2 pairs. Pair i, for i = 0, 1, ..., H/2 - 1, turns by base^(-2i/H).

    Args:
      head_dim: H, an even int.
      base: float above 1; 10000 in the paper.
    Returns:
      [H/2] float.

    Example: head_dim 4, base 100: [1, 0.1].
    """
    # answer
    i = np.arange(head_dim // 2)
    return base ** (-2.0 * i / head_dim)
    # end


def rotate(x, positions, base):
    """Rotate each pair of numbers of each vector by its position times the frequency of the pair.

    Number i is paired with number i + H/2 (as in GPT-NeoX and Llama). A pair (a, b) that is turned by an angle becomes
    (a cos(angle) - b sin(angle), b cos(angle) + a sin(angle)).

    Args:
      x: [T, H] float, queries or keys of one head.
      positions: [T] int, the position of each vector: any integers, in any order.
      base: as for `frequencies`.
    Returns:
      [T, H] float.

    Example: x [[1, 0]], positions [1]: H = 2, one pair, turned by 1 radian: [[cos 1, sin 1]] = [[0.5403, 0.8415]].
    """
    # answer
    half = x.shape[-1] // 2
    angle = np.asarray(positions)[:, None] * frequencies(x.shape[-1], base)  # [T, H/2]
    first, second = x[:, :half], x[:, half:]
    rotated = first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)
    return np.concatenate(rotated, axis=-1)
    # end


def rotary_scores(q, k, q_positions, k_positions, base):
    """Attention scores with rotary positions: products of rotated queries and rotated keys, over the root of H.

    Args:
      q: [T, H] float, queries; k: [S, H] float, keys.
      q_positions: [T] int; k_positions: [S] int.
      base: as for `frequencies`.
    Returns:
      [T, S] float, before mask and softmax.

    Example: q [[1, 0]] at position 3 and k [[1, 0]] at position 2: the angle between them is 1 radian, so the score is
    cos(1) / sqrt(2) = 0.3821.
    """
    # answer
    return rotate(q, q_positions, base) @ rotate(k, k_positions, base).T / np.sqrt(q.shape[-1])
    # end


def score_at_distance(q, k, distance, base):
    """The score of one query and one key from their distance alone: a single rotation, whatever the positions are.

    With m the position of the query and n the position of the key, `distance` is m - n: how far back the key is. The
    result must be that of `rotary_scores` for every m and n with this difference. Rotate one of the two, once.

    Args:
      q: [H] float, one query; k: [H] float, one key.
      distance: int; below 0 if the key comes after the query.
      base: as for `frequencies`.
    Returns:
      A float.

    Example: q [1, 0], k [0, 1] and distance 1: q is turned to [cos 1, sin 1], and the product with k, over the root of
    2, is sin(1) / sqrt(2) = 0.5950.
    """
    # answer
    return rotate(q[None], [distance], base)[0] @ k / np.sqrt(len(q))
    # end
