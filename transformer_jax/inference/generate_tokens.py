"""Token ids in, token ids out: generation with a run for every method, with or without a tokenizer."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.errors import UserError, check
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters, of_texts
from transformer_jax.inference.continuous import ContinuousEngine
from transformer_jax.inference.engine import STOP_CHECK_TOKENS, Engine
from transformer_jax.inference.forward import step_function
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.logits_processing import logits_processors
from transformer_jax.inference.memory import check_memory
from transformer_jax.inference.prefill import beam_search_inputs
from transformer_jax.inference.prefix import num_virtual, prefix_tokens
from transformer_jax.inference.texts import Rows, check_tokens
from transformer_jax.models import GPT, Seq2Seq
from transformer_jax.nn.kv_cache_kinds import overflow_error
from transformer_jax.run import Run, check_chosen


@dataclasses.dataclass(frozen=True)
class Completion:
    """New tokens of one prompt, and their text. Log-probabilities are the model's own, before processors."""

    prompt: str  # "" where it was given as token ids
    text: str  # the continuation, or the target; cut before a stop string; "" without a tokenizer
    tokens: tuple[int, ...]  # new tokens, the one that ended the text included
    log_probs: tuple[float, ...]  # of each token
    finish: str  # eos | stop | length | ruled_out: an end token, a stop string, max_new_tokens, no token allowed
    top: tuple[tuple[tuple[int, float], ...], ...] = ()  # most likely (token, log-probability) pairs at each position
    num_drafted: int = 0  # tokens proposed by speculative decoding
    num_accepted: int = 0  # proposed tokens that are in the text
    score: float | None = None  # of beam search: log-probability after logits processors / length penalty

    @property
    def log_prob(self) -> float:
        """Log-probability of all tokens together."""
        return float(sum(self.log_probs))


def generate_tokens(
    run: Run,
    tokens: Rows,
    is_token: Rows | None = None,
    *,
    num_top: int = 0,
    seeds: Sequence[int] | None = None,
    adapter_names: AdapterNames = None,
    **settings: object,
) -> list[Completion]:
    """Generate `num_samples` completions of each sequence of token ids, sequence by sequence.

    Args:
      tokens: int [B, T], or sequences of any lengths: texts to continue, or the sources of a Seq2Seq.
      is_token: bool of the same shape, False for padding, anywhere; None: no padding.
      num_top: number of most likely tokens to report at each position.
      seeds: one for each sequence, instead of the setting `seed` for all.
      adapter_names: for a run with adapters by name: one for all sequences, or one for each; "": none.
      settings: fields of `GenerationConfig` by name, as for `generate`. Without a tokenizer, none that is text.
    Raises:
      UserError: as `generate`; ids outside the vocabulary or of another type, a sequence without tokens, a mask of
        another shape; a setting that is text, and no tokenizer; not as many seeds as sequences;
        an unknown adapter.
    """
    config = GenerationConfig.from_dict(settings)
    rule = "is about the text of a prompt, and these are token ids, which may be special as they are. Omit it"
    check(not config.allow_special, "allow_special", True, rule)
    rows = check_tokens(run, tokens, is_token)
    run = choose_adapters(run, adapter_names, len(rows))
    if not rows:
        return []
    # Prompts of one engine: all of them in a continuous batch, else as many as make a batch.
    size = len(rows) if _is_continuous(run, rows, config) else max(1, config.batch_size // config.num_samples)
    if size < len(rows):  # an engine checks its own prompts; here those of all, before the first one begins
        check_request(run, rows, config, seeds)
    completions = []
    for first in range(0, len(rows), size):
        group_seeds = None if seeds is None else seeds[first : first + size]
        group = rows[first : first + size]
        group_run = of_texts(run, range(first, first + len(group)))
        engine, scores = make_engine(group_run, group, config, num_top, group_seeds)
        while not engine.is_done:
            engine.advance(STOP_CHECK_TOKENS if config.stop else config.max_new_tokens)
        completions += completions_of(run, engine, scores, num_top)
    return completions


def _is_continuous(run: Run, rows: list[np.ndarray], config: GenerationConfig) -> bool:
    """True if rows that end make room for others: there are more than a batch, and each has slots of its own."""
    fits = max(map(len, rows)) + config.max_new_tokens <= run.decoder_context
    has_own_slots = fits and not (run.model.reads_source or config.draft or config.prompt_lookup)
    return len(rows) * config.num_samples > config.batch_size and has_own_slots and config.method != "beam"


def completions_of(run: Run, engine: Engine, scores: Sequence[float] = (), num_top: int = 0) -> list[Completion]:
    """Completions of all rows of an engine that is done."""
    return [
        Completion(
            prompt="",
            text=engine.text(i) if run.tokenizer else "",
            tokens=tuple(row.tolist()),
            log_probs=tuple(engine.log_probs[i].tolist()),
            finish=engine.finish[i],
            top=_pairs(*engine.top[i]) if num_top else (),
            num_drafted=int(engine.num_drafted[i]),
            num_accepted=int(engine.num_accepted[i]),
            score=scores[i] if scores else None,
        )
        for i, row in enumerate(engine.tokens)
    ]


def make_engine(
    run: Run, rows: list[np.ndarray], config: GenerationConfig, num_top: int = 0, seeds: Sequence[int] | None = None
) -> tuple[Engine, list[float]]:
    """Engine of all rows, `num_samples` for each sequence, and their scores if they come from a beam search.

    Everything a user can get wrong is checked here, before the first token.
    """
    processors = check_request(run, rows, config, seeds)
    keys = _row_keys(len(rows), config, seeds)
    engine_class = ContinuousEngine if _is_continuous(run, rows, config) else Engine
    rows = rows if run.model.reads_source else [np.concatenate([prefix_tokens(run), row]) for row in rows]
    samples = [row for row in rows for _ in range(config.num_samples)]
    sample_run = of_texts(run, np.repeat(np.arange(len(rows)), config.num_samples))
    if config.method != "beam":
        return engine_class(sample_run, samples, config, sampling.SamplingParams(keys, processors), num_top), []
    cache, prompts = beam_search_inputs(run, rows, config.max_new_tokens)
    beams = sampling.beam_search(
        step_function(run), cache.with_type(config.cache_type), prompts, *_beam_settings(run, config, processors)
    )
    if not jnp.all(beams.lengths):
        raise UserError(f"num_samples={config.num_samples}: beam search found fewer texts. Ask for fewer of them.")
    # The texts are known now. They are generated again for the model's own log-probabilities.
    forced = sampling.ForcedTokens(jnp.reshape(beams.tokens, (-1, config.max_new_tokens)))
    config = dataclasses.replace(config, method="greedy")
    engine = Engine(sample_run, samples, config, sampling.SamplingParams(keys, (forced,)), num_top)
    return engine, np.ravel(beams.scores).tolist()


def check_request(
    run: Run, rows: list[np.ndarray], config: GenerationConfig, seeds: Sequence[int] | None = None
) -> tuple:
    """Logits processors of a request; UserError if the run generates no text, or seeds or texts do not fit."""
    check_generates_text(run)
    check_chosen(run)
    if seeds is not None and len(seeds) != len(rows):
        raise UserError(f"seeds: {len(seeds)} of them, and {len(rows)} prompts. Give one for each, or none.")
    processors = logits_processors(config, run)
    _check_fits_context(run, rows, config)
    _check_fits_memory(run, rows, config)
    return processors


def check_generates_text(run: Run) -> None:
    """Raise UserError for a run without a decoder."""
    if not isinstance(run.model, GPT | Seq2Seq):
        raise UserError(f"run: a {type(run.model).__name__} generates no text. Take a GPT or a Seq2Seq, or tj.logits.")


def _beam_settings(
    run: Run, config: GenerationConfig, processors: tuple
) -> tuple[sampling.BeamParams, sampling.DecodeSpec]:
    params = sampling.BeamParams.of(
        config.max_new_tokens,
        processors,
        length_penalty=config.length_penalty,
        length_normalization=config.length_normalization,
        diversity=config.diversity,
    )
    spec = sampling.DecodeSpec(
        config.max_new_tokens,
        run.generation_defaults.eos_ids,
        run.generation_defaults.pad_id,
        num_virtual=num_virtual(run),
        beams=sampling.BeamSpec(config.num_beams, config.num_samples, config.stopping, config.num_groups),
    )
    return params, spec


def _row_keys(num_prompts: int, config: GenerationConfig, seeds: Sequence[int] | None) -> jax.Array:
    """Random key of each row: the seed of its prompt, folded with the index of the sample."""
    sample_index = np.tile(np.arange(config.num_samples), num_prompts)
    seed_keys = jnp.stack([jax.random.key(seed) for seed in ([config.seed] if seeds is None else seeds)])
    seed_index = np.repeat(np.arange(num_prompts) % len(seed_keys), config.num_samples)
    return _fold_in_each(seed_keys, seed_index, sample_index)


@jax.jit  # one program for each number of rows; one after the other, these operations compile eleven
def _fold_in_each(keys: jax.Array, index: jax.Array, data: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in)(keys[index], data)


def _pairs(ids: np.ndarray, log_probs: np.ndarray) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Pairs (token, log-probability) of arrays [T, num_top]."""
    rows = zip(ids.tolist(), log_probs.tolist(), strict=True)
    return tuple(tuple(zip(row_ids, values, strict=True)) for row_ids, values in rows)


def _check_fits_memory(run: Run, rows: list[np.ndarray], config: GenerationConfig) -> None:
    """Raise UserError if the keys and values of the rows that are generated together are more than the memory."""
    decoder = run.config.decoder
    num_prompts = min(len(rows), max(1, config.batch_size // config.num_samples))
    num_rows = num_prompts * (config.num_beams if config.method == "beam" else config.num_samples)
    if _is_continuous(run, rows, config):
        num_rows = config.batch_size
    num_new = config.max_new_tokens if config.on_overflow == "slide" else min(config.max_new_tokens, decoder.max_len)
    has_own_prompt = not run.model.reads_source and config.method != "beam"  # beams share the keys of their prompt
    num_before = decoder.max_len - run.decoder_context  # tokens of the prefix, which every row has
    slots = min(num_before + num_new + has_own_prompt * max(map(len, rows)), decoder.max_len)
    if config.on_overflow == "slide":
        slots = min(slots, decoder.window)
    itemsize = jnp.dtype(decoder.dtype if config.cache_type == "model" else config.cache_type).itemsize
    cache = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * slots * itemsize
    if decoder.attention == "linear":
        cache = 0  # of constant size
    name = "num_beams" if config.method == "beam" else "num_samples" if config.num_samples > 1 else "batch_size"
    check_memory(
        num_rows * (cache + 4 * decoder.vocab_size + 8 * num_new),  # also logits, new tokens, log-probabilities
        f"{name}={getattr(config, name)}",
        f"{num_rows:,} texts together, of {num_new:,} new tokens,",
        "Take a smaller num_beams, num_samples, batch_size or max_new_tokens.",
    )


def _check_fits_context(run: Run, prompts: list[np.ndarray], config: GenerationConfig) -> None:
    """Raise UserError if prompts or new tokens outgrow the context and the config does not allow that."""
    num_new = config.max_new_tokens
    longest = max(map(len, prompts))
    context = run.encoder_context
    beside = " after the prefix" if run.prefix else ""
    if config.on_overflow == "slide" and not run.model.reads_source:
        if reason := overflow_error(run.config.decoder):
            raise UserError(reason)
        return
    if longest > context:
        fix = f"Give at most {context} tokens, for example the end of the text"
        raise UserError(f"prompt: {longest} tokens, and the model's context is {context}{beside}. {fix}.")
    if run.model.reads_source:
        context = run.decoder_context
        if num_new > context:
            rule = f"the decoder's context is {context}{beside}"
            raise UserError(f"max_new_tokens={num_new}: {rule}. Take at most {context}.")
        return
    if longest + num_new > context and config.on_overflow == "error":
        room = context - longest
        fix = f"Take at most {room}" if room else "Shorten the prompt"
        can_slide = overflow_error(run.config.decoder) is None
        way = "slide" if can_slide else "re-prefill, which keeps the last half and reads it again"
        raise UserError(
            f"max_new_tokens={num_new}: with a prompt of {longest} tokens that is beyond the model's context of "
            f"{context}{beside}. {fix}, or on_overflow={way}."
        )
