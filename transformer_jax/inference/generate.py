"""Text generation with a run: generate, complete, stream, benchmark."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference.draft_model import make_draft_source
from transformer_jax.inference.engine import STOP_CHECK_TOKENS, Engine
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.logits_processing import logits_processors
from transformer_jax.inference.prefill import beam_search_inputs
from transformer_jax.models import GPT, Seq2Seq
from transformer_jax.nn.kv_cache_kinds import overflow_error
from transformer_jax.run import Run

STREAM_SECONDS = 0.05  # target time between two pieces of a stream, however fast the model is


@dataclasses.dataclass(frozen=True)
class Completion:
    """Generated text of one prompt. Log-probabilities are natural, and the model's own: before logits processors."""

    prompt: str
    text: str  # the continuation, or the target; cut before a stop string
    tokens: tuple[int, ...]  # new tokens, the one that ended the text included
    log_probs: tuple[float, ...]  # of each token
    finish: str  # eos | stop | length | ruled_out: an end token, a stop string, max_new_tokens, no token allowed
    top: tuple[tuple[tuple[int, float], ...], ...] = ()  # most likely (token, log-probability) pairs at each position
    num_drafted: int = 0  # tokens proposed by speculative decoding
    num_accepted: int = 0  # proposed tokens that are in the text

    @property
    def log_prob(self) -> float:
        """Log-probability of all tokens together."""
        return float(sum(self.log_probs))


def generate(run: Run, prompt: str | Sequence[str], **settings: Any) -> str | list[str]:
    """Continue one prompt or several of any lengths; a Seq2Seq generates the target of each.

    Args:
      settings: fields of `GenerationConfig` by name: max_new_tokens=200, method="sample", temperature=1.0, top_k=0,
        top_p=1.0, seed=0, num_samples=1, stop=("\\n",) and so on. Sample i of a prompt does not depend on num_samples.
    Returns:
      The prompt with its continuation, or the target alone. A list, prompt by prompt, for several prompts or samples.
    Raises:
      UserError: an empty prompt; a number out of range; more tokens than the context has room for, unless
        on_overflow="re-prefill": whenever the context is full, its last half is kept and read again, so that later
        tokens are chosen from half a context or more; or on_overflow="slide": for a model with a window (or linear
        attention) and with positions that do not end, which needs constant memory for texts of any length.
    """
    config = GenerationConfig.from_dict(settings)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    completions = complete(run, prompts, config)
    texts = [prompt_text(run, completion.prompt) + completion.text for completion in completions]
    return texts[0] if isinstance(prompt, str) and config.num_samples == 1 else texts


def prompt_text(run: Run, prompt: str) -> str:
    """Text that `generate` puts before a continuation: the prompt as its tokens decode; "" before a target."""
    return "" if run.model.reads_source else run.text_tokenizer.decode(_encode(run, prompt))


def complete(
    run: Run, prompts: Sequence[str], config: GenerationConfig, num_top: int = 0, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """Generate `num_samples` completions of each prompt, prompt by prompt, with tokens and log-probabilities.

    Args:
      num_top: number of most likely tokens to report at each position.
      seeds: one for each prompt, instead of config.seed for all.
    Raises:
      UserError: as `generate`; not as many seeds as prompts.
    """
    if isinstance(prompts, str):
        raise UserError("prompts: must be a list of strings, not one string.")
    if seeds is not None and len(seeds) != len(prompts):
        raise UserError(f"seeds: {len(seeds)} of them, and {len(prompts)} prompts. Give one for each, or none.")
    if not prompts:
        return []
    engine = _make_engine(run, prompts, config, num_top, seeds)
    while not engine.is_done:
        engine.advance(STOP_CHECK_TOKENS if config.stop else config.max_new_tokens)
    return [
        Completion(
            prompt=prompts[i // config.num_samples],
            text=engine.text(i),
            tokens=tuple(tokens.tolist()),
            log_probs=tuple(engine.log_probs[i].tolist()),
            finish=engine.finish[i],
            top=_pairs(*engine.top[i]) if num_top else (),
            num_drafted=int(engine.num_drafted[i]),
            num_accepted=int(engine.num_accepted[i]),
        )
        for i, tokens in enumerate(engine.tokens)
    ]


def _pairs(ids: np.ndarray, log_probs: np.ndarray) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Pairs (token, log-probability) of arrays [T, num_top]."""
    rows = zip(ids.tolist(), log_probs.tolist(), strict=True)
    return tuple(tuple(zip(row_ids, values, strict=True)) for row_ids, values in rows)


def stream(run: Run, prompt: str, **settings: Any) -> Iterator[str]:
    """Stream the continuation of a prompt in pieces; joined they are what `generate` puts after the prompt.

    No piece ends within a character. Text that may be the start of a stop string is held back until that is decided.

    Args:
      settings: fields of `GenerationConfig` by name, except num_samples and method="beam", which has its text only at
        the end.
    Raises:
      UserError: as `generate`, at once and not at the first piece.
    """
    config = GenerationConfig.from_dict(settings)
    if config.method == "beam" or config.num_samples != 1:
        name = "method" if config.method == "beam" else "num_samples"
        raise UserError(f"{name}={getattr(config, name)!r}: a stream is one text, from method=sample or greedy.")
    return _stream_pieces(_make_engine(run, [prompt], config), config.stop)


def benchmark(run: Run, prompt: str, config: GenerationConfig) -> dict[str, float]:
    """Measure the speed of generating `num_samples` rows, once everything is compiled.

    Returns:
      prefill_seconds: reading the prompt and choosing a token. decode_seconds: all later tokens. tokens_per_second:
      those of all rows in decode_seconds. compile_seconds: the extra time of the first run. num_tokens: of all rows.
      With speculative decoding also accepted_share, of the drafted tokens.
    """
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        engine = _make_engine(run, [prompt], config)
        engine.advance(1)
        prefilled = time.perf_counter()
        engine.advance(config.max_new_tokens)
        seconds.append((prefilled - start, time.perf_counter() - prefilled))
    num_tokens = sum(map(len, engine.tokens))
    result = {
        "prefill_seconds": seconds[1][0],
        "decode_seconds": seconds[1][1],
        "tokens_per_second": (num_tokens - len(engine.tokens)) / seconds[1][1],
        "compile_seconds": max(0.0, sum(seconds[0]) - sum(seconds[1])),
        "num_tokens": num_tokens,
    }
    if engine.draft_source:
        result["accepted_share"] = float(engine.num_accepted.sum() / max(engine.num_drafted.sum(), 1))
    return result


def _stream_pieces(engine: Engine, stop: tuple[str, ...]) -> Iterator[str]:
    num_sent = 0
    num = 1
    while not engine.is_done:
        start = time.perf_counter()
        engine.advance(num)
        seconds = time.perf_counter() - start
        if seconds < STREAM_SECONDS / 2:
            num *= 2
        elif seconds > STREAM_SECONDS * 2:
            num = max(1, num // 2)
        text = engine.text(0)
        if not engine.is_done:
            text = text[: len(text) - _num_held_back(text, stop)]
        if len(text) > num_sent:
            yield text[num_sent:]
            num_sent = len(text)


def _num_held_back(text: str, stop: tuple[str, ...]) -> int:
    """Number of characters at the end of a text that may be the start of a stop string."""
    return max((n for end in stop for n in range(1, min(len(end), len(text) + 1)) if text.endswith(end[:n])), default=0)


def _make_engine(
    run: Run, prompts: Sequence[str], config: GenerationConfig, num_top: int = 0, seeds: Sequence[int] | None = None
) -> Engine:
    """Engine of all rows, prompt by prompt. Everything a user can get wrong is checked here, before the first token."""
    if not isinstance(run.model, GPT | Seq2Seq):
        raise UserError(f"run: a {type(run.model).__name__} generates no text. Take a GPT or a Seq2Seq, or tj.logits.")
    processors = logits_processors(config, run)
    encoded = [_encode(run, text) for text in prompts]
    _check_fits_context(run, encoded, config)
    rows = [row for row in encoded for _ in range(config.num_samples)]
    choice = config.method
    if choice == "beam":  # the texts are known then; generated again for the model's own log-probabilities
        choice = "greedy"
        processors = (sampling.ForcedTokens(_beam_search(run, encoded, config, processors)),)
    return Engine(
        run,
        rows,
        _row_keys(len(prompts), config, seeds),
        processors,
        choice,
        config.max_new_tokens,
        config.stop,
        num_top,
        make_draft_source(config, run),
        has_rolling_cache=config.on_overflow == "slide",
        cache_type=config.cache_type,
    )


def _row_keys(num_prompts: int, config: GenerationConfig, seeds: Sequence[int] | None) -> jax.Array:
    """Random key of each row: the seed of its prompt, folded with the index of the sample."""
    sample_index = jnp.tile(jnp.arange(config.num_samples), num_prompts)
    seed_keys = jnp.stack([jax.random.key(seed) for seed in ([config.seed] if seeds is None else seeds)])
    seed_index = np.repeat(np.arange(num_prompts) % len(seed_keys), config.num_samples)
    return jax.vmap(jax.random.fold_in)(seed_keys[seed_index], sample_index)


def _beam_search(run: Run, prompts: list[np.ndarray], config: GenerationConfig, processors: tuple) -> jax.Array:
    """New tokens of the best `num_samples` texts of each prompt: [prompts * num_samples, max_new_tokens]."""
    max_new_tokens = config.max_new_tokens
    inputs = beam_search_inputs(run, prompts, max_new_tokens)
    beams = sampling.beam_search(
        inputs.step,
        inputs.cache.with_type(config.cache_type),
        inputs.tokens,
        inputs.is_token,
        processors,
        num_beams=config.num_beams,
        max_new_tokens=max_new_tokens,
        eos_ids=run.generation_defaults.eos_ids,
        pad_id=run.generation_defaults.pad_id,
        length_penalty=config.length_penalty,
        num_return=config.num_samples,
        length_normalization=config.length_normalization,
        stopping=config.stopping,
        num_groups=config.num_groups,
        diversity=config.diversity,
    )
    if not jnp.all(beams.lengths):
        raise UserError(f"num_samples={config.num_samples}: beam search found fewer texts. Ask for fewer of them.")
    return jnp.reshape(beams.tokens, (-1, max_new_tokens))


def _encode(run: Run, text: str) -> np.ndarray:
    is_source = run.model.reads_source
    tokenizer = run.text_tokenizer
    tokens = tokenizer.encode_source(run.prepare(text)) if is_source else tokenizer.encode(text)
    if not len(tokens):
        raise UserError("prompt='': must have at least one character. A line break is enough.")
    return tokens


def _check_fits_context(run: Run, prompts: list[np.ndarray], config: GenerationConfig) -> None:
    """Raise UserError if prompts or new tokens outgrow the context and the config does not allow that."""
    num_new = config.max_new_tokens
    longest = max(map(len, prompts))
    context = run.config.encoder.max_len
    if config.on_overflow == "slide" and isinstance(run.model, GPT):
        if reason := overflow_error(run.config.decoder):
            raise UserError(reason)
        return
    if longest > context:
        fix = f"Give at most {context} tokens, for example the end of the text"
        raise UserError(f"prompt: {longest} tokens, and the model's context is {context}. {fix}.")
    if run.model.reads_source:
        context = run.config.decoder.max_len
        if num_new > context:
            raise UserError(f"max_new_tokens={num_new}: the decoder's context is {context}. Take at most {context}.")
        return
    if longest + num_new > context and config.on_overflow == "error":
        room = context - longest
        fix = f"Take at most {room}" if room else "Shorten the prompt"
        can_slide = overflow_error(run.config.decoder) is None
        way = "slide" if can_slide else "re-prefill, which keeps the last half and reads it again"
        raise UserError(
            f"max_new_tokens={num_new}: with a prompt of {longest} tokens that is beyond the model's context of "
            f"{context}. {fix}, or on_overflow={way}."
        )
