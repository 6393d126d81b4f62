"""Texts of known entropy as places in the alphabet of their truth."""

import numpy as np


def windows(truth, text, length):
    """[B, length] places in the truth's characters, windows that follow each other."""
    symbols = np.array([truth.characters.index(character) for character in text])
    return symbols[: len(symbols) // length * length].reshape(-1, length)
