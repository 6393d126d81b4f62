"""`python -m transformer_jax translate`: translate stdin to stdout, line by line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

from transformer_jax.commands.lines import define_flags, print_lines, progress_printer, read_lines

if TYPE_CHECKING:  # it loads JAX
    from transformer_jax.run import Run

EXAMPLE = "python -m transformer_jax translate --run_dir=runs/dates <english.txt >german.txt"

_RUN_DIR, _CHECKPOINT, _ADAPTER, _BATCH_SIZE = define_flags("task seq2seq")
_NUM_BEAMS = flags.DEFINE_integer("num_beams", 4, "number of beams; 1: greedy, the most likely token at every step")
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 1.0, "above 0 favours longer translations, below 0 shorter ones")


def main(argv: list[str]) -> None:
    """Parse, load, translate stdin to stdout."""
    lines = read_lines(argv, __name__, _RUN_DIR, "Translate stdin to stdout, line by line.", EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    print_lines(answers(tj.open_run(_RUN_DIR.value, _CHECKPOINT.value, _ADAPTER.value), lines))


def answers(run: "Run", lines: list[str]) -> Iterator[str]:
    """Translation of each line; an empty line stays empty."""
    import transformer_jax as tj

    texts = [line for line in lines if line.strip()]
    translations = iter(
        tj.translate(
            run,
            texts,
            num_beams=_NUM_BEAMS.value,
            length_penalty=_LENGTH_PENALTY.value,
            batch_size=_BATCH_SIZE.value,
            progress=progress_printer(len(texts)),
        )
    )
    for line in lines:
        yield next(translations) if line.strip() else ""
