"""Attention maps: the recorded weights are those of the computation, and recording changes no output."""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like

import transformer_jax as tj
from transformer_jax.inference.recording import Recorder, activation_names
from transformer_jax.models import GPT, MODELS, Encoder, Seq2Seq, Seq2SeqConfig, parameter_shapes
from transformer_jax.nn.attention import Attention
from transformer_jax.nn.kv_cache import KeysValues
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
B, T, S, N, H, L = 3, 7, 5, 6, 4, 2
BACKENDS = ("auto", "reference", "xla", "blockwise")
TEXT = "the cat sat"
CHARS = CharTokenizer.train("the cat sat on a mat.")
SIZES = dict(max_len=19, num_layers=L, d_model=11, num_heads=N, num_kv_heads=2, head_dim=H, d_ff=13)
RAGGED = np.ones((B, T), bool)
RAGGED[1, :3] = RAGGED[2, 5:] = False
TOKENS = np.random.default_rng(0).integers(3, CHARS.vocab_size, (B, T))


def config_of(**changes):
    return tj.TransformerConfig(**SIZES | {"vocab_size": CHARS.vocab_size} | changes)


def run_of(model, tokenizer=CHARS):
    params = random_like(parameter_shapes(model), scale=0.4)
    return tj.Run(model, params, tokenizer, model.config, generation_defaults=GenerationDefaults((2,), 0, 1))


def seq2seq(**changes):
    return Seq2Seq(Seq2SeqConfig(config_of(num_heads=4, num_layers=3, **changes), config_of(**changes)))


def weight_names(model):
    if isinstance(model, Attention):
        return ("/weights",)
    return tuple(name for name in activation_names(model) if name.endswith("/weights"))


def recording(model, **kwargs):
    """The model as a function whose second result are its attention weights, by name."""

    def apply(params, *args):
        recorder = Recorder(model, weight_names(model), {}, {})
        with nn.intercept_methods(recorder):
            out = model.apply(params, *args, **kwargs)
        return out, recorder.recorded

    return jax.jit(apply)


def recorded_by(model, params, *args):
    out, recorded = recording(model)(params, *args)
    return out, {name.removeprefix("/"): np.asarray(weights) for name, weights in recorded.items()}


def assert_sums_to_one(weights):
    assert weights.dtype == np.float32 and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


# The numbers


@pytest.mark.parametrize("num_kv_heads, softcap", [(6, 0.0), (2, 3.0), (1, 0.0)])
@pytest.mark.parametrize("positions", POSITIONS)
def test_weights_of_the_module_are_the_softmax_of_its_scores(positions, num_kv_heads, softcap):
    config = config_of(
        positions=positions, num_kv_heads=num_kv_heads, attention_softcap=softcap, qkv_bias=False, out_bias=False
    )
    model, x = Attention(config), jnp.asarray(np.random.default_rng(1).normal(size=(B, T, 11)), jnp.float32)
    mask = Mask(is_key=jnp.asarray(RAGGED), is_causal=True, window=4)
    make_bias = POSITIONS[positions].bias
    table = random_like(jax.eval_shape(make_bias(config).init, jax.random.key(0), True)) if make_bias else None
    bias = make_bias(config).apply(table, True) if make_bias else None
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), x, mask))
    _, recorded = recorded_by(model, params, x, mask, bias)
    own = params["params"]
    q, k = (np.einsum("BTD,DNH->BTNH", x, own[name]["kernel"]) for name in ("query", "key"))
    if turn := POSITIONS[positions].rotate:
        q, k = (jax.jit(lambda y: turn(y, np.arange(T)[None], config, config.layer(0)))(y) for y in (q, k))
    k = np.repeat(k, N // num_kv_heads, axis=2)
    scores = np.einsum("BTNH,BSNH->BNTS", q, k) / H**0.5
    if positions == "shaw":
        most = config.relative_max_distance
        distance = np.clip(np.arange(T) - np.arange(T)[:, None], -most, most) + most
        scores += np.einsum("BTNH,TSH->BNTS", q, np.asarray(own["relative_keys"])[distance]) / H**0.5
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    scores = scores if bias is None else scores + bias.block(mask, 0, T, 0, T)
    near = np.arange(T)[:, None] - np.arange(T)
    may_attend = ((near >= 0) & (near < 4))[None, None] & RAGGED[:, None, None]
    exponentials = np.where(may_attend, np.exp(scores), 0.0)
    total = exponentials.sum(-1, keepdims=True)
    close(recorded["weights"], exponentials / np.where(total == 0, 1, total))
    assert np.all(recorded["weights"][~np.broadcast_to(may_attend, recorded["weights"].shape)] == 0)


def test_weights_times_values_are_the_output_of_self_and_cross_attention():
    lengths = np.array([[5], [2], [0]])
    for is_cross, mask in ((False, Mask(is_causal=True)), (True, Mask(is_key=jnp.arange(S) < lengths))):
        model = Attention(config_of(positions="none"), is_cross=is_cross)
        random = np.random.default_rng(2)
        x, source = (jnp.asarray(random.normal(size=(B, num, 11)), jnp.float32) for num in (T, S))
        shapes = jax.eval_shape(Attention(config_of(positions="none")).init, jax.random.key(0), x, Mask())
        params = random_like(shapes)
        keys, values = jax.jit(functools.partial(model.apply, method="keys_values"))(params, source if is_cross else x)
        read = KeysValues.from_projections(keys, values) if is_cross else None
        (out, _), recorded = recorded_by(model, params, x, mask, None, None, read)
        weights = recorded["weights"]
        assert weights.shape == (B, N, T, S if is_cross else T)
        mixed = np.einsum("BNTS,BSNH->BTNH", weights, np.repeat(values, N // 2, axis=2))
        own = params["params"]["out"]
        close(out, np.einsum("BTNH,NHD->BTD", mixed, np.reshape(own["kernel"], (N, H, 11))) + own["bias"])
        if is_cross:  # a source without tokens has weights 0
            assert_sums_to_one(weights[:2])
            assert np.all(weights[2] == 0)


WITH_ALL = {"window": 3, "attention_softcap": 2.0, "qk_norm": "head"}


@pytest.mark.parametrize(
    "positions, changes",
    [
        *((positions, {}) for positions in POSITIONS),
        *((positions, WITH_ALL) for positions in ("rotary", "shaw", "alibi", "t5")),  # those with code in attention
    ],
    ids=str,
)
def test_every_backend_records_the_same_weights(positions, changes):
    maps = []
    for backend in ("auto", "reference", "blockwise"):  # auto takes xla where it can
        try:
            model = GPT(config_of(positions=positions, backend=backend, num_layers=1, **changes))
            params = {"params": random_like(parameter_shapes(model), scale=0.4)}
        except tj.UserError:  # an unsupported combination
            continue
        maps.append(recorded_by(model, params, TOKENS, RAGGED)[1])
    assert len(maps) >= 2 and maps[0].keys() == {"block_0/attention/weights"}
    for other in maps[1:]:
        jax.tree.map(close, other, maps[0])
    for weights in maps[0].values():
        above = ~np.tril(np.ones((T, T), bool))
        assert np.all(weights[..., above] == 0)
        assert np.all(np.moveaxis(weights, 3, 1)[~RAGGED] == 0)  # padding gets no attention
        assert_sums_to_one(np.moveaxis(weights, 2, 1)[RAGGED])


def test_an_encoder_attends_both_ways_and_never_to_padding():
    model = Encoder(config_of(window=3))
    params = {"params": random_like(parameter_shapes(model), scale=0.4)}
    for weights in recorded_by(model, params, TOKENS, RAGGED)[1].values():
        assert np.all(np.moveaxis(weights, 3, 1)[~RAGGED] == 0) and np.all(weights[0, :, 0, 1:3] > 0)
        assert np.all(weights[0, :, 0, 3:] == 0) and np.all(weights[0, :, -1, :-3] == 0)  # outside the window
        assert_sums_to_one(np.moveaxis(weights, 2, 1)[RAGGED])


def test_pieces_read_with_a_cache_have_the_weights_of_the_whole_text():
    from transformer_jax.nn.kv_cache_kinds import make_cache

    model = GPT(config_of(positions="rotary"))
    params = {"params": random_like(parameter_shapes(model), scale=0.4)}
    whole = recorded_by(model, params, TOKENS)[1]
    cache, done = make_cache(model.config, B, T), 0
    extend = recording(model, method="extend")
    for num in (4, 3):
        piece = TOKENS[:, done : done + num]
        (_, cache), recorded = extend(params, piece, np.ones_like(piece, bool), cache)
        for i in range(L):
            close(
                recorded[f"block_{i}/attention/weights"], whole[f"block_{i}/attention/weights"][:, :, done : done + num]
            )
        done += num


# Recording changes nothing


ROTARY = {"positions": "rotary", "dtype": "bfloat16", "qk_norm": "head"}
BLOCKWISE = {"positions": "t5", "backend": "blockwise", "window": 3}


@pytest.mark.parametrize(
    "kind, changes",
    [
        *(("gpt", {"backend": backend}) for backend in BACKENDS),
        *(("gpt", changes) for changes in (ROTARY, {"positions": "shaw"}, BLOCKWISE)),
        *(("seq2seq", changes) for changes in ({"backend": "xla"}, ROTARY, {"positions": "shaw"}, BLOCKWISE)),
    ],
    ids=str,
)
def test_outputs_are_the_same_to_the_bit_while_weights_are_recorded(kind, changes):
    sides = [config_of(num_layers=num_layers, **changes) for num_layers in (2, 1)]
    model = GPT(sides[1]) if kind == "gpt" else Seq2Seq(Seq2SeqConfig(*sides))
    params = {"params": random_like(parameter_shapes(model), scale=0.4)}
    args = (TOKENS, RAGGED) if kind == "gpt" else (TOKENS[:, :S], TOKENS, RAGGED[:, :S], RAGGED)
    plain = jax.jit(model.apply)(params, *args)
    out, recorded = recorded_by(model, params, *args)
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(plain, np.float32))
    assert len(recorded) == (1 if kind == "gpt" else 2 + 2 * 1)


# tj.attention_maps


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "seq2seq"])
def test_every_kind_of_model_has_attention_maps(kind):
    settings = {"classifier": {"num_classes": 3}, "tagger": {"num_tags": 5}}.get(kind, {})
    run = run_of(MODELS[kind](config_of(), **settings))
    maps = tj.attention_maps(run, TEXT)
    assert maps.tokens == (list(TEXT) if kind == "gpt" else ["<bos>", *TEXT, "<eos>"])
    length = len(maps.tokens)
    assert isinstance(maps.weights, np.ndarray) and maps.weights.shape == (L, N, length, length)
    assert_sums_to_one(maps.weights)
    assert kind != "gpt" or np.all(maps.weights[..., ~np.tril(np.ones((length, length), bool))] == 0)
    tokens = CHARS.encode(TEXT) if kind == "gpt" else CHARS.encode_whole(TEXT)
    recorded = recorded_by(run.model, {"params": run.params}, tokens[None])[1]
    close(maps.weights, np.stack([weights[0] for _, weights in sorted(recorded.items())]))


def test_a_seq2seq_has_three_kinds_of_attention_maps():
    maps = tj.attention_maps(run_of(seq2seq(positions="t5")), "a cat", "on a mat")
    assert maps.source_tokens == [*"a cat", "<eos>"] and maps.target_tokens == ["<bos>", *"on a mat"]
    source, target = 6, 9
    assert maps.encoder.shape == (3, 4, source, source)
    assert maps.decoder.shape == (L, N, target, target) and maps.cross.shape == (L, N, target, source)
    for weights in (maps.encoder, maps.decoder, maps.cross):
        assert_sums_to_one(weights)
    assert np.all(maps.decoder[..., ~np.tril(np.ones((target, target), bool))] == 0)
    assert np.all(maps.encoder > 0) and np.all(maps.cross > 0)


def test_more_than_ten_layers_stay_in_order():
    run = run_of(GPT(config_of(num_layers=11, d_model=6, num_heads=2)))
    uniform = np.tril(np.ones((len(TEXT), len(TEXT)))) / np.arange(1, len(TEXT) + 1)[:, None]
    for i in range(11):  # without queries, layer i alone has uniform weights
        stack = dict(run.params["stack"])
        attention = stack[f"block_{i}"]["attention"]
        attention = attention | {"query": jax.tree.map(np.zeros_like, attention["query"])}
        stack[f"block_{i}"] = stack[f"block_{i}"] | {"attention": attention}
        weights = tj.attention_maps(dataclasses.replace(run, params=run.params | {"stack": stack}), TEXT).weights
        is_uniform = [bool(np.allclose(layer, uniform, atol=1e-5)) for layer in weights]
        assert is_uniform == [layer == i for layer in range(11)]


@pytest.mark.parametrize(
    "folder, tokens",
    [
        ("gpt2", ["t", "h", "e", " c", "at"]),
        ("llama", None),
        ("bert", ["[CLS]", "the", "cat", "[SEP]"]),
        ("bert_classifier", None),
        ("roberta", None),
    ],
)
def test_pretrained_models_have_attention_maps(folder, tokens):
    run = tj.from_pretrained(FIXTURES / folder)
    maps = tj.attention_maps(run, "the cat")
    assert tokens is None or maps.tokens == tokens
    length = len(run.tokenizer.encode("the cat"))
    assert len(maps.tokens) == length and all(maps.tokens)
    assert maps.weights.shape == (run.config.num_layers, run.config.num_heads, length, length)
    assert_sums_to_one(maps.weights)


@pytest.mark.parametrize("folder, first", [("t5", "<pad>"), ("marian", "<pad>"), ("bart", "</s>")])
def test_the_decoder_of_a_pretrained_model_reads_the_target_as_in_generation(folder, first):
    run = tj.from_pretrained(FIXTURES / folder)
    maps = tj.attention_maps(run, "The cat sat.", "this text")
    source = run.tokenizer.encode("The cat sat.")
    target = [run.generation_defaults.start_id, *run.tokenizer.encode_target("this text")[:-1]]
    assert len(maps.source_tokens) == len(source) and len(maps.target_tokens) == len(target)
    assert maps.target_tokens[0] == first
    config, sizes = run.config, (len(target), len(source))
    assert maps.cross.shape == (config.decoder.num_layers, config.decoder.num_heads, *sizes)
    assert_sums_to_one(maps.cross)
    recorded = recorded_by(run.model, run.variables, source[None], np.array(target, np.int32)[None])[1]
    close(maps.cross[0], recorded["decoder/block_0/cross/weights"][0])


def test_pieces_are_readable_or_shown_as_ids():
    text = "naïve 中\n"
    maps = tj.attention_maps(run_of(GPT(config_of(vocab_size=259)), ByteTokenizer()), text)
    half = [f"<{byte + 3}>" for byte in "ï中".encode()]
    assert maps.tokens == [*"na", *half[:2], *"ve ", *half[2:], "\n"]
    bpe = BPETokenizer.train("the cat sat on the mat " * 7, 300)
    tokens = tj.attention_maps(run_of(Encoder(config_of(vocab_size=bpe.vocab_size)), bpe), "the cat").tokens
    assert tokens[0] == "<bos>" and tokens[-1] == "<eos>" and "".join(tokens[1:-1]) == "the cat"


# Mistakes


@pytest.mark.parametrize(
    "make, args, message",
    [
        (lambda: GPT(config_of(attention="linear")), ("a cat",), "linear.*no weights to see.*softmax"),
        (lambda: seq2seq(attention="linear"), ("a", "a"), "linear.*no weights to see"),
        (lambda: GPT(config_of()), ("a cat", "a"), "target: a GPT has no decoder"),
        (lambda: seq2seq(), ("a cat",), r"target: a Seq2Seq needs one, say tj.translate"),
        (lambda: GPT(config_of()), ("",), "text='': has no tokens"),
        (lambda: Encoder(config_of()), ("",), "text='': has no tokens"),
        (lambda: GPT(config_of()), (["a", "b"],), "text: must be a string, not of type list"),
        (lambda: GPT(config_of()), ("a" * 20,), "text: 20 tokens, and the model's context is 19"),
        (lambda: seq2seq(), ("a", "a" * 19), "target: 20 tokens, and the model's context is 19"),
        (lambda: GPT(config_of()), ("dog",), "no id for 'd'"),
        (lambda: GPT(config_of(vocab_size=5)), ("the cat",), "text: has token .*, and the model knows ids 0 to 4"),
    ],
)
def test_a_wrong_argument_is_an_error_of_one_line(make, args, message):
    with pytest.raises(tj.UserError, match=message) as error:
        tj.attention_maps(run_of(make()), *args)
    assert len(str(error.value).splitlines()) == 1


def test_a_run_without_a_tokenizer_is_refused():
    with pytest.raises(tj.UserError, match="no supported tokenizer found"):
        tj.attention_maps(run_of(GPT(config_of()), None), "a")
