"""Decoding from logits. Nothing here knows a model."""

from transformer_jax.sampling.beam_search import LENGTH_PENALTIES, STOPPING, Beams, beam_search
from transformer_jax.sampling.constrained import Constraint, Follow, matching, one_of
from transformer_jax.sampling.decode import CHOICES, CHUNK, Decode, Generated, advance, begin, generate
from transformer_jax.sampling.logits_processors import (
    Custom,
    LogitBias,
    MinP,
    Renormalize,
    Temperature,
    TopK,
    TopP,
    Typical,
    start,
)
from transformer_jax.sampling.speculative import Ahead, Speculated, advance_ahead, begin_ahead, speculate
from transformer_jax.sampling.text_processors import (
    BadWords,
    ForceFirst,
    ForceLast,
    FrequencyPenalty,
    MinLength,
    NoRepeat,
    PresencePenalty,
    RepetitionPenalty,
    Rules,
    Suppress,
    SuppressFirst,
)  # fmt: skip

METHODS = {  # what is done to logits before a token is chosen
    "temperature": Temperature, "top_k": TopK, "top_p": TopP, "min_p": MinP, "typical": Typical,
    "logit_bias": LogitBias, "renormalize": Renormalize, "custom": Custom, "repetition_penalty": RepetitionPenalty,
    "presence_penalty": PresencePenalty, "frequency_penalty": FrequencyPenalty, "no_repeat": NoRepeat,
    "bad_words": BadWords, "force_first": ForceFirst, "force_last": ForceLast, "suppress": Suppress,
    "suppress_first": SuppressFirst, "min_length": MinLength, "constraint": Constraint,
}  # fmt: skip

__all__ = [
    "Ahead", "BadWords", "Beams", "CHOICES", "CHUNK", "Constraint", "Custom", "Decode", "Follow", "ForceFirst",
    "ForceLast", "FrequencyPenalty", "Generated", "LENGTH_PENALTIES", "LogitBias", "METHODS", "MinLength", "MinP",
    "NoRepeat", "PresencePenalty", "Renormalize", "RepetitionPenalty", "Rules", "STOPPING", "Speculated", "Suppress",
    "SuppressFirst", "Temperature", "TopK", "TopP", "Typical", "advance", "advance_ahead", "beam_search", "begin",
    "begin_ahead", "generate", "matching", "one_of", "speculate", "start",
]  # fmt: skip
