"""Translation: the most likely target of each source, by beam search or greedily."""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters, of_texts
from transformer_jax.inference.batching import batch_by_length, check_ids, known_ids, padded_length, truncate, unpad
from transformer_jax.inference.forward import step_function
from transformer_jax.inference.generate_tokens import make_engine
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefill import prefill_source
from transformer_jax.inference.texts import text_list
from transformer_jax.run import Run


@overload
def translate(  # type: ignore[overload-overlap]
    run: Run,
    texts: str,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    adapter_names: AdapterNames = None,
) -> str: ...
@overload
def translate(
    run: Run,
    texts: Sequence[str],
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    adapter_names: AdapterNames = None,
) -> list[str]: ...
def translate(
    run: Run,
    texts: str | Sequence[str],
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    adapter_names: AdapterNames = None,
) -> str | list[str]:
    """Translate a source, or each of several: the best target of a beam search, or greedily with one beam.

    Sources of similar length are translated together; results are in the order of `texts`. A source longer than the
    context is cut, with a warning on stderr.

    Args:
      length_penalty: alpha of Wu et al. 2016, equation 14; above 0 favours longer targets.
      max_new_tokens: of a target; 0: twice the source's length plus ten, at most the decoder's context.
      progress: called with the number of texts done, after each batch.
      adapter_names: for a run with adapters by name: one for all sources, or one for each; "": none.
    Returns:
      The target of a string, or a list of targets.
    Raises:
      UserError: the run is no Seq2Seq, or has no tokenizer; texts of another type; a number out of range; an
        unknown adapter.
    """
    if not run.model.reads_source:
        raise UserError(f"run: a {type(run.model).__name__} does not translate. Take a Seq2Seq, or tj.generate.")
    if num_beams < 1 or batch_size < 1 or max_new_tokens < 0:
        raise UserError(
            f"num_beams={num_beams}, batch_size={batch_size}: must be at least 1; max_new_tokens at least 0."
        )
    tokenizer = run.text_tokenizer
    context = run.encoder_context
    sources = [tokenizer.encode_source(run.prepare(text)) for text in text_list("texts", texts)]
    sources = truncate("sources", sources, context, keeps_end=True)
    check_ids("texts", sources, tokenizer.source, run.config.encoder.vocab_size)
    run = choose_adapters(run, adapter_names, len(sources))
    translations: dict[int, str] = {}
    for indices in batch_by_length([len(source) for source in sources], batch_size):
        batch = [sources[i] for i in indices]
        batch += [batch[-1]] * (batch_size - len(indices))  # one shape for all batches
        longest = padded_length([len(source) for source in batch], context)
        num_new = min(max_new_tokens or 2 * longest + 10, run.decoder_context)
        targets = _best_targets(of_texts(run, indices, batch_size), batch, num_beams, length_penalty, num_new)
        for i, tokens in zip(indices, targets, strict=False):
            translations[i] = tokenizer.decode(known_ids(tokens, tokenizer))
        if progress:
            progress(len(translations))
    return translations[0] if isinstance(texts, str) else [translations[i] for i in range(len(sources))]


def _best_targets(
    run: Run, sources: list[np.ndarray], num_beams: int, length_penalty: float, num_new: int
) -> list[np.ndarray]:
    defaults = run.generation_defaults
    if num_beams == 1:
        engine, _ = make_engine(run, sources, GenerationConfig(method="greedy", max_new_tokens=num_new))
        engine.advance(num_new)
        return engine.tokens
    params = sampling.BeamParams.of(num_new, defaults.processors, length_penalty=length_penalty)
    spec = sampling.DecodeSpec(num_new, defaults.eos_ids, defaults.pad_id, beams=sampling.BeamSpec(num_beams))
    beams = sampling.beam_search(step_function(run), *prefill_source(run, sources, num_new), params, spec)
    return unpad(beams.tokens[:, 0], beams.lengths[:, 0])
