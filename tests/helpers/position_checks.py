"""Checks of position schemes that have to notice the bugs of mutants.py, see mutant_checks.py."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from helpers.fresh_models import normal


def scores(positions, **changes):
    """(q, k, query positions, key positions) -> scores, with the scheme alone."""
    attn, masks, config, scheme = (
        importlib.import_module(f"transformer_jax.{name}")
        for name in ("nn.attention", "nn.masks", "config", "nn.positions")
    )
    config = config.TransformerConfig(head_dim=8, positions=positions, num_heads=6, **changes)
    scheme = scheme.POSITIONS[positions]

    def fn(q, k, of_q, of_k):
        q, k = (scheme.rotate(x, at, config, config.layer(0)) for x, at in ((q, of_q), (k, of_k)))
        mask = masks.Mask(query_positions=of_q, key_positions=of_k)
        return attn.attention_scores(q, k, mask, attn.AttentionOptions(scale=0.3))

    return fn


def positions(**changes):
    importlib.import_module("transformer_jax.testing").check_positions(scores(**changes))
    if changes.get("rope_layout") == "pairs":  # the same angles, so a head in another order
        q, at = normal(0, 2, 3, 1, 8), np.arange(6).reshape(2, 3)
        halves = scores(positions="rotary")(q, q, at, at)
        order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
        paired = scores(**changes)(q[..., order], q[..., order], at, at)
        np.testing.assert_allclose(paired, halves, atol=1e-5)


def rope():
    """Rows of 3 and of 6 tokens, and an original context of 3: only the second gets the long factors."""
    config, scheme = (importlib.import_module(f"transformer_jax.{name}") for name in ("config", "nn.positions"))
    x, at = normal(0, 2, 3, 1, 4), np.arange(6).reshape(2, 3)
    factors = {"rope_short_factors": "1,1", "rope_long_factors": "3,3", "rope_attention_factor": 1.0}
    scaled = config.TransformerConfig(head_dim=4, rope_scaling="longrope", rope_original_max_len=3, **factors)
    plain = config.TransformerConfig(head_dim=4)
    for row, factor in ((0, 1.0), (1, 3.0)):
        expected = scheme.rotary(x[row : row + 1], at[row : row + 1] / factor, plain, plain.layer(0))[0]
        np.testing.assert_allclose(scheme.rotary(x, at, scaled, scaled.layer(0))[row], expected, atol=1e-5)


def distance_bias(name, params, is_causal=True, **changes):
    module = importlib.import_module("transformer_jax.nn.positions")
    masks, config = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.masks", "config"))
    bias = module.POSITIONS[name].bias(config.TransformerConfig(positions=name, **changes)).apply(params, is_causal)
    return np.asarray(bias.block(masks.Mask(), 0, 4, 0, 4))[0]


def alibi():
    bias = distance_bias("alibi", {}, num_heads=2, d_model=4)
    np.testing.assert_allclose(bias[:, 3, 0], [-3 / 16, -3 / 256])


def t5():
    table = normal(0, 4, 2)
    params = {"params": {"embedding": table}}
    bias = distance_bias("t5", params, num_heads=2, d_model=4, relative_buckets=4, relative_max_distance=8)
    np.testing.assert_allclose(bias[:, 1, 0], table[1], rtol=1e-6)
    np.testing.assert_allclose(bias[:, 0, 1], table[0], rtol=1e-6)


def shaw():
    attend, relative = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.attention", "nn.positions"))
    q = normal(0, 2, 3, 1, 4)
    vectors = relative.Relative(jnp.zeros((3, 4)), jnp.ones((3, 4)))
    fn = jax.jit(attend.attend)
    np.testing.assert_allclose(fn(q, q, q, relative=vectors), fn(q, q, q) + 1.0, atol=1e-5)
