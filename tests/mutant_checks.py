"""Checks that have to notice the bugs of mutants.py; each imports the package as it is at that moment."""

import contextlib
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from helpers.adapter_checks import adapter_rows, int8_base  # noqa: F401
from helpers.answer_checks import answers  # noqa: F401
from helpers.capture_checks import looking  # noqa: F401
from helpers.chat_checks import chats, learned_answers  # noqa: F401
from helpers.checkpoint_checks import checkpoint_folders  # noqa: F401
from helpers.explorer_checks import packed_weights  # noqa: F401
from helpers.file_checks import files, folder_tokenizers  # noqa: F401
from helpers.fresh_models import V, make, normal
from helpers.numpy_gpt import GEMMA, numpy_gpt
from helpers.position_checks import alibi, positions, rope, shaw, t5  # noqa: F401
from helpers.prefix_checks import prefixes  # noqa: F401
from helpers.sampling_checks import decoding, processors, regex_costs  # noqa: F401

ROWS, LENGTH = 3, 5


def laws():
    return importlib.import_module("transformer_jax.testing")


# The checks: each passes on the package as it is, and each is the end of some mutants


def attention(backend):
    attend = importlib.import_module("transformer_jax.nn.attention").attend
    laws().check_attention(jax.jit(lambda *args: attend(*args, backend=backend)))


def gpt(**changes):
    model, params, _ = make("GPT", **changes)
    laws().check_causal_lm(jax.jit(lambda tokens, is_token: model.apply(params, tokens, is_token)), vocab_size=V)


def cache(**changes):
    model, params, config = make("GPT", **changes)
    make_cache = importlib.import_module("transformer_jax.nn.kv_cache_kinds").make_cache
    extend = jax.jit(lambda *args: model.apply(params, *args, method="extend"))
    apply = jax.jit(lambda tokens, is_token: model.apply(params, tokens, is_token))
    laws().check_cache(apply, extend, lambda rows: make_cache(config, rows, 9), vocab_size=V)


def packing(**changes):
    model, params, _ = make("GPT", **changes)
    apply = jax.jit(lambda tokens, segments: model.apply(params, tokens, segments=segments))
    laws().check_packing(apply, vocab_size=V)


def window():
    masks = importlib.import_module("transformer_jax.nn.masks")
    seen = masks.Mask(is_causal=True, window=2).block(0, 4, 0, 4)
    np.testing.assert_array_equal(seen[0], np.tril(np.ones((4, 4))) - np.tril(np.ones((4, 4)), -2))


def cudnn():
    """Arguments for cuDNN, given to XLA, against the formula."""
    Mask = importlib.import_module("transformer_jax.nn.masks").Mask
    cudnn = importlib.import_module("transformer_jax.nn.attention_cudnn")
    attend = importlib.import_module("transformer_jax.nn.attention").attend
    q = k = v = normal(0, ROWS, 6, 2, 8)
    is_key = jnp.arange(6) >= jnp.array([[0], [2], [6]])
    backwards = jnp.arange(6)[None, ::-1]
    by_position = dict(is_by_position=True, query_positions=backwards, key_positions=backwards)
    for changes in ({"window": 2}, {"first_slot": 2}, {"is_key": is_key}, by_position):
        mask = Mask(is_causal=True, **changes)
        arguments = cudnn.dot_product_arguments(mask, None, 6, 6, q.dtype)
        out = jax.nn.dot_product_attention(q, k, v, implementation="xla", **arguments)
        out = cudnn.zero_without_keys(out, mask, arguments)
        np.testing.assert_allclose(out, attend(q, k, v, mask, backend="reference"), atol=1e-5)


@contextlib.contextmanager
def small_blocks():
    """Blocks of two queries or keys, so that short texts have several of them."""
    cpu, blockwise = (importlib.import_module(f"transformer_jax.nn.attention_{name}") for name in ("cpu", "blockwise"))
    before = cpu.QUERY_BLOCK, blockwise.BLOCK
    cpu.QUERY_BLOCK = blockwise.BLOCK = 2
    try:
        yield
    finally:
        cpu.QUERY_BLOCK, blockwise.BLOCK = before


def twins(backend, softcap=0.0):
    attn, masks = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.attention", "nn.masks"))
    q, k, v = normal(0, 2, LENGTH, 6, 4), normal(1, 2, LENGTH, 2, 4), normal(2, 2, LENGTH, 2, 4)

    def attend(backend):
        return jax.jit(lambda *qkv: attn.attend(*qkv, masks.Mask(is_causal=True), softcap=softcap, backend=backend))

    with small_blocks():
        laws().check_twins(attend(backend), attend("reference"), 2 * q, k, v)


def bias_twins():
    attend = importlib.import_module("transformer_jax.nn.attention").attend
    of_positions = importlib.import_module("transformer_jax.nn.positions")
    q, table = normal(0, 2, LENGTH, 6, 4), normal(3, 6, 6)
    of_distance = lambda table, distance: jnp.moveaxis(table[jnp.clip(distance, 0, 5)], -1, 1)  # noqa: E731

    def with_bias(backend):
        return jax.jit(
            lambda table: attend(q, q, q, None, of_positions.DistanceBias(table, of_distance), backend=backend)
        )

    with small_blocks():
        laws().check_twins(with_bias("blockwise"), with_bias("reference"), table)


def dropout_mean():
    attend = importlib.import_module("transformer_jax.nn.attention").attend
    q, k, v = normal(0, 2, 7, 3, 4), normal(1, 2, 11, 3, 4), normal(2, 2, 11, 3, 4) + 3.0
    dropped = jax.jit(lambda key: attend(q, k, v, dropout_rate=0.5, dropout_key=key).mean())
    outs = [dropped(jax.random.key(i)) for i in range(40)]
    assert abs(np.mean(outs) - jax.jit(attend)(q, k, v).mean()) < 0.3


def adapter():
    """An adapter in training drops a share of its own inputs and scales up the others; its arrays fit its layer."""
    names = ("nn.layers", "models.adapters", "errors")
    layers, adapters, errors = (importlib.import_module(f"transformer_jax.{name}") for name in names)
    params = {
        "kernel": jnp.eye(64),
        "adapters": {"lora_in": jnp.eye(64), "lora_out": jnp.eye(64), "scale": jnp.ones(1)},
    }
    x = jnp.ones((3, 17, 64))
    variables = adapters.variables_of(params, 0.25)
    out = layers.Dense((64,), use_bias=False).apply(variables, x, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(np.unique(out), [1.0, 1.0 + 4 / 3], rtol=1e-6)
    assert abs(np.mean(out == 1.0) - 0.25) < 0.03
    ia3 = adapters.AdapterSpec("ia3", 0, ())
    for name, leaf, size in (("down", "ia3_in", 5), ("up", "ia3_out", 3)):
        shapes = adapters.layer_shapes(f"block_0/feed_forward/{name}", ia3, 5, 3)
        assert {key: shape.shape for key, shape in shapes.items()} == {leaf: (size,)}
    try:
        adapters.layer_shapes("up", adapters.AdapterSpec("lora", 4, ()), 5, 3)
    except errors.UserError:
        return
    raise AssertionError("a rank of 4 was accepted for 3 outputs")


def evaluation():
    model, params, _ = make("GPT", dropout_rate=0.5)
    tokens = np.arange(10).reshape(2, 5)
    apply = jax.jit(lambda key: model.apply(params, tokens, rngs={"dropout": key}))
    np.testing.assert_array_equal(*(apply(jax.random.key(seed)) for seed in (0, 1)))


def value_passes():
    """With one token there is nothing to choose: the output is its value, projected."""
    attn, masks = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.attention", "nn.masks"))
    config = importlib.import_module("transformer_jax.config").TransformerConfig(d_model=7, num_heads=2, head_dim=4)
    module, x = attn.Attention(config), normal(0, 2, 1, 7)
    params = jax.jit(module.init)(jax.random.key(0, impl="rbg"), x, masks.Mask())["params"]
    value = np.einsum("BTD,DNH->BTNH", x, params["value"]["kernel"])
    expected = np.einsum("BTNH,NHD->BTD", value, params["out"]["kernel"])
    np.testing.assert_allclose(module.apply({"params": params}, x, masks.Mask())[0], expected, atol=1e-5)


def settings():
    """Scaled by 1 or with queries sqrt(H) times as long is the same; a tiny soft-cap leaves all keys equal."""
    attn, masks = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.attention", "nn.masks"))
    config = importlib.import_module("transformer_jax.config")

    def module(**changes):
        return attn.Attention(config.TransformerConfig(d_model=7, num_heads=2, head_dim=4, init_std=1.0, **changes))

    x = normal(0, 2, 5, 7)
    params = jax.jit(module().init)(jax.random.key(0, impl="rbg"), x, masks.Mask())["params"]

    def times(factor, **changes):
        query = jax.tree.map(lambda leaf: factor * leaf, params["query"])
        return jax.jit(module(**changes).apply)({"params": params | {"query": query}}, x, masks.Mask())[0]

    np.testing.assert_allclose(times(1.0, attention_scale=1.0), times(2.0), atol=1e-4)
    np.testing.assert_allclose(times(1.0, attention_softcap=1e-6), times(0.0), atol=1e-4)


def sees_window():
    model, params, _ = make("GPT", window=2)
    tokens = np.arange(8).reshape(2, 4)
    other = tokens.copy()
    other[:, 0] += 1
    a, b = (jax.jit(model.apply)(params, x) for x in (tokens, other))
    np.testing.assert_array_equal(a[:, 2:], b[:, 2:])
    assert np.any(np.asarray(a[:, 1] != b[:, 1]))


def shift():
    attn, masks = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.attention", "nn.masks"))
    config = importlib.import_module("transformer_jax.config")
    module = attn.Attention(config.TransformerConfig(d_model=8, num_heads=2, positions="rotary", init_std=1.0))
    x, at = normal(0, 2, 5, 8), np.arange(5)[None]
    params = jax.jit(module.init)(jax.random.key(0, impl="rbg"), x, masks.Mask())
    apply = jax.jit(lambda at: module.apply(params, x, masks.Mask(query_positions=at, key_positions=at))[0])
    np.testing.assert_allclose(apply(at + 7), apply(at), atol=1e-4)


def reorder():
    cache = importlib.import_module("transformer_jax.nn.kv_cache")
    layer = cache.KeysValues(jnp.arange(3.0)[:, None], jnp.arange(3.0)[:, None])
    state = cache.KVCache((layer,), jnp.ones((3, 1), bool), jnp.ones((3, 1), jnp.int32), jnp.int32(1))
    np.testing.assert_array_equal(state.reorder(jnp.array([2, 2])).layers[0].keys[:, 0], [2, 2])


def beams():
    cache = importlib.import_module("transformer_jax.nn.kv_cache_kinds")
    model, params, config = make("GPT", positions="learned")
    read = jax.jit(lambda *args: model.apply(params, *args, last_only=True, method="extend"))
    prompt, rows, parents = np.arange(6).reshape(2, 3), np.repeat(np.arange(2), 2), jnp.array([1, 0, 2, 2])
    _, start = read(prompt, prompt >= 0, cache.make_cache(config, 2, LENGTH))
    found = []
    for state in (start.expand(2, 3 + 2 * 2), start.reorder(rows)):
        for tokens in np.array([[3, 1, 4, 1], [5, 9, 2, 6]])[:, :, None]:
            logits, state = read(tokens, tokens >= 0, state)
            state = state.reorder(parents)
        found.append(logits)
    np.testing.assert_allclose(*found, atol=1e-5)


def numbers():
    layers = importlib.import_module("transformer_jax.nn.layers")
    np.testing.assert_allclose(layers.FEED_FORWARDS["gelu"].activation(jnp.array([1.0])), [0.8413447], atol=1e-6)
    norm = layers.RMSNorm(1e-9)
    np.testing.assert_allclose(
        norm.apply(norm.init(jax.random.key(0), jnp.ones((1, 2))), jnp.array([[3.0, 4.0]])),
        np.array([[3.0, 4.0]]) / np.sqrt(12.5),
        atol=1e-5,
    )


def block_of(norm_placement):
    blocks, masks = (importlib.import_module(f"transformer_jax.{name}") for name in ("nn.blocks", "nn.masks"))
    config = importlib.import_module("transformer_jax.config")
    config = config.TransformerConfig(d_model=8, num_heads=2, norm_placement=norm_placement)
    block, x = blocks.Block(config), normal(0, 2, 3, 8)
    params = jax.jit(block.init)(jax.random.key(1), x, masks.Mask())
    bound, out = block.bind(params), jax.jit(lambda x: block.apply(params, x, masks.Mask())[0])(x)
    return bound, x, jax.jit(lambda x: bound.attention(x, masks.Mask())[0]), out


def post_norm():
    *_, out = block_of("post")
    np.testing.assert_allclose(np.asarray(out).mean(-1), np.zeros(out.shape[:2]), atol=1e-5)


def parallel():
    block, x, attend, out = block_of("parallel")
    y = block.attention_norm(x)
    np.testing.assert_allclose(out, x + attend(y) + block.feed_forward(y), atol=1e-6)


def pattern(**changes):
    changes = GEMMA | dict(num_layers=2, layer_pattern="local,global") | changes
    model, params, config = make("GPT", **changes)
    tokens = np.arange(10).reshape(2, 5)
    np.testing.assert_allclose(jax.jit(model.apply)(params, tokens), numpy_gpt(config, params, tokens), atol=1e-3)


def remat(kind):
    model, params, _ = make("GPT", dropout_rate=0.5)
    losses, kept = [], []
    for name in ("none", kind):
        apply = functools.partial(
            model.clone(remat=name).apply, deterministic=False, rngs={"dropout": jax.random.key(0)}
        )
        loss = lambda params, apply=apply: jnp.sum(apply(params, np.arange(10).reshape(2, 5)))  # noqa: E731
        losses.append(jax.jit(loss)(params))
        kept.append(jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    none, some = (sum(x.size for x in jax.tree.leaves(residuals)) for residuals in kept)
    assert some < 0.9 * none


def scaled_logits():
    tokens = np.arange(6).reshape(2, 3)
    plain, scaled = (make("GPT", scale_logits=s) for s in (False, True))
    plain, scaled = (jax.jit(model.apply)(params, tokens) for model, params, _ in (plain, scaled))
    factor = plain / scaled
    np.testing.assert_allclose(factor, np.full(factor.shape, 7**0.5), rtol=1e-4)


def pooling(pooling):
    pool = importlib.import_module("transformer_jax.models.encoder").Pool(pooling)
    x = normal(0, ROWS, LENGTH, 7) - 5.0
    padded = jnp.pad(x, ((0, 0), (3, 2), (0, 0)), constant_values=9.0)
    is_token = jnp.pad(jnp.ones((ROWS, LENGTH), bool), ((0, 0), (3, 2)))
    np.testing.assert_allclose(pool.apply({}, padded, is_token), pool.apply({}, x), atol=1e-5)


def source():
    model, params, _ = make("Seq2Seq")
    target, source = np.arange(6).reshape(2, 3), np.arange(8).reshape(2, 4)
    is_token = np.array([[True] * 4, [True, True, False, False]])
    apply = jax.jit(model.apply)
    a, b = (apply(params, np.where(is_token, source, fill), target, is_token) for fill in (0, 12))
    np.testing.assert_allclose(a, b, atol=1e-5)


def metadata():
    """All metadata of a checkpoint come back from JSON, and a field too many or of another type is refused."""
    meta, errors = (importlib.import_module(f"transformer_jax.{name}") for name in ("checkpoints.meta", "errors"))
    model, _, _ = make("GPT")
    written = meta.CheckpointMeta(3, model, None, ("a", "b"), True, "", val_score=0.5)
    values = written.to_dict()
    assert meta.CheckpointMeta.from_dict(values) == written
    for change in ({"more": 1}, {"step": True}, {"labels": [1]}):
        try:
            meta.CheckpointMeta.from_dict(values | change)
        except errors.UserError:
            continue
        raise AssertionError(f"{change} was read")


def lines():
    reader = importlib.import_module("transformer_jax.lines")
    text = "\ufeffa\ufeff\r\nb\rc\u2028d\n\ne"
    assert reader.split_lines(reader.decode(text.encode())) == ["a\ufeff", "b\rc\u2028d", "", "e"]
    assert reader.one_line("a\nb") == "a b"
    whole = text.encode() * 3
    for size in (1, 5):
        pieces = (whole[i : i + size] for i in range(0, len(whole), size))
        assert "".join(reader.decode_pieces(pieces)) == reader.decode(whole)


def token_pieces():
    tokenizers = importlib.import_module("transformer_jax.tokenizers")
    text = "it's  the\n\n cat's mat.  " * 5
    tokenizer = tokenizers.train_tokenizer("bpe", 290, text)
    for size in (1, 4, 11):
        ids = tokenizer.encode_pieces(text[i : i + size] for i in range(0, len(text), size))
        assert [i for part in ids for i in part] == list(tokenizer.encode(text))
