"""Check of capture and ablation that has to notice the bugs of mutants_layers.py, on the package as it is then."""

import importlib

import jax
import numpy as np

from helpers.fresh_models import V, make


def looking(**changes):
    """Parts of the residual stream sum to it, the last lens is the logits, a mean is that of tokens."""
    tj = importlib.import_module("transformer_jax")
    model, params, config = make("GPT", **changes)
    run = tj.Run(model, params["params"], None, config)
    tokens = np.random.default_rng(0).integers(0, V, (3, 5))
    is_token = np.arange(5) < np.array([[5], [3], [1]])
    key = "block_0/attention/heads"
    found = jax.tree.map(np.array, tj.capture(run, tokens, "*", is_token=is_token))
    parts = sum(value for name, value in found.items() if name == "embed" or name.endswith("/out"))
    np.testing.assert_allclose(parts, found["block_0/residual_after"], atol=1e-4)
    np.testing.assert_allclose(found["block_0/logits"], found["logits"], atol=1e-4)
    found[key][:, :, 1] = found[key][is_token].mean(0)[1]
    expected = tj.patch(run, tokens, {key: found[key]}, is_token=is_token)
    ablated = tj.ablate(run, tokens, [(0, 1)], "mean", is_token=is_token)
    np.testing.assert_allclose(ablated[is_token], expected[is_token], atol=1e-4)
