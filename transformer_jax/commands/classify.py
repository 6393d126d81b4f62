"""`python -m transformer_jax classify`: a line in; its label, a tab and the label's probability out."""

from transformer_jax.commands.lines import begin, define_flags, progress_of

EXAMPLE = "python -m transformer_jax classify --run_dir=runs/sst2 <reviews.txt >labels.tsv"

_RUN_DIR, _CHECKPOINT, _BATCH_SIZE = define_flags("task classify or regress")


def main(argv: list[str]) -> None:
    """Parse, load, classify stdin."""
    what = "Give each line of stdin its label and the label's probability, or its number."
    lines = begin(argv, __name__, _RUN_DIR, what, EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    texts = [line for line in lines if line.strip()]  # an empty line stays one
    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    answers = iter(tj.classify(run, texts, batch_size=_BATCH_SIZE.value, progress=progress_of(len(texts))))
    for line in lines:
        answer = next(answers) if line.strip() else ""
        print(f"{answer.label}\t{answer.probability:.4f}" if isinstance(answer, tuple) else answer)
