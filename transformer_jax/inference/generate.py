"""What a run writes: continuations of prompts, and targets of sources, at once or as they are made."""

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
from transformer_jax.inference.engine import STOP_TOKENS, Engine, batch, begin_targets, bucket
from transformer_jax.inference.generation_config import GenerationConfig, logits_processors
from transformer_jax.models import GPT, Seq2Seq
from transformer_jax.nn.kv_cache import as_type, make_cache, overflow_error
from transformer_jax.run import Run, step_function

STREAM_SECONDS = 0.05  # a piece of a stream takes about so long, however fast the model is


@dataclasses.dataclass(frozen=True)
class Completion:
    """What one prompt was continued with. Log-probabilities are natural, and the model's own: before any method."""

    prompt: str
    text: str  # the continuation, or the target; a stop string and what follows are cut off
    tokens: tuple[int, ...]  # new ones, the one that ended the text included
    log_probs: tuple[float, ...]  # of each of them
    finish: str  # eos | stop | length | ruled_out: the model, a stop string, max_new_tokens, or no token was allowed
    top: tuple[tuple[tuple[int, float], ...], ...] = ()  # the likeliest (token, log-probability) at each place
    num_drafted: int = 0  # tokens that were proposed, with a draft or prompt_lookup
    num_accepted: int = 0  # those that are in the text

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return float(sum(self.log_probs))


def generate(run: Run, prompt: str | Sequence[str], **settings: Any) -> str | list[str]:
    """Continue one prompt or several, which may differ in length; a Seq2Seq writes the target of each.

    Args:
      settings: fields of `GenerationConfig` by name: max_new_tokens=200, method="sample", temperature=1.0, top_k=0, top_p=1.0,
        seed=0, num_samples=1, stop=("\\n",) and so on. Sample i of a prompt is the same however many are asked for.
    Returns:
      The prompt with its continuation, or the target alone. A list, prompt by prompt, for several prompts or samples.
    Raises:
      UserError: an empty prompt; a number out of range; more than the context has room for, unless
        on_overflow="re-prefill": then, whenever the context is full, its last half is kept and read again, so that
        later tokens are chosen from half a context or more; or "slide": then a model with a window (or linear
        attention) and with positions that go on has no context, and memory of one size for texts of any length.
    """
    decoding = GenerationConfig.from_dict(settings)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    found = complete(run, prompts, decoding)
    texts = [prompt_text(run, completion.prompt) + completion.text for completion in found]
    return texts[0] if isinstance(prompt, str) and decoding.num_samples == 1 else texts


def prompt_text(run: Run, prompt: str) -> str:
    """What `generate` puts before the continuation: the prompt as its tokens spell it; before a target nothing."""
    return "" if isinstance(run.model, Seq2Seq) else run.tokenizer.decode(_encode(run, prompt))


def complete(
    run: Run, prompts: Sequence[str], decoding: GenerationConfig, num_top: int = 0, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """`num_samples` continuations of each prompt, prompt by prompt, with their tokens and log-probabilities.

    Args:
      num_top: how many of the likeliest tokens to tell at each place.
      seeds: one for each prompt, instead of decoding.seed for all.
    Raises:
      UserError: as `generate`; not as many seeds as prompts.
    """
    if isinstance(prompts, str):
        raise UserError("prompts: must be a list of strings, not one string.")
    if seeds is not None and len(seeds) != len(prompts):
        raise UserError(f"seeds: {len(seeds)} of them, and {len(prompts)} prompts. Give one for each, or none.")
    if not prompts:
        return []
    writer = _writer(run, prompts, decoding, num_top, seeds)
    while not writer.is_done:
        writer.write(STOP_TOKENS if decoding.stop else decoding.max_new_tokens)
    return [
        Completion(
            prompts[i // decoding.num_samples],
            writer.text(i),
            tuple(tokens.tolist()),
            tuple(writer.log_probs[i].tolist()),
            writer.finish[i],
            tuple(
                tuple(zip(ids, values, strict=True))
                for ids, values in zip(*map(np.ndarray.tolist, writer.top[i]), strict=True)
            )
            if num_top
            else (),
            int(writer.num_drafted[i]),
            int(writer.num_accepted[i]),
        )
        for i, tokens in enumerate(writer.tokens)
    ]


def stream(run: Run, prompt: str, **settings: Any) -> Iterator[str]:
    """The continuation of a prompt in pieces, as it is made; joined they are what `generate` puts after the prompt.

    No piece ends within a character, and what may be the start of a stop string waits until it is known not to be.

    Args:
      settings: fields of `GenerationConfig` by name, but for num_samples, and method="beam", which knows its text at the end.
    Raises:
      UserError: as `generate`, at once.
    """
    decoding = GenerationConfig.from_dict(settings)
    if decoding.method == "beam" or decoding.num_samples != 1:
        name = "method" if decoding.method == "beam" else "num_samples"
        raise UserError(f"{name}={getattr(decoding, name)!r}: a stream is one text that is sampled or greedy.")
    return _pieces(_writer(run, [prompt], decoding), decoding.stop)


def benchmark(run: Run, prompt: str, decoding: GenerationConfig) -> dict[str, float]:
    """How fast `num_samples` rows are written, once all is compiled.

    Returns:
      prefill_seconds, to read the prompt and choose a token; decode_seconds, for all others; tokens_per_second, those
      of all rows in decode_seconds; compile_seconds, what the first time took longer; and num_tokens, of all rows.
      With drafts also accepted_share, of the tokens that were drafted.
    """
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        writer = _writer(run, [prompt], decoding)
        writer.write(1)
        read = time.perf_counter()
        writer.write(decoding.max_new_tokens)
        seconds.append((read - start, time.perf_counter() - read))
    num_tokens = sum(map(len, writer.tokens))
    share = {"accepted_share": float(writer.num_accepted.sum() / max(writer.num_drafted.sum(), 1))}
    return {
        "prefill_seconds": seconds[1][0],
        "decode_seconds": seconds[1][1],
        "tokens_per_second": (num_tokens - len(writer.tokens)) / seconds[1][1],
        "compile_seconds": max(0.0, sum(seconds[0]) - sum(seconds[1])),
        "num_tokens": num_tokens,
        **(share if writer.draft_source else {}),
    }


def _pieces(writer: Engine, stop: tuple[str, ...]) -> Iterator[str]:
    sent, num = "", 1
    while not writer.is_done:
        start = time.perf_counter()
        writer.write(num)
        seconds = time.perf_counter() - start
        num = num * 2 if seconds < STREAM_SECONDS / 2 else max(1, num // 2) if seconds > STREAM_SECONDS * 2 else num
        text = writer.text(0)
        if not writer.is_done:
            text = text[: len(text) - _held_back(text, stop)]
        if len(text) > len(sent):
            yield text[len(sent) :]
            sent = text


def _held_back(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of a text may be the start of a stop string."""
    return max((n for end in stop for n in range(1, min(len(end), len(text) + 1)) if text.endswith(end[:n])), default=0)


def _writer(
    run: Run, prompts: Sequence[str], decoding: GenerationConfig, num_top: int = 0, seeds: Sequence[int] | None = None
) -> Engine:
    """The rows to be written, everything about them checked."""
    if not isinstance(run.model, GPT | Seq2Seq):
        raise UserError(f"a {type(run.model).__name__} writes no text. Ask it with logits.")
    if run.tokenizer is None:
        raise UserError("this model came without a tokenizer that is known here. Give tokens to logits.")
    processors, num_new = logits_processors(decoding, run), decoding.max_new_tokens
    encoded = [_encode(run, text) for text in prompts]
    _check_room(run, encoded, decoding)
    rows = [row for row in encoded for _ in range(decoding.num_samples)]
    sample_index = jnp.tile(jnp.arange(decoding.num_samples), len(prompts))
    seed_keys = jnp.stack([jax.random.key(seed) for seed in ([decoding.seed] if seeds is None else seeds)])
    seed_index = np.repeat(np.arange(len(prompts)) % len(seed_keys), decoding.num_samples)
    keys = jax.vmap(jax.random.fold_in)(seed_keys[seed_index], sample_index)
    choice = decoding.method
    if choice == "beam":  # the texts are known then, and written again for what the model says of each token
        choice, processors = "greedy", (sampling.ForcedTokens(_search(run, encoded, decoding, processors)),)
    slides = decoding.on_overflow == "slide"
    return Engine(
        run,
        rows,
        keys,
        processors,
        choice,
        num_new,
        decoding.stop,
        num_top,
        make_draft_source(decoding, run),
        slides,
        decoding.cache_type,
    )


def _search(run: Run, prompts: list[np.ndarray], decoding: GenerationConfig, processors: tuple) -> jax.Array:
    """The new tokens of the best `num_samples` texts of each prompt, one below the other: [prompts samples, any]."""
    num_new = decoding.max_new_tokens
    step, cache, *first = begin_search(run, prompts, num_new)
    beams = sampling.beam_search(
        step,
        as_type(cache, decoding.cache_type),
        *first,
        processors,
        num_beams=decoding.num_beams,
        max_new_tokens=num_new,
        eos_ids=run.generation_defaults.eos_ids,
        pad_id=run.generation_defaults.pad_id,
        length_penalty=decoding.length_penalty,
        num_return=decoding.num_samples,
        penalty=decoding.length_normalization,
        stopping=decoding.stopping,
        num_groups=decoding.num_groups,
        diversity=decoding.diversity,
    )
    if not jnp.all(beams.lengths):
        raise UserError(f"num_samples={decoding.num_samples}: beam search found fewer texts. Ask for fewer of them.")
    return jnp.reshape(beams.tokens, (-1, num_new))


def begin_search(run: Run, prompts: list[np.ndarray], num_new: int) -> tuple:
    """What beam search wants: the step, a cache, and what is read first with where its tokens are."""
    if isinstance(run.model, Seq2Seq):
        return begin_targets(run, prompts, num_new)
    width = min(bucket(max(map(len, prompts)), run.config.max_len), run.config.max_len - num_new)
    cache = make_cache(run.config, len(prompts), width + num_new)
    return step_function(run), cache, *batch(prompts, width, width, run.generation_defaults.pad_id)


def _encode(run: Run, text: str) -> np.ndarray:
    is_source = isinstance(run.model, Seq2Seq)
    tokens = run.tokenizer.encode_source(run.prepare(text)) if is_source else run.tokenizer.encode(text)
    if not len(tokens):
        raise UserError("prompt='': must have at least one character; a new line will do.")
    return tokens


def _check_room(run: Run, prompts: list[np.ndarray], decoding: GenerationConfig) -> None:
    """What is asked for must fit into the context, unless it may be read again, or there is no end to it."""
    num_new, longest = decoding.max_new_tokens, max(map(len, prompts))
    context = run.config.encoder.max_len
    if decoding.on_overflow == "slide" and isinstance(run.model, GPT):
        if why := overflow_error(run.config):
            raise UserError(why)
        return
    if longest > context:
        raise UserError(
            f"prompt: {longest} tokens, and the model's context is {context}. "
            f"Give at most {context} tokens, say the end of the text."
        )
    if isinstance(run.model, Seq2Seq):
        context = run.config.decoder.max_len
        if num_new > context:
            raise UserError(f"max_new_tokens={num_new}: the decoder's context is {context}. Take at most {context}.")
        return
    if longest + num_new > context and decoding.on_overflow == "error":
        room = context - longest
        fix = f"Take at most {room}" if room else "Shorten the prompt"
        way = "reread, which keeps the last half and reads it again" if overflow_error(run.config) else "slide"
        raise UserError(
            f"max_new_tokens={num_new}: with a prompt of {longest} tokens that is beyond the model's context of "
            f"{context}. {fix}, or on_overflow={way}."
        )
