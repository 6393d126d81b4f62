"""Attention: `attend`, the formula as a pure function, and `Attention`, the module with its projections."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax import cache as kv
from transformer_jax import masks
from transformer_jax.config import TransformerConfig, UserError, choose
from transformer_jax.layers import Dense, RMSNorm, output_std
from transformer_jax.positions import POSITIONS
from transformer_jax.sliced import attend_in_slices


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    may_attend_BTS: jax.Array | None = None,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the keys that each query may attend. Vaswani et al. 2017, equation 1.

    With fewer key-value heads than query heads, K < N, G = N // K queries in a row share one (Ainslie et
    al. 2023). The softmax is in float32. A query that may attend nothing gets 0, with finite gradients.

    Args:
      q_BTNH: queries; k_BSKH, v_BSKH: keys and values.
      may_attend_BTS: bool, [B or 1, T or 1, S]; True: may attend. None: all of them.
      is_causal: query t may attend keys 0 to t only; T must equal S. Said here rather than in the mask, it
        lets a backend skip the hidden half.
      dropout_rate: share of the attention weights to drop, with `dropout_key`.
      backend: a name in BACKENDS, or "auto": slices for a training or scoring pass on a CPU, else the formula.
    Returns:
      [B, T, N, H], in the type of the values.
    """
    if backend == "auto":
        # One query needs no slices, and dropout is drawn for the weights as a whole.
        suits_slices = jax.default_backend() == "cpu" and q_BTNH.shape[1] > 1 and dropout_key is None
        backend = "slices" if suits_slices else "reference"
    attention = choose(BACKENDS, backend, "backend")
    return attention(q_BTNH, k_BSKH, v_BSKH, may_attend_BTS, is_causal, dropout_rate, dropout_key)


def _reference(q_BTNH, k_BSKH, v_BSKH, may_attend_BTS, is_causal, dropout_rate, dropout_key):
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    may_attend = jnp.ones((1, T, S), bool) if may_attend_BTS is None else may_attend_BTS
    may_attend = (may_attend & masks.causal(T, S) if is_causal else may_attend)[:, None, None]
    # finfo.min, not -inf: a row of -inf alone has no softmax. Such a row becomes uniform, and then 0.
    scores_BKGTS = jnp.where(may_attend, scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jnp.where(may_attend, jax.nn.softmax(scores_BKGTS, axis=-1), 0.0)
    if dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, weights_BKGTS.shape)
        weights_BKGTS = jnp.where(keep, weights_BKGTS / (1.0 - dropout_rate), 0.0)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return out_BTKGH.reshape(B, T, N, H)


def _slices(q_BTNH, k_BSKH, v_BSKH, may_attend_BTS, is_causal, dropout_rate, dropout_key):
    if dropout_key is not None:
        raise UserError(f"dropout_rate={dropout_rate}: backend='slices' has no dropout. Take backend='reference'.")
    return attend_in_slices(q_BTNH, k_BSKH, v_BSKH, may_attend_BTS, is_causal)


BACKENDS = {"reference": _reference, "slices": _slices}


class Attention(nn.Module):
    """Self-attention: project to queries, keys and values, attend, project back."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        positions: jax.Array,  # [B, T]
        mask: masks.Mask,
        layer_cache: kv.KVCache | None = None,
        slot: jax.Array | int = 0,
        deterministic: bool = True,
    ) -> tuple[jax.Array, kv.KVCache | None]:
        """Returns [B, T, D] and, if a cache came in, the cache with the new keys and values from `slot` on."""
        config = self.config
        dense = functools.partial(Dense, use_bias=config.use_bias, init_std=config.init_std, dtype=config.dtype)
        turn = choose(POSITIONS, config.positions, "model.positions").turn
        q = dense((config.num_heads, config.head_dim), name="query")(x)
        k = dense((config.num_kv_heads, config.head_dim), name="key")(x)
        if config.qk_norm:  # Dehghani et al. 2023, section 2: scores cannot grow without bound
            q = RMSNorm(config.norm_epsilon, name="query_norm")(q)
            k = RMSNorm(config.norm_epsilon, name="key_norm")(k)
        q, k = turn(q, positions, config.rope_theta), turn(k, positions, config.rope_theta)
        v = dense((config.num_kv_heads, config.head_dim), name="value")(x)
        if layer_cache is not None:
            layer_cache = kv.write(layer_cache, k, v, slot)
            k, v = layer_cache
        drops = config.dropout_rate > 0 and not deterministic
        out = attend(
            q, k, v, mask.may_attend, mask.is_causal,
            dropout_rate=config.dropout_rate if drops else 0.0,
            dropout_key=self.make_rng("dropout") if drops else None,
        )  # fmt: skip
        out = dense((config.d_model,), num_in=2, init_std=output_std(config), name="out")(out)
        return out, layer_cache
