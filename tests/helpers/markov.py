"""A toy model for decoding: the logits after a token are the token's row of a table."""

import jax
import jax.numpy as jnp
import numpy as np

B, V, PAD, EOS, MAX_NEW = 5, 7, 0, 2, 11
TABLE = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32) * 2
TABLE[:, PAD] = -1e9
PROMPTS = np.array([[1, 3, 4], [0, 0, 5], [0, 6, 1], [3, 0, 0], [4, 5, 0]])  # padded on either side
KEYS = jax.random.split(jax.random.key(0), B)


def markov_step(table, tokens, is_token, last):
    """Step whose cache is the last token of each row."""
    T = tokens.shape[1]
    index = T - 1 - jnp.argmax(is_token[:, ::-1], axis=1)
    last = jnp.where(jnp.any(is_token, axis=1), tokens[jnp.arange(len(tokens)), index], last)
    return table[last], last
