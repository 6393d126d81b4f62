"""Translating: the likeliest target of each source, by beam search."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference.engine import begin_targets, cut, write_all
from transformer_jax.inference.predict import LENGTH_MULTIPLE, by_length, fit
from transformer_jax.models import Seq2Seq
from transformer_jax.run import Run


def translate(
    run: Run,
    texts: Sequence[str],
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The best target that beam search finds for each source; with one beam the greedy one.

    Sources of about one length are translated together, and what comes back is in the order of `texts`. One that is
    longer than the context is cut, with a warning on stderr.

    Args:
      length_penalty: alpha of Wu et al. 2016, equation 14; above 0 longer targets are favoured.
      max_new_tokens: of a target; 0: twice the length of the source and ten more, the decoder's context at most.
      progress: called with the number of texts done, from time to time.
    Raises:
      UserError: the run is no Seq2Seq.
    """
    if not isinstance(run.model, Seq2Seq):
        raise UserError(f"a {type(run.model).__name__} does not translate. Ask it with generate, or logits.")
    if num_beams < 1 or batch_size < 1 or max_new_tokens < 0:
        raise UserError(
            f"num_beams={num_beams}, batch_size={batch_size}: must be at least 1; max_new_tokens at least 0."
        )
    context = run.config.encoder.max_len
    sources = [run.tokenizer.encode_source(run.prepare(text)) for text in texts]
    sources = fit("sources", sources, context, keeps_end=True)
    done = {}
    for rows in by_length([len(source) for source in sources], batch_size):
        batch = [sources[i] for i in rows] + [sources[rows[-1]]] * (batch_size - len(rows))  # one shape for all batches
        longest = min(-(-max(map(len, batch)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, context)
        room = min(max_new_tokens or 2 * longest + 10, run.config.decoder.max_len)
        for i, tokens in zip(rows, _best(run, batch, num_beams, length_penalty, room), strict=False):
            done[i] = run.tokenizer.decode(tokens)
        if progress:
            progress(len(done))
    return [done[i] for i in range(len(texts))]


def _best(run: Run, sources: list[np.ndarray], num_beams: int, length_penalty: float, num_new: int) -> list[np.ndarray]:
    """The best target of each source."""
    if num_beams == 1:
        keys = jax.random.split(jax.random.key(0), len(sources))  # the greedy choice does not look at them
        return write_all(run, sources, keys, run.generation_defaults.processors, "greedy", num_new)
    beams = sampling.beam_search(
        *begin_targets(run, sources, num_new),
        run.generation_defaults.processors,
        num_beams=num_beams,
        max_new_tokens=num_new,
        eos_ids=run.generation_defaults.eos_ids,
        pad_id=run.generation_defaults.pad_id,
        length_penalty=length_penalty,
    )
    return cut(beams.tokens[:, 0], beams.lengths[:, 0])
