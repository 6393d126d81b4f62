import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.layers import (
    FEED_FORWARDS,
    NORMS,
    Dense,
    Embedding,
    FeedForward,
    make_norm,
    make_qk_norm,
    normalize,
    output_std,
)

B, T, N, H, D, F, V = 5, 7, 3, 2, 11, 13, 23
norms = pytest.mark.parametrize("norm", NORMS)
feed_forwards = pytest.mark.parametrize("feed_forward", FEED_FORWARDS)


def normal(seed, shape):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_random_params(module, x, seed=0):
    """Parameters of the right shapes and no special values: no zero biases, no unit scales."""
    params = jax.eval_shape(module.init, jax.random.key(seed), x)
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, [normal(seed + 1 + i, leaf.shape) for i, leaf in enumerate(leaves)])


def numbers(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize(
    ("x_shape", "num_in", "out_shape", "formula"),
    [
        ((B, T, D), 1, (F,), "btd,df->btf"),
        ((B, T, D), 1, (N, H), "btd,dnh->btnh"),
        ((B, T, N, H), 2, (D,), "btnh,nhd->btd"),
        ((B, D), 1, (F,), "bd,df->bf"),
        ((1, 24), 1, (F,), "bd,df->bf"),  # one row, whose product is made in parts
    ],
)
def test_dense_is_an_einsum_and_a_bias(x_shape, num_in, out_shape, formula):
    x, dense = normal(0, x_shape), Dense(out_shape, num_in=num_in)
    params = with_random_params(dense, x)
    leaves = numbers(params["params"])
    assert leaves["kernel"].shape == x_shape[-num_in:] + out_shape and leaves["bias"].shape == out_shape
    close(dense.apply(params, x), np.einsum(formula, numbers(x), leaves["kernel"]) + leaves["bias"])


def test_dense_without_bias_has_a_kernel_only():
    params = Dense((F,), use_bias=False).init(jax.random.key(0), normal(0, (B, T, D)))
    assert [*params["params"]] == ["kernel"]


def layernorm(x, epsilon, scale=1.0, bias=0.0):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale + bias


def rmsnorm(x, epsilon, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


NORM_FORMULAS = {  # by the names of the parameters
    "layernorm": ({"scale", "bias"}, layernorm),
    "layernorm_no_bias": ({"scale"}, layernorm),
    "layernorm_no_parameters": (set(), layernorm),
    "rmsnorm": ({"scale"}, rmsnorm),
    "rmsnorm_plus_one": ({"scale"}, lambda x, epsilon, scale: rmsnorm(x, epsilon, 1 + scale)),
}


@norms
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_a_norm_is_its_formula(norm, epsilon):
    x, module = 3 + normal(0, (B, T, D)), make_norm(TransformerConfig(norm=norm, norm_epsilon=epsilon))
    params = with_random_params(module, x)
    names, formula = NORM_FORMULAS[norm]
    leaves = params.get("params", {})
    assert set(leaves) == names
    close(module.apply(params, x), formula(numbers(x), epsilon, **numbers(leaves)))


@norms
def test_a_norm_starts_without_a_scale_or_bias_of_its_own(norm):
    x, module = 3 + normal(0, (B, T, D)), make_norm(TransformerConfig(norm=norm))
    plain = layernorm(numbers(x), 1e-5) if norm.startswith("layernorm") else rmsnorm(numbers(x), 1e-5, 1.0)
    close(module.init_with_output(jax.random.key(0), x)[0], plain)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm_plus_one"])
def test_queries_are_normed_in_each_head_or_over_all_heads_by_the_models_rms_norm(norm):
    x = 3 + normal(0, (B, T, N, H))
    for qk_norm, shape in (("head", (B, T, N, H)), ("all", (B, T, 1, N * H))):
        module = make_qk_norm(TransformerConfig(norm=norm, qk_norm=qk_norm))
        params = with_random_params(module, x)
        scale = numbers(params["params"]["scale"]) + (norm == "rmsnorm_plus_one")
        close(module.apply(params, x), rmsnorm(numbers(x).reshape(shape), 1e-5, scale).reshape(x.shape))
    assert make_qk_norm(TransformerConfig())(x) is x


@norms
def test_a_norm_of_zeros_is_finite_in_value_and_gradient(norm):
    x, module = jnp.zeros((B, T, D)), make_norm(TransformerConfig(norm=norm))
    params = module.init(jax.random.key(0), x)
    assert jnp.all(module.apply(params, x) == 0)
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: module.apply(params, x).sum())(x)))


def test_layernorm_keeps_small_differences_beside_a_large_mean():
    x, module = 1e4 + normal(0, (B, T, D)), make_norm(TransformerConfig(norm="layernorm"))
    params = module.init(jax.random.key(0), x)
    expected = layernorm(numbers(x), 1e-5, **numbers(params["params"]))
    np.testing.assert_allclose(module.apply(params, x), expected, atol=5e-3)


@norms
def test_a_norm_computes_in_float32_and_answers_in_the_type_of_its_input(norm):
    x, module = 100 * normal(0, (B, T, D)).astype(jnp.bfloat16), make_norm(TransformerConfig(norm=norm))
    params = module.init(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    expected = module.apply(params, x.astype(jnp.float32)).astype(jnp.bfloat16)
    assert module.apply(params, x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(module.apply(params, x), expected)


def test_an_unknown_norm_is_refused_with_a_list():
    with pytest.raises(UserError, match="model.norm='batchnorm'.*" + ", ".join(NORMS)):
        make_norm(TransformerConfig(norm="batchnorm"))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


FEED_FORWARD_FORMULAS = {
    "relu": lambda up, gate: np.maximum(up, 0),
    "gelu": lambda up, gate: gelu(up),
    "gelu_tanh": lambda up, gate: gelu_tanh(up),
    "silu": lambda up, gate: silu(up),
    "squared_relu": lambda up, gate: np.maximum(up, 0) ** 2,
    "swiglu": lambda up, gate: silu(gate) * up,
    "geglu": lambda up, gate: gelu(gate) * up,
    "geglu_tanh": lambda up, gate: gelu_tanh(gate) * up,
}


@feed_forwards
@pytest.mark.parametrize("mlp_bias", [True, False])
def test_a_feed_forward_is_its_formula(feed_forward, mlp_bias):
    config = TransformerConfig(d_model=D, num_heads=1, d_ff=F, feed_forward=feed_forward, mlp_bias=mlp_bias)
    x, module = normal(0, (B, T, D)), FeedForward(config)
    params = with_random_params(module, x)
    leaves = numbers(params["params"])

    def dense(name, x):
        return x @ leaves[name]["kernel"] + (leaves[name]["bias"] if mlp_bias else 0)

    gate = dense("gate", numbers(x)) if FEED_FORWARDS[feed_forward].is_gated else None
    hidden = FEED_FORWARD_FORMULAS[feed_forward](dense("up", numbers(x)), gate)
    close(module.apply(params, x), dense("down", hidden))


def test_the_gated_and_the_plain_feed_forward_have_nearly_equally_many_parameters():
    def count(feed_forward):
        config = TransformerConfig(d_model=256, feed_forward=feed_forward, mlp_bias=False)
        params = jax.eval_shape(FeedForward(config).init, jax.random.key(0), jnp.zeros((2, 3, 256)))
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count("swiglu") == pytest.approx(count("gelu"), rel=0.02)


def test_an_embedding_looks_up_its_rows_and_unembed_is_its_transpose():
    embedding, ids = Embedding(V, D, 1.0, "float32"), jnp.array(np.random.default_rng(0).integers(0, V, (B, T)))
    params = embedding.init(jax.random.key(1), ids)
    table = np.asarray(params["params"]["embedding"])
    assert table.shape == (V, D)
    np.testing.assert_array_equal(embedding.apply(params, ids), table[ids])
    for shape in ((B, T, D), (B, D)):
        x = normal(2, shape)
        close(embedding.apply(params, x, method="unembed"), numbers(x) @ table.T)


def leaves_by_path(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params["params"])[0]
    }


def test_initial_values_have_the_configured_spread_and_residual_writers_less():
    config = TransformerConfig(
        vocab_size=97,
        max_len=101,
        num_layers=2,
        d_model=61,
        num_heads=6,
        num_kv_heads=3,
        head_dim=14,
        d_ff=67,
        feed_forward="swiglu",
        tie_embeddings=False,
        init_std=0.05,
    )
    params = jax.jit(GPT(config).init)(jax.random.key(0, impl="rbg"), jnp.zeros((2, 3), int))  # rbg compiles fast
    writers = 0
    for path, leaf in leaves_by_path(params).items():
        kind = path.rsplit("/", 1)[-1]
        if kind == "bias":
            assert jnp.all(leaf == 0), path
        elif kind == "scale":
            assert jnp.all(leaf == 1), path
        else:
            is_writer = path.endswith(("attention/out/kernel", "feed_forward/down/kernel"))
            writers += is_writer
            expected = 0.05 / math.sqrt(2 * 2) if is_writer else 0.05
            assert jnp.std(leaf) == pytest.approx(expected, rel=0.06), path
            assert abs(jnp.mean(leaf)) < 0.1 * expected, path
    assert writers == 2 * config.num_layers
    assert output_std(config) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "variant",
    [{"norm": x} for x in NORMS] + [{"feed_forward": x} for x in FEED_FORWARDS] + [{"tie_embeddings": False}],
    ids=str,
)
def test_parameters_are_float32_though_the_computation_is_bfloat16(variant):
    config = TransformerConfig(vocab_size=V, num_layers=1, d_model=D, num_heads=1, dtype="bfloat16", **variant)
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((B, T), int))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_and_embedding_answer_in_the_type_of_the_computation(dtype):
    x, ids = normal(0, (B, T, D)), jnp.ones((B, T), int)
    assert Dense((F,), dtype=dtype).init_with_output(jax.random.key(0), x)[0].dtype == dtype
    assert Embedding(V, D, 0.02, dtype).init_with_output(jax.random.key(0), ids)[0].dtype == dtype


def test_a_gradient_written_by_hand_is_the_derivative_of_its_formula():
    def rms_formula(x):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-2)

    def gelu_formula(x):
        return jax.nn.gelu(x, approximate=False)

    x, dy = normal(0, (B, T, D)), normal(1, (B, T, D))
    by_hand = {rms_formula: lambda x: normalize(x, 1e-2), gelu_formula: FEED_FORWARDS["gelu"].activation}
    for formula, function in by_hand.items():
        close(jax.vjp(function, x)[1](dy)[0], jax.vjp(formula, x)[1](dy)[0])
