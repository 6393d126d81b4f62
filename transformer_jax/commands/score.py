"""`python -m transformer_jax score`: score each line of stdin; print log-probability, tokens, perplexity."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transformer_jax.commands.cli import UsageError
from transformer_jax.commands.lines import define_flags, print_lines, progress_printer, read_lines

if TYPE_CHECKING:  # it loads JAX
    from transformer_jax.run import Run

EXAMPLE = "python -m transformer_jax score --run_dir=runs/a <texts.txt >scores.tsv"

_RUN_DIR, _CHECKPOINT, _ADAPTER, _BATCH_SIZE = define_flags(
    "task causal_lm, or seq2seq, whose lines are source, tab, target"
)


def main(argv: list[str]) -> None:
    """Parse, load, score stdin."""
    summary = "Score each line of stdin: print its log-probability (natural), number of tokens and perplexity."
    lines = read_lines(argv, __name__, _RUN_DIR, summary, EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    print_lines(answers(tj.open_run(_RUN_DIR.value, _CHECKPOINT.value, _ADAPTER.value), lines))


def answers(run: "Run", lines: list[str]) -> Iterator[str]:
    """Log-probability, number of tokens and perplexity of each line. Raises UsageError: a pair without its tab."""
    import transformer_jax as tj

    texts = lines
    targets = None
    if type(run.model).__name__ == "Seq2Seq":
        pairs = [line.split("\t") for line in lines]
        for number, pair in enumerate(pairs, 1):
            if len(pair) != 2:
                raise UsageError(f"stdin, line {number}: must be a source, a tab and a target.")
        texts = [source for source, _ in pairs]
        targets = [target for _, target in pairs]
    scores = tj.score(run, texts, targets, batch_size=_BATCH_SIZE.value, progress=progress_printer(len(texts)))
    for result in scores:
        yield f"{result.log_probability:.4f}\t{result.num_tokens}\t{result.perplexity:.4f}"
