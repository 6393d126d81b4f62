"""Attention in blocks and all it can do: in value against numpy, in gradient against the formula; its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close

from transformer_jax.config import TransformerConfig
from transformer_jax.nn import attention_blockwise
from transformer_jax.nn.attention import attend
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import Alibi, DenseBias, T5Bias, alibi_slopes, token_positions

B, T, S, N, K, H, BLOCK = 2, 13, 17, 6, 3, 5, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last of which is not full."""
    monkeypatch.setattr(attention_blockwise, "BLOCK", BLOCK)


def normal(*shape):
    return jnp.array(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def config(positions):
    return TransformerConfig(positions=positions, num_heads=N, head_dim=H, relative_buckets=8, relative_max_distance=7)


def t5(table, is_causal):
    return T5Bias(config("t5")).apply({"params": {"embedding": table}}, is_causal)


def alibi(_, is_causal):
    return Alibi(config("alibi")).apply({}, is_causal)


def dense(values, is_causal):
    return DenseBias(values)


def none(_, is_causal):
    return None


def tokens(S, left=False):
    is_token = np.ones((B, S), bool)
    is_token[1, : 6 if left else 1] = is_token[0, 9:11] = False
    return jnp.array(is_token)


def placed(is_token):
    positions = token_positions(is_token)
    return dict(is_key=is_token, query_positions=positions, key_positions=positions)


SEGMENTS = jnp.array(np.sort(np.random.default_rng(3).integers(0, 4, (B, T)), axis=1))
WHOLE = dict(query_segments=SEGMENTS, key_segments=SEGMENTS)
BIASES = {
    "none": (none, (1,)),
    "dense": (dense, (B, N, T, T)),
    "dense_of_one_row": (dense, (1, N, T, T)),
    "dense_of_one_head": (dense, (B, 1, T, T)),
    "t5": (t5, (8, N)),
    "alibi": (alibi, (1,)),
}
CASES = {  # bias, softcap, and a Mask; S follows from the mask, or is T
    "a_bias": ("dense", 0.0, dict()),
    "a_bias_of_one_row_causal": ("dense_of_one_row", 0.0, dict(is_causal=True)),
    "a_bias_of_one_head_and_softcap": ("dense_of_one_head", 1.5, dict(is_causal=True)),
    "t5_both_ways": ("t5", 0.0, dict()),
    "t5_and_padding_on_the_left": ("t5", 0.0, dict(is_causal=True, **placed(tokens(T, left=True)))),
    "t5_after_a_cache": ("t5", 0.0, dict(is_causal=True, first_slot=4, is_key=tokens(S))),
    "alibi_both_ways_to_another_length": ("alibi", 0.0, dict(is_key=tokens(S))),
    "alibi_causal_and_a_window": ("alibi", 0.0, dict(is_causal=True, window=6, **placed(tokens(T)))),
    "softcap": ("none", 0.7, dict(is_key=tokens(T))),
    "window_both_ways": ("none", 0.0, dict(window=3)),
    "window_smaller_than_a_block": ("none", 0.0, dict(is_causal=True, window=2)),
    "texts_in_a_row": ("none", 0.0, dict(is_causal=True, **WHOLE)),
    "texts_in_a_row_and_all_else": ("t5", 1.1, dict(is_causal=True, window=4, **placed(tokens(T)), **WHOLE)),
    "padding_on_the_left": ("none", 0.0, dict(is_causal=True, is_key=tokens(T, left=True))),
    "another_length": ("none", 0.0, dict(is_key=tokens(S))),
    "after_a_cache": ("none", 0.0, dict(is_causal=True, first_slot=3, is_key=tokens(S))),
    "after_a_cache_that_is_full": ("alibi", 0.0, dict(is_causal=True, first_slot=4, is_key=tokens(S))),
}


def inputs(S):
    return normal(B, T, N, H), normal(B, S, K, H), 1 + normal(B, S, K, H)


def in_numpy(q, k, v, may_attend, bias, softcap):
    """softmax(cap(q k / sqrt(H)) + bias) v in float64, all scores at once; 0 where there is no key."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    scores = (softcap * np.tanh(scores / softcap) if softcap else scores) + bias
    weights = np.where(may_attend[:, None], np.exp(scores), 0.0)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights / np.where(total == 0, 1, total), v)


def bias_in_numpy(make_bias, weights, mask, S):
    """[B, N, T, S]; the T5 buckets are tested elsewhere."""
    queries, keys = np.asarray(mask.query_positions_at(0, T)), np.asarray(mask.key_positions_at(0, S))
    if make_bias is dense:
        return np.asarray(weights)
    if make_bias is alibi:
        slopes = np.array(alibi_slopes(N))[:, None, None]
        return -slopes * np.abs(queries[:, None, :, None] - keys[:, None, None])
    if make_bias is t5:
        return np.asarray(jax.jit(lambda weights: t5(weights, mask.is_causal).block(mask, 0, T, 0, S))(weights))
    return 0.0


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_the_value_and_every_gradient_of_the_formula(case):
    bias, softcap, fields = CASES[case]
    (make_bias, shape), mask = BIASES[bias], Mask(**fields)
    S = fields["is_key"].shape[1] if "is_key" in fields else T
    q, k, v = inputs(S)
    weights, d_out = normal(*shape), normal(B, T, N, H) ** 2

    def f(backend, q, k, v, weights):
        bias = make_bias(weights, mask.is_causal)
        return attend(q, k, v, mask, bias, softcap=softcap, backend=backend)

    @functools.partial(jax.jit, static_argnums=0)
    def run(backend, d_out, *args):
        out, pull_back = jax.vjp(functools.partial(f, backend), *args)
        return out, *pull_back(d_out)

    actual, expected = (run(backend, d_out, q, k, v, weights) for backend in ("blockwise", "reference"))
    for a, e in zip(actual, expected, strict=True):
        close(a, e)
    assert bool(jnp.any(actual[-1] != 0)) == (make_bias in (dense, t5))  # what a bias is made of learns
    picture = mask.block(0, T, 0, S)
    picture = np.broadcast_to(True if picture is None else picture, (B, T, S))
    close(actual[0], in_numpy(q, k, v, picture, bias_in_numpy(make_bias, weights, mask, S), softcap))


def test_a_first_slot_that_is_known_only_at_run_time_gives_the_same():
    q, k, v = inputs(S)

    @jax.jit
    def values(first_slot):
        mask = Mask(first_slot=first_slot, is_causal=True)
        return [attend(q[:, :5], k, v, mask, alibi(None, True), backend=name) for name in ("blockwise", "reference")]

    for first_slot in (0, 3, 7, 12):
        actual, expected = values(first_slot)
        close(actual, expected)

    @jax.jit
    def alone(q, k, v):
        return attend(q, k, v, Mask(is_causal=True), alibi(None, True), backend="reference")

    close(values(0)[0], alone(q[:, :5], k[:, :5], v[:, :5]))


def test_rows_and_queries_without_keys_give_0_and_finite_gradients():
    q, k, v = inputs(T)
    mask = Mask(is_key=tokens(T, left=True).at[0].set(False), is_causal=True)

    def total(q, k, v, table):
        out = attend(q, k, v, mask, t5(table, True), backend="blockwise")
        return jnp.sum(jnp.sin(out)), out

    grads, out = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, normal(8, N))
    assert not jnp.any(out[0]) and not jnp.any(out[1, :6]) and jnp.all(jnp.any(out[1, 6:], axis=(-2, -1)))
    for grad in grads:
        assert jnp.all(jnp.isfinite(grad)) and jnp.any(grad)
    assert not any(jnp.any(grad[0]) for grad in grads[:3])


def test_scores_of_any_size_stay_finite():
    q, k, v = inputs(T)
    attend_causally = jax.jit(functools.partial(attend, mask=Mask(is_causal=True)), static_argnames="backend")
    values = [attend_causally(300 * q, 300 * k, v, backend=name) for name in ("blockwise", "reference")]
    assert jnp.all(jnp.isfinite(values[0]))
    close(*values)


def temporary_bytes(backend, T):
    """Of a compiled gradient of one head of 64; nothing is run."""

    def total(q, k, v):
        return jnp.sum(attend(q, k, v, Mask(is_causal=True), backend=backend))

    x = jax.ShapeDtypeStruct((1, T, 1, 64), jnp.float32)
    return jax.jit(jax.grad(total, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


def test_the_memory_of_a_gradient_grows_with_the_length_not_with_its_square(monkeypatch):
    monkeypatch.undo()  # the blocks as they are
    short, long = (temporary_bytes("blockwise", T) for T in (2048, 4096))
    assert 0 < long <= 2.2 * short
    of_the_formula = temporary_bytes("reference", 4096)
    assert of_the_formula >= 4 * 4096**2  # the scores, in float32
    assert long <= of_the_formula / 10
