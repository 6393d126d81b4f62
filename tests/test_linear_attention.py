"""Linear attention against its quadratic formula, and a GPT that decodes with a state of one size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn import linear_attention
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.nn.linear_attention import attend_linearly, empty_state, extend_linearly

B, T, S, H = 3, 11, 13, 5
KV_HEADS = {"multi_head": (6, 6), "grouped": (6, 2), "multi_query": (6, 1)}
heads = pytest.mark.parametrize("N, K", KV_HEADS.values(), ids=KV_HEADS)
PADDED = np.ones((B, T), bool)  # a full row, one padded on the left, one on the right and between
PADDED[1, :4] = PADDED[2, 2] = PADDED[2, 8:] = False


def inputs(N, K, S=T):
    random = np.random.default_rng(N + K + S)
    return [jnp.array(random.normal(size=(B, *shape, H)), jnp.float32) for shape in ((T, N), (S, K), (S, K))]


def feature(x):
    """Katharopoulos et al. 2020, equation 7."""
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1


def in_loops(q, k, v, may_attend):
    """Equation 4 with sim(q, k) = f(q) f(k), one query at a time, in float64; 0 for a query without keys."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group, out = q.shape[2] // k.shape[2], np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if may_attend[b, t, s]]
        similar = [feature(q[b, t, n]) @ feature(k[b, s, n // group]) for s in keys]
        for s, weight in zip(keys, similar, strict=True):
            out[b, t, n] += weight / sum(similar) * v[b, s, n // group]
    return out


def causal(is_key):
    return is_key[:, None] & np.tril(np.ones((T, T), bool))


@heads
@pytest.mark.parametrize("chunk", [1, 3, T, 64])
def test_causal_linear_attention_is_the_formula_in_chunks_of_any_size(monkeypatch, N, K, chunk):
    monkeypatch.setattr(linear_attention, "CHUNK", chunk)
    q, k, v = inputs(N, K)
    out, _ = extend_linearly(q, k, v, empty_state(B, K, H))
    close(out, in_loops(q, k, v, causal(np.ones((B, T), bool))))
    out, _ = extend_linearly(q, k, v, empty_state(B, K, H), jnp.array(PADDED))
    close(out, in_loops(q, k, v, causal(PADDED)))
    assert not jnp.any(out[1, :4])  # nothing to attend yet


@heads
def test_linear_attention_both_ways_is_the_formula(N, K):
    q, k, v = inputs(N, K, S)
    close(attend_linearly(q, k, v), in_loops(q, k, v, np.ones((B, T, S), bool)))
    is_key = np.random.default_rng(1).random((B, S)) < 0.6
    is_key[2] = False
    out = attend_linearly(q, k, v, jnp.array(is_key))
    close(out, in_loops(q, k, v, np.broadcast_to(is_key[:, None], (B, T, S))))
    assert not jnp.any(out[2])


def test_a_state_carried_through_any_split_gives_one_pass(monkeypatch):
    monkeypatch.setattr(linear_attention, "CHUNK", 3)
    q, k, v = inputs(6, 2)
    extend = jax.jit(extend_linearly)
    whole, end = extend(q, k, v, empty_state(B, 2, H), PADDED)
    for cuts in ([3], [4], [7], [8], [1, 4, 8], range(1, T)):
        state, pieces = empty_state(B, 2, H), []
        for first, last in zip([0, *cuts], [*cuts, T], strict=True):
            part = slice(first, last)
            piece, state = extend(q[:, part], k[:, part], v[:, part], state, PADDED[:, part])
            pieces.append(piece)
        close(np.concatenate(pieces, axis=1), whole)
        for actual, expected in zip(state, end, strict=True):
            close(actual, expected)


def test_the_state_is_the_sum_of_the_keys_that_are_tokens():
    q, k, v = inputs(6, 2)
    _, state = extend_linearly(q, k, v, empty_state(B, 2, H), jnp.array(PADDED))
    features = feature(np.asarray(k, np.float64)) * PADDED[:, :, None, None]
    close(state.keys, features.sum(1))
    close(state.values, np.einsum("bskh,bskj->bkhj", features, v))


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both_ways"])
def test_a_row_without_keys_gives_0_and_finite_gradients(is_causal):
    is_key = jnp.array(PADDED).at[0].set(False)

    def total(q, k, v):
        out = extend_linearly(q, k, v, empty_state(B, 2, H), is_key)[0] if is_causal else None
        return jnp.sum(jnp.sin(attend_linearly(q, k, v, is_key) if out is None else out))

    value, grads = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*inputs(6, 2))
    assert jnp.isfinite(value)
    for grad in grads:
        assert jnp.all(jnp.isfinite(grad)) and not jnp.any(grad[0]) and jnp.any(grad[1])
    for grad in grads[1:]:
        assert not jnp.any(grad[~np.asarray(is_key)])


def test_gradients_through_chunks_are_those_of_the_quadratic_formula(monkeypatch):
    monkeypatch.setattr(linear_attention, "CHUNK", 3)
    q, k, v = inputs(6, 6)

    def quadratic(q, k, v):
        similar = jnp.einsum("bthj,bshj->bhts", jax.nn.elu(q) + 1, jax.nn.elu(k) + 1) * causal(PADDED)[:, None]
        total = similar.sum(-1, keepdims=True)
        return jnp.einsum("bhts,bshj->bthj", similar / jnp.where(total == 0, 1, total), v)

    def chunked(q, k, v):
        return extend_linearly(q, k, v, empty_state(B, 6, H), jnp.array(PADDED))[0]

    expected, actual = (
        jax.jit(jax.grad(lambda *qkv, f=f: jnp.sum(jnp.sin(f(*qkv))), (0, 1, 2)))(q, k, v) for f in (quadratic, chunked)
    )
    for a, e in zip(actual, expected, strict=True):
        close(a, e)


def test_sums_are_float32_and_what_comes_out_has_the_type_of_the_values():
    exact, _ = extend_linearly(*inputs(6, 2), empty_state(B, 2, H))
    rounded, state = extend_linearly(*(x.astype("bfloat16") for x in inputs(6, 2)), empty_state(B, 2, H))
    assert rounded.dtype == jnp.bfloat16 and state.keys.dtype == state.values.dtype == jnp.float32
    np.testing.assert_allclose(rounded.astype("float32"), exact, atol=0.03)


# A model

V, MAX_LEN = 23, 17
SIZES = dict(vocab_size=V, max_len=MAX_LEN, num_layers=2, d_model=13, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=19)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))


@functools.cache
def decoder(positions):
    """(configuration, extend, full), the last two compiled."""
    config = TransformerConfig(**SIZES, positions=positions, attention="linear")
    model = GPT(config)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    full = jax.jit(lambda tokens, is_token: model.apply(params, tokens, is_token))
    return config, jax.jit(lambda *args: model.apply(params, *args, method="extend")), full


@pytest.mark.parametrize(
    "positions, cuts",
    [("learned", []), ("learned", [4]), ("learned", [2, 4, 6, 8, 10]), ("none", [4]), ("sinusoidal", [4])],
    ids=["prefill", "two_chunks", "two_by_two", "two_chunks_without_positions", "two_chunks_with_sinusoids"],
)
def test_a_linear_model_reads_a_text_in_pieces_as_it_reads_it_at_once(positions, cuts):
    config, extend, full = decoder(positions)
    cache, pieces = make_cache(config, B, T), []
    for first, last in zip([0, *cuts], [*cuts, T], strict=True):
        logits, cache = extend(TOKENS[:, first:last], PADDED[:, first:last], cache)
        pieces.append(logits)
    close(np.concatenate(pieces, axis=1)[PADDED], np.asarray(full(TOKENS, PADDED))[PADDED])
    assert cache.num_written == T and not cache.is_overrun
    np.testing.assert_array_equal(cache.num_tokens[:, 0], PADDED.sum(1))


def test_a_linear_model_sees_no_later_token_and_no_padding():
    _, _, full = decoder("learned")
    logits, changed = full(TOKENS, PADDED), TOKENS.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % V
    changed[~PADDED] = (TOKENS[~PADDED] + 5) % V
    after = full(changed, PADDED)
    np.testing.assert_array_equal(after[:, :6][PADDED[:, :6]], logits[:, :6][PADDED[:, :6]])
    assert jnp.all(jnp.any(after[:, 6:] != logits[:, 6:], axis=-1))


def test_a_cache_of_linear_attention_has_one_size_whatever_its_capacity():
    config = TransformerConfig(**SIZES, attention="linear")
    sizes = [[leaf.shape for leaf in jax.tree.leaves(make_cache(config, B, n))] for n in (1, T, MAX_LEN)]
    assert sizes[0] == sizes[1] == sizes[2]
    K, width = 2, 4
    layer = K * width * width + K * width
    state = make_cache(config, B, T).layers
    assert len(state) == 2 and sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * B * layer


def test_texts_packed_into_a_row_are_refused_by_linear_attention():
    model = GPT(TransformerConfig(**SIZES, attention="linear"))
    segments = np.zeros((B, T), int)
    with pytest.raises(UserError, match="attention='linear'.*no segments"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, segments=segments))
