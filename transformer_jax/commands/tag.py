"""`python -m transformer_jax tag`: a sentence a line in; a word, a tab and its tag a line out."""

from transformer_jax.commands.lines import begin, define_flags, progress_of

EXAMPLE = "python -m transformer_jax tag --run_dir=runs/atis <sentences.txt >tagged.conll"

_RUN_DIR, _CHECKPOINT, _BATCH_SIZE = define_flags("task tag")


def main(argv: list[str]) -> None:
    """Parse, load, tag stdin."""
    what = "Give each word of stdin its tag; an empty line ends a sentence. Spaces cut words, so part them from commas."
    lines = begin(argv, __name__, _RUN_DIR, what, EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before
    from transformer_jax.inference.predict import split_words

    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    tags = tj.tag(run, lines, batch_size=_BATCH_SIZE.value, progress=progress_of(len(lines)))
    for line, of_line in zip(lines, tags, strict=True):
        for word, tag in zip(split_words(run, line), of_line, strict=True):
            print(f"{word if word != chr(9) else 'tab'}\t{tag}")
        print()
