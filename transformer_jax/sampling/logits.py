"""What is done to the next token's logits before one is drawn: pure functions [B, V] -> [B, V].

A token that is ruled out gets finfo.min: finite, so that nothing becomes NaN, and of probability 0.
"""

import jax
import jax.numpy as jnp

_RULED_OUT = jnp.finfo(jnp.float32).min


def temperature(logits: jax.Array, value: float | jax.Array) -> jax.Array:
    """Divide by `value`: below 1 sharpens the distribution, above 1 flattens it."""
    return logits / value


def rule_out(logits: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
    """None of `tokens` may come."""
    return logits.at[:, jnp.array(tokens, jnp.int32)].set(_RULED_OUT)


def only(logits: jax.Array, token: int) -> jax.Array:
    """Nothing but `token` may come."""
    return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, _RULED_OUT)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keep the k most likely tokens of each row (exactly k: ties go to the smaller id). Fan et al. 2018."""
    _, kept_ids = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    rows = jnp.arange(logits.shape[0])[:, None]
    is_kept = jnp.zeros(logits.shape, bool).at[rows, kept_ids].set(True)
    return jnp.where(is_kept, logits, _RULED_OUT)


def top_p(logits: jax.Array, p: float | jax.Array) -> jax.Array:
    """Keep the smallest set of most likely tokens whose probability is at least p. Holtzman et al. 2019.

    The most likely token is always kept; of equally likely ones the smaller ids come first.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probability = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    # A token stays if those before it do not yet reach p. The first has nothing before it.
    is_kept_in_order = (jnp.cumsum(probability, axis=-1) - probability < p).at[:, 0].set(True)
    rows = jnp.arange(logits.shape[0])[:, None]
    is_kept = jnp.zeros(logits.shape, bool).at[rows, order].set(is_kept_in_order)
    return jnp.where(is_kept, logits, _RULED_OUT)
