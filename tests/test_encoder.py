"""The encoder: what a token means depends on its row and on nothing else. The embedding on the way in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import Encoder, MaskedLM, SentenceEmbedder, SequenceClassifier, TokenTagger
from transformer_jax.models.embed import Embedder
from transformer_jax.models.encoder import POOLINGS, Pool
from transformer_jax.nn.blocks import NORM_PLACEMENTS
from transformer_jax.nn.layers import FEED_FORWARDS
from transformer_jax.nn.positions import POSITIONS, sinusoid

B, T, V, D, NUM_TYPES = 5, 7, 23, 11, 3
SIZES = dict(
    vocab_size=V, max_len=19, num_layers=2, d_model=D, num_heads=6, head_dim=4, d_ff=13, num_token_types=NUM_TYPES
)
VARIANTS = {
    name: {
        "positions": name,
        "norm_placement": [*NORM_PLACEMENTS][i % len(NORM_PLACEMENTS)],
        "norm": ["layernorm", "rmsnorm"][i % 2],
        "embed_norm": i % 3 == 1,
        "num_kv_heads": [6, 2][i % 2],
        "feed_forward": ["gelu", "swiglu"][i % 2],
        "num_layers": 2 if name in ("learned", "t5") else 1,
    }
    for i, name in enumerate(POSITIONS)
}
VARIANTS["linear"] = {"positions": "sinusoidal", "attention": "linear"}
variants = pytest.mark.parametrize("variant", VARIANTS)
RANDOM = np.random.default_rng(0)
TOKENS, TYPES = RANDOM.integers(0, V, (B, T)), RANDOM.integers(0, NUM_TYPES, (B, T))
ALL = np.ones((B, T), bool)
RAGGED = ALL.copy()  # a full row, two padded on the left, two on the right
RAGGED[1, :3] = RAGGED[2, :6] = RAGGED[3, 4:] = RAGGED[4, 1:] = False


def make(**kwargs):
    """An encoder and parameters that are large enough for all parts to matter, biases and scales included."""
    model = Encoder(TransformerConfig(**SIZES | kwargs))
    return model, random_like(jax.eval_shape(model.init, jax.random.key(0), TOKENS))


@functools.cache
def encode(variant):
    """(tokens, is_token, types) -> [B, T, D] as a numpy array."""
    model, params = make(**VARIANTS[variant])
    apply = jax.jit(model.apply)
    return lambda tokens, is_token=ALL, types=TYPES: np.asarray(apply(params, tokens, is_token, types))


def other(tokens):
    """A different token everywhere."""
    return (tokens + 1 + np.random.default_rng(1).integers(0, V - 1, tokens.shape)) % V


def move(x, first, num, fill):
    """The first `num` of each row, from `first` on, in place of `fill`."""
    moved = np.array(fill)
    moved[:, first : first + num] = x[:, :num]
    return moved


@variants
def test_padding_on_either_side_changes_nothing_for_the_tokens(variant):
    num = 4
    unpadded = encode(variant)(TOKENS[:, :num], None, TYPES[:, :num])
    for first in range(T - num + 1):
        is_token, tokens = move(ALL, first, num, ~ALL), move(TOKENS, first, num, other(TOKENS))
        padded = encode(variant)(tokens, is_token, move(TYPES, first, num, 0 * TYPES))
        close(padded[:, first : first + num], unpadded)


@variants
def test_what_stands_at_padding_does_not_matter_bit_for_bit(variant):
    changed = np.where(RAGGED, TOKENS, other(TOKENS)), RAGGED, np.where(RAGGED, TYPES, (TYPES + 1) % NUM_TYPES)
    before, after = encode(variant)(TOKENS, RAGGED), encode(variant)(*changed)
    np.testing.assert_array_equal(before[RAGGED], after[RAGGED])
    assert np.all(np.isfinite(after))


@variants
def test_rows_of_a_batch_are_independent(variant):
    x = encode(variant)(TOKENS, RAGGED)
    for row in (0, 3):
        changed, is_token = other(TOKENS), ALL.copy()
        changed[row], is_token[row] = TOKENS[row], RAGGED[row]
        np.testing.assert_array_equal(encode(variant)(changed, is_token)[row], x[row])


@variants
def test_every_token_changes_what_every_other_one_means(variant):
    x = encode(variant)(TOKENS)
    for t in range(T):
        changed = TOKENS.copy()
        changed[:, t] = other(TOKENS)[:, t]
        assert np.all(np.any(encode(variant)(changed) != x, axis=-1))


@variants
def test_token_types_matter_and_none_given_means_type_0(variant):
    x = encode(variant)(TOKENS, ALL, np.zeros((B, T), int))
    close(encode(variant)(TOKENS, ALL, None), x)
    assert np.all(np.abs(encode(variant)(TOKENS, ALL, np.full((B, T), 2)) - x).max(-1) > 1e-3)


@variants
def test_tokens_in_another_order_mean_the_same_in_that_order_exactly_where_positions_do_not_count(variant):
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    x, permuted = encode(variant)(TOKENS), encode(variant)(TOKENS[:, order], ALL, TYPES[:, order])
    if variant == "none":
        close(permuted, x[:, order])
    else:
        assert np.all(np.abs(permuted - x[:, order]).max(-1) > 1e-4)


@variants
def test_every_parameter_takes_part_with_finite_gradients_beside_a_row_of_padding_alone(variant):
    model, params = make(**VARIANTS[variant])
    is_token = RAGGED & (np.arange(B) != 2)[:, None]

    def loss(params):
        return jnp.sum(jnp.where(is_token[:, :, None], jnp.sin(model.apply(params, TOKENS, is_token, TYPES)), 0.0))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    for path, grad in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_felt = name.endswith("key/bias") or np.any(np.abs(grad) > 1e-5)  # the same for all keys: not felt
        assert np.all(np.isfinite(grad)) and is_felt, name


def test_keys_at_the_distance_of_the_window_and_beyond_are_not_seen_on_either_side():
    model, params = make(positions="none", num_layers=1, window=3)
    apply = jax.jit(model.apply)
    x = apply(params, TOKENS)
    for t in range(T):
        changed = TOKENS.copy()
        changed[:, t] = other(TOKENS)[:, t]
        is_changed = np.any(np.asarray(apply(params, changed) != x), axis=-1)
        np.testing.assert_array_equal(is_changed, np.broadcast_to(np.abs(np.arange(T) - t) < 3, (B, T)))


def test_more_tokens_than_max_len_are_refused():
    with pytest.raises(UserError, match="7 in a row.*model.max_len=5"):
        make(max_len=5)


def test_dropout_is_active_in_training_only_and_a_function_of_its_rng():
    (plain, params), (dropping, _) = (make(num_layers=1, dropout_rate=rate) for rate in (0.0, 0.3))
    expected = jax.jit(plain.apply)(params, TOKENS)
    np.testing.assert_array_equal(jax.jit(dropping.apply)(params, TOKENS), expected)
    train = jax.jit(lambda key: dropping.apply(params, TOKENS, deterministic=False, rngs={"dropout": key}))
    first, again, different = (train(jax.random.key(seed, impl="rbg")) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert jnp.all(jnp.any(first != different, axis=-1)) and jnp.all(jnp.any(first != expected, axis=-1))


# The embedding


def embed(method="__call__", args=None, **kwargs):
    config = TransformerConfig(**SIZES | kwargs)
    places = jnp.broadcast_to(jnp.arange(T) + 2, (B, T))
    shapes = jax.eval_shape(Embedder(config).init, jax.random.key(0), TOKENS, places)
    params = random_like(shapes, seed=3, scale=1.0)
    table = {name: np.asarray(leaf["embedding"]) for name, leaf in params["params"].items() if "embedding" in leaf}
    norm = params["params"].get("norm")
    apply = jax.jit(functools.partial(Embedder(config).apply, method=method))
    return apply(params, *(args or (TOKENS, places, TYPES))), table, norm


def test_the_embedding_is_the_sum_of_token_position_and_type():
    x, table, _ = embed(positions="learned")
    assert table["positions"].shape == (19, D) and table["types"].shape == (NUM_TYPES, D)
    close(x, table["tokens"][TOKENS] + table["positions"][np.arange(T) + 2] + table["types"][TYPES])


def test_scaled_embeddings_are_times_the_root_of_the_width_before_anything_is_added():
    x, table, _ = embed(positions="sinusoidal", scale_embeddings=True)
    assert table.keys() == {"tokens", "types"}
    close(x, table["tokens"][TOKENS] * D**0.5 + sinusoid(np.arange(T)[None] + 2, D) + table["types"][TYPES])


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_the_norm_after_the_embedding_is_of_the_whole_sum(norm):
    x, table, params = embed(positions="learned", embed_norm=True, norm=norm)
    y = table["tokens"][TOKENS] + table["positions"][np.arange(T) + 2] + table["types"][TYPES]
    y = y - y.mean(-1, keepdims=True) if norm == "layernorm" else y
    y = y / np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-5)
    close(x, y * params["scale"] + params.get("bias", 0.0))


@pytest.mark.parametrize("scale_logits", [False, True])
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_logits_are_products_with_the_table_scaled_and_capped_in_this_order(scale_logits, cap):
    x = np.random.default_rng(4).normal(size=(B, T, D)).astype(np.float32)
    logits, table, _ = embed("logits", (x,), scale_logits=scale_logits, logit_softcap=cap)
    expected = x @ table["tokens"].T / (D**0.5 if scale_logits else 1.0)
    close(logits, cap * np.tanh(expected / cap) if cap else expected)


# Heads


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_is_its_formula_over_the_tokens_alone(pooling):
    x, pool = np.random.default_rng(6).normal(size=(B, T, D)).astype(np.float32) - 5.0, Pool(pooling)
    params = random_like(jax.eval_shape(pool.init, jax.random.key(0), x, RAGGED), seed=5)
    pooled = np.asarray(pool.apply(params, x, RAGGED))
    for row in range(B):
        tokens = x[row, RAGGED[row]].astype(np.float64)
        expected = {"first": tokens[0], "mean": tokens.mean(0), "max": tokens.max(0)}.get(pooling)
        if pooling == "attention":
            score = params["params"]["score"]
            weights = np.exp(tokens @ np.asarray(score["kernel"])[:, 0] + score["bias"][0])
            expected = weights @ tokens / weights.sum()
        close(pooled[row], expected)
    close(pool.apply(params, x), pool.apply(params, x, ALL))
    assert np.all(np.abs(pool.apply(params, x, ~ALL)) < 100)  # means nothing, but overflows nowhere


CONFIG = TransformerConfig(**SIZES | {"num_layers": 1, "positions": "rotary"})
HEADS = {f"classifier_{pooling}": SequenceClassifier(CONFIG, 3, pooling) for pooling in POOLINGS}
HEADS |= {f"sentence_{pooling}": SentenceEmbedder(CONFIG, pooling) for pooling in ("mean", "max")}
HEADS |= {"regressor": SequenceClassifier(CONFIG, 1), "tagger": TokenTagger(CONFIG, 17), "masked_lm": MaskedLM(CONFIG)}
SHAPES = {"classifier": (B, 3), "sentence": (B, D), "regressor": (B, 1), "tagger": (B, T, 17), "masked": (B, T, V)}
heads = pytest.mark.parametrize("head", HEADS)
encode_config = jax.jit(Encoder(CONFIG).apply)


@functools.cache
def head_of(head):
    """Parameters, and (params, tokens, is_token, types) -> answers, compiled."""
    params = random_like(jax.eval_shape(HEADS[head].init, jax.random.key(0), TOKENS, RAGGED, TYPES), seed=5)
    return params, jax.jit(HEADS[head].apply)


@heads
def test_padding_plays_no_part_in_a_head(head):
    (params, apply), num = head_of(head), 4
    unpadded, of_all = apply(params, TOKENS[:, :num], None, TYPES[:, :num]), apply(params, TOKENS, ALL, TYPES)
    assert of_all.shape == SHAPES[head.split("_")[0]] and of_all.dtype == jnp.float32
    assert len(np.unique(np.asarray(of_all))) == of_all.size
    for first in range(T - num + 1):
        is_token, tokens = move(ALL, first, num, ~ALL), move(TOKENS, first, num, other(TOKENS))
        padded = apply(params, tokens, is_token, move(TYPES, first, num, 0 * TYPES))
        close(padded[:, first : first + num] if of_all.shape[:2] == (B, T) else padded, unpadded)


@heads
def test_a_row_of_padding_alone_gives_finite_answers_and_gradients(head):
    is_token = RAGGED & (np.arange(B) != 2)[:, None]
    loss = lambda params: jnp.sum(jnp.sin(HEADS[head].apply(params, TOKENS, is_token)[1:3]))  # noqa: E731
    answers, grads = jax.jit(jax.value_and_grad(loss))(head_of(head)[0])
    assert np.isfinite(answers) and all(np.all(np.isfinite(grad)) for grad in jax.tree.leaves(grads))


def test_a_masked_lm_is_a_dense_layer_an_activation_a_norm_and_the_table_of_tokens():
    params, apply = head_of("masked_lm")
    parts = params["params"]
    x = np.asarray(encode_config({"params": parts["encoder"]}, TOKENS, RAGGED, TYPES), np.float64)
    x = np.asarray(FEED_FORWARDS["gelu"].activation(x @ parts["transform"]["kernel"] + parts["transform"]["bias"]))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * parts["norm"]["scale"] + parts["norm"]["bias"]
    close(apply(params, TOKENS, RAGGED, TYPES), x @ parts["encoder"]["embed"]["tokens"]["embedding"].T + parts["bias"])


def test_only_an_untied_masked_lm_has_an_output_projection_of_its_own():
    for tied in (True, False):
        model = MaskedLM(TransformerConfig(**SIZES, tie_embeddings=tied))
        embed = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]["encoder"]["embed"]
        assert ("unembed" in embed) == (not tied)


def test_a_classifier_has_a_layer_with_tanh_before_its_logits():
    params, apply = head_of("regressor")
    parts = params["params"]
    x = np.asarray(encode_config({"params": parts["encoder"]}, TOKENS, RAGGED, TYPES))
    first = x[np.arange(B), RAGGED.argmax(1)]
    hidden = np.tanh(first @ parts["dense"]["kernel"] + parts["dense"]["bias"])
    close(apply(params, TOKENS, RAGGED, TYPES), hidden @ parts["out"]["kernel"] + parts["out"]["bias"])


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_sentence_has_length_1(pooling):
    params, apply = head_of(f"sentence_{pooling}")
    np.testing.assert_allclose(np.linalg.norm(apply(params, TOKENS, RAGGED, TYPES), axis=-1), 1.0, rtol=1e-6)


def test_an_unknown_pooling_is_refused_with_the_list_of_known_ones():
    with pytest.raises(UserError, match="pooling='nonsense'.*first, mean, max, attention"):
        jax.eval_shape(SequenceClassifier(CONFIG, 3, "nonsense").init, jax.random.key(0), TOKENS)
