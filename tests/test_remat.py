"""Rematerialization: training steps with `remat` against those without, in numbers, random keys and memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.arrays import random_like
from helpers.train_steps import make_batch

from train import losses
from train.state import create_state
from train.step import train_step
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, SequenceClassifier, parameter_shapes
from transformer_jax.nn.blocks import REMATS

B, T, V = 6, 7, 23
SIZES = dict(vocab_size=V, max_len=11, num_layers=1, d_model=13, num_heads=6, head_dim=4, d_ff=17, dropout_rate=0.3)
BATCH = make_batch(0)
TOKENS, IS_TOKEN = BATCH["tokens"], BATCH["is_token"]
SEGMENTS = np.where(np.arange(T + 1) < 3, 1, 2) * np.ones((B, 1), int)
PATTERN = dict(num_layers=2, positions="t5", layer_pattern="local,global", local_window=3)
CLASSES = {"tokens": TOKENS, "is_token": IS_TOKEN, "label": np.arange(B) % 3, "is_example": np.arange(B) < 5}


def loss_of_pairs(apply, batch, deterministic):
    logits = apply(batch["tokens"], batch["tokens"][:, :5], batch["is_token"], deterministic=deterministic)
    return jnp.sum(jnp.sin(logits)), jnp.float32(B), {}


CASES = {  # the model, its loss, a batch, options of the step
    "gpt_packed_accumulated": (
        GPT(TransformerConfig(**SIZES | PATTERN)),
        losses.causal_lm,
        BATCH | {"segments": SEGMENTS},
        {"accumulation": 2},
    ),
    "classifier_pmap": (
        SequenceClassifier(TransformerConfig(**SIZES), 3),
        losses.classify,
        CLASSES,
        {"axis_name": "devices"},
    ),
    "seq2seq": (Seq2Seq(Seq2SeqConfig(*[TransformerConfig(**SIZES)] * 2)), loss_of_pairs, BATCH, {}),
}


def after_a_step(name, remat):
    """The state after one training step with dropout."""
    model, loss_fn, batch, options = CASES[name]
    optimizer = optax.sgd(1.0)  # so that the change of the parameters is the gradient
    options = dict(seed=0, accumulation=1, max_consecutive_skips=3, log_every=1000) | options
    model = model.clone(remat=remat)
    step = functools.partial(train_step, model=model, loss_fn=loss_fn, optimizer=optimizer, **options)
    state = create_state(random_like(parameter_shapes(model), scale=0.3), optimizer)
    if "axis_name" not in options:
        return jax.jit(step)(state, batch)
    state, batch = (jax.tree.map(lambda x: jnp.asarray(x)[None], tree) for tree in (state, batch))
    return jax.tree.map(lambda x: x[0], jax.pmap(step, axis_name="devices")(state, batch))


@pytest.mark.parametrize("name", CASES)
def test_a_step_with_remat_has_the_same_loss_to_the_bit_and_nearly_the_same_gradients(name):
    """Gradients of a block's input are summed in another order, so they may differ by a rounding."""
    plain = after_a_step(name, "none")
    for remat in ("block", "attention"):
        with_remat = after_a_step(name, remat)
        assert with_remat.accumulator.loss_sum == plain.accumulator.loss_sum != 0
        for a, b in zip(jax.tree.leaves(with_remat.params), jax.tree.leaves(plain.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, np.abs(b).max()))


def kept_bytes(remat):
    """Bytes that a gradient keeps from the forward pass, without the parameters; nothing is computed."""
    config = TransformerConfig(vocab_size=65, max_len=256, num_layers=6, d_model=384, num_heads=6, dropout_rate=0.1)
    model = GPT(config, remat=remat)
    params = parameter_shapes(model)

    def backward(params, tokens, key):
        apply = functools.partial(model.apply, deterministic=False, rngs={"dropout": key})
        return jax.vjp(lambda params: jnp.sum(apply({"params": params}, tokens)), params)[1]

    kept = jax.eval_shape(backward, params, jax.ShapeDtypeStruct((64, 256), jnp.int32), jax.random.key(0))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept)) - sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params)
    )


def test_remat_keeps_little_of_the_forward_pass_for_the_gradient():
    none, block, attention = (kept_bytes(remat) for remat in REMATS)
    assert block < 0.1 * none and attention < 0.6 * none


def test_an_unknown_remat_is_refused_with_the_list_of_known_ones():
    with pytest.raises(UserError, match="remat='all': unknown. Choose one of: none, block, attention"):
        parameter_shapes(GPT(TransformerConfig(**SIZES), remat="all"))
