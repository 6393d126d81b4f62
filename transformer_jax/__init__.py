"""The Transformer family in JAX and Flax linen.

import transformer_jax as tj
run = tj.load("runs/a")
print(tj.generate(run, "The for statement", max_new_tokens=100))
"""

import importlib

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import RunError, UserError

_HOMES = {
    **dict.fromkeys(("Completion", "benchmark", "complete", "generate", "prompt_text", "stream"), "inference.generate"),
    "attention_maps": "inference.attention_maps",
    "GenerationConfig": "inference.generation_config",
    "quantize": "inference.quantize",
    "translate": "inference.translate",
    **dict.fromkeys(("classify", "score", "tag"), "inference.predict"),
    **dict.fromkeys(
        ("Run", "from_pretrained", "load", "logits", "open_run", "read_meta", "save", "save_pretrained"), "run"
    ),
}

__all__ = ["RunError", "TransformerConfig", "UserError", *_HOMES]


def __getattr__(name: str):
    """What needs JAX is imported at its first use, so that a command answers a mistake at once (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"transformer_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'transformer_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
