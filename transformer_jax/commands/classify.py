"""`python -m transformer_jax classify`: classify each line of stdin; print label, tab, probability."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transformer_jax.commands.lines import define_flags, print_lines, progress_printer, read_lines
from transformer_jax.errors import printable

if TYPE_CHECKING:  # they load JAX
    from transformer_jax.inference.predict import Answer
    from transformer_jax.run import Run

EXAMPLE = "python -m transformer_jax classify --run_dir=runs/sst2 <reviews.txt >labels.tsv"

_RUN_DIR, _CHECKPOINT, _ADAPTER, _BATCH_SIZE = define_flags("task classify or regress")


def main(argv: list[str]) -> None:
    """Parse, load, classify stdin."""
    summary = (
        "Classify each line of stdin: print its label and the probability, all labels above 0.5 with theirs where a "
        "text can have several, or the number that a regressor predicts."
    )
    lines = read_lines(argv, __name__, _RUN_DIR, summary, EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    print_lines(answers(tj.open_run(_RUN_DIR.value, _CHECKPOINT.value, _ADAPTER.value), lines))


def answers(run: "Run", lines: list[str]) -> Iterator[str]:
    """Label, tab and probability of each line, several such pairs or none, or numbers; an empty line stays empty."""
    import transformer_jax as tj

    texts = [line for line in lines if line.strip()]
    results = iter(tj.classify(run, texts, batch_size=_BATCH_SIZE.value, progress=progress_printer(len(texts))))
    for line in lines:
        yield _line(next(results)) if line.strip() else ""


def _line(answer: "Answer") -> str:
    """One answer as the cells of a line."""
    from transformer_jax.inference.predict import Classification, MultiLabelClassification

    if isinstance(answer, Classification):
        pairs = {answer.label: answer.probability}
    elif isinstance(answer, MultiLabelClassification):
        pairs = answer.labels
    else:
        return "\t".join(map(str, answer if isinstance(answer, list) else [answer]))
    return "\t".join(f"{printable(label)}\t{probability:.4f}" for label, probability in pairs.items())
