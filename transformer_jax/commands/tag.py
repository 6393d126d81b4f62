"""`python -m transformer_jax tag`: tag the words of each line of stdin; print word, tab, tag, one word a line."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transformer_jax.commands.lines import define_flags, print_lines, progress_printer, read_lines
from transformer_jax.errors import printable

if TYPE_CHECKING:  # it loads JAX
    from transformer_jax.run import Run

EXAMPLE = "python -m transformer_jax tag --run_dir=runs/atis <sentences.txt >tagged.conll"

_RUN_DIR, _CHECKPOINT, _ADAPTER, _BATCH_SIZE = define_flags("task tag")


def main(argv: list[str]) -> None:
    """Parse, load, tag stdin."""
    summary = (
        "Tag each word of stdin, one sentence a line; an empty line ends each sentence of the output. "
        "Words are split at spaces: put a space before punctuation."
    )
    lines = read_lines(argv, __name__, _RUN_DIR, summary, EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    print_lines(answers(tj.open_run(_RUN_DIR.value, _CHECKPOINT.value, _ADAPTER.value), lines))


def answers(run: "Run", lines: list[str]) -> Iterator[str]:
    """Word, tab and tag of each word of a line, and an empty answer at its end."""
    import transformer_jax as tj
    from transformer_jax.inference.predict import split_words

    tags = tj.tag(run, lines, batch_size=_BATCH_SIZE.value, progress=progress_printer(len(lines)))
    for line, line_tags in zip(lines, tags, strict=True):
        for word, tag in zip(split_words(run, line), line_tags, strict=True):
            yield f"{'tab' if word == chr(9) else word}\t{printable(tag)}"
        yield ""
