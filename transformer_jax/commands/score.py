"""`python -m transformer_jax score`: a line in; log-probability, number of tokens and perplexity out, tabs between."""

from transformer_jax.commands.cli import UsageError
from transformer_jax.commands.lines import begin, define_flags, progress_of

EXAMPLE = "python -m transformer_jax score --run_dir=runs/a <texts.txt >scores.tsv"

_RUN_DIR, _CHECKPOINT, _BATCH_SIZE = define_flags("task causal_lm or seq2seq (then a line is source, tab, target)")


def main(argv: list[str]) -> None:
    """Parse, load, score stdin."""
    what = "Say of each line of stdin how likely it is: log-probability (natural), tokens, perplexity."
    lines = begin(argv, __name__, _RUN_DIR, what, EXAMPLE)
    if lines is None:
        return
    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    texts, targets = lines, None
    if type(run.model).__name__ == "Seq2Seq":
        pairs = [line.split("\t") for line in lines]
        for number, pair in enumerate(pairs, 1):
            if len(pair) != 2:
                raise UsageError(f"stdin, line {number}: must be a source, a tab and a target.")
        texts, targets = [source for source, _ in pairs], [target for _, target in pairs]
    scores = tj.score(run, texts, targets, batch_size=_BATCH_SIZE.value, progress=progress_of(len(texts)))
    for one in scores:
        print(f"{one.log_probability:.4f}\t{one.num_tokens}\t{one.perplexity:.4f}")
