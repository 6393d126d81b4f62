"""Continuations for the attention explorer: greedy, by beam search, and samples, which the page joins to a tree."""

from typing import NamedTuple

from transformer_jax.inference.generate_tokens import generate_tokens
from transformer_jax.inference.texts import encode_text
from transformer_jax.models import GPT
from transformer_jax.run import Run

NUM_BEAMS = 4
NUM_SAMPLES = 6


class Continuation(NamedTuple):
    """New tokens of a text, or a target of a Seq2Seq."""

    name: str  # "greedy", "beam 1" (the best), "sample 1"
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each token, by the model


def compute_continuations(run: Run, text: str, max_new_tokens: int) -> list[Continuation]:
    """Continue a text by every method, with at most `max_new_tokens` each and as far as the context has room."""
    if not (run.model.reads_source or isinstance(run.model, GPT)):
        return []
    ids = encode_text(run, "text", text)
    num_tokens = min(max_new_tokens, run.decoder_context - (1 if run.model.reads_source else len(ids)))
    if num_tokens < 1:
        return []
    done = {
        "greedy": generate_tokens(run, [ids], method="greedy", max_new_tokens=num_tokens),
        "beam": generate_tokens(
            run, [ids], method="beam", num_beams=NUM_BEAMS, num_samples=NUM_BEAMS, max_new_tokens=num_tokens
        ),
        "sample": generate_tokens(
            run, [ids], method="sample", num_samples=NUM_SAMPLES, temperature=1.0, seed=0, max_new_tokens=num_tokens
        ),
    }
    return [
        Continuation(f"{name} {i + 1}" if len(group) > 1 else name, each.tokens, each.log_probs)
        for name, group in done.items()
        for i, each in enumerate(group)
    ]
