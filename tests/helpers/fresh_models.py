"""Small models of the package as it is imported at the moment of the call, for checks of mutants."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

V = 13


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def make(name, scale=0.5, **changes):
    """A model of one layer (or two where `num_layers` says so) and its parameters, from the package as it is now."""
    models, config = (importlib.import_module(f"transformer_jax.{name}") for name in ("models", "config"))
    sizes = dict(vocab_size=V, max_len=11, num_layers=1, d_model=7, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=11)
    config = config.TransformerConfig(**sizes | {"positions": "rotary"} | changes)
    if name == "Seq2Seq":
        model = models.Seq2Seq(models.Seq2SeqConfig(config, config))
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3), int), jnp.zeros((2, 3), int))
    else:
        model = getattr(models, name)(config)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3), int))
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(tree, [scale * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    return model, params, config
