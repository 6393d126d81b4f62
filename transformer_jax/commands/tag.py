"""`python -m transformer_jax tag`: tag the words of each line of stdin; print word, tab, tag, one word a line."""

from transformer_jax.commands.lines import define_flags, progress_printer, read_lines
from transformer_jax.errors import printable

EXAMPLE = "python -m transformer_jax tag --run_dir=runs/atis <sentences.txt >tagged.conll"

_RUN_DIR, _CHECKPOINT, _BATCH_SIZE = define_flags("task tag")


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
    from transformer_jax.inference.predict import split_words

    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    tags = tj.tag(run, lines, batch_size=_BATCH_SIZE.value, progress=progress_printer(len(lines)))
    for line, line_tags in zip(lines, tags, strict=True):
        for word, tag in zip(split_words(run, line), line_tags, strict=True):
            print(f"{'tab' if word == chr(9) else word}\t{printable(tag)}")
        print()
