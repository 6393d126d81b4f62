"""Adapters: small arrays beside the parameters of a linear layer or an embedding, which change its result.

The collection "adapters" of a model's variables has a dict at the path of every layer that is adapted:

    lora_in [in, r], lora_out [r, out]   LoRA (Hu et al. 2021, equation 3): the kernel becomes
    scale [1]                            W' = W + scale * lora_in @ lora_out; an embedding has in = V, out = D
    magnitude [out]                      DoRA (Liu et al. 2024, equation 5): column j of W' has magnitude[j] times the
                                         norm that it has in W; NaN, where there are rows: no DoRA
    ia3_in [in], ia3_out [out]           IA3 (Liu et al. 2022, section 3.3): factors of the inputs, or of the outputs
    dropout []                           in training: the share of the inputs of lora_in that are dropped

Axes are flat, as in Dense: D, or N * H. With `rows`, int32 [B], each array has an axis of adapters in front, and row b
of the batch has adapter rows[b].
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.nn.dropout import keep_mask

Adapter = Mapping[str, jax.Array]  # of one layer; {}: none


def of_layer(module: nn.Module) -> Adapter:
    """Return the adapter at the path of a module, with a key if it has dropout; {} if there is none."""
    adapter: Adapter = module.variables.get("adapters", {})
    return {**adapter, "dropout_key": module.make_rng("dropout")} if "dropout" in adapter else adapter


def scale_inputs(adapter: Adapter, x: jax.Array, num_rows: int) -> jax.Array:
    """Scale the inputs [R, in] of `num_rows` sequences, R a multiple of it, by IA3's factors."""
    return _scale(adapter, "ia3_in", x, num_rows)


def scale_outputs(adapter: Adapter, y: jax.Array, num_rows: int) -> jax.Array:
    """Scale the outputs [R, out], bias included, by IA3's factors."""
    return _scale(adapter, "ia3_out", y, num_rows)


def _scale(adapter: Adapter, name: str, x: jax.Array, num_rows: int) -> jax.Array:
    if name not in adapter:
        return x
    return (x * _of_inputs(adapter, name, len(x), num_rows)).astype(x.dtype)


def add_low_rank(adapter: Adapter, x: jax.Array, y: jax.Array, kernel: jax.Array, num_rows: int) -> jax.Array:
    """Turn y = x W, [R, out], into x W' for inputs x [R, in] and the kernel W [in, out] of the layer."""
    if "lora_in" not in adapter:
        return y
    x = _drop(adapter, x.astype(jnp.float32))
    if "rows" in adapter:
        chosen = _rows(adapter, num_rows)
        low = jnp.einsum("btd,bdr->btr", x.reshape(num_rows, -1, x.shape[-1]), adapter["lora_in"][chosen])
        change = jnp.einsum("btr,brf->btf", low, adapter["lora_out"][chosen]).reshape(y.shape)
    else:
        change = (x @ adapter["lora_in"]) @ adapter["lora_out"]
    out = y.astype(jnp.float32) + change * _of_inputs(adapter, "scale", len(x), num_rows)
    if "magnitude" in adapter:
        factors = {**adapter, "magnitude": _column_factors(adapter, kernel)}
        out = out * _of_inputs(factors, "magnitude", len(x), num_rows)
    return out.astype(y.dtype)


def _drop(adapter: Adapter, x: jax.Array) -> jax.Array:
    """Dropout of the inputs of lora_in; the layer itself reads all of them (Hu et al. 2021, appendix D)."""
    if "dropout" not in adapter:
        return x
    rate = adapter["dropout"]
    return jnp.where(keep_mask(adapter["dropout_key"], rate, x.shape), x / (1.0 - rate), 0.0)


def _column_factors(adapter: Adapter, kernel: jax.Array) -> jax.Array:
    """Factors of the columns of W' in DoRA, [..., out]. The norm of W' is a constant for the gradient: section 4.3."""
    kernel = kernel.astype(jnp.float32)
    change = adapter["scale"][..., None] * (adapter["lora_in"] @ adapter["lora_out"])
    norm = jax.lax.stop_gradient(jnp.linalg.norm(kernel + change, axis=-2))
    ratio = jnp.where(jnp.all(change == 0.0, axis=-2), 1.0, jnp.linalg.norm(kernel, axis=-2) / norm)
    factors = adapter["magnitude"] * ratio  # exactly 1 before the first step
    return jnp.where(jnp.isnan(factors), 1.0, factors) if "rows" in adapter else factors


def embed(adapter: Adapter, ids: jax.Array, x: jax.Array) -> jax.Array:
    """Turn the lookup x = E[ids], [B, T, D], into that in the adapted table."""
    if "lora_in" not in adapter:
        return x
    B = len(ids)
    if "rows" in adapter:
        chosen = _rows(adapter, B)
        low = adapter["lora_in"][chosen[:, None], ids]
        change = jnp.einsum("btr,brd->btd", low, adapter["lora_out"][chosen]) * adapter["scale"][chosen][:, None]
    else:
        change = adapter["lora_in"][ids] @ adapter["lora_out"] * adapter["scale"]
    return (x.astype(jnp.float32) + change).astype(x.dtype)


def _of_inputs(adapter: Adapter, name: str, num_inputs: int, num_rows: int) -> jax.Array:
    """Vectors of the adapter for the inputs of a batch, [R, n]; [n] if all sequences have the same one."""
    if "rows" not in adapter:
        return adapter[name]
    return jnp.repeat(adapter[name][_rows(adapter, num_rows)], num_inputs // num_rows, axis=0)


def _rows(adapter: Adapter, num_rows: int) -> jax.Array:
    """Index of the adapter of each sequence, [B]; beams of a sequence follow one another."""
    rows = adapter["rows"]
    return jnp.repeat(rows, num_rows // len(rows))


def merge_weight(layer: Adapter, weight: jax.Array) -> jax.Array:
    """Merge the adapter of a layer into its kernel or embedding, of any number of axes."""
    fan_in = len(layer["lora_in"]) if "lora_in" in layer else len(layer["ia3_in"]) if "ia3_in" in layer else 0
    flat = weight.reshape(fan_in or -1, *(() if fan_in else layer["ia3_out"].shape) or (-1,))
    if "lora_in" in layer:
        change = layer["scale"] * (layer["lora_in"] @ layer["lora_out"])
        factors = _column_factors(layer, flat) if "magnitude" in layer else 1.0
        flat = (flat + change) * factors
    if "ia3_in" in layer:
        flat = flat * layer["ia3_in"][:, None]
    return (flat * layer["ia3_out"] if "ia3_out" in layer else flat).reshape(weight.shape)
