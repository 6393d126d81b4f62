"""Checks of sampling for mutant_checks.py; each imports the package as it is at that moment."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from .fresh_models import make


def processors():
    module = importlib.import_module("transformer_jax.sampling.logits_processors")

    def kept(method, x):
        x = jnp.array([x])
        out, _ = module.apply_processors((method,), x, jnp.zeros((1, 3), jnp.int32), jnp.ones(1, jnp.int32), ((),))
        return np.flatnonzero(out[0] > module.RULED_OUT).tolist(), out[0]

    for method in (module.TopK(2), module.TopP(0.6)):  # probabilities 0.40, 0.15, 0.40, 0.05
        assert kept(method, [2.0, 1.0, 2.0, 0.0])[0] == [0, 2]
    assert kept(module.TopP(0.8), np.log([0.5, 0.3, 0.1, 0.1], dtype=np.float32))[0] == [0, 1]
    assert kept(module.TopK(1), [2.0, 2.0, 1.0])[0] == [0]
    assert kept(module.MinP(1.0), [2.0, 1.0, 2.0])[0] == [0, 2]
    np.testing.assert_allclose(kept(module.Temperature(2.0), [2.0, 1.0])[1], [1.0, 0.5])
    top_k = importlib.import_module("transformer_jax.sampling.top_k")
    x = np.zeros((1, 3 * top_k.CHUNK), np.float32)
    x[0, [1, top_k.CHUNK + 1, top_k.CHUNK + 2]] = 2.0, 3.0, 2.0
    assert top_k.largest(jnp.array(x), 2)[1].tolist() == [[top_k.CHUNK + 1, 1]]
    x[0, 9:101] = -np.arange(1, 93)
    for k in (x.size - 95, x.size - 87):  # 92 values are below zero
        assert k > top_k.TIERS[-1]  # it is bisected
        expected = np.argsort(-x[0], kind="stable")[:k]
        assert np.flatnonzero(top_k.is_top_k(jnp.array(x), k)).tolist() == sorted(expected.tolist())


def decoding():
    """Decoding in two calls, and a turn of given tokens after it, give what one prefill of the whole text gives."""
    sampling, kinds = (importlib.import_module(f"transformer_jax.{name}") for name in ("sampling", "nn.kv_cache_kinds"))
    model, params, config = make("GPT", scale=0.9, max_len=23)
    step = jax.tree_util.Partial(lambda *args: model.apply(*args, method="extend", last_only=True), params)
    numbers = sampling.SamplingParams(jax.random.split(jax.random.key(0), 2), (sampling.Suppress((0,)),))
    spec = sampling.DecodeSpec(4, buffer_length=17)

    def given(rows, first_index=0):
        return sampling.Prompts(jnp.array(rows), jnp.array(rows) > 0, first_index=first_index), numbers, spec

    def prefill(*rows):
        return sampling.prefill(step, kinds.make_cache(config, 2, 17), *given(*rows))

    state = sampling.decode(step, prefill([[3, 5], [4, 0]]), numbers, spec, 4)
    rows = [text[:n].tolist() for text, n in zip(state.token_buffer, (6, 5), strict=True)]
    again = prefill([rows[0][:5], [*rows[1][:4], 0]], 3).generated
    assert again.tokens[:, 0].tolist() == [row[-1] for row in rows]
    found, expected = sampling.extend(step, state, *given([[7, 0], [8, 2]])), prefill([[*rows[0], 7], [*rows[1], 8, 2]])
    np.testing.assert_array_equal(found.token_buffer, expected.token_buffer)
    np.testing.assert_allclose(found.generated.log_probs, expected.generated.log_probs, atol=1e-4)


def regex_costs():
    """Each part of compiling a pattern counts its steps."""
    automaton, errors = (
        importlib.import_module(f"transformer_jax.{name}") for name in ("sampling.automaton", "errors")
    )
    regex = importlib.import_module("transformer_jax.sampling.regex")
    automaton.MAX_STEPS = 999
    for pattern in ("((){99}){11}", "[^\\s\\S]([acegikmoqsuwy]){99}"):  # the class is never reached
        try:
            regex.compile_regex(pattern)
        except errors.UserError:
            continue
        raise AssertionError(pattern)
