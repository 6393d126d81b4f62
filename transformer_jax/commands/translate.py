"""`python -m transformer_jax translate`: a line in, its translation out, in the same order."""

import sys

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help

EXAMPLE = "python -m transformer_jax translate --run_dir=runs/dates <english.txt >german.txt"

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A training run of task seq2seq, or a Hugging Face folder.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (least validation loss) | latest | a step")
_NUM_BEAMS = flags.DEFINE_integer("num_beams", 4, "Beams; 1: the likeliest token at every step.")
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 1.0, "Above 0 longer translations are favoured.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Lines that are translated at once.")


def main(argv: list[str]) -> None:
    """Parse, load, translate stdin to stdout."""
    if HELP_FLAGS & set(argv):
        show_help(__name__, f"Translate stdin, line by line, to stdout.\n\n  {EXAMPLE}\n")
        return
    parse_flags(argv, EXAMPLE)
    if not _RUN_DIR.value:
        raise UsageError(f"--run_dir: is missing. Example: {EXAMPLE}")
    startup.prepare()  # before stdin is read: it may start this process again
    try:
        lines = sys.stdin.buffer.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: is not UTF-8 at byte {error.start}.") from error
    texts = [line for line in lines if line.strip()]  # an empty line stays one

    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    def progress(done):
        print(f"\r{done:,}/{len(texts):,}", end="\n" if done == len(texts) else "", file=sys.stderr, flush=True)

    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    translations = iter(tj.translate(
        run, texts, num_beams=_NUM_BEAMS.value, length_penalty=_LENGTH_PENALTY.value, batch_size=_BATCH_SIZE.value,
        progress=progress,
    ))  # fmt: skip
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    for line in lines:
        print(next(translations).replace("\n", " ") if line.strip() else "")
