"""Attention: the pure function `attend`, its backends (reference, xla, blockwise, cudnn), and the `Attention` module.

Two letters beside the glossary's: R = B K, a batch row and one of its key-value heads; M = G T, all queries that
share a key-value head. C indexes the clipped distances of relative positions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import kv_cache as kv
from transformer_jax.nn import linear_attention
from transformer_jax.nn.attention_blockwise import attend_in_blocks
from transformer_jax.nn.attention_cpu import attend_in_slices
from transformer_jax.nn.attention_cudnn import attend_by_cudnn, why_not
from transformer_jax.nn.dropout import drop
from transformer_jax.nn.layers import Dense, einsum_float32, make_qk_norm, output_std
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, DenseBias, Relative, ScoreBias

SMALLEST = jnp.finfo(jnp.float32).min


class AttentionOptions(NamedTuple):
    """Everything that changes attention besides queries, keys, values and the mask."""

    bias: ScoreBias | None = None
    scale: float = 1.0
    softcap: float = 0.0
    relative: Relative | None = None
    dropout_rate: float = 0.0
    dropout_key: jax.Array | None = None

    def requested(self) -> set[str]:
        """Names of the options that a backend must support."""
        in_use = {
            "bias": self.bias is not None,
            "softcap": bool(self.softcap),
            "relative": self.relative is not None,
            "dropout": self.dropout_key is not None,
        }
        return {name for name, is_in_use in in_use.items() if is_in_use}


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask | jax.Array | None = None,
    bias: ScoreBias | jax.Array | None = None,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    relative: Relative | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Scaled dot-product attention: softmax(q k^T / sqrt(H)) v. Vaswani et al. 2017, equation 1.

    With fewer key-value heads than query heads, K < N, each group of G = N // K consecutive query heads shares one
    (grouped-query attention, Ainslie et al. 2023). The softmax is in float32. A query without any visible key gets 0,
    with finite gradients.

    Args:
      q_BTNH: queries; k_BSKH, v_BSKH: keys and values.
      mask: a Mask, or bool [B or 1, T or 1, S], True: may attend. None: all keys.
      bias: added to the scores: an array [B or 1, N or 1, T, S], or a ScoreBias (positions.py).
      scale: factor of the products; 0: 1 / sqrt(H).
      softcap: scaled products become cap * tanh(products / cap), before bias and mask; 0: unchanged.
        Gemma Team 2024, section 2.
      relative: vectors for distances, added to keys and values. Shaw et al. 2018, equations 3 and 4.
      dropout_rate: share of the attention weights to drop, with `dropout_key`.
      backend: a name in BACKENDS, or "auto": the fastest that supports the other arguments.
    Returns:
      [B, T, N, H], in the type of the values.
    Raises:
      UserError: the backend is unknown, or does not support an argument.
    """
    mask = mask if isinstance(mask, Mask) else Mask(may_attend=mask)
    options = _make_options(q_BTNH, bias, scale, softcap, relative, dropout_rate, dropout_key)
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask, options, backend)


def _make_options(q_BTNH, bias=None, scale=0.0, softcap=0.0, relative=None, dropout_rate=0.0, dropout_key=None):
    bias = bias if bias is None or hasattr(bias, "block") else DenseBias(jnp.asarray(bias))
    return AttentionOptions(bias, scale or q_BTNH.shape[-1] ** -0.5, softcap, relative, dropout_rate, dropout_key)


def _attend(q_BTNH, k_BSKH, v_BSKH, mask: Mask, options: AttentionOptions, backend: str) -> jax.Array:
    requested = options.requested()
    if backend == "auto":
        backend = _fastest_backend(q_BTNH, k_BSKH, v_BSKH, mask, requested)
    chosen = choose(BACKENDS, backend, "backend")
    missing = requested - chosen.supports
    if missing:
        raise UserError(unsupported(backend, missing))
    return chosen.function(q_BTNH, k_BSKH, v_BSKH, mask, options)


def attention_scores(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, options: AttentionOptions) -> jax.Array:
    """Attention scores before the mask, [B, N, T, S] float32: scaled q k^T, relative vectors, soft-cap and bias."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BNTH = (q_BTNH * options.scale).swapaxes(1, 2)  # G consecutive query heads share a key-value head
    scores = einsum_float32("RMH,RSH->RMS", q_BNTH.reshape(B * K, -1, H), kv.by_head(k_BSKH))
    scores_BNTS = scores.reshape(B, N, T, S)
    if options.relative is not None:
        scores_BNTC = jnp.einsum("BTNH,CH->BNTC", q_BTNH * options.scale, options.relative.keys)
        index_BTS = jnp.broadcast_to(options.relative.index(mask, T, S), (B, T, S))
        scores_BNTS += jnp.take_along_axis(scores_BNTC, index_BTS[:, None], axis=-1)
    if options.softcap:
        scores_BNTS = options.softcap * jnp.tanh(scores_BNTS / options.softcap)
    if options.bias is not None:
        scores_BNTS += options.bias.block(mask, 0, T, 0, S)
    return scores_BNTS


def attention_weights(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, options: AttentionOptions) -> jax.Array:
    """Attention weights, the softmax of the masked scores, [B, N, T, S] float32.

    The weights of a query sum to 1, or are all 0 if it has no visible key.
    """
    scores_BNTS = attention_scores(q_BTNH, k_BSKH, mask, options)
    may_attend_BTS = mask.block(0, q_BTNH.shape[1], 0, k_BSKH.shape[1])
    if may_attend_BTS is None:
        return jax.nn.softmax(scores_BNTS, axis=-1)
    # finfo.min, not -inf: a row of -inf alone has no softmax. Such a row becomes uniform, and then 0.
    may_attend = may_attend_BTS[:, None]
    weights_BNTS = jax.nn.softmax(jnp.where(may_attend, scores_BNTS, SMALLEST), axis=-1)
    return jnp.where(may_attend, weights_BNTS, 0.0)


def _reference(q_BTNH, k_BSKH, v_BSKH, mask, options):
    weights_BNTS = attention_weights(q_BTNH, k_BSKH, mask, options)
    if options.dropout_key is not None:
        weights_BNTS = drop(weights_BNTS, options.dropout_rate, options.dropout_key)
    return weighted_values(weights_BNTS, v_BSKH, mask, options)


def weighted_values(weights_BNTS: jax.Array, v_BSKH: jax.Array, mask: Mask, options: AttentionOptions) -> jax.Array:
    """Output of the heads, [B, T, N, H]: the mean of the values, and of relative vectors, with attention weights."""
    B, N, T, S = weights_BNTS.shape
    K, H = v_BSKH.shape[2:]
    weights_BNTS = weights_BNTS.astype(v_BSKH.dtype)
    out = jnp.einsum("RMS,RSH->RMH", weights_BNTS.reshape(B * K, -1, S), kv.by_head(v_BSKH))
    out = out.reshape(B, N, T, H).swapaxes(1, 2)
    if options.relative is not None:
        index_BTS = jnp.broadcast_to(options.relative.index(mask, T, S), (B, T, S))
        vectors_BTSH = options.relative.values[index_BTS].astype(v_BSKH.dtype)  # so the gradient's sums are float32
        out += jnp.einsum("BNTS,BTSH->BTNH", weights_BNTS, vectors_BTSH)
    return out


def _xla(q_BTNH, k_BSKH, v_BSKH, mask, options):
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    is_causal, rest = mask.split_causality(T, S)  # as a flag: then the masked half is skipped
    may_attend = rest.block(0, T, 0, S)
    return attend_in_slices(q_BTNH, k_BSKH, v_BSKH, may_attend, is_causal, options.scale)


def _blockwise(q_BTNH, k_BSKH, v_BSKH, mask, options):
    return attend_in_blocks(q_BTNH, k_BSKH, v_BSKH, mask, options.bias, options.scale, options.softcap)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, mask, options):
    return attend_by_cudnn(q_BTNH, k_BSKH, v_BSKH, mask, options.bias, options.scale)


class Backend(NamedTuple):
    """One implementation of attention, and the options that it supports beside any mask."""

    function: Callable
    supports: frozenset[str] = frozenset()


BACKENDS = {
    "reference": Backend(_reference, frozenset({"bias", "softcap", "relative", "dropout"})),  # the formula
    "xla": Backend(_xla),  # fast on a CPU
    "blockwise": Backend(_blockwise, frozenset({"bias", "softcap"})),  # memory linear in T
    "cudnn": Backend(_cudnn, frozenset({"bias"})),  # NVIDIA's kernels, for float16 and bfloat16
}
# Scores of one head from which on blockwise needs so much less memory that it is also the fastest. Measured on a CPU;
# on a GPU or a TPU, where weights [B, N, T, S] are traffic, an assumption.
MANY_SCORES = {"cpu": 2**22, "gpu": 2**20, "tpu": 2**20}


def _fastest_backend(q_BTNH, k_BSKH, v_BSKH, mask: Mask, requested: set[str]) -> str:
    T = q_BTNH.shape[1]
    S = k_BSKH.shape[1]
    platform = jax.default_backend()
    order: tuple[str, ...] = ("reference",)
    if T > 1 and not requested and mask.as_flags(T, S) is not None and not why_not(q_BTNH, k_BSKH, v_BSKH):
        order = ("cudnn",)
    elif T * S >= MANY_SCORES[platform]:
        order = ("blockwise", "reference")
    elif platform == "cpu" and T > 1:  # a single query gains nothing from slices
        order = ("xla", "reference")
    return next(name for name in order if requested <= BACKENDS[name].supports)


def unsupported(backend: str, missing: set[str]) -> str:
    """Error message: options that a backend does not support, and a backend that does."""
    able = [name for name, candidate in BACKENDS.items() if missing <= candidate.supports]
    return f"backend={backend!r}: has no {' and no '.join(sorted(missing))}. Take 'auto' or {able[0]!r}."


class Attention(nn.Module):
    """Multi-head attention with projections: self-attention, or cross-attention to an encoded source."""

    config: TransformerConfig
    is_cross: bool = False  # keys and values come from another sequence, which has no order relative to the queries
    layer: int = 0  # its index: for the KV cache, and for the settings that differ by layer
    remat: bool = False  # compute all between projections again for the gradient, in place of keeping it

    def setup(self):
        config = self.config
        self.layer_config = config.layer(self.layer)
        dense = functools.partial(Dense, use_bias=config.qkv_bias, init_std=config.init_std, dtype=config.dtype)
        self.query = dense((config.num_heads, config.head_dim))
        self.key = dense((config.num_kv_heads, config.head_dim))
        self.value = dense((config.num_kv_heads, config.head_dim))
        self.out = dense((config.d_model,), num_in=2, use_bias=config.out_bias, init_std=output_std(config))
        self.query_norm = make_qk_norm(config)
        self.key_norm = make_qk_norm(config)
        has_positions = self.layer_config.has_positions and not self.is_cross
        self.scheme = choose(POSITIONS, config.positions if has_positions else "none", "model.positions")
        if self.scheme.is_relative:
            shape = (2 * config.relative_max_distance + 1, config.head_dim)
            self.relative_keys = self.param("relative_keys", nn.initializers.normal(config.init_std), shape)
            self.relative_values = self.param("relative_values", nn.initializers.normal(config.init_std), shape)

    def keys_values(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Project a source [B, S, D] to keys and values [B, S, K, H], without positions."""
        return self.key_norm(self.key(source)), self.value(source)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        mask: Mask,
        bias: ScoreBias | jax.Array | None = None,
        cache: kv.KVCache | None = None,
        source: kv.KeysValues | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, kv.KVCache | None]:
        """Return [B, T, D] and, if a KV cache came in, the cache with the new keys and values.

        Cross-attention attends to a `source`, the source's `keys_values`; W consecutive rows of x (the beams of a row)
        may share one of its rows. inference/recording.py sees `_attend` and its arguments.
        """
        config = self.config
        q = self.query_norm(self.query(x))
        B, T, N, H = q.shape
        if self.is_cross:
            assert source is not None and mask.is_key is not None
            k, v = source.read(len(mask.is_key), q.dtype)
            q = q.reshape(len(k), -1, N, H)  # beams share a source: their queries become one row
            return self.out(self._attend(q, k, v, mask, bias, deterministic).reshape(B, T, N, H)), cache
        k, v = self.keys_values(x)
        if self.scheme.rotate:
            positions = mask.query_positions_at(0, T)
            q = self.scheme.rotate(q, positions, config, self.layer_config)
            k = self.scheme.rotate(k, positions, config, self.layer_config)
        if config.attention == "linear":
            if bias is not None:
                raise UserError(linear_attention.unsupported("bias"))
            attend = jax.checkpoint(self._attend_linearly) if self.remat else self._attend_linearly
            out, cache = attend(q, k, v, mask, cache)
            return self.out(out), cache
        if cache is not None:
            cache = cache.write(self.layer, k, v)
            k, v = cache.read(self.layer, q.dtype)
        return self.out(self._attend(q, k, v, mask, bias, deterministic)), cache

    def options(self, q: jax.Array, bias: ScoreBias | jax.Array | None, deterministic: bool) -> AttentionOptions:
        """Options of `attend` for queries [B, T, N, H]."""
        config = self.config
        drops = config.dropout_rate > 0 and not deterministic
        return _make_options(
            q,
            bias,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            relative=Relative(self.relative_keys, self.relative_values) if self.scheme.is_relative else None,
            dropout_rate=config.dropout_rate if drops else 0.0,
            dropout_key=self.make_rng("dropout") if drops else None,
        )

    def _attend(self, q, k, v, mask, bias, deterministic):
        options = self.options(q, bias, deterministic)
        attend = functools.partial(_attend, mask=mask, options=options, backend=self.config.backend)
        return (jax.checkpoint(attend) if self.remat else attend)(q, k, v)

    def _attend_linearly(self, q, k, v, mask, cache):
        if mask.query_segments is not None or mask.may_attend is not None:
            raise UserError(
                "attention='linear': keeps one state for a row, so it takes no segments and no explicit mask. "
                "Take attention='softmax'."
            )
        if not mask.is_causal:
            return linear_attention.attend_linearly(q, k, v, mask.is_key), cache
        state = linear_attention.empty_state(len(q), *k.shape[2:])
        if cache is not None:
            state = linear_attention.LinearState(*cache.read(self.layer, q.dtype))
        out, state = linear_attention.extend_linearly(q, k, v, state, mask.is_key)
        return out, None if cache is None else cache.write(self.layer, *state)
