"""Logits processors of a generation config and a run: penalties, forbidden tokens, constraints, sampling filters."""

import functools
from collections.abc import Callable, Sequence

from transformer_jax import sampling
from transformer_jax.errors import UserError, check
from transformer_jax.inference.batching import check_ids
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.run import Run
from transformer_jax.sampling.logits_processors import LogitsProcessor
from transformer_jax.tokenizers import Tokenizer
from transformer_jax.tokenizers.token_bytes import token_bytes

# Rows of a processor, its number, and the number that turns it off.
_Table = tuple[tuple[Callable[..., LogitsProcessor], float, float], ...]


def logits_processors(config: GenerationConfig, run: Run) -> tuple[LogitsProcessor, ...]:
    """The logits processors of a run in their order: its own defaults first, then those that the config asks for.

    Penalties come first, then forbidden tokens and constraints, and then, among what is left, temperature, top-k, top-p
    and so on. A setting that changes nothing gets no processor.

    Raises:
      UserError: a string that is no token; choices or a regex that no tokens spell, or that
        need more than max_new_tokens; a setting that needs text, and no tokenizer.
    """
    _check_has_text(config, run)
    eos_ids = run.generation_defaults.eos_ids
    processors = (*run.generation_defaults.processors, *_penalties(config))
    if config.bad_words:
        words = tuple(word for text in config.bad_words for word in _spellings(run, text))
        processors += (sampling.BadWords(words),)
    if config.suppress:
        processors += (sampling.Suppress(tuple(_token_id(run, "suppress", token) for token in config.suppress)),)
    if config.logit_bias:
        ids = tuple(_token_id(run, "logit_bias", token) for token, _ in config.logit_bias)
        processors += (sampling.LogitBias(ids, tuple(float(bias) for _, bias in config.logit_bias)),)
    if config.min_new_tokens:
        processors += (sampling.MinLength(config.min_new_tokens, eos_ids),)
    if config.choices or config.regex:
        vocab_size = run.config.decoder.vocab_size
        constraint, min_tokens = _constraint(config.choices, config.regex, run.text_tokenizer, vocab_size, eos_ids)
        rule = f"the shortest text allowed has {min_tokens} tokens. Allow as many"
        check(min_tokens <= config.max_new_tokens, "max_new_tokens", config.max_new_tokens, rule)
        processors += (constraint,)
    return processors + _sampling_filters(config)


def _penalties(config: GenerationConfig) -> tuple[LogitsProcessor, ...]:
    table: _Table = (
        (sampling.RepetitionPenalty, config.repetition_penalty, 1),
        (sampling.NoRepeatNgram, config.no_repeat_ngram_size, 0),
        (sampling.PresencePenalty, config.presence_penalty, 0),
        (sampling.FrequencyPenalty, config.frequency_penalty, 0),
    )
    return tuple(processor(value) for processor, value, off in table if value != off)


def _sampling_filters(config: GenerationConfig) -> tuple[LogitsProcessor, ...]:
    table: _Table = (
        (sampling.Temperature, config.temperature, 1),
        (sampling.TopK, config.top_k, 0),
        (sampling.TopP, config.top_p, 1),
        (sampling.MinP, config.min_p, 0),
        (sampling.TypicalP, config.typical_p, 1),
    )
    return tuple(processor(value) for processor, value, off in table if value != off)


def _spellings(run: Run, text: str) -> Sequence[tuple[int, ...]]:
    """Token ids of a text, alone and after a space: many tokenizers put the space into the first token.

    Some put one before every text, so that the spelling inside a word is that of a continuation.
    """
    tokenizer = run.text_tokenizer
    spellings = [tokenizer.encode_piece(text), tokenizer.encode_continuation(text)]
    try:
        spellings += [tokenizer.encode_piece(" " + text), tokenizer.encode_continuation(" " + text)]
    except UserError:
        pass  # no token has a space
    check_ids(f"bad_words={text!r:.80}", spellings, tokenizer, run.config.decoder.vocab_size)
    return sorted({tuple(word.tolist()) for word in spellings if len(word)})


def _token_id(run: Run, field: str, token: int | str) -> int:
    if isinstance(token, int):
        vocab_size = run.config.decoder.vocab_size
        vocab_size = min(vocab_size, run.tokenizer.vocab_size) if run.tokenizer else vocab_size
        check(0 <= token < vocab_size, field, token, f"must be a token id below {vocab_size}")
        return token
    ids = run.text_tokenizer.encode_piece(token)
    check(len(ids) == 1, field, token, f"is {len(ids)} tokens, and must be one. Give ids, or take bad_words")
    check_ids(f"{field}={token!r:.80}", [ids], run.text_tokenizer, run.config.decoder.vocab_size)
    return int(ids[0])


def _check_has_text(config: GenerationConfig, run: Run) -> None:
    """Raise UserError if the config has text that becomes tokens, or that is searched for, and the run no tokenizer."""
    if run.tokenizer is not None:
        return
    strings = {name: getattr(config, name) for name in ("stop", "bad_words", "choices", "regex")}
    strings["suppress"] = tuple(token for token in config.suppress if isinstance(token, str))
    strings["logit_bias"] = tuple(token for token, _ in config.logit_bias if isinstance(token, str))
    for name, value in strings.items():
        check(not value, name, value, "is text, and the run has no tokenizer. Give token ids, or omit it")


@functools.lru_cache(maxsize=8)
def _constraint(
    choices: tuple[str, ...], regex: str, tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...]
) -> tuple[sampling.Constraint, int]:
    """The constraint, and the number of tokens of its shortest text."""
    known = token_bytes(tokenizer)[:vocab_size]  # the tokenizer may have ids that the model does not know
    known += (b"",) * (vocab_size - len(known))  # ids that the model has beyond the tokenizer's
    constraint = sampling.one_of(choices, known, eos_ids) if choices else sampling.matching(regex, known, eos_ids)
    return constraint, int(constraint.num_to_go[0])
