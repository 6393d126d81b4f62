"""Logit lens and head ablation for the attention explorer: predictions by layer, and without each head."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.inference.capture import logit_lens
from transformer_jax.inference.interventions import ablate
from transformer_jax.run import Run

NUM_TOP = 5  # predictions of a layer, or without a head
PARTS = {"self": "attention", "encoder": "encoder/attention", "decoder": "decoder/attention", "cross": "decoder/cross"}


class Lens(NamedTuple):
    """Predictions by layer: after the embedding, and after each block."""

    top: np.ndarray  # [L + 1, T, NUM_TOP] int32: the likeliest ids, the first one first
    values: np.ndarray  # [L + 1, T, NUM_TOP] float32: their probabilities, or outputs
    truth_values: np.ndarray  # [L + 1, T] of the token that really came; 0 where there is none
    truth_ranks: np.ndarray  # [L + 1, T] int32, from 1; 0 where there is none


class Effects(NamedTuple):
    """Effect of each head of a kind of attention: what its absence changes."""

    measure: str  # loss: in nats a token | divergence: of the predictions, in nats | outputs: mean absolute change
    by_position: np.ndarray  # [L, N, T] float32
    top: np.ndarray  # [L, N, NUM_TOP] int32: the likeliest ids at the last position, without the head
    values: np.ndarray  # [L, N, NUM_TOP] float32
    is_measured: np.ndarray  # [T] bool: False where no token came

    @property
    def change(self) -> np.ndarray:
        """Mean effect of each head over the positions, [L, N]."""
        return self.by_position[..., self.is_measured].mean(-1)


def activate(logits: jax.Array, activation: str) -> jax.Array:
    """Probabilities of logits [..., V], or the outputs themselves: softmax | sigmoid | none."""
    if activation == "none":
        return logits
    return jax.nn.softmax(logits) if activation == "softmax" else jax.nn.sigmoid(logits)


@functools.partial(jax.jit, static_argnums=2)
def _summary(logits: jax.Array, truth: jax.Array, activation: str) -> tuple[jax.Array, ...]:
    """Fields of `Lens` for logits [..., T, V], and the ids [T] that really came, -1 for none."""
    values = activate(logits, activation)
    best, top = jax.lax.top_k(values, min(NUM_TOP, values.shape[-1]))
    index = jnp.broadcast_to(jnp.maximum(truth, 0)[..., None], (*values.shape[:-1], 1))
    of_truth = jnp.take_along_axis(logits, index, -1)
    ranks = 1 + jnp.sum(logits > of_truth, axis=-1)
    has_truth = truth >= 0
    truth_values = jnp.take_along_axis(values, index, -1)[..., 0]
    return top, best, jnp.where(has_truth, truth_values, 0), jnp.where(has_truth, ranks, 0)


def compute_lens(run: Run, text: str, target: str | None, truth: list[int | None], activation: str) -> Lens:
    """Compute the logit lens of a text; `truth` has the id that really came at each position of the logits."""
    by_layer = logit_lens(run, text, target)[:, 0]
    by_layer = by_layer.reshape(len(by_layer), -1, by_layer.shape[-1])  # [L + 1, 1, C] of a classifier
    ids = jnp.asarray([-1 if i is None else i for i in truth])
    return Lens(*map(np.asarray, _summary(by_layer, ids, activation)))


@functools.partial(jax.jit, static_argnums=3)
def _effect(logits: jax.Array, before: jax.Array, truth: jax.Array, activation: str) -> jax.Array:
    """Effect at each position [T] of new logits [T, V]."""
    if activation != "softmax":
        return jnp.abs(activate(logits, activation) - activate(before, activation)).mean(-1)
    new = jax.nn.log_softmax(logits)
    old = jax.nn.log_softmax(before)
    divergence = jnp.sum(jnp.exp(old) * (old - new), axis=-1)
    index = jnp.maximum(truth, 0)[:, None]
    loss = jnp.take_along_axis(old - new, index, -1)[:, 0]
    has_truth = truth >= 0
    return jnp.where(jnp.any(has_truth), jnp.where(has_truth, loss, 0), divergence)


def compute_effects(
    run: Run, text: str, target: str | None, before: np.ndarray, truth: list[int | None], activation: str, kind: str
) -> Effects:
    """Compute the effect of each head of a kind of attention: the outputs with it, `before` [T, V], and without it."""
    side = run.config.encoder if kind == "encoder" else run.config.decoder
    ids = jnp.asarray([-1 if i is None else i for i in truth])
    by_position = np.zeros((side.num_layers, side.num_heads, len(before)), np.float32)
    num_top = min(NUM_TOP, before.shape[-1])
    top = np.zeros((side.num_layers, side.num_heads, num_top), np.int32)
    values = np.zeros(top.shape, np.float32)
    for layer in range(side.num_layers):
        for head in range(side.num_heads):
            logits = ablate(run, text, [(layer, head)], part=PARTS[kind], target=target)
            logits = logits.reshape(before.shape)
            by_position[layer, head] = _effect(logits, before, ids, activation)
            ids_without, values_without, *_ = _summary(logits[-1:], ids[-1:], activation)
            top[layer, head] = ids_without[0]
            values[layer, head] = values_without[0]
    is_known = np.array([i is not None for i in truth])
    measure = "outputs" if activation != "softmax" else "loss" if is_known.any() else "divergence"
    return Effects(measure, by_position, top, values, is_known if is_known.any() else ~is_known)
