"""`python -m transformer_jax translate`: a line in, its translation out, in the same order."""

from absl import flags

from transformer_jax.commands.lines import begin, define_flags, progress_of

EXAMPLE = "python -m transformer_jax translate --run_dir=runs/dates <english.txt >german.txt"

_RUN_DIR, _CHECKPOINT, _BATCH_SIZE = define_flags("task seq2seq")
_NUM_BEAMS = flags.DEFINE_integer("num_beams", 4, "Beams; 1: the likeliest token at every step.")
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 1.0, "Above 0 longer translations are favoured.")


def main(argv: list[str]) -> None:
    """Parse, load, translate stdin to stdout."""
    lines = begin(argv, __name__, _RUN_DIR, "Translate stdin, line by line, to stdout.", EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    texts = [line for line in lines if line.strip()]  # an empty line stays one
    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    translations = iter(
        tj.translate(
            run,
            texts,
            num_beams=_NUM_BEAMS.value,
            length_penalty=_LENGTH_PENALTY.value,
            batch_size=_BATCH_SIZE.value,
            progress=progress_of(len(texts)),
        )
    )
    for line in lines:
        print(next(translations).replace("\n", " ") if line.strip() else "")
