"""`python -m transformer_jax sample`: continue a prompt. Text goes to stdout, everything else to stderr."""

import sys
from pathlib import Path

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help

EXAMPLE = 'python -m transformer_jax sample --run_dir=runs/a --prompt="To be or not to be" --top_k=40'

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The directory of a training run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest | best | a step")
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue; a new line if there is none.")
_PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "A file with the text to continue; - for stdin.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "Tokens to add.")
_METHOD = flags.DEFINE_string("method", "sample", "sample | greedy")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Below 1: safer; above: wilder.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Choose among the k most likely tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Choose among the most likely tokens that make up this probability; 1: all.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Continuations, with a line of dashes between them.")


def _prompt() -> str:
    if _PROMPT_FILE.value is None:
        return "\n" if _PROMPT.value is None else _PROMPT.value
    if _PROMPT.value is not None:
        raise UsageError("--prompt and --prompt_file: give one of them.")
    try:
        data = sys.stdin.buffer.read() if _PROMPT_FILE.value == "-" else Path(_PROMPT_FILE.value).read_bytes()
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompt_file={_PROMPT_FILE.value}: cannot be read as UTF-8 text ({error}).") from error


def main(argv: list[str]) -> None:
    """Parse, load, print."""
    if HELP_FLAGS & set(argv):
        show_help(f"Continue a prompt with a trained model.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    if not _RUN_DIR.value:
        raise UsageError(f"--run_dir: is missing. Example: {EXAMPLE}")
    startup.prepare()  # before stdin is read: it may start this process again
    prompt = _prompt()

    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    run = tj.load(_RUN_DIR.value, _CHECKPOINT.value)
    texts = tj.generate(
        run, [prompt], max_new_tokens=_MAX_NEW_TOKENS.value, method=_METHOD.value, temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value, top_p=_TOP_P.value, seed=_SEED.value, num_samples=_NUM_SAMPLES.value,
    )  # fmt: skip
    print(f"{_RUN_DIR.value}, step {run.step}", file=sys.stderr)
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    print("\n---------------\n".join(texts))
