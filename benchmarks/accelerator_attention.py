"""Checks and times of attention's backends: each beside the reference in float32, in value and gradient.

Products of float32 are asked for at the highest precision: NVIDIA's GPUs may otherwise round their factors to ten bits.
An error is the largest difference, relative to the largest value of its row, in units of the type's epsilon.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import rates
from accelerator_part import Part

from transformer_jax.errors import UserError
from transformer_jax.nn.attention import BACKENDS, attend
from transformer_jax.nn.masks import Mask

# In epsilons of the type. bfloat16: weights of the softmax and results are rounded, and each step of a gradient.
TOLERANCES = {"float32": {"value": 60, "gradient": 150}, "bfloat16": {"value": 4, "gradient": 16}}


def cases(B: int, T: int, N: int) -> dict[str, tuple[int, Mask, np.ndarray | None]]:
    """Number of key-value heads, mask and bias, by name."""
    random = np.random.default_rng(0)
    is_key = np.arange(T) < np.array([T, T - T // 3] * B)[:B, None]
    segments = np.cumsum(random.random((B, T)) < 4 / T, axis=1)
    bias = random.standard_normal((1, N, T, T)).astype(np.float32)
    causal = Mask(is_causal=True)
    return {
        "causal": (N, causal, None),
        "no mask": (N, Mask(), None),
        "padding": (N, Mask(is_key=jnp.asarray(is_key)), None),
        "causal, padding": (N, causal.replace(is_key=jnp.asarray(is_key)), None),
        "causal, window": (N, causal.replace(window=T // 4), None),
        "causal, packed texts": (N, causal.replace(query_segments=segments, key_segments=segments), None),
        "causal, bias": (N, causal, bias),
        "causal, grouped heads": (1, causal, None),
    }


def value_and_gradients(backend: str, mask: Mask) -> Callable:
    """(q, k, v, d_out, bias) -> (out, dq, dk, dv) of one backend."""

    def function(q, k, v, d_out, bias=None):
        out, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, bias, backend=backend), q, k, v)
        return out, *pull_back(d_out.astype(out.dtype))

    return function


def inputs(B: int, T: int, N: int, K: int, H: int, dtype: str) -> list[jax.Array]:
    random = np.random.default_rng(1)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


def error_in_epsilons(out: jax.Array, expected: jax.Array, dtype: str) -> float:
    """Largest difference in units of the type's epsilon, relative to the largest value of its row (the last axis).

    Rows of smaller values than the median row count as that one: a gradient may be 0 but for rounding. All rows by one
    scale would hide the late ones, since the first query has one key and the last ones average over hundreds.
    """
    out = np.asarray(out, np.float64)
    expected = np.asarray(expected, np.float64)
    largest = np.abs(expected).max(-1, keepdims=True)
    error = (np.abs(out - expected) / np.maximum(largest, np.median(largest))).max() / float(jnp.finfo(dtype).eps)
    return round(float(error), 2) if np.isfinite(error) else 1e9


def check_backends(part: Part) -> None:
    """Every backend, type and case; a backend's refusal is its answer."""
    B, T, N = (2, 640, 4) if part.is_gpu else (2, 24, 4)  # on a GPU more than one block, and not a multiple
    H = 64 if part.is_gpu else 8

    def compile_one(job):
        name, dtype, backend = job
        K, mask, bias = all_cases[name]
        with jax.default_matmul_precision("highest"):  # of this thread
            try:
                function = jax.jit(value_and_gradients(backend, mask))
                return job, function.lower(*inputs(B, T, N, K, H, dtype), bias).compile()
            except UserError as error:
                return job, f"refused: {error}"

    all_cases = cases(B, T, N)
    if not part.is_gpu:  # where the suite checks all of them
        all_cases = {name: all_cases[name] for name in ("causal", "causal, padding", "causal, bias")}
    jobs = [(name, dtype, b) for dtype in TOLERANCES for name in all_cases for b in ("reference", *BACKENDS)]
    jobs = [job for job in dict.fromkeys(jobs) if job[2] != "reference" or job[1] == "float32"] + [
        (name, "bfloat16", "reference") for name in all_cases
    ]
    programs: dict = {}
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(compile_one, job) for job in jobs]:
            answer = part.attempt("attention", future.result)
            if answer:
                programs[answer[0]] = answer[1]
    for name, (K, _, bias) in all_cases.items():
        for dtype, tolerance in TOLERANCES.items():
            args = inputs(B, T, N, K, H, dtype)
            figure = f"attention/{dtype}, {name}"
            part.attempt(figure, report_case, part, figure, programs, (name, dtype), args, bias, tolerance)


def report_case(
    part: Part, figure: str, programs: dict, case: tuple, args: list, bias: np.ndarray | None, tolerance: dict
) -> None:
    """Report the errors of all backends, or why a backend has none."""
    name, dtype = case
    expected = programs[name, "float32", "reference"](*(x.astype(jnp.float32) for x in args), bias)
    figures: dict = {"tolerance": tolerance}
    for backend in BACKENDS:
        program = programs.get((name, dtype, backend), "did not compile")
        if isinstance(program, str):
            figures[backend] = program
            continue
        errors = [error_in_epsilons(x, y, dtype) for x, y in zip(program(*args, bias), expected, strict=True)]
        value, gradient = errors[0], max(errors[1:])
        passed = value <= tolerance["value"] and gradient <= tolerance["gradient"]
        figures[backend] = {"value_eps": value, "gradient_eps": gradient, "passed": passed}
    if part.is_gpu and case == ("causal", "bfloat16"):
        figures["cudnn_runs"] = {"passed": not isinstance(figures["cudnn"], str)}
    part.report(figure, figures)


def time_backends(part: Part) -> None:
    """Milliseconds of each backend, causal, bfloat16, at GPT-2's shape; with the gradient as well."""
    B, T, N = part.shape["attention"]
    q, k, v, d_out = inputs(B, T, N, N, 64, "bfloat16")
    mask = Mask(is_causal=True)
    for backend in ("auto", *BACKENDS):
        part.attempt(f"attention_ms/{backend}", time_one, part, backend, mask, (q, k, v, d_out))


def time_one(part: Part, backend: str, mask: Mask, args: tuple) -> None:
    """Report one backend's milliseconds, forward and forward with gradient."""
    try:
        forward = jax.jit(lambda q, k, v: attend(q, k, v, mask, backend=backend))
        both = jax.jit(value_and_gradients(backend, mask))
        ms = [rates.seconds_of(f, *a) * 1e3 for f, a in ((forward, args[:3]), (both, args))]
        text = forward.lower(*args[:3]).as_text()
    except UserError as error:
        part.report(f"attention_ms/{backend}", f"refused: {error}")
        return
    figures = {"forward": round(ms[0], 3), "forward_and_gradient": round(ms[1], 3), "is_cudnn": "fmha" in text}
    part.report(f"attention_ms/{backend}", figures)
