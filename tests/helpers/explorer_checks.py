"""Check of the attention explorer for mutants: packed weights are those of the maps."""

import importlib

import numpy as np


def packed_weights():
    views = importlib.import_module("transformer_jax.explorer.views")
    pack = importlib.import_module("transformer_jax.explorer.pack")
    half = np.tril(np.ones((5, 5), bool))
    random = np.random.default_rng(0).uniform(size=(2, 3, 5, 5)).astype(np.float32)
    for is_causal, weights in ((True, random * half), (False, random)):
        weights = weights / weights.sum(-1, keepdims=True)
        stored = pack.pack_weights(views.Map("self", "", "text", "text", is_causal, 3, weights))
        np.testing.assert_allclose((stored / 255.0) ** 2, weights[..., half] if is_causal else weights, atol=0.004)
