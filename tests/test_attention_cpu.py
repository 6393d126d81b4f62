"""Attention in slices and in blocks against the formula, in value and gradient, in every awkward size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.errors import UserError
from transformer_jax.nn import attention_blockwise, attention_cpu
from transformer_jax.nn.attention import attend
from transformer_jax.nn.masks import Mask

B, T, H = 6, 13, 5


def random_inputs(N, K, S, dtype="float32"):
    random = np.random.default_rng(N + S)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.array(random.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(backend, q, k, v, d_out, may_attend, is_causal):
    def f(q, k, v):
        return attend(q, k, v, Mask(may_attend, is_causal=is_causal), backend=backend)

    @jax.jit
    def run(d_out, *qkv):
        out, pull_back = jax.vjp(f, *qkv)
        return out, *pull_back(d_out)

    return run(d_out, q, k, v)


MASKS = ["none", "causal", "causal_and_padding", "random", "of_one_row", "of_one_query"]
SIZES = [("xla", 128, 2**19), ("xla", 4, 2**19), ("xla", 5, 1), ("xla", 3, 300), ("xla", 13, 800)]
SIZES += [("blockwise", size, 0) for size in (512, 5)]


@functools.cache
def case(mask, N, K):
    """The arrays, the mask, and what the formula gives."""
    is_causal = mask.startswith("causal")
    S = T if is_causal else 17
    shape = {"causal_and_padding": (B, 1, S), "of_one_row": (1, T, S), "of_one_query": (B, 1, S)}.get(mask, (B, T, S))
    may_attend = np.random.default_rng(7).random(shape) < 0.6
    if mask == "random":
        may_attend[2, 3] = False  # a query with nothing to attend
    if mask == "causal_and_padding":
        may_attend[1, 0, :5] = False  # padding on the left: the first queries have nothing to attend
    may_attend = None if mask in ("none", "causal") else jnp.array(may_attend)
    inputs = *random_inputs(N, K, S), may_attend, is_causal
    return inputs, value_and_gradients("reference", *inputs)


@pytest.mark.parametrize("backend, block, slice_scores", SIZES)
@pytest.mark.parametrize("mask", MASKS)
def test_slices_and_blocks_of_any_size_are_the_formula(monkeypatch, backend, block, slice_scores, mask):
    # Heads, groups and a single key head come up in turn, each with every mask and every size.
    N, K = [(4, 4), (6, 2), (3, 1)][(SIZES.index((backend, block, slice_scores)) + MASKS.index(mask)) % 3]
    monkeypatch.setattr(attention_cpu, "QUERY_BLOCK", block)
    monkeypatch.setattr(attention_blockwise, "BLOCK", block)
    monkeypatch.setattr(attention_cpu, "SLICE_SCORES", slice_scores)
    inputs, expected = case(mask, N, K)
    actual = value_and_gradients(backend, *inputs)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * max(1, float(jnp.abs(e).max())))
    if mask == "random":
        assert not jnp.any(actual[0][2, 3]) and not jnp.any(actual[1][2, 3])


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_bfloat16_stays_near_the_formula_and_keeps_the_type(backend):
    arrays = random_inputs(6, 2, T, "bfloat16")
    expected = value_and_gradients("reference", *(x.astype("float32") for x in arrays), None, True)
    for a, e in zip(value_and_gradients(backend, *arrays, None, True), expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype("float32"), e, rtol=0, atol=0.03 * float(jnp.abs(e).max()))


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_a_causal_mask_leaks_nothing_across_blocks_not_even_a_bit(monkeypatch, backend):
    monkeypatch.setattr(attention_cpu, "QUERY_BLOCK", 4)
    monkeypatch.setattr(attention_blockwise, "BLOCK", 4)
    q, k, v, _ = random_inputs(6, 2, T)
    attend_causally = jax.jit(functools.partial(attend, mask=Mask(is_causal=True), backend=backend))
    is_later = (np.arange(T) >= 6)[:, None, None]
    out, changed = attend_causally(q, k, v), attend_causally(q, k + is_later, v * np.where(is_later, 3.0, 1.0))
    np.testing.assert_array_equal(out[:, :6], changed[:, :6])
    assert jnp.all(jnp.any(out[:, 6:] != changed[:, 6:], axis=-1))


def test_what_slices_cannot_do_is_said():
    q, k, v, _ = random_inputs(6, 2, T)
    with pytest.raises(UserError, match="backend='xla': has no dropout"):
        attend(q, k, v, dropout_rate=0.1, dropout_key=jax.random.key(0), backend="xla")
    with pytest.raises(UserError, match="backend='fast': unknown. Choose one of: reference, xla, blockwise, cudnn"):
        attend(q, k, v, backend="fast")
