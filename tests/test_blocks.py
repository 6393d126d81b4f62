"""A block against its formula, spelled out with its own parts; the stack against its blocks in a row."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import Encoder
from transformer_jax.nn import kv_cache as kv
from transformer_jax.nn.attention import Attention
from transformer_jax.nn.blocks import NORM_PLACEMENTS, Block, Stack
from transformer_jax.nn.layers import FeedForward
from transformer_jax.nn.masks import Mask

B, T, S, D = 3, 5, 7, 11
SIZES = dict(num_layers=2, d_model=D, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=13, positions="none")
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(B, T, D)).astype(np.float32)
ENCODED = RANDOM.normal(size=(B, S, D)).astype(np.float32)
IS_TOKEN = np.ones((B, T), bool)
SOURCE_IS_TOKEN = np.ones((B, S), bool)
IS_TOKEN[0, 3:] = IS_TOKEN[1, :1] = SOURCE_IS_TOKEN[1, :2] = SOURCE_IS_TOKEN[2, 4:] = False
MASK, SOURCE_MASK = Mask(is_key=IS_TOKEN, is_causal=True), Mask(is_key=SOURCE_IS_TOKEN)

placements = pytest.mark.parametrize("norm_placement", NORM_PLACEMENTS)
norms = pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])  # test_layers.py has the others
with_and_without_source = pytest.mark.parametrize("has_source", [False, True], ids=["alone", "with_source"])


class Parts:
    """A block, and what it is made of as plain functions of arrays over the same parameters."""

    def __init__(self, has_source=False, **kwargs):
        self.config = TransformerConfig(**SIZES | kwargs)
        self.block, self.has_source = Block(self.config, has_source), has_source
        init = functools.partial(self.block.init, method=self._run)
        self.params = random_like(dict(jax.eval_shape(init, jax.random.key(0), X)["params"]))

    def _run(self, block, x, deterministic=True):
        if not self.has_source:
            return block(x, MASK, deterministic=deterministic)[0]
        return block(x, MASK, None, None, block.source_keys_values(ENCODED), SOURCE_MASK, deterministic)[0]

    def __call__(self, x):
        """What the block makes of x [B, T, D], and of the source where it has one."""
        return jax.jit(functools.partial(self.block.apply, method=self._run))({"params": self.params}, x)

    def train(self, *seeds):
        """What it makes of X in training, for each seed."""

        def apply(params, key):
            return self.block.apply(params, X, method=self._run, deterministic=False, rngs={"dropout": key})

        apply = jax.jit(apply)
        return [apply({"params": self.params}, jax.random.key(seed, impl="rbg")) for seed in seeds]

    def attend(self, x):
        return Attention(self.config).apply({"params": self.params["attention"]}, jnp.array(x), MASK)[0]

    def cross(self, x):
        """Keys and values by their formula: a product with a kernel, and a bias."""
        params = self.params["cross"]
        keys, values = (
            jnp.einsum("BSD,DKH->BSKH", ENCODED, params[name]["kernel"]) + params[name]["bias"]
            for name in ("key", "value")
        )
        module = Attention(self.config, is_cross=True)
        source = kv.KeysValues.from_projections(keys, values)
        return module.apply({"params": params}, jnp.array(x), SOURCE_MASK, source=source)[0]

    def feed_forward(self, x):
        return FeedForward(self.config).apply({"params": self.params["feed_forward"]}, jnp.array(x))

    def part(self, name, x):
        return {"attention": self.attend, "cross": self.cross, "feed_forward": self.feed_forward}[name](x)

    def norm(self, name, x):
        return norm_of(self.config, self.params[name], x)


def norm_of(config, params, x):
    """Ba et al. 2016, equation 4; Zhang & Sennrich 2019, equation 4."""
    x = np.asarray(x, np.float64)
    if config.norm == "rmsnorm":
        assert params.keys() == {"scale"}
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_epsilon) * params["scale"]
    spread = np.sqrt(np.var(x, -1, keepdims=True) + config.norm_epsilon)
    return (x - np.mean(x, -1, keepdims=True)) / spread * params["scale"] + params["bias"]


def pre(parts, x, names):
    for name in names:
        x = x + parts.part(name, parts.norm(f"{name}_norm", x))
    return x


def post(parts, x, names):
    for name in names:
        x = parts.norm(f"{name}_norm", x + parts.part(name, x))
    return x


def sandwich(parts, x, names):
    for name in names:
        x = x + parts.norm(f"{name}_out_norm", parts.part(name, parts.norm(f"{name}_norm", x)))
    return x


def output(parts, x, names):
    for name in names:
        x = x + parts.norm(f"{name}_out_norm", parts.part(name, x))
    return x


def parallel(parts, x, names):
    y = parts.norm("attention_norm", x)
    return x + sum(parts.part(name, y) for name in names)


def parallel_two(parts, x, names):
    return x + sum(parts.part(name, parts.norm(f"{name}_norm", x)) for name in names)


FORMULAS = {function.__name__: function for function in (pre, post, sandwich, output, parallel, parallel_two)}


@placements
@pytest.mark.parametrize(("norm", "has_source"), [("rmsnorm", False), ("layernorm", True)])
def test_a_block_is_the_formula_of_its_placement_over_its_parts(norm_placement, norm, has_source):
    parts = Parts(has_source, norm=norm, norm_placement=norm_placement)
    names = ["attention", *["cross"] * has_source, "feed_forward"]
    close(parts(X), FORMULAS[norm_placement](parts, X, names))


NORM_NAMES = {  # of parts, after the part's name
    "pre": ["norm"],
    "post": ["norm"],
    "sandwich": ["norm", "out_norm"],
    "output": ["out_norm"],
    "parallel": [],
    "parallel_two": ["norm"],
}


@placements
@with_and_without_source
def test_a_block_has_the_parts_that_it_needs_and_no_others(norm_placement, has_source):
    parts = {"attention", "feed_forward", *["cross"] * has_source}
    norms = {f"{part}_{name}" for part in parts for name in NORM_NAMES[norm_placement]}
    norms |= {"attention_norm"} if norm_placement == "parallel" else set()
    assert Parts(has_source, norm_placement=norm_placement).params.keys() == parts | norms


def stack_of(norm_placement, norm="layernorm", **kwargs):
    stack = Stack(TransformerConfig(**SIZES | kwargs, norm_placement=norm_placement, norm=norm))
    return stack, random_like(dict(jax.eval_shape(stack.init, jax.random.key(0), X, MASK)["params"]))


@placements
@norms
def test_a_stack_is_its_blocks_in_a_row_and_a_last_norm_unless_they_end_in_one(norm_placement, norm):
    stack, params = stack_of(norm_placement, norm)
    assert params.keys() == {"block_0", "block_1"} | (set() if norm_placement == "post" else {"norm"})
    x = X
    for name in ("block_0", "block_1"):
        x = Block(stack.config).apply({"params": params[name]}, x, MASK)[0]
    expected = x if norm_placement == "post" else norm_of(stack.config, params["norm"], x)
    close(jax.jit(lambda params: stack.apply(params, X, MASK)[0])({"params": params}), expected)


@placements
def test_a_stack_reads_a_source_layer_by_layer_and_never_its_padding(norm_placement):
    stack = Stack(TransformerConfig(**SIZES, norm_placement=norm_placement), has_source=True)

    def run(params, encoded):
        source = stack.apply(params, encoded, SOURCE_IS_TOKEN, method="source_keys_values")
        return source, stack.apply(params, X, MASK, None, source)[0]

    blocks = {f"block_{i}": Parts(True, norm_placement=norm_placement).params for i in range(2)}
    blocks["block_1"] = jax.tree.map(lambda leaf: leaf[::-1], blocks["block_1"])  # so that the layers differ
    some_norm = next(
        blocks["block_0"][name] for name in ("attention_norm", "attention_out_norm") if name in blocks["block_0"]
    )
    last = {} if norm_placement == "post" else {"norm": some_norm}
    run = jax.jit(functools.partial(run, {"params": blocks | last}))
    source, out = run(ENCODED)
    x = X
    for name, keys_values in zip(blocks, source.layers, strict=True):
        block = Block(stack.config, has_source=True)
        x = block.apply({"params": blocks[name]}, x, MASK, None, None, keys_values, SOURCE_MASK)[0]
    close(out, norm_of(stack.config, last["norm"], x) if last else x)

    at_padding = run(np.where(SOURCE_IS_TOKEN[:, :, None], ENCODED, 100.0))[1]
    np.testing.assert_array_equal(at_padding, out)
    for first, second in itertools.combinations([out, run(-ENCODED)[1], run(ENCODED[::-1])[1]], 2):
        assert np.all(np.any(np.asarray(first != second), axis=-1)[[0, 2]])


def test_an_unknown_placement_is_refused_with_the_list_of_known_ones():
    with pytest.raises(UserError, match=f"model.norm_placement='nonsense'.*{', '.join(NORM_PLACEMENTS)}"):
        TransformerConfig(**SIZES, norm_placement="nonsense")


# Dropout


@placements
def test_dropout_is_a_function_of_its_key_and_off_when_deterministic(norm_placement):
    plain, dropping = (Parts(True, norm_placement=norm_placement, dropout_rate=rate) for rate in (0.0, 0.5))
    expected = plain(X)
    np.testing.assert_array_equal(dropping(X), expected)
    close(*plain.train(1), expected)
    first, again, different = dropping.train(1, 1, 2)
    np.testing.assert_array_equal(first, again)
    assert jnp.all(jnp.any(first != different, axis=-1)) and jnp.all(jnp.any(first != expected, axis=-1))


@placements
def test_dropout_never_touches_the_residual_stream(norm_placement):
    """Parts that write 0 leave the block the identity (or its norms) in training, too."""
    parts = Parts(True, norm="rmsnorm", norm_placement=norm_placement, dropout_rate=0.5)
    for part, writer in (("attention", "out"), ("cross", "out"), ("feed_forward", "down")):
        parts.params[part] = parts.params[part] | {writer: jax.tree.map(jnp.zeros_like, parts.params[part][writer])}
    training = parts.train(1)[0]
    close(training, parts(X))
    if norm_placement != "post":
        np.testing.assert_array_equal(training, X)


def test_each_layer_and_each_part_drops_numbers_of_its_own():
    """Where every part writes 1 and the stream starts at 0, what arrives counts the parts that were kept."""
    stack, params = stack_of("parallel", dropout_rate=0.5)
    for name in ("block_0", "block_1"):
        for part, writer in (("attention", "out"), ("feed_forward", "down")):
            ones = {"kernel": jnp.zeros_like(params[name][part][writer]["kernel"]), "bias": jnp.ones(D)}
            params[name][part] = params[name][part] | {writer: ones}
    train = functools.partial(stack.apply, mask=MASK, deterministic=False, capture_intermediates=True)
    key = jax.random.key(1, impl="rbg")
    _, blocks = jax.jit(train)({"params": params}, jnp.zeros((B, T, D)), rngs={"dropout": key})
    first, second = (blocks["intermediates"][name]["__call__"][0][0] for name in ("block_0", "block_1"))
    counts = np.unique(np.asarray(first) / 2, return_counts=True)
    np.testing.assert_array_equal(counts[0], [0, 1, 2])  # 1: one of the two parts alone was dropped
    np.testing.assert_allclose(counts[1] / first.size, [1 / 4, 1 / 2, 1 / 4], atol=0.1)
    assert np.mean(np.asarray(second - first) != np.asarray(first)) > 0.4


def test_token_types_for_a_model_that_has_none_are_refused():
    model = Encoder(TransformerConfig(**SIZES | dict(vocab_size=7)))
    with pytest.raises(UserError, match="token_types: given, but model.num_token_types=0"):
        model.init(jax.random.key(0), np.zeros((2, 3), int), None, np.zeros((2, 3), int))
