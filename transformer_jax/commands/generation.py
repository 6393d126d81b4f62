"""Flags of the commands that generate text: the run, and all fields of GenerationConfig."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from transformer_jax.commands.cli import ADAPTER_MEANING, UsageError, required
from transformer_jax.inference.generation_config import GenerationConfig

if TYPE_CHECKING:  # it loads JAX
    from transformer_jax.run import Run

RUN_DIR = flags.DEFINE_string("run_dir", None, "training run or Hugging Face folder")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "of a training run: latest | best | a step")
_ADAPTER = flags.DEFINE_string("adapter", "", ADAPTER_MEANING)
WEIGHTS = flags.DEFINE_string(
    "weights", "model", "model | int8: a quarter of the memory of float32, and faster decoding on a CPU"
)
_DEFINE: dict[Any, Callable[..., flags.FlagHolder]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    bool: flags.DEFINE_bool,
    float: flags.DEFINE_float,
    tuple: flags.DEFINE_multi_string,
}
_SETTINGS = {
    field.name: _DEFINE[field.type](
        field.name,
        None if field.type is tuple else field.default,
        field.metadata["meaning"] + (" (repeat the flag for each)" if field.type is tuple else ""),
    )
    for field in dataclasses.fields(GenerationConfig)
}


def read_flags(example: str) -> GenerationConfig:
    """Read the settings of generation, and check the flags of the run, without loading JAX.

    Raises:
      UserError: a value out of range; no --run_dir.
    """
    required(RUN_DIR, example)
    if WEIGHTS.value not in ("model", "int8"):
        raise UsageError(f"--weights={WEIGHTS.value}: unknown. Choose model or int8.")
    return GenerationConfig.from_dict(_settings())


def open_run() -> "Run":
    """Open the run that the flags name."""
    import transformer_jax as tj  # its functions load JAX; errors of flags are reported before that

    run_dir = RUN_DIR.value
    assert run_dir, "read_flags has checked it"
    path = Path(run_dir).expanduser()
    is_pretrained = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    is_pretrained &= not (path / "checkpoints").is_dir()
    run = tj.from_pretrained(path) if is_pretrained else tj.load(run_dir, _CHECKPOINT.value)
    run = tj.load_adapter(run, _ADAPTER.value) if _ADAPTER.value else run
    return tj.quantize(run) if WEIGHTS.value == "int8" else run


def typed_lines(has_prompt: bool = True) -> Iterator[bytes]:
    """Read stdin line by line as it is typed, undecoded; before each, a "> " on stderr."""
    while True:
        if has_prompt:
            print("> ", end="", file=sys.stderr, flush=True)
        data = sys.stdin.buffer.readline()  # as text, stdin would end a line at a lone \r, too
        if not data:
            print(file=sys.stderr)
            return
        yield data


def _settings() -> dict[str, object]:
    """Fields of GenerationConfig from the flags: a number is a token id, "the:2.5" is a token and its bias."""
    settings = {name: flag.value for name, flag in _SETTINGS.items() if flag.value is not None}
    settings["suppress"] = [_token(text) for text in settings.get("suppress", [])]
    pairs = [text.rpartition(":") for text in settings.get("logit_bias", [])]
    try:
        settings["logit_bias"] = [(_token(token), float(bias)) for token, _, bias in pairs]
    except ValueError as error:
        raise UsageError("--logit_bias: must be a token, a colon and a number, say --logit_bias=the:2.5.") from error
    return settings


def _token(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
