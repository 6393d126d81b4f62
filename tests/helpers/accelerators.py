"""Programs for a GPU or a TPU, lowered on a machine that has none: what `auto` chooses there, and the text."""

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from transformer_jax.nn import attention_cudnn

HOPPER = (9, 0)  # compute capability of an H100
LOWERED_AS = {"gpu": "cuda", "tpu": "tpu"}


def pretend(monkeypatch: pytest.MonkeyPatch, platform: str, capability: tuple[int, int] | None = None) -> None:
    """Make the project choose as on this platform, and JAX lower cuDNN's kernels without a GPU.

    JAX's own questions to the machine are answered: cuDNN's version and the GPU's. Nothing of the lowering is replaced.
    """
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(attention_cudnn, "compute_capability", lambda: capability)
    is_at_least = lambda needed: capability >= tuple(map(int, needed.split(".")))  # noqa: E731
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", is_at_least)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda needed: False)


def lowered(jitted, *args, platform="gpu") -> str:
    """StableHLO of a jitted function for the platform, as text."""
    return jitted.trace(*args).lower(lowering_platforms=(LOWERED_AS[platform],)).as_text()
