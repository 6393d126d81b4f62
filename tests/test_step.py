import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.train_steps import LENGTHS, B, T, V, first_params, make, make_batch

from train.initialization import sinusoid_note
from train.losses import causal_lm, cross_entropy
from train.step import eval_step, train_steps
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Seq2SeqConfig

CONFIG = TransformerConfig(vocab_size=V, max_len=11, num_layers=1, d_model=13, num_heads=2, head_dim=5, d_ff=17)
FINITE, NAN_LOSS, NAN_GRADIENT = range(3)


@functools.cache
def evaluation(model):
    """The compiled evaluation step: (params, batch) -> sums."""
    return jax.jit(functools.partial(eval_step, model=model, loss_fn=causal_lm))


def stack(batches):
    return jax.tree.map(lambda *x: np.stack(x), *batches)


def marked_lm(apply, batch, deterministic=True):
    """causal_lm, but a mark of the batch makes its loss, or only its gradient, NaN."""
    loss, weight, counts = causal_lm(apply, {name: batch[name] for name in ("tokens", "is_token")}, deterministic)
    mark = batch["mark"][0]
    root = jnp.sqrt(jnp.where(mark == NAN_GRADIENT, 0.0 * loss, loss))  # sqrt has no finite slope at 0
    return jnp.where(mark == NAN_LOSS, jnp.nan, loss + root), weight, counts


def marked(seed, mark):
    return make_batch(seed) | {"mark": np.full(B, mark)}


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max(initial=0)))


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def differ(a, b):
    return any(np.any(x != y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Losses


def test_causal_lm_equals_a_loop_over_the_targets():
    batch = make_batch(3)
    logits = np.random.default_rng(4).normal(size=(B, T, V)).astype(np.float32)
    expected, num_targets = 0.0, 0
    for b in range(B):
        for t in range(T):
            if batch["is_token"][b, t + 1]:
                row = logits[b, t].astype(np.float64)
                expected += math.log(np.exp(row).sum()) - row[batch["tokens"][b, t + 1]]
                num_targets += 1

    def apply(x, deterministic=True, method=None):
        if method == "activations":
            np.testing.assert_array_equal(x, batch["tokens"][:, :-1])
            return jnp.array(logits)
        return x

    loss_sum, weight_sum, _ = causal_lm(apply, batch)
    assert weight_sum == num_targets == sum(max(0, n - 1) for n in LENGTHS)
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-6)


@pytest.mark.parametrize("positions_in_piece", [1, 2, 3, 5])
def test_cross_entropy_in_pieces_equals_loss_and_gradient_of_all_logits_at_once(positions_in_piece):
    random = np.random.default_rng(11)
    x, table = random.normal(size=(B, T, 13)).astype(np.float32), random.normal(size=(13, V)).astype(np.float32)
    targets, weights = random.integers(0, V, (B, T)), random.normal(size=(B, T)).astype(np.float32)

    def loss(x, table, max_logits):
        nats = cross_entropy(lambda x: x @ table, x, targets, max_logits)
        return jnp.sum(weights * nats), nats

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    assert_close(both(x, table, positions_in_piece * B * V), both(x, table, 10**9))


def test_logits_of_a_large_vocabulary_are_never_all_in_memory():
    x, table, targets = jnp.zeros((2, 1031, 8)), jnp.zeros((8, 8209)), jnp.zeros((2, 1031), jnp.int32)
    gradient = jax.jit(jax.grad(lambda x, table: cross_entropy(lambda x: x @ table, x, targets).sum(), argnums=(0, 1)))
    memory = gradient.lower(x, table).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.7 * 2 * 1031 * 8209 * 4


def test_padding_changes_neither_loss_nor_gradient():
    step, state = make(model=GPT(CONFIG))
    step = jax.jit(step)
    batch = make_batch(5)
    noise = np.random.default_rng(6).integers(0, V, batch["tokens"].shape, dtype=np.int32)
    other = batch | {"tokens": np.where(batch["is_token"], batch["tokens"], noise)}
    assert np.any(other["tokens"] != batch["tokens"])
    one, two = step(state, batch), step(state, other)
    assert_close(one.params, two.params, 1e-6)
    np.testing.assert_allclose(one.accumulator.loss_sum, two.accumulator.loss_sum, rtol=1e-6)


# The step


@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulated_micro_batches_equal_one_batch_despite_uneven_padding(accumulation):
    one_batch, state = make()
    micro_batches, _ = make(accumulation=accumulation)
    one_batch, micro_batches = jax.jit(one_batch), jax.jit(micro_batches)
    for seed in (7, 8):
        one, many = one_batch(state, make_batch(seed)), micro_batches(state, make_batch(seed))
        assert differ(one.params, state.params)
        assert_close(many.params, one.params)
        np.testing.assert_allclose(many.grad_norm, one.grad_norm, rtol=1e-5)
        np.testing.assert_allclose(many.accumulator.loss_sum, one.accumulator.loss_sum, rtol=1e-6)
        assert many.accumulator.weight_sum == one.accumulator.weight_sum


def test_the_gradient_is_of_the_mean_over_all_targets():
    step, state = make()
    batch = make_batch(9)

    def mean_loss(params):
        loss_sum, weight_sum, _ = eval_step(params, batch, model=step.keywords["model"], loss_fn=causal_lm)
        return loss_sum / weight_sum

    grads = jax.jit(jax.grad(mean_loss))(state.params)
    after = jax.jit(step)(state, batch)
    assert_close(after.params, jax.tree.map(lambda p, g: p - g, state.params, grads))
    np.testing.assert_allclose(after.grad_norm, optax.tree.norm(grads), rtol=1e-5)


def test_ten_steps_in_one_call_are_bit_equal_to_ten_calls_of_one():
    step, state = make(optax.adamw(1e-2), dropout_rate=0.2, accumulation=2)
    batches = [make_batch(seed) for seed in range(10)]
    steps = jax.jit(functools.partial(train_steps, step=step))
    at_once = steps(state, stack(batches), 10)
    one_by_one = state
    for i in range(10):  # batches after the first are ignored
        one_by_one = steps(one_by_one, stack(batches[i:] + batches[:i]), 1)
    assert at_once.step == 10
    assert_equal(at_once, one_by_one)


def test_a_batch_of_padding_only_is_finite_and_changes_no_parameter():
    step, state = make()
    after = jax.jit(step)(state, make_batch(0, lengths=(0,) * B))
    assert_equal(after.params, state.params)
    assert after.accumulator.loss_sum == after.accumulator.weight_sum == after.grad_norm == after.consecutive_skips == 0
    assert after.step == 1


@pytest.mark.parametrize("mark", [NAN_LOSS, NAN_GRADIENT])
def test_a_non_finite_step_is_skipped_and_counted(mark):
    step, state = make(optax.adamw(1e-2), marked_lm)
    step = jax.jit(step)
    before = step(state, marked(0, FINITE))
    bad = step(before, marked(1, mark))
    assert differ(before.params, state.params)
    assert_equal((bad.params, bad.opt_state, bad.accumulator), (before.params, before.opt_state, before.accumulator))
    assert (bad.step, bad.consecutive_skips, bad.skipped_steps) == (2, 1, 1)
    bad = step(bad, marked(2, mark))
    assert (bad.step, bad.consecutive_skips, bad.skipped_steps) == (3, 2, 2)
    good = step(bad, marked(3, FINITE))
    assert (good.step, good.consecutive_skips, good.skipped_steps) == (4, 0, 2)
    assert differ(good.params, bad.params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(good))


def test_after_too_many_skipped_steps_in_a_row_every_later_step_is_skipped():
    step, state = make(loss_fn=marked_lm, max_consecutive_skips=3)
    step = jax.jit(step)
    for seed in range(3):
        state = step(state, marked(seed, NAN_LOSS))
    after = step(step(state, marked(3, FINITE)), marked(4, FINITE))
    assert_equal((after.params, after.opt_state), (state.params, state.opt_state))
    assert (after.consecutive_skips, after.skipped_steps) == (5, 5)


def test_the_accumulator_holds_the_sums_since_the_last_log_line():
    step, state = make(optax.sgd(0.0), log_every=3)
    lengths = [(n, *LENGTHS[1:]) for n in (8, 5, 2, 7, 3, 4, 6)]
    batches = [make_batch(seed, n) for seed, n in enumerate(lengths)]
    evaluate = evaluation(step.keywords["model"])
    sums = [evaluate(state.params, batch)[:2] for batch in batches]
    step = jax.jit(step)
    for i, batch in enumerate(batches):
        state = step(state, batch)
        since = sums[i // 3 * 3 : i + 1]
        assert state.accumulator.weight_sum == sum(weight for _, weight in since)
        np.testing.assert_allclose(state.accumulator.loss_sum, sum(loss for loss, _ in since), rtol=1e-5)


# Dropout


def test_dropout_is_a_function_of_seed_and_step():
    step, state = make(dropout_rate=0.5)
    other_seed, _ = make(dropout_rate=0.5, seed=1)
    batch, later = make_batch(0), state.replace(step=jnp.int32(5))
    step = jax.jit(step)
    assert_equal(step(state, batch), step(state, batch))
    assert differ(step(state, batch).params, step(later, batch).params)
    assert differ(step(state, batch).params, jax.jit(other_seed)(state, batch).params)


def test_each_micro_batch_has_its_own_dropout():
    row = make_batch(0, lengths=(T + 1,))
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), row)
    for dropout_rate in (0.0, 0.5):
        one, state = make(dropout_rate=dropout_rate)
        two, _ = make(dropout_rate=dropout_rate, accumulation=2)
        a, b = jax.jit(one)(state, row).grad_norm, jax.jit(two)(state, twice).grad_norm
        assert (abs(a - b) > 1e-3) == (dropout_rate > 0)


def test_evaluation_has_no_dropout():
    step, state = make(dropout_rate=0.5)
    plain, _ = make()
    one, two = (evaluation(s.keywords["model"])(state.params, make_batch(1)) for s in (step, plain))
    assert_equal(one, two)


# Learning


def test_the_initial_loss_is_near_that_of_a_uniform_guess():
    model = GPT(CONFIG)
    loss_sum, weight_sum, _ = evaluation(model)(first_params(model), make_batch(0))
    assert abs(loss_sum / weight_sum - math.log(V)) < 0.1


def test_sinusoids_that_hide_the_embeddings_get_a_line():
    def note(**changes):
        return sinusoid_note(dataclasses.replace(CONFIG, **changes))

    assert "set model.scale_embeddings=True" in note(positions="sinusoidal")
    both = dataclasses.replace(CONFIG, positions="sinusoidal")
    assert note(positions="sinusoidal") == sinusoid_note(Seq2SeqConfig(both, both))
    assert not note(positions="sinusoidal", scale_embeddings=True)
    assert not note(positions="sinusoidal", init_std=0.125)
    assert not note()


def test_one_batch_can_be_memorized():
    step, state = make(optax.adamw(2e-2), log_every=1, model=GPT(CONFIG))
    # Rows begin with different tokens: nothing else predicts the first target.
    batch = make_batch(2)
    batch["tokens"][:, 0] = np.arange(B)
    steps = jax.jit(functools.partial(train_steps, step=step))
    after = steps(state, stack([batch] * 101), 101)
    assert after.accumulator.loss_sum / after.accumulator.weight_sum < 0.1
