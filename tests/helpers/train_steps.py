"""A training step of a small model, with its state and its batches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.losses import causal_lm
from train.state import LossAccumulator, create_state
from train.step import train_step

B, T, V = 6, 7, 23  # B is a product, so that micro-batches can divide it
LENGTHS = (8, 3, 1, 5, 0, 8)  # tokens in each row; a row of one token, or none, has no target


def make_batch(seed, lengths=LENGTHS):
    tokens = np.random.default_rng(seed).integers(0, V, (len(lengths), T + 1), dtype=np.int32)
    return {"tokens": tokens, "is_token": np.arange(T + 1) < np.array(lengths)[:, None]}


class Bigrams(nn.Module):
    """A small model, each token predicts the next through a hidden layer: a step treats all models alike."""

    dropout_rate: float = 0.0

    def setup(self):
        self.embed, self.hidden, self.out = nn.Embed(V, 13), nn.Dense(17), nn.Dense(V)
        self.drop = nn.Dropout(self.dropout_rate)

    def activations(self, tokens, deterministic=True):  # [B, T] -> [B, T, 17]
        return self.drop(jnp.tanh(self.hidden(self.embed(tokens))), deterministic=deterministic)

    def logits(self, x):  # [B, T, 17] -> [B, T, V]
        return self.out(x)

    def __call__(self, tokens):  # [B, T] -> [B, T, V]
        return self.logits(self.activations(tokens))


@functools.cache
def first_params(model):
    return jax.jit(model.init)(jax.random.key(1), make_batch(0)["tokens"][:, :T])["params"]


def step_without_update(state, batch, **_):
    """A training step that only counts, and hardly takes time to compile: for runs whose parameters need not change."""
    return state.replace(step=state.step + 1, accumulator=LossAccumulator(jnp.float32(1), jnp.float32(1)))


def make(optimizer=None, loss_fn=causal_lm, dropout_rate=0.0, model=None, **options):
    """Make a training step, not yet compiled, and its state."""
    optimizer = optimizer or optax.sgd(1.0)  # so that the change of the parameters is the gradient
    options = dict(seed=0, accumulation=1, max_consecutive_skips=3, log_every=1000) | options
    model = model or Bigrams(dropout_rate)
    step = functools.partial(train_step, model=model, loss_fn=loss_fn, optimizer=optimizer, **options)
    return step, create_state(first_params(model), optimizer)
