"""The Transformer family in JAX and Flax linen.

import transformer_jax as tj
run = tj.load("runs/a")
print(tj.generate(run, "The for statement", max_new_tokens=100))
"""

import importlib
import types

from transformer_jax.config import RunError, TransformerConfig, UserError

_HOMES = {
    **dict.fromkeys(("Completion", "benchmark", "complete", "generate", "prompt_text", "stream"), "generation"),
    "Decoding": "decoding",
    "quantize": "quantizing",
    "translate": "translating",
    **dict.fromkeys(("classify", "score", "tag"), "predicting"),
    **dict.fromkeys(
        ("Run", "from_pretrained", "load", "logits", "open_run", "read_meta", "save", "save_pretrained"), "run"
    ),
}

__all__ = ["RunError", "TransformerConfig", "UserError", "attention", *_HOMES]


class CallableModule(types.ModuleType):
    """What the module attention.py is: called, it is the function `attention` of seeing.py.

    Importing a module makes it an attribute of its package, over __getattr__ and whatever was there. So `tj.attention`
    becomes that module sooner or later, and `from transformer_jax import attention` should be it at any time.
    """

    def __call__(self, run, text, target=None):
        """As `seeing.attention`, which see."""
        return importlib.import_module("transformer_jax.seeing").attention(run, text, target)


def __getattr__(name: str):
    """What needs JAX is imported at its first use, so that a command answers a mistake at once (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"transformer_jax.{_HOMES[name]}"), name)
    if name == "attention":
        return importlib.import_module("transformer_jax.attention")
    raise AttributeError(f"module 'transformer_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
