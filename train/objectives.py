"""What a model is trained to do: (apply, batch) -> (loss_sum, weight_sum).

Sums, not means: micro-batches and devices may hold different numbers of real targets, and only sums can
be added before they are divided.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def causal_lm(apply: Callable, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Predict each token from those before it.

    Args:
      apply: tokens [B, T] -> logits [B, T, V].
      batch: `tokens` [B, T + 1] int, `is_token` [B, T + 1] bool. Padding stands on the right, where a causal
        model cannot see it, so it needs no mask; it only never counts as a target.
    Returns:
      The sum of the negative log-likelihoods, in nats, and the number of targets.
    """
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    is_target = batch["is_token"][:, 1:]
    nats = optax.softmax_cross_entropy_with_integer_labels(apply(inputs), targets)
    return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32)
