"""cuDNN attention without a GPU: which calls get it, as which custom call, and a twin for its arguments."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.accelerators import HOPPER, lowered, pretend
from helpers.arrays import close

from transformer_jax.errors import UserError
from transformer_jax.nn import attention, attention_cudnn
from transformer_jax.nn.attention import attend
from transformer_jax.nn.masks import Mask, causal
from transformer_jax.nn.positions import DenseBias, token_positions

B, T, S, N, K, H = 2, 38, 46, 6, 3, 8  # T and S are even, as cuDNN needs
CAUSAL = Mask(is_causal=True)


def shapes(dtype=jnp.bfloat16, S=T, H=H):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in ((B, T, N, H), (B, S, K, H), (B, S, K, H))]


def padding(S):
    """Padding on both sides; a row without any token."""
    return jnp.array((np.arange(S) >= np.array([[3], [S]])) & (np.arange(S) < 30))


def program(mask=CAUSAL, S=T, gradient=False, dtype=jnp.bfloat16, H=H, **kwargs):
    """Text of a program for CUDA."""

    def out(q, k, v):
        return attend(q, k, v, mask, **kwargs)

    def loss(q, k, v):
        return jnp.sum(jnp.sin(out(q, k, v).astype(jnp.float32)))

    function = jax.grad(loss, argnums=(0, 1, 2)) if gradient else out
    return lowered(jax.jit(function), *shapes(dtype, S, H))


def custom_calls(text):
    """Name, number of operands and settings of each custom call of cuDNN."""
    found = re.findall(r"custom_call @__cudnn\$(\w+)\(([^)]*)\) \{.*?backend_config = \"(.*?)\", operand", text)
    configs = [json.loads(config.replace("\\22", '"'))["cudnn_fmha_backend_config"] for _, _, config in found]
    return [(name, operands.count("%"), config) for (name, operands, _), config in zip(found, configs, strict=True)]


FLAGS = {  # a mask, the number of keys, and what cuDNN is given
    "causal": (CAUSAL, T, "CAUSAL", 0),
    "no_mask": (None, S, "NO_MASK", 0),
    "window": (Mask(is_causal=True, window=5), T, "CAUSAL", 5),
}


@pytest.mark.parametrize("mask, num_keys, mask_type, window", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_auto_is_cudnn_with_flags_and_without_an_array_of_t_times_s(
    monkeypatch, mask, num_keys, mask_type, window, dtype
):
    pretend(monkeypatch, "gpu", HOPPER)
    text = program(mask, num_keys, gradient=True, dtype=dtype)
    (forward, num_forward, config), (backward, num_backward, of_backward) = custom_calls(text)
    assert (forward, num_forward, backward, num_backward) == ("fmhaSoftmax", 3, "fmhaSoftmaxBackward", 6)
    for settings in (config, of_backward):
        assert (settings["mask_type"], settings["sliding_window_length"]) == (mask_type, window)
        assert settings["fmha_scale"] == pytest.approx(H**-0.5)
    assert f"{T}x{num_keys}x" not in text and "fmha" not in program(mask, num_keys, backend="reference")


# What a mask or an option stands for on a GPU in bfloat16 where T x S is small, and where it is large.
OTHERS = {
    "padding": dict(mask=Mask(is_causal=True, is_key=jnp.ones((B, T), bool))),
    "segments": dict(mask=Mask(query_segments=jnp.ones((B, T), int), key_segments=jnp.ones((B, T), int))),
    "array": dict(mask=causal(T, T)),
    "cache": dict(mask=Mask(is_causal=True, first_slot=jnp.int32(0))),
    "later_slots": dict(mask=Mask(is_causal=True, first_slot=4), S=S),
    "other_length": dict(mask=CAUSAL, S=S),
    "by_position": dict(mask=Mask(is_causal=True, is_by_position=True)),
    "window_both_ways": dict(mask=Mask(window=5)),
    "window_of_positions": dict(mask=Mask(is_causal=True, window=5, query_positions=jnp.zeros((1, T), int))),
    "bias": dict(bias=jnp.zeros((1, N, T, T))),
    "softcap": dict(softcap=2.0),
    "dropout": dict(dropout_rate=0.1, dropout_key=jax.random.key(0)),
    "float32": dict(dtype=jnp.float32),
    "width_of_heads": dict(H=12),
    "wide_heads": dict(H=264),
    "odd_length": dict(mask=None, S=S + 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_auto_is_the_formula_or_blocks_where_cudnn_has_no_flag_or_kernel(monkeypatch, name):
    pretend(monkeypatch, "gpu", HOPPER)
    assert not custom_calls(program(**OTHERS[name]))
    few = program(**OTHERS[name])
    monkeypatch.setattr(attention, "MANY_SCORES", {"gpu": T * T})
    has_blocks = "stablehlo.while" in program(**OTHERS[name])
    assert "stablehlo.while" not in few and has_blocks == (name != "dropout")


@pytest.mark.parametrize(
    "capability, H, is_cudnn",
    [((9, 0), 256, True), ((8, 9), 256, False), ((8, 0), 128, True), ((7, 5), 64, False), (None, 64, False)],
)
def test_auto_knows_the_widths_of_heads_of_each_gpu(monkeypatch, capability, H, is_cudnn):
    pretend(monkeypatch, "gpu", capability)
    assert bool(custom_calls(program(H=H))) == is_cudnn


def test_a_decode_step_is_the_formula_on_a_gpu(monkeypatch):
    pretend(monkeypatch, "gpu", HOPPER)
    q, k, v = shapes(S=S)
    one = jax.ShapeDtypeStruct((B, 1, N, H), q.dtype)
    text = lowered(jax.jit(functools.partial(attend, mask=None)), one, k, v)
    assert not custom_calls(text) and "stablehlo.while" not in text


def test_no_other_platform_gets_cudnn(monkeypatch):
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert attention_cudnn.compute_capability() is None


@pytest.mark.parametrize("text, expected", [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx942", None), (None, None)])
def test_the_compute_capability_is_that_of_an_nvidia_gpu(monkeypatch, text, expected):
    device = type("Device", (), {"compute_capability": text} if text else {})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert attention_cudnn.compute_capability() == expected


REFUSALS = {
    "float32": (HOPPER, dict(dtype=jnp.float32), "dtype float32: must be float16 or bfloat16. Take model.dtype="),
    "heads": (HOPPER, dict(H=12), "head_dim=12: must be a multiple of 8, and at most 256 on this GPU. Take another"),
    "wide_heads": ((8, 0), dict(H=136), "head_dim=136: must be a multiple of 8, and at most 128 on this GPU."),
    "old": ((7, 5), {}, r"needs compute capability 8.0 \(Ampere\), and this GPU has 7.5. Take backend='auto'."),
    "none": (None, {}, "needs an NVIDIA GPU. Take backend='auto'."),
    "softcap": (HOPPER, dict(softcap=2.0), "has no softcap. Take 'auto' or 'reference'."),
    "odd": (
        HOPPER,
        dict(mask=None, S=47),
        "38 queries and 47 keys: must be even numbers, or the gradient has no kernel.",
    ),
}


@pytest.mark.parametrize("capability, kwargs, words", REFUSALS.values(), ids=REFUSALS)
def test_cudnn_by_name_says_in_one_line_what_it_needs(monkeypatch, capability, kwargs, words):
    pretend(monkeypatch, "gpu", capability)
    with pytest.raises(UserError, match=f"^backend='cudnn': {words}") as error:
        program(backend="cudnn", **kwargs)
    assert "\n" not in str(error.value)


def test_cudnn_by_name_takes_any_mask_as_a_bias_without_heads(monkeypatch):
    pretend(monkeypatch, "gpu", HOPPER)
    text = program(Mask(is_key=padding(T), is_causal=True), backend="cudnn", gradient=True)
    (name, num_operands, config), (backward, *_) = custom_calls(text)
    assert (name, num_operands, config["mask_type"]) == ("fmhaScaleBiasSoftmax", 4, "CAUSAL")
    assert backward == "fmhaScaleBiasSoftmaxBackward"
    assert f"tensor<{B}x1x{T}x{T}xbf16>" in text and f"{N}x{T}x{T}x" not in text


def test_cudnn_by_name_takes_a_decode_step_of_any_number_of_keys(monkeypatch):
    pretend(monkeypatch, "gpu", HOPPER)
    q, k, v = shapes(S=S + 1)
    one = jax.ShapeDtypeStruct((B, 1, N, H), q.dtype)
    step = functools.partial(attend, mask=Mask(is_key=padding(S + 1)), backend="cudnn")
    assert len(custom_calls(lowered(jax.jit(step), one, k, v))) == 1


# The twin: XLA's implementation of the same function of JAX, with the arguments that cuDNN gets

BIAS = DenseBias(jnp.array(np.random.default_rng(3).normal(size=(1, N, T, T)), jnp.float32))
POSITIONS = token_positions(padding(T))
TWINS = {  # a mask, the number of keys, a bias, and whether flags say all of the mask
    "no_mask": (Mask(), S, None, True),
    "causal": (CAUSAL, T, None, True),
    "window": (Mask(is_causal=True, window=5), T, None, True),
    "window_both_ways": (Mask(window=5), T, None, False),
    "padding": (Mask(is_key=padding(S)), S, None, False),
    "padding_and_causal": (Mask(is_key=padding(T), is_causal=True), T, None, False),
    "padding_and_window": (
        Mask(is_key=padding(T), is_causal=True, window=5, query_positions=POSITIONS, key_positions=POSITIONS),
        T,
        None,
        False,
    ),
    "later_slots": (Mask(is_causal=True, first_slot=4), S, None, False),
    "array": (Mask(may_attend=jnp.array(np.random.default_rng(2).random((1, T, S)) < 0.2)), S, None, False),
    "bias": (Mask(), T, BIAS, True),
    "bias_and_causal": (CAUSAL, T, BIAS, True),
    "bias_and_window": (Mask(is_causal=True, window=5), T, BIAS, False),
    "bias_and_padding": (Mask(is_key=padding(T)), T, BIAS, False),
}


@pytest.mark.parametrize("mask, num_keys, bias, is_flags", TWINS.values(), ids=TWINS)
@pytest.mark.parametrize("num_heads", [K, N], ids=["grouped", "multi_head"])
def test_arguments_for_cudnn_mean_the_mask_and_the_bias(mask, num_keys, bias, is_flags, num_heads):
    rng = np.random.default_rng(0)
    sizes = ((B, T, N, H), (B, num_keys, num_heads, H), (B, num_keys, num_heads, H))
    inputs = [jnp.array(rng.normal(size=size), jnp.float32) for size in sizes]

    def twin(q, k, v):
        arguments = attention_cudnn.dot_product_arguments(mask, bias, T, num_keys, q.dtype)
        assert (arguments["mask"] is None) == is_flags
        out = jax.nn.dot_product_attention(q, k, v, scale=0.3, implementation="xla", **arguments)
        return attention_cudnn.zero_without_keys(out, mask, arguments)

    def formula(q, k, v):
        return attend(q, k, v, mask, bias, scale=0.3, backend="reference")

    def value_and_gradients(function):
        loss = lambda *x: (jnp.sum(jnp.sin(function(*x))), function(*x))  # noqa: E731
        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
        return [out, *gradients]

    for actual, expected in zip(value_and_gradients(twin), value_and_gradients(formula), strict=True):
        assert np.all(np.isfinite(actual)) and np.abs(expected).max() > 0.01
        close(actual, expected)
    if mask.is_key is not None:
        assert not np.any(np.asarray(twin(*inputs))[1])
