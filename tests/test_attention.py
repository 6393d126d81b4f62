import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.config import TransformerConfig
from transformer_jax.nn import attention as attention_module
from transformer_jax.nn.attention import BACKENDS, Attention
from transformer_jax.nn.masks import Mask, causal

B, T, S, N, H, D = 2, 5, 7, 6, 11, 13
KV_HEADS = {"multi_head": 6, "grouped": 2, "multi_query": 1}
backend = "auto"


ON_THIS_MACHINE = [name for name in BACKENDS if name != "cudnn" or jax.default_backend() == "gpu"]


@pytest.fixture(scope="module", params=ON_THIS_MACHINE, autouse=True)
def every_backend(request):
    """Each test of this file runs for each backend."""
    global backend
    backend = request.param


def backend_for(kwargs):
    return "reference" if "dropout_key" in kwargs else backend  # the only one with dropout


def attend(*args, **kwargs):
    return attention_module.attend(*args, **kwargs, backend=backend_for(kwargs))


@functools.cache  # one function for a backend: jit tells functions apart by identity
def compiled(backend, dropout_rate):
    attend = functools.partial(attention_module.attend, dropout_rate=dropout_rate, backend=backend)
    return jax.jit(lambda args, kwargs: attend(*args, **kwargs))


def jit_attend(*args, dropout_rate=0.0, **kwargs):
    return compiled(backend_for(kwargs), dropout_rate)(args, kwargs)


@functools.cache
def compiled_gradients(backend):
    def loss(q, k, v, may_attend):
        return jnp.sum(jnp.sin(attention_module.attend(q, k, v, may_attend, backend=backend)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


kv_heads = pytest.mark.parametrize("K", KV_HEADS.values(), ids=KV_HEADS)
lightly = settings(max_examples=20, deadline=None, database=None)
masks_BTS = st.lists(st.booleans(), min_size=B * T * S, max_size=B * T * S).map(lambda x: np.array(x).reshape(B, T, S))


def inputs(K, seed=0, H=H):
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    random = np.random.default_rng(seed)
    return [jnp.array(random.normal(size=shape), jnp.float32) for shape in shapes]


def random_mask(seed=0):
    """Random, but every query may attend something."""
    may_attend = np.random.default_rng(seed).random((B, T, S)) < 0.6
    may_attend[:, :, 0] = True
    return jnp.array(may_attend)


def attend_in_loops(q, k, v, may_attend):
    """One query and one head at a time, in float64: the definition."""
    q, k, v, may_attend = (np.asarray(x) for x in (q, k, v, may_attend))
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if may_attend[b % len(may_attend), t % may_attend.shape[1], s]]
        if keys:
            scores = np.array([q[b, t, n] @ k[b, s, n // group] / np.sqrt(q.shape[-1]) for s in keys])
            weights = np.exp(scores - scores.max())
            out[b, t, n] = sum(w * v[b, s, n // group] for w, s in zip(weights / weights.sum(), keys, strict=True))
    return out


def weights_of(K, may_attend, **kwargs):
    """Attention weights [B, T, N, S], read out with values that are the identity: value s is 1 in place s."""
    q, k, _ = inputs(K, H=S)
    v = jnp.broadcast_to(jnp.eye(S)[:, None], (B, S, K, S))
    return jit_attend(3 * q, k, v, may_attend, **kwargs)


@kv_heads
@given(masks_BTS, st.integers(0, 99))
@lightly
def test_attend_is_the_loop_over_queries_heads_and_keys(K, may_attend, seed):
    q, k, v = inputs(K, seed)
    close(jit_attend(q, k, v, may_attend), attend_in_loops(q, k, v, may_attend))


@kv_heads
def test_a_mask_of_one_row_or_one_query_serves_all(K):
    q, k, v = inputs(K)
    for mask in (causal(T, S, 2), random_mask()[:, :1], random_mask()[:1, :1]):
        full = jnp.broadcast_to(mask, (B, T, S))
        np.testing.assert_array_equal(jit_attend(q, k, v, mask), jit_attend(q, k, v, full))


@kv_heads
def test_attend_agrees_with_jax_nn(K):
    q, k, v = inputs(K)
    expected = jax.jit(jax.nn.dot_product_attention)(q, k, v, mask=random_mask()[:, None])
    close(jit_attend(q, k, v, random_mask()), expected)


@kv_heads
@given(masks_BTS)
@lightly
def test_weights_of_a_query_sum_to_1_and_masked_weights_are_0(K, may_attend):
    weights = np.asarray(weights_of(K, may_attend))
    assert np.all(weights >= 0)
    assert np.all(np.moveaxis(weights, 2, 1)[~np.broadcast_to(may_attend[:, None], (B, N, T, S))] == 0)
    sums = np.broadcast_to(may_attend.any(-1)[:, :, None], (B, T, N)).astype(float)
    close(weights.sum(-1), sums)


@kv_heads
def test_a_query_that_may_attend_nothing_gets_0_and_finite_gradients(K):
    q, k, v = inputs(K)
    may_attend = random_mask().at[0, 3].set(False).at[1].set(False)
    out = jit_attend(q, k, v, may_attend)
    assert jnp.all(out[0, 3] == 0) and jnp.all(out[1] == 0) and jnp.all(out[0, 2] != 0)
    grads = compiled_gradients(backend)(q, k, v, may_attend)
    for grad in grads:
        assert jnp.all(jnp.isfinite(grad))
        assert jnp.all(grad[1] == 0) and jnp.any(grad[0] != 0)
    assert jnp.all(grads[0][0, 3] == 0)


@kv_heads
def test_gradients_do_not_flow_to_masked_keys(K):
    q, k, v = inputs(K)
    may_attend = random_mask().at[:, :, 4].set(False)
    for grad in compiled_gradients(backend)(q, k, v, may_attend)[1:]:
        assert jnp.all(grad[:, 4] == 0) and jnp.any(grad[:, 3] != 0)


@kv_heads
def test_grouped_queries_equal_multi_head_with_the_key_value_heads_repeated(K):
    q, k, v = inputs(K)
    repeated = [jnp.repeat(x, N // K, axis=2) for x in (k, v)]
    close(jit_attend(q, k, v, random_mask()), jit_attend(q, *repeated, random_mask()))


def test_permuting_heads_permutes_the_heads_of_the_output_and_nothing_else():
    q, k, v = inputs(N)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    permuted = jit_attend(q[:, :, order], k[:, :, order], v[:, :, order], random_mask())
    close(permuted, jit_attend(q, k, v, random_mask())[:, :, order])


@kv_heads
def test_permuting_keys_together_with_their_mask_changes_nothing(K):
    q, k, v = inputs(K)
    order = jnp.array([6, 2, 0, 5, 1, 4, 3])
    permuted = jit_attend(q, k[:, order], v[:, order], random_mask()[:, :, order])
    close(permuted, jit_attend(q, k, v, random_mask()))


@kv_heads
def test_adding_the_same_to_all_scores_of_a_query_changes_nothing(K):
    q, k, v = inputs(K)
    moved = k + np.random.default_rng(9).normal(size=(B, 1, K, H))
    close(jit_attend(q, moved, v, random_mask()), jit_attend(q, k, v, random_mask()))


def test_huge_scores_pick_the_best_key_and_stay_finite():
    q, k, v = inputs(N)
    out = jit_attend(1e6 * q, k, v, random_mask())
    close(out, attend_in_loops(1e6 * np.asarray(q, np.float64), k, v, random_mask()))


@kv_heads
def test_bfloat16_inputs_give_bfloat16_near_the_float32_result(K):
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(K))
    out = jit_attend(q, k, v, random_mask())
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), attend_in_loops(q, k, v, random_mask()), atol=0.03)


def test_scores_of_bfloat16_inputs_keep_the_precision_of_float32():
    width = 16  # 1 / sqrt(16) is exact in bfloat16, so that nothing but the scores could be rounded
    q, k, _ = (4 * x.astype(jnp.bfloat16) for x in inputs(N, H=width))
    v = jnp.broadcast_to(jnp.eye(S, width, dtype=jnp.bfloat16)[:, None], k.shape)
    weights = jit_attend(q, k, v, random_mask()).astype(jnp.float32)
    np.testing.assert_allclose(weights, attend_in_loops(q, k, v, random_mask()), rtol=0.01, atol=1e-6)


@kv_heads
def test_dropout_drops_weights_and_scales_up_the_others(K):
    plain = weights_of(K, random_mask())
    dropped = weights_of(K, random_mask(), dropout_rate=0.3, dropout_key=jax.random.key(0))
    is_kept = dropped != 0
    close(jnp.where(is_kept, dropped, 0), jnp.where(is_kept, plain / 0.7, 0))
    share = jnp.sum(is_kept) / jnp.sum(plain != 0)
    assert abs(share - 0.7) < 0.1


def test_dropout_is_a_function_of_its_key():
    q, k, v = inputs(2)
    first, again, other = (
        jit_attend(q, k, v, random_mask(), dropout_rate=0.3, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert jnp.any(first != other)


def test_dropout_keeps_the_expectation():
    keys = jax.random.split(jax.random.key(3), 499)
    outs = jax.jit(jax.vmap(lambda key: attend(*inputs(2), random_mask(), dropout_rate=0.3, dropout_key=key)))(keys)
    error = jnp.mean(outs, axis=0) - jit_attend(*inputs(2), random_mask())
    assert jnp.all(jnp.abs(error) < 6 * jnp.std(outs, axis=0) / 499**0.5 + 1e-5)


def test_dropout_of_rate_0_or_without_a_key_changes_nothing():
    q, k, v = inputs(2)
    plain = jit_attend(q, k, v, random_mask())
    close(jit_attend(q, k, v, random_mask(), dropout_rate=0.0, dropout_key=jax.random.key(0)), plain)
    np.testing.assert_array_equal(jit_attend(q, k, v, random_mask(), dropout_rate=0.3), plain)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_permuting_the_heads_of_every_kernel_changes_nothing_outside_the_module(positions):
    config = TransformerConfig(d_model=D, num_heads=3, head_dim=2, positions=positions, init_std=1.0)
    module, x = Attention(config), jnp.array(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
    args = x, Mask(is_causal=True)
    params = jax.jit(module.init)(jax.random.key(1, impl="rbg"), *args)  # rbg compiles fast
    order = jnp.array([2, 0, 1])
    axis = {"query": 1, "key": 1, "value": 1}
    permuted = {
        name: leaves | {"kernel": jnp.take(leaves["kernel"], order, axis.get(name, 0))}
        for name, leaves in params["params"].items()
    }
    assert jnp.any(permuted["query"]["kernel"] != params["params"]["query"]["kernel"])
    apply = jax.jit(module.apply)
    close(apply({"params": permuted}, *args)[0], apply(params, *args)[0])


def test_kernels_have_the_shapes_of_the_glossary():
    config = TransformerConfig(d_model=D, num_heads=N, num_kv_heads=2, head_dim=H)
    args = jnp.zeros((B, T, D)), Mask(is_causal=True)
    params = jax.eval_shape(Attention(config).init, jax.random.key(0), *args)["params"]
    shapes = {name: leaves["kernel"].shape for name, leaves in params.items()}
    assert shapes == {"query": (D, N, H), "key": (D, 2, H), "value": (D, 2, H), "out": (N, H, D)}
