"""Short training of a small model inside a lesson: AdamW, warmup and cosine, all steps in one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def next_token_loss(apply: Callable, batch: jax.Array) -> jax.Array:
    """Mean cross-entropy of each token given those before it, in nats. batch: tokens [B, T + 1]."""
    logits = apply(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def fit(
    model: Any,
    batches: Any,
    *,
    loss: Callable = next_token_loss,
    peak_lr: float = 3e-3,
    seed: int = 0,
    params: Any = None,
) -> tuple[Any, np.ndarray]:
    """Train a model, one step a batch.

    Args:
      model: a linen module whose `init` takes the tokens that `loss` gives it.
      batches: [steps, B, T + 1] int, or a pytree of arrays whose first axis is the step.
      loss: (apply, batch) -> mean loss, where apply(*inputs) is the model with its parameters.
      params: parameters to start with; None: new ones from the seed.
    Returns:
      Parameters, and the loss before each step, [steps].
    """
    num_steps = len(jax.tree.leaves(batches)[0])
    warmup = max(1, num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak_lr, warmup, num_steps, end_value=peak_lr / 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    if params is None:
        params = new_params(model, jax.tree.map(lambda x: x[0], batches), loss, seed)

    def step(state, batch):
        params, opt_state = state
        value, grads = jax.value_and_grad(lambda params: loss(_bind(model, params), batch))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    run = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))
    (params, _), losses = run((params, optimizer.init(params)), jax.tree.map(jnp.asarray, batches))
    return params, np.asarray(losses)


def new_params(model: Any, batch: Any, loss: Callable, seed: int) -> Any:
    """Parameters at initialization: `loss` decides which inputs the model is initialized with."""

    @jax.jit  # one program in place of hundreds; what only the loss needs is never computed
    def initialize(batch):
        found = []

        def apply(*inputs, **keywords):
            found.append(model.init(jax.random.key(seed), *inputs, **keywords))
            return model.apply(found[-1], *inputs, **keywords)

        loss(apply, batch)
        return found[0]

    return initialize(batch)


def _bind(model: Any, params: Any) -> Callable:
    return lambda *inputs, **keywords: model.apply(params, *inputs, **keywords)


def windows(tokens: np.ndarray, num_steps: int, batch_size: int, length: int, seed: int = 0) -> np.ndarray:
    """Random windows of a long text, [steps, B, length]."""
    starts = np.random.default_rng(seed).integers(0, len(tokens) - length + 1, (num_steps, batch_size, 1))
    return tokens[starts + np.arange(length)]


def mean_loss(model: Any, params: Any, batch: Any, loss: Callable = next_token_loss) -> float:
    """Loss of a model on one batch, in nats."""
    return float(jax.jit(lambda params: loss(_bind(model, params), batch))(params))


def chain_text(name: str, part: str, length: int) -> tuple[np.ndarray, str]:
    """Text of known entropy (markov, hmm or grammar) as ids, and its characters: id i is characters[i]."""
    from train.data.entropy import draw_part, known_truth

    characters = known_truth(name).characters
    ids = {character: i for i, character in enumerate(characters)}
    return np.array([ids[character] for character in draw_part(name, part, length)], np.int32), characters
