"""Kinds of KV cache, and the one that a model needs: CACHES, make_cache, make_rolling_cache."""

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.kv_cache_full import FullCache
from transformer_jax.nn.kv_cache_linear import LinearCache
from transformer_jax.nn.kv_cache_rolling import RollingCache
from transformer_jax.nn.positions import POSITIONS
from transformer_jax.nn.rope_scaling import LENGTH_DEPENDENT

CACHES: dict[str, type[KVCache]] = {  # beams get theirs from `expand`
    "full": FullCache,
    "rolling": RollingCache,
    "linear": LinearCache,
}


def make_cache(config: TransformerConfig, batch_size: int, capacity: int, extra_slots: int = 0) -> KVCache:
    """Empty KV cache for `batch_size` rows of at most `capacity` slots, padding included.

    Linear attention keeps a state of constant size, so its cache has no slots and is never full.

    Args:
      extra_slots: more slots, for tokens that are removed again: rejected drafts.
    Raises:
      UserError: capacity above model.max_len.
    """
    if capacity > config.max_len:
        raise UserError(f"cache capacity={capacity}: must be at most model.max_len={config.max_len}.")
    kind = "linear" if config.attention == "linear" else "full"
    return CACHES[kind].empty(config, batch_size, capacity + extra_slots)


def make_rolling_cache(config: TransformerConfig, batch_size: int, max_new: int) -> KVCache:
    """Empty rolling cache, for a model with a sliding window and texts of any length, also past max_len.

    Linear attention gets its state, which has constant size anyway.

    Args:
      max_new: maximum number of tokens in one call of `extend`; the cache has window + max_new - 1 slots.
    Raises:
      UserError: the model cannot decode past max_len (see `overflow_error`); max_new below 1.
    """
    if error := overflow_error(config):
        raise UserError(error)
    if max_new < 1:
        raise UserError(f"max_new={max_new}: must be at least 1.")
    kind = "linear" if config.attention == "linear" else "rolling"
    return CACHES[kind].empty(config, batch_size, config.window + max_new - 1)


def make_row_cache(config: TransformerConfig, batch_size: int, capacity: int) -> KVCache:
    """Empty KV cache whose rows have slots of their own, so that one may start again while the others continue.

    Its rows, of at most `capacity` tokens, can be cleared, taken out and inserted: continuous batching.
    """
    kind = "linear" if config.attention == "linear" else "rolling"
    return CACHES[kind].empty(config, batch_size, capacity + config.window)  # so that no prompt is too long for a call


def overflow_error(config: TransformerConfig) -> str | None:
    """Return an error message if this config cannot decode past max_len in constant memory, else None."""
    if config.attention != "linear" and not config.window:
        pattern = f"model.layer_pattern={config.layer_pattern!r}: has global layers, in which"
        return (
            f"{pattern if config.layer_pattern else 'model.window=0:'} every token attends to all before it, so tokens "
            "past the context have no slots. Take on_overflow=re-prefill, or a model with a window in every layer or "
            "with linear attention."
        )
    if config.positions == "rotary" and config.rope_scaling in LENGTH_DEPENDENT:
        return (
            f"model.rope_scaling={config.rope_scaling!r}: rotates by the length of a text, which a rolling cache reads "
            "in pieces. Take on_overflow=re-prefill, or another scaling."
        )
    scheme = POSITIONS[config.positions]
    if scheme.is_learned or scheme.vectors:
        continuing = [name for name, other in POSITIONS.items() if not (other.is_learned or other.vectors)]
        return (
            f"model.positions={config.positions!r}: end with the context, {config.max_len} tokens. Take "
            f"on_overflow=re-prefill, or a model whose positions continue: {', '.join(continuing)}."
        )
    return None
