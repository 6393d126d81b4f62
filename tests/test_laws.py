"""Every variant of the family under every law of `transformer_jax.testing`: in pairs, not as a full product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import random_like

from transformer_jax import testing
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Encoder, Seq2Seq, Seq2SeqConfig
from transformer_jax.nn.attention import BACKENDS, AttentionOptions, attend, attention_scores
from transformer_jax.nn.blocks import NORM_PLACEMENTS
from transformer_jax.nn.dropout import drop
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.nn.layers import FEED_FORWARDS, NORMS
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, Relative, Scheme

V = 23
SIZES = dict(
    vocab_size=V,
    max_len=11,
    num_layers=1,
    d_model=13,
    num_heads=6,
    head_dim=4,
    d_ff=17,
    relative_buckets=8,
    relative_max_distance=5,
)


def variant(positions, i):
    """A configuration for a position scheme in which all other choices come up in turn."""
    turn = lambda table: [*table][i % len(table)]  # noqa: E731
    return SIZES | dict(
        positions=positions,
        norm=turn(NORMS),
        feed_forward=turn(FEED_FORWARDS),
        norm_placement=turn(NORM_PLACEMENTS),
        num_kv_heads=[6, 2, 1][i % 3],
        qk_norm=["none", "head", "none", "all"][i % 4],
        qkv_bias=i % 2 == 0,
        out_bias=i % 3 == 0,
        mlp_bias=i % 4 < 2,
        rotary_dim=[0, 2][i % 2],
        window=[0, 0, 3][i % 3],
        attention_softcap=[0.0, 2.0][i % 5 == 3],
        rope_layout=["halves", "pairs"][i % 2],
        rope_scaling=["llama3", "none", "linear"][i % 3],
        rope_factor=2.0,
        tie_embeddings=i % 2 == 0,
    )


TWO_LAYERS = ("none-0", "t5-4", "linear-none")  # the order without positions, one table for both, state for each
AGAIN = ("rotary-10", "t5-11")  # the other layout and scaling of angles, and a window of a bias


def variants():
    """Each position scheme, and some with another set of other choices; linear attention where it goes."""
    made = {}
    for i, positions in enumerate([*POSITIONS, *POSITIONS]):
        made[f"{positions}-{i}"] = variant(positions, i)
    for i, positions in enumerate(("none", "learned")):
        no_scores = dict(attention="linear", window=0, attention_softcap=0.0)
        made[f"linear-{positions}"] = variant(positions, i + 7) | no_scores
    kept = [name for i, name in enumerate(made) if i < len(POSITIONS) or name in AGAIN or name.startswith("linear")]
    kept = {name: made[name] | dict(num_layers=2 if name in TWO_LAYERS else 1) for name in kept}
    pattern = dict(layer_pattern="local,global", local_window=3, global_positions=False, num_layers=2)
    return kept | {"pattern-t5": variant("t5", 4) | pattern}  # a bias in one layer and none in the other


VARIANTS = variants()
every_variant = pytest.mark.parametrize("name", VARIANTS)


def make(model_class, config):
    """A model as a function of tokens, over parameters large enough for all parts to matter."""
    model = model_class(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3), int))
    return model, random_like(shapes, seed=1, scale=0.4)


@functools.cache  # one function for a model: jit tells functions apart by identity
def compiled(model_class, config, method):
    model = model_class(config)
    return jax.jit(lambda params, *args: model.apply(params, *args, method=method))


def register_variants_of_ones_own(monkeypatch):
    """A new position scheme and a new norm: a function and a dict entry each."""

    def sawtooth(positions, config):
        return (positions[..., None] * (1 + jnp.arange(config.d_model)) % 11) / 11.0

    def largest_norm(epsilon, name=None):
        return lambda x: x / (jnp.max(jnp.abs(x), axis=-1, keepdims=True) + epsilon)

    monkeypatch.setitem(POSITIONS, "sawtooth", Scheme(vectors=sawtooth))
    monkeypatch.setitem(NORMS, "largest", largest_norm)


@every_variant
def test_a_gpt_keeps_the_laws_of_a_causal_model_and_of_its_cache(name):
    check_gpt(name)


def check_gpt(name):
    config = TransformerConfig(**VARIANTS[name])
    _, params = make(GPT, config)
    apply = jax.tree_util.Partial(compiled(GPT, config, "__call__"), params)
    # A causal mask alone tells positions apart, but only from the second layer on: without a scheme one layer cannot.
    sees_order = config.window == 0 and (config.positions != "none" or config.num_layers > 1)
    testing.check_causal_lm(apply, vocab_size=V, has_positions=True if sees_order else None)
    extend = functools.partial(compiled(GPT, config, "extend"), params)
    testing.check_cache(apply, extend, lambda rows: make_cache(config, rows, 9), vocab_size=V)


@pytest.mark.parametrize("name", [*[*VARIANTS][: len(POSITIONS)], "linear-learned"])
def test_an_encoder_keeps_the_laws_of_an_encoder(name):
    check_encoder(name)


def check_encoder(name):
    config = TransformerConfig(**VARIANTS[name] | dict(window=0, num_layers=1))
    _, params = make(Encoder, config)
    apply = jax.tree_util.Partial(compiled(Encoder, config, "__call__"), params)
    testing.check_encoder(apply, vocab_size=V, has_positions=config.positions != "none")


@pytest.mark.parametrize("name", ["t5-4", "sinusoidal-2", "linear-learned"])
def test_the_target_side_of_a_seq2seq_keeps_the_laws_of_a_causal_model_and_of_its_cache(name):
    config = TransformerConfig(**VARIANTS[name] | dict(norm="layernorm", num_layers=1))
    model = Seq2Seq(Seq2SeqConfig(config, config))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3), int), jnp.zeros((2, 3), int))
    params = random_like(shapes, seed=1, scale=0.4)
    source = np.array([[3, 1, 4, 1, 5, 9]])

    @jax.jit
    def apply(tokens, is_token):
        return model.apply(params, np.repeat(source, len(tokens), axis=0), tokens, None, is_token)

    testing.check_causal_lm(apply, vocab_size=V)
    start = jax.jit(lambda source: model.apply(params, source, None, 9, method="encode_source"))
    extend = jax.jit(lambda *args: model.apply(params, *args, method="extend"))
    testing.check_cache(apply, extend, lambda rows: start(np.repeat(source, rows, axis=0)), vocab_size=V)


@pytest.mark.parametrize("name", ["learned-1", "rotary-3", "shaw-6"])  # test_packing.py has every position scheme
def test_texts_packed_into_a_row_are_as_alone(name):
    check_packed(name)


def check_packed(name):
    config = TransformerConfig(**VARIANTS[name] | dict(num_layers=1))
    model, params = make(GPT, config)
    apply = jax.jit(lambda tokens, segments: model.apply(params, tokens, segments=segments))
    testing.check_packing(apply, vocab_size=V)


@pytest.mark.parametrize("is_grouped", [True, False], ids=["grouped", "multi_head"])
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cudnn" or jax.default_backend() == "gpu"])
def test_every_backend_keeps_the_laws_of_attention(backend, is_grouped):
    fn = jax.jit(functools.partial(attend, backend=backend))
    testing.check_attention(fn, is_grouped=is_grouped)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_dropout_of_attention_is_a_function_of_its_key(softcap):
    q, k, v = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 5, 3, 4)), jnp.float32) for i in range(3))
    rate = functools.partial(attend, q, k, v, softcap=softcap, dropout_rate=0.3)
    testing.check_dropout(lambda key: rate(dropout_key=key))


@pytest.mark.parametrize("always_drops", [True, False], ids=["drops_without_a_key", "not_rescaled"])
def test_dropout_that_loses_the_mean_or_drops_without_a_key_breaks_a_law(always_drops):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 11)), jnp.float32)

    def broken(key):
        kept = drop(x, 0.3, jax.random.key(5) if key is None else key)
        return kept if always_drops else jnp.where(kept != 0, x, 0.0) if key is not None else x

    with pytest.raises(testing.LawBroken, match="the mean over keys"):
        testing.check_dropout(broken)
    testing.check_dropout(lambda key: x if key is None else drop(x, 0.3, key))


def scores_of(positions):
    """The scores that a scheme gives, before the softmax."""
    config, scheme = TransformerConfig(**SIZES | dict(positions=positions, head_dim=8)), POSITIONS[positions]
    bias = None
    if scheme.bias:
        module = scheme.bias(config)
        params = module.init(jax.random.key(0), False)
        bias = module.apply(jax.tree.map(lambda x: 50 * x, params), False)
    relative = None
    if scheme.is_relative:
        vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, 11, 8)), jnp.float32)
        relative = Relative(*vectors)

    @jax.jit
    def scores(q, k, of_q, of_k):
        if scheme.rotate:
            q, k = (scheme.rotate(x, at, config, config.layer(0)) for x, at in ((q, of_q), (k, of_k)))
        mask = Mask(query_positions=of_q, key_positions=of_k)
        return attention_scores(q, k, mask, AttentionOptions(bias, 0.3, 0.0, relative))

    return scores


@pytest.mark.parametrize("positions", [name for name, s in POSITIONS.items() if s.rotate or s.bias or s.is_relative])
def test_positions_in_scores_keep_the_laws_of_positions(positions):
    testing.check_positions(scores_of(positions))


def test_a_position_scheme_and_a_norm_of_ones_own_come_under_the_same_laws(monkeypatch):
    register_variants_of_ones_own(monkeypatch)
    monkeypatch.setitem(VARIANTS, "own", variant("sawtooth", 3) | dict(norm="largest", num_layers=1))
    check_gpt("own")
    check_encoder("own")
    check_packed("own")
