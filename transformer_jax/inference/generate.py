"""Text generation with a run: generate, complete, stream, benchmark. Token ids alone: generate_tokens.py."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.inference.adapter_names import AdapterNames
from transformer_jax.inference.batching import check_ids
from transformer_jax.inference.engine import Engine
from transformer_jax.inference.generate_tokens import Completion, check_generates_text, generate_tokens, make_engine
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefix import encode_after_prefix, prefix_tokens
from transformer_jax.inference.texts import one_text, text_list
from transformer_jax.run import Run

STREAM_SECONDS = 0.05  # target time between two pieces of a stream, however fast the model is


def generate(
    run: Run, prompt: str | Sequence[str], adapter_names: AdapterNames = None, **settings: object
) -> str | list[str]:
    """Continue one prompt or several of any lengths; a Seq2Seq generates the target of each.

    Args:
      adapter_names: for a run with adapters by name: one for all prompts, or one for each; "": none.
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
    rows = _encode(run, text_list("prompt", prompt), config.allow_special)
    completions = generate_tokens(run, rows, adapter_names=adapter_names, **vars(_of_tokens(config)))
    texts = [_text_before(run, rows[i // config.num_samples]) + one.text for i, one in enumerate(completions)]
    return texts[0] if isinstance(prompt, str) and config.num_samples == 1 else texts


def prompt_text(run: Run, prompt: str, allow_special: bool = False) -> str:
    """Text that `generate` puts before a continuation: the prompt as its tokens decode; "" before a target."""
    return _text_before(run, *_encode(run, [one_text("prompt", prompt)], allow_special))


def _of_tokens(config: GenerationConfig) -> GenerationConfig:
    """The settings of generation from token ids: without that of the text of a prompt."""
    return dataclasses.replace(config, allow_special=False)


def _text_before(run: Run, tokens: np.ndarray) -> str:
    if run.model.reads_source:
        return ""
    before = prefix_tokens(run)
    decode = run.text_tokenizer.decode
    return decode(np.concatenate([before, tokens]))[len(decode(before)) :]


@overload
def complete(  # type: ignore[overload-overlap]
    run: Run,
    prompts: str,
    config: GenerationConfig,
    num_top: int = 0,
    seeds: Sequence[int] | None = None,
    adapter_names: AdapterNames = None,
) -> Completion | list[Completion]: ...
@overload
def complete(
    run: Run,
    prompts: Sequence[str],
    config: GenerationConfig,
    num_top: int = 0,
    seeds: Sequence[int] | None = None,
    adapter_names: AdapterNames = None,
) -> list[Completion]: ...
def complete(
    run: Run,
    prompts: str | Sequence[str],
    config: GenerationConfig,
    num_top: int = 0,
    seeds: Sequence[int] | None = None,
    adapter_names: AdapterNames = None,
) -> Completion | list[Completion]:
    """Generate `num_samples` completions of each prompt, prompt by prompt, with tokens and log-probabilities.

    Args:
      num_top, seeds, adapter_names: as in `generate_tokens`.
    Returns:
      A list, prompt by prompt; for a string and one sample, its completion.
    Raises:
      UserError: as `generate`; not as many seeds as prompts.
    """
    given = text_list("prompts", prompts)
    rows = _encode(run, given, config.allow_special)
    settings = vars(_of_tokens(config))
    completions = generate_tokens(run, rows, num_top=num_top, seeds=seeds, adapter_names=adapter_names, **settings)
    texts = [prompt for prompt in given for _ in range(config.num_samples)]
    found = [dataclasses.replace(one, prompt=text) for one, text in zip(completions, texts, strict=True)]
    return found[0] if isinstance(prompts, str) and config.num_samples == 1 else found


def stream(run: Run, prompt: str, **settings: object) -> Iterator[str]:
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
    rows = _encode(run, [one_text("prompt", prompt)], config.allow_special)
    return stream_pieces(make_engine(run, rows, config)[0], config.stop)


def benchmark(run: Run, prompt: str, config: GenerationConfig) -> dict[str, float]:
    """Measure the speed of generating `num_samples` rows, once everything is compiled.

    Returns:
      prefill_seconds: reading the prompt and choosing a token. decode_seconds: all later tokens. tokens_per_second:
      those of all rows in decode_seconds. compile_seconds: the extra time of the first run. num_tokens: of all rows.
      With speculative decoding also accepted_share, of the drafted tokens.
    """
    rows = _encode(run, [one_text("prompt", prompt)], config.allow_special)
    config = dataclasses.replace(config, batch_size=config.num_samples)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        engine, _ = make_engine(run, rows, config)
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
    if engine.is_speculative:
        result["accepted_share"] = float(engine.num_accepted.sum() / max(engine.num_drafted.sum(), 1))
    return result


def stream_pieces(engine: Engine, stop: tuple[str, ...], most_tokens: int = 2**30) -> Iterator[str]:
    """Stream the text of an engine with one row, at most `most_tokens` between two pieces."""
    num_sent = 0
    num = 1
    while not engine.is_done:
        start = time.perf_counter()
        engine.advance(min(num, most_tokens))
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


def _encode(run: Run, prompts: Sequence[str], allow_special: bool) -> list[np.ndarray]:
    """Token ids of each prompt, or of each source."""
    check_generates_text(run)
    tokenizer = run.text_tokenizer
    rows = []
    for text in prompts:
        if run.model.reads_source:
            rows.append(tokenizer.encode_source(run.prepare(text), allow_special))
        else:
            rows.append(encode_after_prefix(run, text, allow_special))
        if not len(rows[-1]):
            raise UserError("prompt='': must have at least one character. A line break is enough.")
    check_ids("prompt", rows, tokenizer.source, run.config.encoder.vocab_size)
    return rows
