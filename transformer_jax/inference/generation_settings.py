"""The settings of decoding, their types and meanings. No JAX, so that a command line can be checked without it."""

import dataclasses
from typing import Any

import numpy as np

from transformer_jax.schema import setting, typed


@dataclasses.dataclass(frozen=True)
class Settings:
    """Names, types, defaults, which change nothing, and meanings. What they do: decoding.py.

    Raises:
      UserError: a value of another type, NaN or infinity.
    """

    method: str = setting("sample", "sample | greedy | beam")
    max_new_tokens: int = setting(200, "tokens to add; fewer only where the model ends the text, or a rule here does")
    seed: int = setting(0, "the same seed gives the same texts")
    num_samples: int = setting(1, "continuations of each prompt; of beam search, that many of the best")
    on_overflow: str = setting(
        "error", "refuse what outgrows the context | reread its last half and go on | slide, with a model's window"
    )
    cache_type: str = setting("model", "of keys and values: model | float32 | bfloat16 | int8; model: as it computes")
    temperature: float = setting(1.0, "below 1: safer; above: wilder")
    top_k: int = setting(0, "choose among the k most likely tokens; 0: all")
    top_p: float = setting(1.0, "choose among the most likely tokens that make up this probability; 1: all")
    min_p: float = setting(0.0, "choose among tokens at least this times as likely as the likeliest; 0: all")
    typical_p: float = setting(1.0, "choose among the most typical tokens of this probability together; 1: all")
    repetition_penalty: float = setting(1.0, "above 1: tokens of prompt and text become less likely")
    presence_penalty: float = setting(0.0, "taken from the logits of tokens that the new text has")
    frequency_penalty: float = setting(0.0, "taken as often as the new text has the token")
    no_repeat_ngram_size: int = setting(0, "no so many tokens in a row come twice; 0: they may")
    bad_words: tuple = setting((), "strings not written as the tokenizer spells them, with and without a space")
    suppress: tuple = setting((), "tokens that are not written: ids, or strings that are one token")
    logit_bias: tuple = setting((), "pairs of a token, id or string, and what is added to its logit")
    min_new_tokens: int = setting(0, "the model does not end the text before")
    stop: tuple = setting((), "strings; the text ends before the first of them")
    choices: tuple = setting((), "strings; the text is one of them")
    regex: str = setting("", "the text matches this regular expression from end to end")
    draft: str = setting("", "run directory or folder of a smaller model that drafts tokens for this one to judge")
    prompt_lookup: int = setting(0, "draft what followed the last so many tokens earlier in the text; 0: nothing")
    num_draft: int = setting(4, "tokens drafted for each call of the model")
    num_beams: int = setting(4, "of beam search")
    length_penalty: float = setting(1.0, "of beam search; above 0 longer texts are favoured")
    length_normalization: str = setting("gnmt", "of beam search: gnmt | mean, how length_penalty counts")
    stopping: str = setting("exhaustive", "of beam search: never | first | heuristic, before it is certain")
    num_groups: int = setting(1, "of beam search: groups of beams that differ")
    diversity: float = setting(0.0, "of beam search: how much groups differ")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """The value as its field wants it: a tuple for a list, a float for an integer, a number for NumPy's."""
    value = value.item() if isinstance(value, np.generic) else value
    if field.type is tuple and isinstance(value, dict | list | tuple):
        value = value.items() if isinstance(value, dict) else value
        value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return typed(field.name, field.type, value)
