"""Exercise 05: positions.

About 40 minutes; medium. Read lesson 04 first.

Here you write the sines and cosines of the first Transformer, find the matrix that shifts a position, compare
positions, and add them to embeddings. NumPy is all you need. The letters: B texts, T tokens, D the width of a vector
(even here), V the size of the vocabulary, P rows of a table. Do not change the arrays that come in.

Write the four functions, then:  python -m lessons check 05
Stuck?                           python -m lessons hint 05
"""

import numpy as np


def sinusoids(positions, D):
    """Sines and cosines: number 2i of a vector is sin(p / 10000^(2i / D)), number 2i + 1 the cosine of the same angle.

    Args:
      positions: int [T], any whole numbers, also negative; they need not begin at 0. D: int, even.
    Returns:
      float [T, D].

    sinusoids([0], 4) is [[0, 1, 0, 1]], and sinusoids([1], 4) is [[sin 1, cos 1, sin 0.01, cos 0.01]].
    """
    # answer
    angle = np.asarray(positions)[:, None] / 10000 ** (np.arange(0, D, 2) / D)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(angle), D)
    # end


def shift_rotation(k, D):
    """The matrix of "k positions further": sinusoids(p + k, D) = sinusoids(p, D) @ shift_rotation(k, D) for every p.

    Args:
      k: int, may be negative. D: int, even.
    Returns:
      float [D, D].

    A row vector stands on the left of the matrix. With D = 2 there is one angle, k itself, and the matrix is
    [[cos k, -sin k], [sin k, cos k]]: (sin p, cos p) times its first column is sin p cos k + cos p sin k = sin(p + k).
    """
    # answer
    angle = k / 10000 ** (np.arange(0, D, 2) / D)
    matrix = np.zeros((D, D))
    sine = np.arange(0, D, 2)  # indices of the sines
    matrix[sine, sine] = matrix[sine + 1, sine + 1] = np.cos(angle)
    matrix[sine, sine + 1] = -np.sin(angle)
    matrix[sine + 1, sine] = np.sin(angle)
    return matrix
    # end


def similarity(distances, D):
    """The product of the vectors of two positions, from their distance alone.

    sinusoids(p) times sinusoids(q), number by number, added up, depends on p - q only.

    Args:
      distances: int [n], p - q. D: int, even.
    Returns:
      float [n].

    similarity([0], D) is [D / 2], and similarity([3], 2) is [cos 3].
    """
    # answer
    angle = np.asarray(distances)[:, None] / 10000 ** (np.arange(0, D, 2) / D)
    return np.cos(angle).sum(axis=-1)
    # end


def embed(ids, embeddings, positions):
    """The input of a Transformer: embeddings of the tokens, times the root of D, plus the positions 0, 1, 2, ...

    Vaswani et al. 2017, sections 3.4 and 3.5. The table of positions may be learned or sines; its row p is for the
    token p of a text, and it may have more rows than are needed. Only the embeddings are multiplied by the root.

    Args:
      ids: int [B, T]. embeddings: [V, D]. positions: [P, D], P >= T.
    Returns:
      [B, T, D].

    With D = 4, ids [[2, 2]], embeddings whose row 2 is [1, 0, 0, 0], and positions whose rows 0 and 1 are
    [0, 1, 0, 1] and [5, 5, 5, 5], the result is [[[2, 1, 0, 1], [7, 5, 5, 5]]].
    """
    # answer
    ids, embeddings, positions = (np.asarray(x) for x in (ids, embeddings, positions))
    return embeddings[ids] * embeddings.shape[1] ** 0.5 + positions[: ids.shape[1]]
    # end
