"""`python -m transformer_jax sample`: continue prompts. Text goes to stdout, everything else to stderr."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from absl import flags

from transformer_jax import startup
from transformer_jax.commands import generation
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help, use_utf8
from transformer_jax.commands.generation import RUN_DIR, WEIGHTS, open_run, read_flags, typed_lines
from transformer_jax.errors import UserError
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.lines import decode, read_file, read_stdin, split_lines

if TYPE_CHECKING:  # these modules load JAX
    from transformer_jax.inference.generate_tokens import Completion
    from transformer_jax.run import Run

EXAMPLE = 'python -m transformer_jax sample --run_dir=runs/a --prompt="To be or not to be" --top_k=40'

_PROMPT = flags.DEFINE_string("prompt", None, "text to continue; without any prompt, a line break")
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "file with the text to continue, .gz too; - for stdin")
_PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", None, "file with a text to continue in each line, .gz too; - for stdin"
)
_INTERACTIVE = flags.DEFINE_bool("interactive", False, "continue each line that is typed, until Ctrl-D")
_OUTPUT = flags.DEFINE_string("output", "text", "text | jsonl: a JSON object a line, with tokens and settings")
_BENCHMARK = flags.DEFINE_bool("benchmark", False, "measure speed instead; print seconds and tokens per second as JSON")


def main(argv: list[str]) -> None:
    """Parse, load, generate, print."""
    if HELP_FLAGS & set(argv):
        show_help(f"Continue prompts with a trained model.\n\n  {EXAMPLE}\n", __name__, generation.__name__)
        return
    parse_flags(argv, EXAMPLE)
    config = read_flags(EXAMPLE)
    if _OUTPUT.value not in ("text", "jsonl"):
        raise UsageError(f"--output={_OUTPUT.value}: unknown. Choose text or jsonl.")
    startup.prepare(is_training=False)  # before stdin is read, since it may start this process again
    prompts = _prompts()
    run = open_run()
    use_utf8(sys.stdout)
    if _INTERACTIVE.value:
        _print_origin(run)
        _continue_lines(run, config)
    else:
        _generate(run, prompts, config)


def _generate(run: "Run", prompts: list[str], config: GenerationConfig) -> None:
    """Print the texts in the format of the flags, and the run and its step on stderr."""
    import transformer_jax as tj

    if _BENCHMARK.value:
        print(json.dumps(tj.benchmark(run, prompts[0], config)))
    elif _OUTPUT.value == "jsonl":
        for completion in tj.complete(run, prompts, config):
            print(json.dumps(_record(completion, config, run)))
    elif len(prompts) == 1 and config.num_samples == 1 and config.method != "beam":
        pieces = tj.stream(run, prompts[0], **config.to_dict())
        print(tj.prompt_text(run, prompts[0], config.allow_special), end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        texts = tj.generate(run, prompts, None, **config.to_dict())
        _print_origin(run)
        print("\n---------------\n".join(texts))
        return
    _print_origin(run)


def _prompts() -> list[str]:
    sources = (_PROMPT, _PROMPT_FILE, _PROMPTS_FILE, _INTERACTIVE)
    given = [f"--{flag.name}" for flag in sources if flag.value not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them.")
    if _PROMPTS_FILE.value is not None:
        lines = split_lines(_read(_PROMPTS_FILE))
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
        return read_stdin() if flag.value == "-" else read_file(flag.value)
    except UserError as error:
        raise UsageError(f"--{flag.name}={flag.value}: {error}") from error


def _print_origin(run: "Run") -> None:
    print(f"{RUN_DIR.value}, step {run.step}", file=sys.stderr)


def _continue_lines(run: "Run", config: GenerationConfig) -> None:
    """Continue stdin line by line. A line that cannot be continued gets an error on stderr, and the next is read."""
    import transformer_jax as tj

    if config.method == "beam" or config.num_samples != 1:
        raise UsageError("--interactive: streams one text for each line. Take --method=sample or greedy, one sample.")
    for data in typed_lines():
        try:
            for piece in tj.stream(run, decode(data).removesuffix("\n"), **config.to_dict()):
                print(piece, end="", flush=True)
            print(flush=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _record(completion: "Completion", config: GenerationConfig, run: "Run") -> dict[str, object]:
    """JSON object of one text: the text, and all that is needed to generate it again."""
    return {
        **dataclasses.asdict(completion),
        "log_prob": completion.log_prob,
        "settings": config.to_dict(),
        "run": RUN_DIR.value,
        "step": run.step,
        "weights": WEIGHTS.value,
    }
