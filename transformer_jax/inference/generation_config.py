"""How a text is to be written: all settings of decoding as plain data, and the processors that they become for a run."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from transformer_jax import sampling
from transformer_jax.errors import UserError, choose
from transformer_jax.inference.generation_settings import Settings
from transformer_jax.nn.kv_cache import CACHE_TYPES
from transformer_jax.run import Run
from transformer_jax.sampling.logits_processors import LogitsProcessor, check
from transformer_jax.schema import unknown_field
from transformer_jax.tokenizers import Tokenizer
from transformer_jax.tokenizers.token_bytes import token_bytes

METHODS = ("sample", "greedy", "beam")
ON_OVERFLOW = ("error", "re-prefill", "slide")


@dataclasses.dataclass(frozen=True)
class GenerationConfig(Settings):
    """All settings of decoding; the defaults change nothing. Lists become tuples, a dict of biases pairs.

    Raises:
      UserError: a value of another type, or out of range: a line with field, value and rule.
    """

    def __post_init__(self):
        super().__post_init__()
        choose(dict.fromkeys(METHODS), self.method, "method")
        choose(dict.fromkeys(ON_OVERFLOW), self.on_overflow, "on_overflow")
        choose(CACHE_TYPES, self.cache_type, "cache_type")
        choose(sampling.LENGTH_PENALTIES, self.length_normalization, "length_normalization")
        choose(sampling.STOPPING, self.stopping, "stopping")
        for name, least in (
            ("max_new_tokens", 1),
            ("num_samples", 1),
            ("num_beams", 1),
            ("min_new_tokens", 0),
            ("prompt_lookup", 0),
            ("num_draft", 1),
        ):
            check(getattr(self, name) >= least, name, getattr(self, name), f"must be at least {least}")
        check(-(2**63) <= self.seed < 2**63, "seed", self.seed, "must be a number of 64 bits")
        check(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            self.min_new_tokens,
            f"must be at most max_new_tokens={self.max_new_tokens}",
        )
        for name in ("bad_words", "stop", "choices"):
            is_fine = all(isinstance(text, str) and text for text in getattr(self, name))
            check(is_fine, name, getattr(self, name), "must be strings of a character or more")
        is_fine = all(isinstance(token, str) or type(token) is int for token in self.suppress)
        check(is_fine, "suppress", self.suppress, "must be token ids or strings")
        is_fine = all(
            isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) in (int, str) and type(pair[1]) in (int, float)
            for pair in self.logit_bias
        )
        check(is_fine, "logit_bias", self.logit_bias, "must be pairs of a token, id or string, and a number")
        check(not (self.choices and self.regex), "regex", self.regex, "choices are given as well; give one of them")
        check(
            not (self.draft and self.prompt_lookup),
            "prompt_lookup",
            self.prompt_lookup,
            "a draft is given as well; give one of them",
        )
        for name in ("draft", "prompt_lookup"):
            is_fine = not getattr(self, name) or self.method != "beam"
            check(is_fine, name, getattr(self, name), "a beam search has no drafts. Take method=sample or greedy")
        check(
            not self.draft or self.on_overflow == "error",
            "on_overflow",
            self.on_overflow,
            "with a draft, texts stay within the context. Take prompt_lookup, or shorter texts",
        )
        if self.method == "beam":
            rule = f"must be at most num_beams={self.num_beams}. Ask for fewer, or search with more beams"
            check(self.num_samples <= self.num_beams, "num_samples", self.num_samples, rule)
            check(
                self.on_overflow == "error",
                "on_overflow",
                self.on_overflow,
                "a beam search stays within the context. Take method=sample or greedy",
            )
        _penalties(self), _shaping(self)  # each method says what is wrong with its own

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is the way back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GenerationConfig":
        """Of settings by name. Raises UserError for an unknown name, and as the class does."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise unknown_field(unknown[0], known)
        return cls(**values)


def logits_processors(decoding: GenerationConfig, run: Run) -> tuple[LogitsProcessor, ...]:
    """What is done to the logits of a run: its own rules, then the settings; what would change nothing is left away.

    Penalties come first, then what rules tokens out, and then, among what is left, temperature, top-k, top-p and so on.

    Raises:
      UserError: a string that is no token; choices or a regex that no tokens spell, or that there is no room for.
    """
    tokenizer, eos_ids = run.tokenizer, run.generation_defaults.eos_ids
    processors = (*run.generation_defaults.processors, *_penalties(decoding))
    if decoding.bad_words:
        words = tuple(word for text in decoding.bad_words for word in _spelled(tokenizer, text))
        processors += (sampling.BadWords(words),)
    if decoding.suppress:
        processors += (sampling.Suppress(tuple(_id(tokenizer, "suppress", token) for token in decoding.suppress)),)
    if decoding.logit_bias:
        pairs = ((_id(tokenizer, "logit_bias", token), float(bias)) for token, bias in decoding.logit_bias)
        processors += (sampling.LogitBias(tuple(pairs)),)
    if decoding.min_new_tokens:
        processors += (sampling.MinLength(decoding.min_new_tokens, eos_ids),)
    if decoding.choices or decoding.regex:
        vocab_size = run.config.decoder.vocab_size
        constraint, least = _constraint(decoding.choices, decoding.regex, tokenizer, vocab_size, eos_ids)
        rule = f"the shortest text allowed has {least} tokens. Allow as many"
        check(least <= decoding.max_new_tokens, "max_new_tokens", decoding.max_new_tokens, rule)
        processors += (constraint,)
    return processors + _shaping(decoding)


def _penalties(decoding: GenerationConfig) -> tuple[LogitsProcessor, ...]:
    known = (
        (sampling.RepetitionPenalty, decoding.repetition_penalty, 1),
        (sampling.NoRepeatNgram, decoding.no_repeat_ngram_size, 0),
        (sampling.PresencePenalty, decoding.presence_penalty, 0),
        (sampling.FrequencyPenalty, decoding.frequency_penalty, 0),
    )
    return tuple(method(value) for method, value, off in known if value != off)


def _shaping(decoding: GenerationConfig) -> tuple[LogitsProcessor, ...]:
    known = (
        (sampling.Temperature, decoding.temperature, 1),
        (sampling.TopK, decoding.top_k, 0),
        (sampling.TopP, decoding.top_p, 1),
        (sampling.MinP, decoding.min_p, 0),
        (sampling.TypicalP, decoding.typical_p, 1),
    )
    return tuple(method(value) for method, value, off in known if value != off)


def _spelled(tokenizer: Tokenizer, text: str) -> Sequence[tuple[int, ...]]:
    """The tokens of a text, alone and after a space, which many tokenizers put into the first token."""
    words = {tuple(tokenizer.encode_piece(text).tolist())}
    try:
        words.add(tuple(tokenizer.encode_piece(" " + text).tolist()))
    except UserError:
        pass  # no token has a space
    return sorted(word for word in words if word)


def _id(tokenizer: Tokenizer, field: str, token: int | str) -> int:
    if isinstance(token, int):
        check(0 <= token < tokenizer.vocab_size, field, token, f"must be a token id below {tokenizer.vocab_size}")
        return token
    ids = tokenizer.encode_piece(token)
    check(len(ids) == 1, field, token, f"is {len(ids)} tokens, and must be one. Give ids, or take bad_words")
    return int(ids[0])


@functools.lru_cache(maxsize=8)
def _constraint(
    choices: tuple[str, ...], regex: str, tokenizer: Tokenizer, vocab_size: int, eos_ids: tuple[int, ...]
) -> tuple[sampling.Constraint, int]:
    """The constraint, and how many tokens its shortest text has."""
    known = token_bytes(tokenizer)
    known += (b"",) * (vocab_size - len(known))  # ids that the model has beyond the tokenizer's
    constraint = sampling.one_of(choices, known, eos_ids) if choices else sampling.matching(regex, known, eos_ids)
    return constraint, int(constraint.num_to_go[0])
