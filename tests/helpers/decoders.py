"""Small GPTs of every position scheme, compiled once, with a batch of unequal prompts and a KV cache."""

import functools

import jax
import numpy as np
import pytest

from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.nn.positions import POSITIONS

from .arrays import random_like
from .numpy_gpt import GEMMA

B, T, V, CAPACITY, MAX_LEN = 5, 7, 23, 13, 17
SIZES = dict(vocab_size=V, max_len=MAX_LEN, num_layers=2, d_model=11, num_heads=6, head_dim=4, d_ff=19)
VARIANTS = {
    name: {"positions": name, "num_kv_heads": [6, 1, 2][i % 3], "qk_norm": ["none", "all", "head"][i % 3]}
    for i, name in enumerate(POSITIONS)
}
VARIANTS["layer_pattern"] = GEMMA
variants = pytest.mark.parametrize("variant", VARIANTS)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
RAGGED = np.ones((B, T), bool)  # a full row, two padded on the left, two on the right
RAGGED[1, :3] = RAGGED[2, :6] = RAGGED[3, 4:] = RAGGED[4, 1:] = False


class Decoder:
    """A model with its parameters, and `extend` and `__call__` compiled."""

    def __init__(self, **kwargs):
        self.config = TransformerConfig(**SIZES | kwargs)
        model = GPT(self.config)
        self.params = random_like(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
        self.eager_extend = functools.partial(model.apply, self.params, method="extend")
        self.extend = jax.jit(self.eager_extend, static_argnames="last_only")
        self.full = jax.jit(functools.partial(model.apply, self.params))

    def cache(self, capacity=CAPACITY):
        return make_cache(self.config, B, capacity)

    def in_chunks(self, is_token, cuts, disturb=lambda cache: cache):
        """Logits [B, T, V] of TOKENS read piece by piece; `disturb` may change the cache between the pieces."""
        cache, pieces = self.cache(), []
        for start, end in zip([0, *cuts], [*cuts, T], strict=True):
            logits, cache = self.extend(TOKENS[:, start:end], is_token[:, start:end], disturb(cache))
            pieces.append(logits)
        return np.concatenate(pieces, axis=1), cache


@functools.cache
def decoder(variant):
    return Decoder(**VARIANTS[variant])
