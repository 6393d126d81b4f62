"""Check of a prefix before packed texts, and of a soft prompt before padded texts."""

import functools
import importlib

import jax
import numpy as np

from helpers.fresh_models import V, make, normal

P, T = 2, 5


def prefixes():
    """A text after a prefix has its own logits, whatever is packed beside it; a soft prompt is no padding."""
    models, prefix = (importlib.import_module(f"transformer_jax.models.{name}") for name in ("adapters", "prefix"))
    tokens = np.random.default_rng(3).integers(0, V, (2, T))
    vectors = normal(4, P, 7)

    @functools.partial(jax.jit, static_argnums=0)
    def apply(model, params, *args, **kwargs):
        tree = models.with_adapter(params["params"], {"prefix": vectors})
        return model.apply(prefix.all_variables(model, tree), *args, **kwargs)

    model, params, _ = make("GPT")
    packed = apply(model, params, tokens, segments=np.array([[0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]))
    alone = apply(model, params, np.concatenate([np.roll(tokens[:1], -2, axis=1), tokens[1:]]))
    np.testing.assert_allclose(packed[0, 2:], alone[0, :3], rtol=1e-4, atol=1e-4)
    encoder, params, _ = make("Encoder")
    masked = apply(encoder, params, tokens, np.ones(tokens.shape, bool))
    np.testing.assert_allclose(masked, apply(encoder, params, tokens), rtol=1e-4, atol=1e-4)
