"""Encoder and decoder together: what training sees is what decoding sees, and sources are read once."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.beams import beam_search

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import Seq2Seq, Seq2SeqConfig
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling import DecodeSpec, Prompts, SamplingParams, generate

B, T, S, V = 3, 5, 7, 23
SIDE = dict(vocab_size=V, max_len=17, num_layers=1, d_model=11, num_heads=3, head_dim=4, d_ff=13)
OTHER = SIDE | dict(num_layers=2, num_heads=6, num_kv_heads=2, d_ff=19, max_len=29)
SEPARATE = SIDE | dict(vocab_size=31, d_model=5, num_heads=2, head_dim=6)
T5 = dict(positions="t5", norm="rmsnorm", feed_forward="relu", scale_logits=True, attention_scale=1.0)
T5 |= dict(qkv_bias=False, out_bias=False, mlp_bias=False)
MARIAN = dict(positions="sinusoidal", norm_placement="post", scale_embeddings=True, feed_forward="swiglu")
BART = dict(positions="learned", norm_placement="post", embed_norm=True, feed_forward="gelu")


ONE_LAYER = {"num_layers": 1}


def both(**kwargs):
    """A side of each size, with the same variant."""
    return Seq2SeqConfig(TransformerConfig(**SIDE | kwargs), TransformerConfig(**OTHER | kwargs))


MODELS = {
    "t5": both(**T5),
    "marian": both(**MARIAN | ONE_LAYER),
    "bart": both(**BART | ONE_LAYER),
    "linear": both(attention="linear", positions="sinusoidal", norm_placement="parallel", qk_norm="head", num_layers=1),
    "all_different": Seq2SeqConfig(
        TransformerConfig(**SEPARATE, positions="alibi", norm="rmsnorm", norm_placement="post", tie_embeddings=False),
        TransformerConfig(**OTHER, positions="shaw", feed_forward="geglu", tie_embeddings=False, window=3),
        False,
    ),
}
models = pytest.mark.parametrize("name", MODELS)
RANDOM = np.random.default_rng(0)
SOURCE, TARGET = RANDOM.integers(0, V, (B, S)), RANDOM.integers(0, V, (B, T))
SOURCE_IS_TOKEN, TARGET_IS_TOKEN = np.ones((B, S), bool), np.ones((B, T), bool)
SOURCE_IS_TOKEN[1, :3] = SOURCE_IS_TOKEN[2, 4:] = TARGET_IS_TOKEN[1, :2] = TARGET_IS_TOKEN[2, :1] = False


def shapes_of(config):
    return jax.eval_shape(Seq2Seq(config).init, jax.random.key(0), SOURCE, TARGET)


class Compiled:
    """A model with large random parameters; `full`, `start` and `extend` take them first."""

    def __init__(self, config, scale=0.3, seed=2):
        self.model = Seq2Seq(config)
        self.params = random_like(shapes_of(config), seed, scale)
        self.full = jax.jit(self.model.apply)
        encode_source = functools.partial(self.model.apply, method="encode_source")
        self.encode_source = jax.jit(encode_source, static_argnames="capacity")
        self.extend = jax.jit(functools.partial(self.model.apply, method="extend"), static_argnames="last_only")

    def logits(self, source=SOURCE, target=TARGET, source_is_token=SOURCE_IS_TOKEN, is_token=TARGET_IS_TOKEN):
        return np.asarray(self.full(self.params, source, target, source_is_token, is_token))

    def in_pieces(self, cuts, cache):
        """Logits [B, T, V] of TARGET read piece by piece."""
        pieces = []
        for first, end in zip([0, *cuts], [*cuts, T], strict=True):
            logits, cache = self.extend(self.params, TARGET[:, first:end], TARGET_IS_TOKEN[:, first:end], cache)
            pieces.append(logits)
        return np.concatenate(pieces, axis=1)


@functools.cache
def compiled(name):
    return Compiled(MODELS[name])


def other(tokens):
    return (tokens + 1 + np.random.default_rng(1).integers(0, V - 1, tokens.shape)) % V


# Reading


@models
def test_start_and_extend_equal_a_full_pass_for_every_split_with_padding_on_both_sides(name):
    model = compiled(name)
    expected = model.logits()[TARGET_IS_TOKEN]
    cache = model.encode_source(model.params, SOURCE, SOURCE_IS_TOKEN)
    assert cache.num_written == 0 and cache.capacity == (0 if name == "linear" else 29)
    for cuts in itertools.chain(*(itertools.combinations(range(1, T), num) for num in range(T))):
        close(model.in_pieces(cuts, cache)[TARGET_IS_TOKEN], expected)


@models
def test_padding_of_the_source_changes_nothing_on_either_side(name):
    model, num = compiled(name), 4
    source = np.concatenate([SOURCE[:, :num], other(SOURCE)[:, num:]], axis=1)
    is_token = np.broadcast_to(np.arange(S) < num, (B, S))
    alone = model.logits(source[:, :num], source_is_token=None)
    for shift in range(S - num + 1):
        close(model.logits(np.roll(source, shift, 1), source_is_token=np.roll(is_token, shift, 1)), alone)


@models
def test_rows_are_independent_and_every_token_of_the_source_matters_to_its_own_row_alone(name):
    model = compiled(name)
    expected = model.logits()
    for s in range(S):
        source = SOURCE.copy()
        source[0, s], source[2, s] = other(SOURCE)[0, s], other(SOURCE)[2, s]
        logits = model.logits(source)
        np.testing.assert_array_equal(logits[1], expected[1])
        assert np.all(np.any(logits[0] != expected[0], axis=-1))
        assert np.all(np.any(logits[2] != expected[2], axis=-1)[1:] == SOURCE_IS_TOKEN[2, s])


@models
def test_the_target_is_read_causally(name):
    expected = compiled(name).logits()
    for t in range(2, T):
        target = TARGET.copy()
        target[:, t] = other(TARGET)[:, t]
        logits = compiled(name).logits(target=target)
        np.testing.assert_array_equal(logits[:, :t], expected[:, :t])
        assert np.all(np.any(logits[:, t:] != expected[:, t:], axis=-1)[:, :3])


@models
def test_decoding_never_touches_the_encoder_again(name):
    model = compiled(name)
    cache = model.encode_source(model.params, SOURCE, SOURCE_IS_TOKEN)
    parts = model.params["params"]
    broken = {"params": parts | {"encoder": jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), parts["encoder"])}}
    assert np.all(np.isnan(model.full(broken, SOURCE, TARGET, SOURCE_IS_TOKEN, TARGET_IS_TOKEN)))
    logits, _ = model.extend(broken, TARGET, TARGET_IS_TOKEN, cache)
    close(np.asarray(logits)[TARGET_IS_TOKEN], model.logits()[TARGET_IS_TOKEN])


@models
def test_cross_attention_knows_no_order_of_the_encoded_source(name):
    model, order = compiled(name), np.array([3, 0, 6, 1, 5, 2, 4])

    def run(model, order):
        encoded, is_token = model.encoder(SOURCE, SOURCE_IS_TOKEN), jnp.array(SOURCE_IS_TOKEN)
        source = model.decoder.source_keys_values(encoded[:, order], is_token[:, order])
        return model.decoder(TARGET, TARGET_IS_TOKEN, source=source)

    read = jax.jit(functools.partial(model.model.apply, method=run))
    close(read(model.params, order), read(model.params, np.arange(S)))


@pytest.mark.parametrize("name", ["t5", "linear"])
def test_reordering_a_cache_reorders_its_source(name):
    model, rows = compiled(name), np.array([2, 0, 0])
    cache = model.encode_source(model.params, SOURCE, SOURCE_IS_TOKEN)
    _, after_three = model.extend(model.params, TARGET[:, :3], TARGET_IS_TOKEN[:, :3], cache)
    rest, is_token = TARGET[:, 3:], TARGET_IS_TOKEN[:, 3:]
    expected, _ = model.extend(model.params, rest, is_token, after_three)
    logits, _ = model.extend(model.params, rest[rows], is_token[rows], after_three.reorder(rows))
    np.testing.assert_array_equal(logits, np.asarray(expected)[rows])


@pytest.mark.parametrize("name", ["t5", "linear"])
def test_beams_that_share_their_rows_source_see_what_each_would_with_a_source_of_its_own(name):
    model, rows = compiled(name), np.repeat(np.arange(B), 2)
    cache = model.encode_source(model.params, SOURCE, SOURCE_IS_TOKEN)
    shared = KVCache.expand(cache, 2)  # a copy of the slots for each beam; a full cache would share them
    assert shared.source is cache.source and shared.num_tokens.shape == (2 * B, 1)
    target = np.random.default_rng(4).integers(0, V, (2 * B, T))
    logits, after = model.extend(model.params, target, target >= 0, shared)
    expected, _ = model.extend(model.params, target, target >= 0, cache.reorder(rows))
    close(logits, expected)
    np.testing.assert_array_equal(after.source.is_token, cache.source.is_token)


def test_a_source_of_padding_alone_is_finite_in_value_and_gradient_and_harms_no_other_row():
    model, is_token = compiled("t5"), SOURCE_IS_TOKEN & (np.arange(B) != 0)[:, None]
    logits = model.logits(source_is_token=is_token)
    assert np.all(np.isfinite(logits))
    np.testing.assert_array_equal(logits[1:], model.logits()[1:])
    loss = lambda params: jnp.sum(jnp.sin(model.model.apply(params, SOURCE, TARGET, is_token)))  # noqa: E731
    for path, grad in jax.tree_util.tree_leaves_with_path(jax.device_get(jax.jit(jax.grad(loss))(model.params))):
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), jax.tree_util.keystr(path)


def test_each_side_refuses_more_tokens_than_its_own_context():
    model, long = compiled("bart"), np.zeros((B, 19), int)
    with pytest.raises(UserError, match="19 in a row.*model.max_len=17"):
        jax.eval_shape(model.model.apply, model.params, long, TARGET)
    jax.eval_shape(model.model.apply, model.params, SOURCE, long)
    with pytest.raises(UserError, match="capacity=31.*model.max_len=29"):
        model.encode_source(model.params, SOURCE, SOURCE_IS_TOKEN, capacity=31)


def test_dropout_is_active_on_both_sides_in_training_only_and_a_function_of_its_rng():
    model = compiled("bart")
    for rates in ((0.0, 0.3), (0.3, 0.0)):
        sides = [TransformerConfig(**SIDE | BART, dropout_rate=rates[0])]
        dropping = Seq2Seq(Seq2SeqConfig(*sides, TransformerConfig(**OTHER | BART | ONE_LAYER, dropout_rate=rates[1])))
        train = jax.jit(functools.partial(dropping.apply, deterministic=False))
        args = model.params, SOURCE, TARGET, SOURCE_IS_TOKEN, TARGET_IS_TOKEN
        first, again, different = (train(*args, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert jnp.all(jnp.any(first != different, axis=-1)) and jnp.all(jnp.any(first != model.logits(), axis=-1))


# Shapes


def test_shared_embeddings_are_one_table_and_separate_ones_a_table_for_each_side():
    trees = [shapes_of(dataclasses.replace(MODELS["t5"], share_embeddings=share))["params"] for share in (True, False)]
    shared, separate = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in trees
    )
    assert shared.pop("shared/embedding") == (V, 11)
    for side in ("encoder", "decoder"):
        assert separate.pop(f"{side}/embed/tokens/embedding") == (V, 11)
    assert shared == separate


def test_t5_has_one_table_of_distances_for_each_stack_and_none_for_cross_attention():
    params = compiled("t5").params["params"]
    for side, num_heads in (("encoder", 3), ("decoder", 6)):
        assert params[side]["stack"]["position_bias"]["embedding"].shape == (32, num_heads)
    assert params["decoder"]["stack"]["block_1"]["cross"].keys() == {"query", "key", "value", "out"}
    assert not any("bias" == path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params))


def test_an_attention_scale_of_1_and_scaled_logits_are_the_default_with_larger_queries_and_a_smaller_last_norm():
    def larger(path, leaf):
        names = [key.key for key in path]
        if names[-2:] == ["query", "kernel"]:
            return leaf * 2.0  # sqrt(head_dim)
        return leaf * 11**-0.5 if names[-4:] == ["decoder", "stack", "norm", "scale"] else leaf

    params = jax.tree_util.tree_map_with_path(larger, compiled("t5").params)
    plain = Seq2Seq(both(**T5 | {"scale_logits": False, "attention_scale": 0.0}))
    logits = jax.jit(plain.apply)(params, SOURCE, TARGET, SOURCE_IS_TOKEN, TARGET_IS_TOKEN)
    close(logits, compiled("t5").logits())


@pytest.mark.parametrize("field, theirs", [("vocab_size", 31), ("d_model", 5)])
def test_sides_that_cannot_share_a_table_are_refused_unless_embeddings_are_separate(field, theirs):
    sides = TransformerConfig(**SIDE | {field: theirs}), TransformerConfig(**OTHER)
    with pytest.raises(UserError, match=rf"encoder.{field}={theirs}: must equal decoder.{field}=.*share_embeddings=F"):
        Seq2SeqConfig(*sides)
    shapes_of(Seq2SeqConfig(*sides, share_embeddings=False))


# GenerationConfig

FEW, NUM_NEW, START, EOS, PAD = 5, 3, 0, 1, 99
SOURCES, STARTS = SOURCE % FEW, np.full((B, 1), START)
SMALL = Seq2SeqConfig(*(TransformerConfig(**size | T5 | {"vocab_size": FEW}) for size in (SIDE, OTHER)))
small = functools.cache(lambda: Compiled(SMALL, scale=1.0, seed=7))


def decode(search, rows, places=slice(None)):
    """`search(step, cache, tokens, is_token)` over the sources of these rows."""

    def run(params, source, is_token):
        cache = small().model.apply(params, source, is_token, capacity=NUM_NEW, method="encode_source")
        step = functools.partial(small().model.apply, params, method="extend", last_only=True)
        return search(jax.tree_util.Partial(step), cache, STARTS[: len(source)], np.ones((len(source), 1), bool))

    return jax.tree.map(np.asarray, jax.jit(run)(small().params, SOURCES[rows, places], SOURCE_IS_TOKEN[rows, places]))


def test_greedy_decoding_is_the_argmax_of_full_passes_and_each_row_its_own():
    def greedy(step, cache, tokens, is_token):
        keys = jax.random.split(jax.random.key(0), len(tokens))
        spec = DecodeSpec(NUM_NEW, (EOS,), PAD, "greedy")
        return generate(step, cache, Prompts(tokens, is_token), SamplingParams(keys), spec).tokens

    expected, text = np.full((B, NUM_NEW), PAD), STARTS
    for i in range(NUM_NEW):
        best = small().logits(SOURCES, text, is_token=text >= 0)[:, -1].argmax(-1)
        expected[:, i] = np.where(np.any(text[:, 1:] == EOS, axis=1), PAD, best)
        text = np.concatenate([text, best[:, None]], axis=1)
    np.testing.assert_array_equal(decode(greedy, slice(None)), expected)
    assert len(np.unique(expected, axis=0)) == B and np.any(expected == EOS)  # every source has an answer of its own
    np.testing.assert_array_equal(decode(greedy, [1], slice(3, None))[0], expected[1])


def test_a_beam_search_as_wide_as_it_gets_equals_full_passes_over_every_target_and_each_row_its_own():
    num_beams = FEW**NUM_NEW
    search = functools.partial(
        beam_search,
        num_beams=num_beams,
        num_return=num_beams,
        max_new_tokens=NUM_NEW,
        eos_ids=(EOS,),
        pad_id=PAD,
        length_penalty=0.6,
    )
    found, alone = decode(search, slice(None)), decode(search, [2], slice(0, 4))
    endings = np.array([*itertools.product(range(FEW), repeat=NUM_NEW)])
    for row in range(B):
        target = np.concatenate([np.full((num_beams, 1), START), endings], axis=1)
        repeat = lambda x: np.repeat(x[row : row + 1], num_beams, axis=0)  # noqa: B023, E731
        logits = small().logits(repeat(SOURCES), target, repeat(SOURCE_IS_TOKEN), target >= 0)
        log_probs, score_of = np.asarray(jax.nn.log_softmax(logits)), {}
        for ending, of_ending in zip(endings.tolist(), log_probs, strict=True):
            n = ending.index(EOS) + 1 if EOS in ending else NUM_NEW
            score = sum(of_ending[i, ending[i]] for i in range(n)) / ((5 + n) / 6) ** 0.6
            score_of[(*ending[:n], *(NUM_NEW - n) * [PAD])] = score
        num = len(score_of)
        assert num == 85  # 1 + 4 + 16 that end, 64 that do not
        close(found.scores[row, :num], sorted(score_of.values(), reverse=True))
        close(found.scores[row, :num], [score_of[tuple(tokens)] for tokens in found.tokens[row, :num].tolist()])
        assert np.all(found.scores[row, num:] == -np.inf)
    close(alone.scores[0, :num], found.scores[2, :num])
    np.testing.assert_array_equal(alone.tokens[0, :7], found.tokens[2, :7])
