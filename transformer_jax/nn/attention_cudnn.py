"""cuDNN attention: NVIDIA's fused kernels, for float16 and bfloat16; no array [B, N, T, S] in memory.

A causal mask and a window of slots are flags of the kernels, which skip all that they hide. Any other mask becomes a
bias of B x T x S numbers, without an axis of heads: far less than the scores, but nothing is skipped.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import ScoreBias


def attend_by_cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, bias: ScoreBias | None, scale: float
) -> jax.Array:
    """Compute `attention.attend` by cuDNN, with any mask and a bias: [B, T, N, H].

    Raises:
      UserError: the message of `why_not`.
    """
    error = why_not(q_BTNH, k_BSKH, v_BSKH)
    if error:
        raise UserError(error)
    arguments = dot_product_arguments(mask, bias, q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.dtype)
    out = jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, scale=scale, implementation="cudnn", **arguments)
    return zero_without_keys(out, mask, arguments)


def why_not(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> str | None:
    """Return an error message if cuDNN has no kernel for these queries, keys and values on this device, else None."""
    capability = compute_capability()
    if capability is None:
        return "backend='cudnn': needs an NVIDIA GPU. Take backend='auto'."
    if capability < (8, 0):
        has = ".".join(map(str, capability))
        return f"backend='cudnn': needs compute capability 8.0 (Ampere), and this GPU has {has}. Take backend='auto'."
    dtypes = {str(x.dtype) for x in (q_BTNH, k_BSKH, v_BSKH)}
    if len(dtypes) > 1 or not dtypes <= {"float16", "bfloat16"}:
        return (
            f"backend='cudnn': dtype {' and '.join(sorted(dtypes))}: must be float16 or bfloat16. "
            "Take model.dtype='bfloat16', or backend='auto'."
        )
    H = q_BTNH.shape[-1]
    largest = 256 if capability >= (9, 0) else 128
    if H % 8 or H > largest:
        return (
            f"backend='cudnn': head_dim={H}: must be a multiple of 8, and at most {largest} on this GPU. "
            "Take another head_dim, or backend='auto'."
        )
    T = q_BTNH.shape[1]
    S = k_BSKH.shape[1]
    if T > 1 and (T % 2 or S % 2):  # JAX's rule for gradients; a decode step has none
        return (
            f"backend='cudnn': {T} queries and {S} keys: must be even numbers, or the gradient has no kernel. "
            "Take another length, or backend='auto'."
        )
    return None


def compute_capability() -> tuple[int, int] | None:
    """Compute capability of the default device, such as (9, 0) for an H100; None if that is no NVIDIA GPU."""
    if jax.default_backend() != "gpu":
        return None
    numbers = re.fullmatch(
        r"(\d+)\.(\d+)", str(getattr(jax.local_devices()[0], "compute_capability", ""))
    )  # AMD: gfx...
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def dot_product_arguments(mask: Mask, bias: ScoreBias | None, T: int, S: int, dtype: Any) -> dict[str, Any]:
    """Keyword arguments of jax.nn.dot_product_attention for a mask and a bias: flags where possible, else arrays."""
    flags = mask.as_flags(T, S)
    if flags is not None and (bias is None or not flags.window):  # cuDNN has no window beside a bias
        is_causal, window = flags
        may_attend = None
    else:
        window = 0
        is_causal, rest = mask.split_causality(T, S)
        may_attend = rest.block(0, T, 0, S)
    return {
        "is_causal": is_causal,
        "local_window_size": (window - 1, 0) if window else None,
        "bias": None if bias is None else bias.block(mask, 0, T, 0, S).astype(dtype),
        "mask": None if may_attend is None else jnp.broadcast_to(may_attend, (len(may_attend), T, S))[:, None],
    }


def zero_without_keys(out_BTNH: jax.Array, mask: Mask, arguments: dict[str, Any]) -> jax.Array:
    """Set the output of queries without any visible key to 0. With flags alone there are none."""
    if arguments["mask"] is None:
        return out_BTNH
    may_attend_BTS = mask.block(0, out_BTNH.shape[1], 0, arguments["mask"].shape[-1])
    assert may_attend_BTS is not None
    return jnp.where(may_attend_BTS.any(-1)[:, :, None, None], out_BTNH, 0.0).astype(out_BTNH.dtype)
