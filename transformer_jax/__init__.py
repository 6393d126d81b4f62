"""The Transformer family in JAX and Flax linen.

import transformer_jax as tj
run = tj.load("runs/a")
print(tj.generate(run, "The for statement", max_new_tokens=100))
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import RunError, UserError, missing_package

if TYPE_CHECKING:  # the names of _MODULES, for type checkers; at run time __getattr__ imports them
    from transformer_jax.explorer.page import explore
    from transformer_jax.inference.attention_maps import attention_maps
    from transformer_jax.inference.attribution import direct_logit_attribution
    from transformer_jax.inference.capture import capture, capture_names, hidden_states, logit_lens
    from transformer_jax.inference.chat import Chat, chat
    from transformer_jax.inference.forward import logits
    from transformer_jax.inference.generate import benchmark, complete, generate, prompt_text, stream
    from transformer_jax.inference.generate_tokens import Completion, generate_tokens
    from transformer_jax.inference.generation_config import GenerationConfig
    from transformer_jax.inference.interventions import ablate, activation_patching, patch
    from transformer_jax.inference.predict import classify, tag
    from transformer_jax.inference.prefix import with_prefix
    from transformer_jax.inference.quantize import quantize
    from transformer_jax.inference.score import score
    from transformer_jax.inference.session import Session
    from transformer_jax.inference.translate import translate
    from transformer_jax.pretrained import from_pretrained, load_adapter, open_run, save_adapter, save_pretrained
    from transformer_jax.run import Run, choose_adapter, load, merge_adapter, read_meta, save

__version__ = "0.2.0"

_MODULES = {  # public name: the module that defines it
    **dict.fromkeys(("benchmark", "complete", "generate", "prompt_text", "stream"), "inference.generate"),
    **dict.fromkeys(("Completion", "generate_tokens"), "inference.generate_tokens"),
    **dict.fromkeys(("classify", "tag"), "inference.predict"),
    "score": "inference.score",
    "attention_maps": "inference.attention_maps",
    "explore": "explorer.page",
    "direct_logit_attribution": "inference.attribution",
    **dict.fromkeys(("capture", "capture_names", "hidden_states", "logit_lens"), "inference.capture"),
    **dict.fromkeys(("ablate", "activation_patching", "patch"), "inference.interventions"),
    **dict.fromkeys(("Chat", "chat"), "inference.chat"),
    "GenerationConfig": "inference.generation_config",
    "quantize": "inference.quantize",
    "with_prefix": "inference.prefix",
    "translate": "inference.translate",
    **dict.fromkeys(("from_pretrained", "load_adapter", "open_run", "save_adapter", "save_pretrained"), "pretrained"),
    **dict.fromkeys(("Run", "choose_adapter", "load", "merge_adapter", "read_meta", "save"), "run"),
    "logits": "inference.forward",
    "Session": "inference.session",
}

__all__ = [
    "Chat",
    "Completion",
    "GenerationConfig",
    "Run",
    "RunError",
    "Session",
    "TransformerConfig",
    "UserError",
    "ablate",
    "activation_patching",
    "attention_maps",
    "benchmark",
    "capture",
    "capture_names",
    "chat",
    "choose_adapter",
    "classify",
    "complete",
    "direct_logit_attribution",
    "explore",
    "from_pretrained",
    "generate",
    "generate_tokens",
    "hidden_states",
    "import_training",
    "load",
    "load_adapter",
    "logit_lens",
    "logits",
    "merge_adapter",
    "open_run",
    "patch",
    "prompt_text",
    "quantize",
    "read_meta",
    "save",
    "save_adapter",
    "save_pretrained",
    "score",
    "stream",
    "tag",
    "train",
    "translate",
    "with_prefix",
]


def import_training(module: str) -> ModuleType:
    """Import a module of the training package: `train` in a clone, `transformer_jax.training` once installed.

    Raises:
      UserError: a package that training needs is not installed; the message has the pip command.
    """
    is_installed = importlib.util.find_spec("transformer_jax.training") is not None
    try:
        return importlib.import_module(f"{'transformer_jax.training' if is_installed else 'train'}.{module}")
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def train(config: object, workdir: str | Path) -> None:
    """Train as the train command does: with a config from a recipe's get_config(), into a run directory.

    A run directory that has checkpoints is resumed.

    Raises:
      UserError, RunError: as the command reports them.
    """
    import_training("loop").run(config, workdir)


def __getattr__(name: str) -> Any:
    """Import what needs JAX at its first use, so that a command answers a mistake at once (PEP 562)."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"transformer_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'transformer_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
