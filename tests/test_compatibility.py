"""Each cell of the table of what goes with what is tried: yes works and agrees with the formula, no says why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn.compatibility import EXTRAS, compatibility_table, incompatibility
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, DenseBias

B, T, V, WINDOW = 3, 7, 23, 2
SIZES = dict(vocab_size=V, max_len=11, num_layers=1, d_model=13, num_heads=6, num_kv_heads=2, head_dim=4, d_ff=19)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
IS_TOKEN = np.ones((B, T), bool)
IS_TOKEN[1, :2] = IS_TOKEN[2, 5:] = False
ON_A_GPU = jax.default_backend() == "gpu"


def read_table():
    """{(positions, extra, column): yes or no}, extra "" or one of EXTRAS, from "yes", "no" and "yes, no bias"."""
    head, _, *rows = ([x.strip() for x in line.strip("|").split("|")] for line in compatibility_table().split("\n"))
    cells = {}
    for positions, *answers in rows:
        for column, answer in zip(head[1:], answers, strict=True):
            yes, _, without = answer.partition(", no ")
            assert yes in ("yes", "no") and set(without.split(" or ")) <= {"", *EXTRAS}
            for extra in ("", *EXTRAS):
                cells[positions, extra, column] = yes == "yes" and (not extra or extra not in without.split(" or "))
    return cells


CELLS = read_table()
NO = [cell for cell, answer in CELLS.items() if not answer]
YES = [cell for cell, answer in CELLS.items() if answer and cell[2] != "cudnn"]


def name(cell):
    return "-".join(part for part in cell if part)


def config_of(positions, extra, column):
    how = {"attention": "linear"} if column == "linear" else {"backend": column}
    settings = dict(positions=positions, relative_buckets=8, relative_max_distance=5)
    extras = {"window": dict(window=WINDOW), "softcap": dict(attention_softcap=0.3)}.get(extra, {})
    return TransformerConfig(**SIZES | settings | how | extras)


def random(*shape):
    return jnp.array(0.3 * np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@functools.cache
def params_of(positions):
    """The same whatever computes attention."""
    shapes = jax.eval_shape(GPT(config_of(positions, "", "auto")).init, jax.random.key(0), TOKENS)
    return jax.tree.map(lambda leaf: random(*leaf.shape), shapes)


def of_attention(config, params, bias):
    """What the attention of the model's block gives for activations [B, T, D]."""
    mask = Mask(is_key=jnp.array(IS_TOKEN), is_causal=True)
    method = lambda model: model.stack.blocks[0].attention(random(B, T, 13), mask, bias)[0]  # noqa: E731
    return GPT(config).apply(params, method=method)


def outputs(positions, extra, column):
    """Logits [B, T, V] of a model of one layer; with a bias, what its attention gives.

    A cell "t5 + bias" or "alibi + bias" is a bias with one more added, which is one bias.
    """
    config, params = config_of(positions, extra, column), params_of(positions)
    if extra == "bias":
        return of_attention(config, params, DenseBias(3 * random(B, 6, T, T)))
    model = GPT(config)
    if extra != "cache":
        return model.apply(params, TOKENS, IS_TOKEN)
    return jax.jit(functools.partial(with_a_cache, config))(params, make_cache(config, B, 11))


def with_a_cache(config, params, cache):
    """Logits [B, T, V] of a prefill of six tokens and a decode step."""
    prefill, step = slice(0, 6), slice(6, 7)
    extend = functools.partial(GPT(config).apply, params, method="extend")
    first, cache = extend(TOKENS[:, prefill], IS_TOKEN[:, prefill], cache)
    last, _ = extend(TOKENS[:, step], IS_TOKEN[:, step], cache)
    return jnp.concatenate([first, last], axis=1)


@functools.cache
def by_the_formula(positions, extra, column):
    """The reference backend (which goes with everything), or linear attention; a whole text at once."""
    return outputs(positions, "" if extra == "cache" else extra, "linear" if column == "linear" else "reference")


@pytest.mark.parametrize("cell", YES, ids=name)
def test_what_the_table_says_goes_together_works_and_agrees_with_the_formula(cell):
    assert incompatibility(*arguments(cell)) is None
    actual, expected = np.asarray(outputs(*cell)), np.asarray(by_the_formula(*cell))
    assert np.all(np.isfinite(actual)) and np.abs(expected[IS_TOKEN]).max() > 0.01
    np.testing.assert_allclose(actual[IS_TOKEN], expected[IS_TOKEN], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", NO, ids=name)
def test_what_the_table_says_does_not_go_together_is_refused_with_the_words_of_refusal(cell):
    with pytest.raises(UserError) as error:
        outputs(*cell)
    positions, extra, column = cell
    cell_without_bias = (positions, extra.replace("bias", ""), column)
    without_the_bias = incompatibility(*arguments(cell_without_bias))  # the model's own reason
    assert str(error.value) in (incompatibility(*arguments(cell)), without_the_bias)


@pytest.mark.skipif(ON_A_GPU, reason="here there is one")
@pytest.mark.parametrize("cell", [c for c, answer in CELLS.items() if answer and c[2] == "cudnn"], ids=name)
def test_cudnn_without_a_gpu_says_what_it_needs(cell):
    with pytest.raises(UserError, match="backend='cudnn': needs an NVIDIA GPU. Take backend='auto'."):
        outputs(*cell)


def arguments(cell):
    """Of `incompatibility`."""
    positions, extra, column = cell
    is_linear = column == "linear"
    return positions, "auto" if is_linear else column, is_linear, (extra,) if extra else ()


def test_the_table_has_a_cell_for_every_scheme_extra_and_way_to_compute():
    columns = ("auto", "reference", "xla", "blockwise", "cudnn", "linear")
    assert set(CELLS) == {(p, extra, column) for p in POSITIONS for extra in ("", *EXTRAS) for column in columns}
    for (_, _, column), answer in CELLS.items():
        assert answer or column not in ("auto", "reference")


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_window_a_softcap_and_a_bias_are_felt(positions):
    plain, narrow, capped = (by_the_formula(positions, extra, "reference") for extra in ("", "window", "softcap"))
    assert jnp.abs(plain - narrow)[IS_TOKEN].max() > 1e-3 and jnp.abs(plain - capped)[IS_TOKEN].max() > 1e-4
    without = of_attention(config_of(positions, "", "reference"), params_of(positions), None)
    assert jnp.abs(without - by_the_formula(positions, "bias", "reference"))[IS_TOKEN].max() > 1e-3


REFUSALS = {
    "linear_rotary": (("rotary", "auto", True), "model.positions='rotary': linear.*'learned' or 'sinusoidal'"),
    "linear_window": (("none", "auto", True, ("window",)), "='linear'.*no window. Take attention='softmax'"),
    "linear_bias": (("none", "auto", True, ("cache", "bias")), "='linear'.*no bias. Take attention='softmax'"),
    "linear_backend": (("none", "blockwise", True), "model.backend='blockwise': linear.*Take 'auto'"),
    "xla_t5": (("t5", "xla"), "backend='xla': has no bias. Take 'auto' or 'reference'"),
    "xla_all": (("shaw", "xla", False, EXTRAS), "backend='xla': has no bias and no relative and no softcap. Take"),
    "blockwise_shaw": (("shaw", "blockwise"), "backend='blockwise': has no relative. Take 'auto' or 'reference'"),
}


@pytest.mark.parametrize("args, message", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_why_and_the_way_out(args, message):
    with pytest.raises(UserError, match=message):
        raise UserError(incompatibility(*args))


def test_linear_attention_has_no_choice_of_backends():
    with pytest.raises(UserError) as error:
        GPT(TransformerConfig(**SIZES, attention="linear", backend="blockwise")).apply(params_of("learned"), TOKENS)
    assert str(error.value) == incompatibility("learned", "blockwise", True)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match="model.positions='nonsense': unknown. Choose one of: none, learned"):
        incompatibility("nonsense")
    with pytest.raises(UserError, match="model.backend='nonsense': unknown. Choose one of: reference, xla"):
        incompatibility("none", "nonsense")
