"""`python -m transformer_jax sample`: continue prompts. Text goes to stdout, everything else to stderr."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help
from transformer_jax.inference.generation_settings import Settings

EXAMPLE = 'python -m transformer_jax sample --run_dir=runs/a --prompt="To be or not to be" --top_k=40'

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The directory of a training run, or a Hugging Face folder.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest | best | a step")
_WEIGHTS = flags.DEFINE_string(
    "weights", "model", "model | int8: a quarter of float32's memory; decoding is faster on a CPU"
)
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue; a new line if there is none.")
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "A file with the text to continue; - for stdin.")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "A file with a text to continue in each line; - for stdin.")
_INTERACTIVE = flags.DEFINE_bool("interactive", False, "Continue each line that is typed; Ctrl-D ends.")
_OUTPUT = flags.DEFINE_string("output", "text", "text | jsonl: a line of JSON each, with tokens and settings")
_BENCHMARK = flags.DEFINE_bool("benchmark", False, "Measure instead: seconds and tokens per second, as JSON.")
_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    tuple: flags.DEFINE_multi_string,
}
_SETTINGS = {
    field.name: _DEFINE[field.type](
        field.name,
        None if field.type is tuple else field.default,
        field.metadata["meaning"] + ("; once for each" if field.type is tuple else ""),
    )
    for field in dataclasses.fields(Settings)
}


def main(argv: list[str]) -> None:
    """Parse, load, print."""
    if HELP_FLAGS & set(argv):
        show_help(f"Continue a prompt with a trained model.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    if not _RUN_DIR.value:
        raise UsageError(f"--run_dir: is missing. Example: {EXAMPLE}")
    if _OUTPUT.value not in ("text", "jsonl"):
        raise UsageError(f"--output={_OUTPUT.value}: unknown. Choose text or jsonl.")
    if _WEIGHTS.value not in ("model", "int8"):
        raise UsageError(f"--weights={_WEIGHTS.value}: unknown. Choose model or int8.")
    settings = _settings()
    startup.prepare(is_training=False)  # before stdin is read: it may start this process again
    prompts = _prompts()

    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    decoding = tj.GenerationConfig.from_dict(settings)
    path = Path(_RUN_DIR.value).expanduser()
    is_pretrained = (path / "config.json").is_file() and not (path / "checkpoints").is_dir()
    run = tj.from_pretrained(path) if is_pretrained else tj.load(_RUN_DIR.value, _CHECKPOINT.value)
    run = tj.quantize(run) if _WEIGHTS.value == "int8" else run
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    if _INTERACTIVE.value:
        _say_where(run)
        _talk(tj, run, decoding)
    elif _BENCHMARK.value:
        print(json.dumps(tj.benchmark(run, prompts[0], decoding)))
        _say_where(run)
    elif _OUTPUT.value == "jsonl":
        for completion in tj.complete(run, prompts, decoding):
            print(json.dumps(_record(completion, decoding, run)))
        _say_where(run)
    elif len(prompts) == 1 and decoding.num_samples == 1 and decoding.method != "beam":
        pieces = tj.stream(run, prompts[0], **decoding.to_dict())
        print(tj.prompt_text(run, prompts[0]), end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        _say_where(run)
    else:
        texts = tj.generate(run, prompts, **decoding.to_dict())
        _say_where(run)
        print("\n---------------\n".join(texts))


def _settings() -> dict[str, Any]:
    """What the flags say, as GenerationConfig wants it: numbers are ids of tokens, "the:2.5" is a token and its bias."""
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


def _prompts() -> list[str]:
    sources = (_PROMPT, _PROMPT_FILE, _PROMPTS_FILE, _INTERACTIVE)
    given = [f"--{flag.name}" for flag in sources if flag.value not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them.")
    if _PROMPTS_FILE.value is not None:
        lines = _read(_PROMPTS_FILE).split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        if not all(lines):
            raise UsageError(f"--prompts_file={_PROMPTS_FILE.value}: line {lines.index('') + 1} is empty.")
        if not lines:
            raise UsageError(f"--prompts_file={_PROMPTS_FILE.value}: has no line.")
        return lines
    if _PROMPT_FILE.value is not None:
        return [_read(_PROMPT_FILE)]
    return ["\n" if _PROMPT.value is None else _PROMPT.value]


def _read(flag: flags.FlagHolder) -> str:
    try:
        data = sys.stdin.buffer.read() if flag.value == "-" else Path(flag.value).read_bytes()
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--{flag.name}={flag.value}: cannot be read as UTF-8 text ({error}).") from error


def _say_where(run: Any) -> None:
    print(f"{_RUN_DIR.value}, step {run.step}", file=sys.stderr)


def _talk(tj: Any, run: Any, decoding: Any) -> None:
    """Answer line by line. A line that cannot be continued is told why, and the next one is read."""
    if decoding.method == "beam" or decoding.num_samples != 1:
        raise UsageError("--interactive: streams one answer to a line. Take --method=sample or greedy, one sample.")
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        try:
            for piece in tj.stream(run, line.rstrip("\n"), **decoding.to_dict()):
                print(piece, end="", flush=True)
            print(flush=True)
        except tj.UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _record(completion: Any, decoding: Any, run: Any) -> dict[str, Any]:
    """What --output=jsonl says of one text: all that it takes to make it again."""
    return {
        **dataclasses.asdict(completion),
        "log_prob": completion.log_prob,
        "settings": decoding.to_dict(),
        "run": _RUN_DIR.value,
        "step": run.step,
        "weights": _WEIGHTS.value,
    }
