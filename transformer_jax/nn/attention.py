"""Attention: `attend`, the formula as a pure function, its backends, and `Attention`, the module with projections."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import kv_cache as kv
from transformer_jax.nn import linear_attention
from transformer_jax.nn.attention_blockwise import attend_in_blocks
from transformer_jax.nn.attention_cpu import attend_in_slices
from transformer_jax.nn.dropout import drop
from transformer_jax.nn.layers import Dense, RMSNorm, output_std
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, DenseBias, Relative

SMALLEST = jnp.finfo(jnp.float32).min


class Extras(NamedTuple):
    """What attention may have besides queries, keys, values and a mask."""

    bias: Any = None  # with `block`, as positions.DenseBias
    scale: float = 1.0
    softcap: float = 0.0
    relative: Relative | None = None
    dropout_rate: float = 0.0
    dropout_key: jax.Array | None = None


def _extras(q_BTNH, bias, scale, softcap, relative, dropout_rate=0.0, dropout_key=None):
    bias = bias if bias is None or hasattr(bias, "block") else DenseBias(jnp.asarray(bias))
    return Extras(bias, scale or q_BTNH.shape[-1] ** -0.5, softcap, relative, dropout_rate, dropout_key)


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask | jax.Array | None = None,
    bias: Any = None,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    relative: Relative | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the keys that each query may attend. Vaswani et al. 2017, equation 1.

    With fewer key-value heads than query heads, K < N, G = N // K queries in a row share one (Ainslie et
    al. 2023). The softmax is in float32. A query that may attend nothing gets 0, with finite gradients.

    Args:
      q_BTNH: queries; k_BSKH, v_BSKH: keys and values.
      mask: a Mask, or bool [B or 1, T or 1, S], True: may attend. None: all keys.
      bias: added to the scores: an array [B or 1, N or 1, T, S], or one made from distances (positions.py).
      scale: of the products; 0: 1 / sqrt(H).
      softcap: scaled products become cap * tanh(products / cap), before bias and mask; 0: they stay.
        Gemma Team 2024, section 2.
      relative: vectors for distances, added to keys and values. Shaw et al. 2018, equations 3 and 4.
      dropout_rate: share of the attention weights to drop, with `dropout_key`.
      backend: a name in BACKENDS, or "auto": the fastest that can do what is asked.
    Returns:
      [B, T, N, H], in the type of the values.
    Raises:
      UserError: the backend is unknown, or cannot do what is asked.
    """
    mask = mask if isinstance(mask, Mask) else Mask(may_attend=mask)
    extras = _extras(q_BTNH, bias, scale, softcap, relative, dropout_rate, dropout_key)
    asked = {
        "bias": bias is not None,
        "softcap": bool(softcap),
        "relative": relative is not None,
        "dropout": dropout_key is not None,
    }
    asked = {name for name, is_asked in asked.items() if is_asked}
    if backend == "auto":
        backend = _fastest(q_BTNH.shape[1], k_BSKH.shape[1], asked)
    chosen = choose(BACKENDS, backend, "backend")
    if asked - chosen.can:
        raise UserError(cannot(backend, asked - chosen.can))
    return chosen.function(q_BTNH, k_BSKH, v_BSKH, mask, extras)


def attention_scores(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, extras: Extras) -> jax.Array:
    """q k^T, scaled, with all that is added to it, before the mask: [B, N, T, S] float32."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BNTH = (q_BTNH * extras.scale).swapaxes(1, 2)  # G queries in a row have one key
    scores = jnp.einsum(
        "XQH,XSH->XQS", q_BNTH.reshape(B * K, -1, H), kv.by_head(k_BSKH), preferred_element_type=jnp.float32
    )
    scores_BNTS = scores.reshape(B, N, T, S)
    if extras.relative is not None:
        per_distance = jnp.einsum("BTNH,MH->BNTM", q_BTNH * extras.scale, extras.relative.keys)
        index_BTS = jnp.broadcast_to(extras.relative.index(mask, T, S), (B, T, S))
        scores_BNTS += jnp.take_along_axis(per_distance, index_BTS[:, None], axis=-1)
    if extras.softcap:
        scores_BNTS = extras.softcap * jnp.tanh(scores_BNTS / extras.softcap)
    if extras.bias is not None:
        scores_BNTS += extras.bias.block(mask, 0, T, 0, S)
    return scores_BNTS


def attention_weights(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, extras: Extras) -> jax.Array:
    """The softmax of the scores, [B, N, T, S] float32: a row sums to 1, or is 0 where nothing may be attended."""
    scores_BNTS = attention_scores(q_BTNH, k_BSKH, mask, extras)
    may_attend_BTS = mask.block(0, q_BTNH.shape[1], 0, k_BSKH.shape[1])
    if may_attend_BTS is None:
        return jax.nn.softmax(scores_BNTS, axis=-1)
    # finfo.min, not -inf: a row of -inf alone has no softmax. Such a row becomes uniform, and then 0.
    may_attend = may_attend_BTS[:, None]
    weights_BNTS = jax.nn.softmax(jnp.where(may_attend, scores_BNTS, SMALLEST), axis=-1)
    return jnp.where(may_attend, weights_BNTS, 0.0)


def _reference(q_BTNH, k_BSKH, v_BSKH, mask, extras):
    B, T, N, _ = q_BTNH.shape
    S, K, H = v_BSKH.shape[1:]
    weights_BNTS = attention_weights(q_BTNH, k_BSKH, mask, extras)
    if extras.dropout_key is not None:
        weights_BNTS = drop(weights_BNTS, extras.dropout_rate, extras.dropout_key)
    weights_BNTS = weights_BNTS.astype(v_BSKH.dtype)
    out = jnp.einsum("XQS,XSH->XQH", weights_BNTS.reshape(B * K, -1, S), kv.by_head(v_BSKH))
    out = out.reshape(B, N, T, H).swapaxes(1, 2)
    if extras.relative is not None:
        index_BTS = jnp.broadcast_to(extras.relative.index(mask, T, S), (B, T, S))
        vectors_BTSH = extras.relative.values.astype(v_BSKH.dtype)[index_BTS]
        out += jnp.einsum("BNTS,BTSH->BTNH", weights_BNTS, vectors_BTSH)
    return out


def _xla(q_BTNH, k_BSKH, v_BSKH, mask, extras):
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    # Causality by name where queries and keys are the same tokens: the hidden half is skipped.
    is_causal = mask.is_causal and isinstance(mask.first_slot, int) and mask.first_slot == 0 and T == S
    may_attend = (mask.replace(is_causal=False) if is_causal else mask).block(0, T, 0, S)
    return attend_in_slices(q_BTNH, k_BSKH, v_BSKH, may_attend, is_causal, extras.scale)


def _blockwise(q_BTNH, k_BSKH, v_BSKH, mask, extras):
    return attend_in_blocks(q_BTNH, k_BSKH, v_BSKH, mask, extras.bias, extras.scale, extras.softcap)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, mask, extras):
    if jax.default_backend() != "gpu":
        raise UserError("backend='cudnn': needs an NVIDIA GPU. Take backend='auto'.")
    (B, T), S = q_BTNH.shape[:2], k_BSKH.shape[1]
    may_attend_BTS = mask.block(0, T, 0, S)
    bias = None if extras.bias is None else extras.bias.block(mask, 0, T, 0, S).astype(q_BTNH.dtype)
    out = jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        bias,
        None if may_attend_BTS is None else may_attend_BTS[:, None],
        scale=extras.scale,
        implementation="cudnn",
    )
    if may_attend_BTS is None:
        return out
    sees_something_BT = jnp.broadcast_to(may_attend_BTS.any(-1), (B, T))
    return jnp.where(sees_something_BT[:, :, None, None], out, 0.0).astype(out.dtype)


class Backend(NamedTuple):
    """One way to compute attention, and what it can do beyond queries, keys, values and any mask."""

    function: Callable
    can: frozenset[str] = frozenset()


BACKENDS = {
    "reference": Backend(_reference, frozenset({"bias", "softcap", "relative", "dropout"})),  # the formula
    "xla": Backend(_xla),  # fast on a CPU
    "blockwise": Backend(_blockwise, frozenset({"bias", "softcap"})),  # memory linear in T
    "cudnn": Backend(_cudnn, frozenset({"bias"})),  # NVIDIA's kernels, for float16 and bfloat16
}
MANY_SCORES = 2**22  # of a head: from 2,048 x 2,048 on, blocks are faster than all else, and need less


def _fastest(T: int, S: int, asked: set[str]) -> str:
    if T * S >= MANY_SCORES:
        order = ("blockwise", "reference")
    elif jax.default_backend() == "cpu" and T > 1:  # one query needs no slices
        order = ("xla", "reference")
    else:
        order = ("reference",)
    return next(name for name in order if asked <= BACKENDS[name].can)


def cannot(backend: str, asked: set[str]) -> str:
    """The line that says so, with the way out."""
    able = [name for name, one in BACKENDS.items() if asked <= one.can]
    return f"backend={backend!r}: has no {' and no '.join(sorted(asked))}. Take 'auto' or {able[0]!r}."


class Attention(nn.Module):
    """Project to queries, keys and values, attend, project back: self-attention, or to a source (cross-attention)."""

    config: TransformerConfig
    is_cross: bool = False  # keys and values are of another sequence, which has no order relative to the queries

    def setup(self):
        config = self.config
        dense = functools.partial(Dense, use_bias=config.use_bias, init_std=config.init_std, dtype=config.dtype)
        self.query = dense((config.num_heads, config.head_dim))
        self.key = dense((config.num_kv_heads, config.head_dim))
        self.value = dense((config.num_kv_heads, config.head_dim))
        self.out = dense((config.d_model,), num_in=2, init_std=output_std(config))
        if config.qk_norm:  # Dehghani et al. 2023, section 2: scores cannot grow without bound
            self.query_norm, self.key_norm = RMSNorm(config.norm_epsilon), RMSNorm(config.norm_epsilon)
        self.scheme = POSITIONS["none"] if self.is_cross else choose(POSITIONS, config.positions, "model.positions")
        if self.scheme.is_relative:
            shape = (2 * config.relative_max_distance + 1, config.head_dim)
            self.relative_keys = self.param("relative_keys", nn.initializers.normal(config.init_std), shape)
            self.relative_values = self.param("relative_values", nn.initializers.normal(config.init_std), shape)

    def keys_values(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of a source [B, S, D], without positions."""
        keys = self.key(source)
        return self.key_norm(keys) if self.config.qk_norm else keys, self.value(source)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        mask: Mask,
        bias: Any = None,
        cache: kv.KVCache | linear_attention.LinearState | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, kv.KVCache | linear_attention.LinearState | None]:
        """Returns [B, T, D] and, if a cache came in, the cache with the new keys and values in the queries' slots.

        For cross-attention the cache holds the source's `keys_values`, and stays as it is; W rows of x in turn may
        share one of its rows. Where the collection "attention" is mutable, `weights` [B, N, T, S] float32 are put
        into it: seeing.py.
        """
        config = self.config
        q = self.query(x)
        q = self.query_norm(q) if config.qk_norm else q
        B, T, *heads = q.shape
        if self.is_cross:
            k, v = cache.read(config.num_kv_heads, q.dtype)
            q = q.reshape(len(k), -1, *heads)  # beams share a source: their queries stand in one row
        else:
            k, v = self.keys_values(x)
            if self.scheme.rotate:
                positions = mask.queries(0, x.shape[1])
                q, k = self.scheme.rotate(q, positions, config), self.scheme.rotate(k, positions, config)
            if config.attention == "linear":
                if bias is not None:
                    raise UserError(linear_attention.cannot("bias"))
                out, cache = self._linear(q, k, v, mask, cache)
                return self.out(out), cache
            if cache is not None:
                cache = kv.write(cache, k, v, mask.first_slot if mask.slots is None else mask.slots)
                k, v = cache.read(config.num_kv_heads, q.dtype)
        drops = config.dropout_rate > 0 and not deterministic
        how = dict(
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            relative=Relative(self.relative_keys, self.relative_values) if self.scheme.is_relative else None,
        )
        # Apart from the backend, which need not have them at any time. While initializing, every collection is mutable.
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.sow("attention", "weights", attention_weights(q, k, mask, _extras(q, bias, **how)))
        out = attend(
            q,
            k,
            v,
            mask,
            bias,
            **how,
            dropout_rate=config.dropout_rate if drops else 0.0,
            dropout_key=self.make_rng("dropout") if drops else None,
            backend=config.backend,
        )
        return self.out(out.reshape(B, T, *heads)), cache

    def _linear(self, q, k, v, mask, state):
        B, T = q.shape[:2]
        if mask.query_segments is not None or mask.may_attend is not None:
            raise UserError("attention='linear': has one state for a row, so no segments and no mask of one's own.")
        is_key = mask.is_key
        if not mask.is_causal:
            return linear_attention.attend_linearly(q, k, v, is_key), state
        start = state or linear_attention.empty_state(B, *k.shape[2:])
        out, new_state = linear_attention.extend_linearly(q, k, v, start, is_key)
        return out, None if state is None else new_state
