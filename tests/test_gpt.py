import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.layers import FEED_FORWARDS, NORMS
from transformer_jax.nn.positions import POSITIONS

B, T, V = 5, 7, 23
SIZES = dict(vocab_size=V, max_len=19, num_layers=2, d_model=11, num_heads=6, head_dim=4, d_ff=13)
NUM_VARIANTS = max(map(len, (NORMS, FEED_FORWARDS, POSITIONS)))


def variant(i):
    """Every variant of every dict occurs; test_laws.py has other combinations."""
    norms, feed_forwards, positions = [*NORMS], [*FEED_FORWARDS], [*POSITIONS]
    return dict(
        norm=norms[i % len(norms)],
        feed_forward=feed_forwards[i % len(feed_forwards)],
        positions=positions[(i + i // len(positions)) % len(positions)],
        num_kv_heads=[6, 2, 1][i % 3],
        tie_embeddings=i % 4 < 2,
        qkv_bias=i % 2 == 0,
        out_bias=i % 3 == 0,
        mlp_bias=i % 4 < 2,
        qk_norm=["none", "head", "all"][i % 3],
        rotary_dim=[0, 2][i % 2],
        logit_softcap=[0.0, 3.0][i % 5 == 3],
    )


VARIANTS = {"-".join(map(str, variant(i).values())): variant(i) for i in range(NUM_VARIANTS)}
NO_BIAS = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False)
LLAMA = dict(norm="rmsnorm", feed_forward="swiglu", positions="rotary", num_kv_heads=2, **NO_BIAS)
variants = pytest.mark.parametrize("variant", VARIANTS)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
ALL = np.ones((B, T), bool)


def make(**kwargs):
    """A model and parameters that are large enough for all parts to matter, biases and scales included."""
    model = GPT(TransformerConfig(**SIZES | kwargs))
    return model, random_like(jax.eval_shape(model.init, jax.random.key(0), TOKENS))


@functools.cache
def logits_of(variant):
    """(tokens, is_token) -> logits as a numpy array."""
    model, params = make(**VARIANTS[variant])
    apply = jax.jit(model.apply)
    return lambda tokens, is_token=ALL: np.asarray(apply(params, tokens, is_token))


def other(tokens):
    """A different token everywhere."""
    return (tokens + 1 + np.random.default_rng(1).integers(0, V - 1, tokens.shape)) % V


@variants
def test_changing_a_token_leaves_the_logits_before_it_bit_equal_and_changes_its_own(variant):
    logits = logits_of(variant)(TOKENS)
    for t in range(T):
        changed = TOKENS.copy()
        changed[:, t] = other(TOKENS)[:, t]
        after = logits_of(variant)(changed)
        np.testing.assert_array_equal(after[:, :t], logits[:, :t])
        assert np.all(np.any(after[:, t:] != logits[:, t:], axis=-1))


@variants
def test_what_stands_at_padding_does_not_matter_bit_for_bit(variant):
    is_token = np.ones((B, T), bool)
    is_token[1, :3] = is_token[2, 4:] = is_token[3, [0, 2, 6]] = False
    changed = np.where(is_token, TOKENS, other(TOKENS))
    before, after = (logits_of(variant)(tokens, is_token) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(before[is_token], after[is_token])
    assert np.all(np.isfinite(after))


@variants
def test_padding_on_either_side_leaves_the_logits_of_the_tokens_as_they_are(variant):
    num_tokens = 4
    unpadded = logits_of(variant)(TOKENS)[:, :num_tokens]  # causal: the tokens after them play no part
    for first in range(T - num_tokens + 1):
        is_token = np.zeros((B, T), bool)
        is_token[:, first : first + num_tokens] = True
        padded = other(TOKENS)
        padded[is_token] = TOKENS[:, :num_tokens].reshape(-1)
        close(logits_of(variant)(padded, is_token)[:, first : first + num_tokens], unpadded)


@variants
def test_no_padding_given_means_no_padding(variant):
    close(logits_of(variant)(TOKENS, None), logits_of(variant)(TOKENS, ALL))


@variants
def test_a_row_of_padding_alone_is_finite_and_harms_no_other_row(variant):
    is_token = ALL.copy()
    is_token[2] = False
    logits = logits_of(variant)(TOKENS, is_token)
    assert np.all(np.isfinite(logits))
    np.testing.assert_array_equal(logits[is_token], logits_of(variant)(TOKENS)[is_token])


@variants
def test_rows_of_a_batch_are_independent(variant):
    logits = logits_of(variant)(TOKENS)
    for row in (0, 3):
        changed = other(TOKENS)
        changed[row] = TOKENS[row]
        np.testing.assert_array_equal(logits_of(variant)(changed)[row], logits[row])


@variants
def test_the_order_of_tokens_matters(variant):
    swapped = TOKENS.copy()
    swapped[:, 1] = (swapped[:, 0] + 5) % V  # so that the two differ
    one = logits_of(variant)(swapped)
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    two = logits_of(variant)(swapped)
    assert np.all(np.abs(one[:, -1] - two[:, -1]).max(-1) > 1e-3)


@variants
def test_the_initial_loss_is_near_log_v(variant):
    model = GPT(TransformerConfig(**SIZES | VARIANTS[variant] | {"num_layers": 1}))
    logits, _ = jax.jit(model.init_with_output)(jax.random.key(0, impl="rbg"), TOKENS)
    loss = -jnp.mean(jax.nn.log_softmax(logits))  # the mean over all tokens that could come next
    assert loss == pytest.approx(math.log(V), rel=0.03)


def test_the_gradient_of_a_logit_with_respect_to_later_positions_is_exactly_0():
    model, params = make(positions="learned", num_layers=1)
    grad = jax.jit(jax.grad(lambda params, t: jnp.sum(jnp.sin(model.apply(params, TOKENS)[:, t]))))
    for t in (0, 3, T - 1):
        rows = grad(params, t)["params"]["embed"]["positions"]["embedding"]
        assert jnp.all(rows[t + 1 :] == 0) and jnp.all(jnp.any(rows[: t + 1] != 0, axis=-1))


@variants
def test_every_parameter_takes_part(variant):
    model, params = make(**VARIANTS[variant], num_layers=1)
    grads = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(model.apply(params, TOKENS)))))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), jax.tree_util.keystr(path)


@variants
def test_logits_are_float32_and_near_in_bfloat16(variant):
    model, params = make(**VARIANTS[variant], dtype="bfloat16")
    exact, rounded = logits_of(variant)(TOKENS), jax.jit(model.apply)(params, TOKENS)
    assert exact.dtype == rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.06 * np.abs(exact).max())


def shapes_of(config):
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), TOKENS)["params"]
    return params, sum(leaf.size for leaf in jax.tree.leaves(params))


def test_tied_embeddings_save_exactly_the_output_projection():
    (tied, num_tied), (untied, num_untied) = (
        shapes_of(TransformerConfig(**SIZES, tie_embeddings=tie)) for tie in (True, False)
    )
    assert "unembed" not in tied["embed"]
    assert untied["embed"]["unembed"]["kernel"].shape == (11, V)
    assert num_untied - num_tied == 11 * V


def test_the_number_of_parameters_is_that_of_gpt_2():
    D, F, L, max_len = 768, 3072, 12, 1024
    config = TransformerConfig(vocab_size=50257, max_len=max_len, num_layers=L, d_model=D, num_heads=12)
    attention = 4 * D * D + 4 * D
    feed_forward = D * F + F + F * D + D
    block = attention + feed_forward + 2 * 2 * D
    assert shapes_of(config)[1] == 50257 * D + max_len * D + L * block + 2 * D == 124_439_808


def test_the_number_of_parameters_of_a_grouped_rotary_swiglu_model_is_counted_by_hand():
    D, N, K, H, F = 11, 6, 2, 4, 13
    config = TransformerConfig(**SIZES, **LLAMA)
    block = 2 * D * N * H + 2 * D * K * H + 3 * D * F + 2 * D
    assert shapes_of(config)[1] == V * D + 2 * block + D


def build(**kwargs):
    return shapes_of(TransformerConfig(**SIZES | kwargs))


def test_more_tokens_than_max_len_are_refused():
    with pytest.raises(UserError, match="7 in a row.*model.max_len=5"):
        build(max_len=5)
    build(max_len=T)


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(UserError, match="model.vocab_size=0"):
        build(vocab_size=0)


@pytest.mark.parametrize(
    ("field", "table"), [("norm", NORMS), ("feed_forward", FEED_FORWARDS), ("positions", POSITIONS)]
)
def test_an_unknown_variant_is_refused_with_the_list_of_known_ones(field, table):
    with pytest.raises(UserError, match=f"model.{field}='nonsense'.*{', '.join(table)}"):
        build(**{field: "nonsense"})


def test_dropout_is_active_in_training_only_and_a_function_of_its_rng():
    (plain, params), (dropping, _) = (make(num_layers=1, dropout_rate=rate) for rate in (0.0, 0.3))
    expected = jax.jit(plain.apply)(params, TOKENS)
    np.testing.assert_array_equal(jax.jit(dropping.apply)(params, TOKENS), expected)
    train = jax.jit(lambda key: dropping.apply(params, TOKENS, deterministic=False, rngs={"dropout": key}))
    first, again, different = (train(jax.random.key(seed, impl="rbg")) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert jnp.all(jnp.any(first != different, axis=-1)) and jnp.all(jnp.any(first != expected, axis=-1))


def test_training_without_dropout_needs_no_rng_and_equals_evaluation():
    model, params = make()
    training = jax.jit(functools.partial(model.apply, deterministic=False))(params, TOKENS)
    np.testing.assert_array_equal(training, jax.jit(model.apply)(params, TOKENS))


@pytest.mark.parametrize("qk_norm", ["head", "all"])
def test_normalised_queries_and_keys_do_not_feel_the_size_of_their_kernels(qk_norm):
    model, params = make(qk_norm=qk_norm, positions="rotary")
    apply = jax.jit(model.apply)
    plain = apply(params, TOKENS)
    for name, changes in (("query", False), ("key", False), ("value", True)):
        bigger = jax.tree_util.tree_map_with_path(
            lambda path, x, name=name: x * 7 if path[-2].key == name and path[-1].key == "kernel" else x, params
        )
        difference = jnp.max(jnp.abs(apply(bigger, TOKENS) - plain))
        assert (difference > 1e-2) == changes, name


def test_a_soft_cap_bounds_the_logits_smoothly_and_keeps_their_order():
    model, params = make()
    capped = GPT(dataclasses.replace(model.config, logit_softcap=0.5))
    plain = jax.jit(model.apply)(params, TOKENS)
    close(jax.jit(capped.apply)(params, TOKENS), 0.5 * np.tanh(np.asarray(plain) / 0.5))


def test_with_zero_init_every_block_starts_as_the_identity():
    model = GPT(TransformerConfig(**SIZES, zero_init=True, norm="rmsnorm", feed_forward="swiglu"))
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"), TOKENS)["params"]
    kernels = jax.tree_util.tree_leaves_with_path(params["stack"])
    zeros = {path[-2].key for path, leaf in kernels if path[-1].key == "kernel" and not jnp.any(leaf)}
    assert zeros == {"out", "down"}
    bare = GPT(dataclasses.replace(model.config, num_layers=1))
    fewer = dict(params, stack={name: x for name, x in params["stack"].items() if name != "block_1"})
    close(jax.jit(bare.apply)({"params": fewer}, TOKENS), jax.jit(model.apply)({"params": params}, TOKENS))
