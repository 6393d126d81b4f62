"""Example 04: positional encoding, in NumPy.

Run it:  python lessons/examples/example_04_positional_encoding.py

What to see: without positions, attention gives *bites* the same answer in "dog bites man" and "man bites dog"; with
them it does not. A position is a row of clock hands, drawn here as characters. The product of two positions falls with
their distance, and depends on nothing else. One matrix moves every position three words on.
"""

import numpy as np


def softmax(x):
    """Softmax over the last axis."""
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def sinusoids(positions, D):
    """Sines (even numbers) and cosines (odd numbers) of p / 10000^(2i / D), [T] -> [T, D]."""
    angle = np.asarray(positions)[:, None] / 10000 ** (np.arange(0, D, 2) / D)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(angle), D)


def shift_rotation(k, D):
    """The matrix with sinusoids(p + k) = sinusoids(p) @ matrix, [D, D]."""
    matrix = np.zeros((D, D))
    for i, angle in enumerate(k / 10000 ** (np.arange(0, D, 2) / D)):
        block = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    return matrix


def attend(x, W_q, W_k, W_v):
    """One head of self-attention, [T, D] -> [T, D]."""
    return softmax((x @ W_q) @ (x @ W_k).T / np.sqrt(x.shape[-1])) @ (x @ W_v)


def draw(table):
    """A table as characters, from -1 (blank) to 1 (#)."""
    marks = " .:-=+*#"
    levels = np.clip(((table + 1) / 2 * len(marks)).astype(int), 0, len(marks) - 1)
    return "\n".join("  " + "".join(marks[level] for level in row) for row in levels)


def main():
    """Two sentences, a picture, a law."""
    D = 64
    random = np.random.default_rng(0)
    vectors = {word: random.normal(size=D) for word in ("dog", "bites", "man")}
    matrices = random.normal(size=(3, D, D)) / np.sqrt(D)

    def answer(sentence, has_positions):
        words = sentence.split()
        x = np.array([vectors[word] for word in words])
        if has_positions:
            x = x + sinusoids(np.arange(len(words)), D)
        return attend(x, *matrices)[words.index("bites")]

    differences = {}
    for has_positions in (False, True):
        one, other = (answer(sentence, has_positions) for sentence in ("dog bites man", "man bites dog"))
        differences[has_positions] = np.abs(one - other).max()
    print("'dog bites man' against 'man bites dog': how much the answer for 'bites' differs")
    print(f"  without positions {differences[False]:.6f}\n  with positions    {differences[True]:.6f}\n")

    table = sinusoids(np.arange(60), D)
    print("60 positions (left to right), the cosines of 16 speeds (fast ones above):")
    print(draw(table[:, 1::2].T[::2]))

    print("\nThe product of position 0 with position d, and of position 40 with position 40 + d:")
    for d in (0, 1, 2, 4, 8, 16):
        product, later = table[0] @ table[d], table[40] @ table[40 + d] if 40 + d < 60 else np.nan
        print(f"  d = {d:2}: {product:6.2f} {later:6.2f}  {'#' * round(product)}")

    moved = sinusoids(np.arange(1000), D) @ shift_rotation(3, D)
    error = np.abs(moved - sinusoids(np.arange(3, 1003), D)).max()
    print(f"\nOne matrix moves 1,000 positions by 3; the worst number is wrong by {error:.1e}.")

    assert differences[False] < 1e-12 < 0.01 < differences[True]
    assert np.allclose(np.diag(table @ table.T), D / 2)
    assert np.allclose(table[0] @ table[16], table[40] @ table[56])
    assert error < 1e-10
    assert np.allclose(shift_rotation(3, D) @ shift_rotation(-3, D), np.eye(D))
    assert np.allclose(sinusoids([1], 4), [[np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)]])


if __name__ == "__main__":
    main()
