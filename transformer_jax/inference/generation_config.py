"""GenerationConfig: all settings of generation as plain data. Imports no JAX, so that commands check flags quickly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from transformer_jax.errors import check, choose
from transformer_jax.schema import MAX_FLOAT, check_32_bits, setting, typed, unknown_field

# The names that a field may have. Those of the last three are the keys of tables in rooms that import JAX:
# nn.kv_cache.CACHE_TYPES, sampling.LENGTH_PENALTIES and sampling.STOPPING; a test compares them.
NAMES = {
    "method": ("sample", "greedy", "beam"),
    "on_overflow": ("error", "re-prefill", "slide"),
    "cache_type": ("model", "float32", "bfloat16", "int8"),
    "length_normalization": ("gnmt", "mean"),
    "stopping": ("exhaustive", "first", "heuristic"),
}
# Ranges of the numbers that become logits processors, and the rule in words; the processors have the same checks, and a
# test compares them. The value that turns a processor off is allowed as well.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: 1e-6 <= x <= 1e6, "must be from 1e-6 to 1e6. For 0, choose greedily: method=greedy"),
    "top_k": (lambda x: 0 <= x < 2**31, "must be 1 or more; to keep all tokens omit it, or take 0"),
    "top_p": (lambda x: 0 < x <= 1, "must be above 0 and at most 1 (all tokens)"),
    "min_p": (lambda x: 0 <= x <= 1, "must be above 0 and at most 1 (only the most likely tokens)"),
    "typical_p": (lambda x: 0 < x <= 1, "must be above 0 and at most 1 (all tokens)"),
    "repetition_penalty": (lambda x: 1e-3 <= x <= 1e3, "must be from 1e-3 to 1e3. Take 1.2"),
    "presence_penalty": (lambda x: abs(x) <= 1e3, "must be from -1000 to 1000. Take 0 (none) to 2"),
    "frequency_penalty": (lambda x: abs(x) <= 1e3, "must be from -1000 to 1000. Take 0 (none) to 2"),
    "no_repeat_ngram_size": (lambda x: 0 <= x <= 100, "must be from 1 to 100. Take 3"),
}
MINIMUM = {
    "max_new_tokens": 1,
    "num_samples": 1,
    "batch_size": 1,
    "num_beams": 1,
    "min_new_tokens": 0,
    "prompt_lookup": 0,
    "num_draft": 1,
}
MAXIMUM = {  # far above what helps; programs or lists of results become too large. All others are numbers of 32 bits
    "max_new_tokens": 2**30,
    "num_samples": 1_000_000,
    "num_beams": 10_000,
    "prompt_lookup": 1_000,
    "num_draft": 1_000,
}


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """All settings of generation; the defaults change nothing. Lists become tuples, a dict of biases becomes pairs.

    temperature=0 is the greedy choice, and becomes method="greedy" with temperature=1.

    Raises:
      UserError: a value of another type, NaN, infinity, out of range, or in conflict with another field: one line
        with field, value and rule.
    """

    method: str = setting("sample", "sample | greedy | beam")
    max_new_tokens: int = setting(200, "maximum number of new tokens; an end token or a stop string may come earlier")
    seed: int = setting(0, "seed of the random draws; the same seed gives the same texts")
    num_samples: int = setting(1, "texts for each prompt; with beam search the best ones")
    batch_size: int = setting(32, "texts that are generated together; of more, the next one begins where one has ended")
    on_overflow: str = setting(
        "error",
        "what happens when a text outgrows the context: error | re-prefill (read its last half again) | "
        "slide (a model with a window or linear attention)",
    )
    cache_type: str = setting("model", "type of the KV cache: model (as it computes) | float32 | bfloat16 | int8")
    temperature: float = setting(1.0, "below 1 sharpens the distribution, above 1 flattens it; 0: greedy")
    top_k: int = setting(0, "keep the k most likely tokens; 0: all")
    top_p: float = setting(1.0, "keep the most likely tokens whose probabilities add up to top_p; 1: all")
    min_p: float = setting(0.0, "keep tokens at least min_p times as likely as the most likely one; 0: all")
    typical_p: float = setting(1.0, "keep the most typical tokens whose probabilities add up to typical_p; 1: all")
    repetition_penalty: float = setting(1.0, "above 1 makes tokens of the prompt and the new text less likely")
    presence_penalty: float = setting(0.0, "subtracted from the logit of each token that is in the new text")
    frequency_penalty: float = setting(0.0, "subtracted from a token's logit once per occurrence in the new text")
    no_repeat_ngram_size: int = setting(0, "forbid repeating any n-gram of this size; 0: allow")
    allow_special: bool = setting(
        False, "special tokens in a prompt, such as </s>, become their ids; never for untrusted text"
    )
    bad_words: tuple = setting((), "forbidden strings, as the tokenizer encodes them with and without a leading space")
    suppress: tuple = setting((), "forbidden tokens: ids, or strings that are one token")
    logit_bias: tuple = setting((), "pairs of a token (id, or string that is one) and the bias added to its logit")
    min_new_tokens: int = setting(0, "forbid end tokens before this number of new tokens")
    stop: tuple = setting((), "stop strings; the text ends before the first one")
    choices: tuple = setting((), "strings; the new text must be one of them")
    regex: str = setting("", "regular expression; the whole new text must match it")
    draft: str = setting("", "speculative decoding: run directory or folder of a smaller draft model")
    prompt_lookup: int = setting(
        0, "speculative decoding: draft what followed the last prompt_lookup tokens earlier in the text; 0: off"
    )
    num_draft: int = setting(4, "speculative decoding: drafted tokens for each call of the model")
    num_beams: int = setting(4, "beam search: number of beams")
    length_penalty: float = setting(1.0, "beam search: above 0 favours longer texts, below 0 shorter ones")
    length_normalization: str = setting("gnmt", "beam search: gnmt | mean: the divisor that length_penalty shapes")
    stopping: str = setting(
        "exhaustive", "beam search: exhaustive (no better text is possible) | first (num_beams texts) | heuristic"
    )
    num_groups: int = setting(1, "diverse beam search: number of groups of beams")
    diversity: float = setting(
        0.0, "diverse beam search: penalty of a token for each earlier group's beam that chose it"
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        if self.temperature == 0 and self.method in ("sample", "greedy"):
            object.__setattr__(self, "method", "greedy")
            object.__setattr__(self, "temperature", 1.0)
        for name, known in NAMES.items():
            choose(dict.fromkeys(known), getattr(self, name), name)
        self._check_numbers()
        self._check_strings()
        self._check_conflicts()
        if self.method == "beam":
            self._check_beam_search()

    def _check_numbers(self) -> None:
        for name, (is_in_range, rule) in RANGES.items():
            check(is_in_range(getattr(self, name)), name, getattr(self, name), rule)
        for name, minimum in MINIMUM.items():
            check(getattr(self, name) >= minimum, name, getattr(self, name), f"must be at least {minimum}")
        for name, maximum in MAXIMUM.items():
            check(getattr(self, name) <= maximum, name, getattr(self, name), f"must be at most {maximum:,}")
        check_32_bits(self, "")
        rule = f"must be at most max_new_tokens={self.max_new_tokens}"
        check(self.min_new_tokens <= self.max_new_tokens, "min_new_tokens", self.min_new_tokens, rule)

    def _check_strings(self) -> None:
        for name in ("bad_words", "stop", "choices"):
            texts = getattr(self, name)
            is_valid = all(isinstance(text, str) and text for text in texts)
            check(is_valid, name, texts, "must be strings of at least one character")
        is_valid = all(isinstance(token, str) or type(token) is int for token in self.suppress)
        check(is_valid, "suppress", self.suppress, "must be token ids or strings")
        is_valid = all(_is_bias(pair) for pair in self.logit_bias)
        check(is_valid, "logit_bias", self.logit_bias, "must be pairs of a token, id or string, and a number")

    def _check_conflicts(self) -> None:
        check(not (self.choices and self.regex), "regex", self.regex, "choices are given as well; give one of them")
        rule = "a draft is given as well; give one of them"
        check(not (self.draft and self.prompt_lookup), "prompt_lookup", self.prompt_lookup, rule)
        rule = "needs texts within the context when there is a draft. Take prompt_lookup, or shorter texts"
        check(not self.draft or self.on_overflow == "error", "on_overflow", self.on_overflow, rule)

    def _check_beam_search(self) -> None:
        for name in ("draft", "prompt_lookup"):
            value = getattr(self, name)
            check(not value, name, value, "beam search takes no drafts. Take method=sample or greedy")
        rule = f"must be at most num_beams={self.num_beams}. Ask for fewer, or search with more beams"
        check(self.num_samples <= self.num_beams, "num_samples", self.num_samples, rule)
        rule = "beam search stays within the context. Take method=sample or greedy"
        check(self.on_overflow == "error", "on_overflow", self.on_overflow, rule)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON. The inverse is `from_dict`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GenerationConfig":
        """Build a config from settings by name. Raises UserError for an unknown name, and as the class does."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise unknown_field(unknown[0], known)
        return cls(**values)


def _typed(field: dataclasses.Field, value: object) -> Any:
    """The value in the type of its field: a tuple for a list, a float for an integer, Python's number for NumPy's."""
    value = value.item() if isinstance(value, np.generic) else value
    if field.type is tuple and isinstance(value, dict | list | tuple):
        value = value.items() if isinstance(value, dict) else value
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    assert isinstance(field.type, type)  # annotations are classes here, never strings
    return typed(field.name, field.type, value)


def _is_bias(pair: object) -> bool:
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    return type(pair[0]) in (int, str) and type(pair[1]) in (int, float) and abs(pair[1]) <= MAX_FLOAT
