"""Arguments of decoding: DecodeSpec and BeamSpec (static), prompts and numbers (arrays), and the type of a decode step.

A DecodeSpec is all that changes a compiled program beside the shapes of arrays. The numbers of a request, such as a
temperature within its logits processors, are arrays: other numbers compile nothing.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import numpy as np

from transformer_jax.errors import check, choose
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.sampling.logits_processors import check_ids
from transformer_jax.sampling.top_k import largest

PREFILL_CHUNK = 256  # prompt positions in one call of the step during prefill
Integer = jax.Array | np.integer | int


class Step(Protocol):
    """Decode step, all that is known of the model: logits of each row's last token [B, V], and the cache.

    `verify` of speculative decoding is a step that returns the logits at every position, [B, T, V]. Pass a
    `jax.tree_util.Partial` over the parameters, so that they are arguments of the compiled program and not constants in
    it.
    """

    def __call__(self, tokens: jax.Array, is_token: jax.Array, cache: KVCache, /) -> tuple[jax.Array, KVCache]:
        """Run the next T tokens of each row, `tokens` and `is_token` [B, T]."""
        ...


def _greedy(logits, keys):
    return largest(logits, 1)[1][:, 0]


def _sample(logits, keys):
    return jax.vmap(jax.random.categorical)(keys, logits)


METHODS = {
    "sample": _sample,
    "greedy": _greedy,
}  # (logits [B, V], keys [B]) -> tokens [B]. Greedy: ties go to the smaller id


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BeamSpec:
    """Static settings of a beam search, within a DecodeSpec.

    UserError: num_beams below 1, num_return outside 1..num_beams, num_groups that do not divide num_beams. An unknown
    stopping rule is refused by `beam_search`, which has their table.
    """

    num_beams: int
    num_return: int = 1  # hypotheses to return for each row
    stopping: str = "exhaustive"  # a name in STOPPING
    num_groups: int = 1  # groups of beams that differ

    def __post_init__(self):
        check(self.num_beams >= 1, "num_beams", self.num_beams, "must be at least 1. Take 4")
        rule = f"must be from 1 to num_beams={self.num_beams}. Return fewer, or search with more beams"
        check(1 <= self.num_return <= self.num_beams, "num_return", self.num_return, rule)
        is_divisor = self.num_groups >= 1 and self.num_beams % self.num_groups == 0
        rule = f"must divide num_beams={self.num_beams}. Take 1, or as many as beams"
        check(is_divisor, "num_groups", self.num_groups, rule)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """Static settings of decoding: all that changes the compiled program beside shapes.

    UserError: max_new_tokens below 1, an unknown method, num_top or an id below 0, an empty stop sequence.
    """

    max_new_tokens: int  # length of the output arrays
    eos_ids: tuple[int, ...] = ()  # each ends a row or a hypothesis; with none, only the number of tokens does
    pad_id: int = 0  # fills the output after the end of a row
    method: str = "sample"  # a name in METHODS
    stop_sequences: tuple[tuple[int, ...], ...] = ()  # each ends a row when its newest tokens, all new, are these
    num_top: int = 0  # most likely tokens to return at each position
    buffer_length: int = 0  # of the token buffer that logits processors see; 0: prompts and max_new_tokens
    num_virtual: int = 0  # tokens that the cache begins with and no prompt has: of a trained prefix
    chunk: int = PREFILL_CHUNK  # prompt positions in one call of the step; for a rolling cache, as it was made for
    num_draft: int = 0  # speculative decoding: tokens drafted for each call of the model
    prompt_lookup: int = 0  # speculative decoding: length of the n-gram to look up; 0: there is a draft model
    beams: BeamSpec | None = None  # for beam search

    def __post_init__(self):
        check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "must be at least 1")
        check_ids("eos_ids", self.eos_ids)
        choose(METHODS, self.method, "method")
        check(all(self.stop_sequences), "stop_sequences", self.stop_sequences, "must have a token or more each")
        check(self.num_top >= 0, "num_top", self.num_top, "must be at least 0")


class Prompts(NamedTuple):
    """Prompts of a batch, and where their new tokens begin."""

    tokens: jax.Array | np.ndarray  # int [B, T], padded on either side
    is_token: jax.Array | np.ndarray  # bool [B, T], at least one token in each row
    trailing_padding: Integer | None = None  # columns at the end that are padding in every row; freed again
    first_index: Integer = 0  # new tokens of an earlier call that are part of the prompts
    states: tuple | None = None  # of the logits processors, from the end of that call; None: initial states
    before: jax.Array | np.ndarray | None = None  # int [P]: before the tokens of every row; the cache has them already


class SamplingParams(NamedTuple):
    """Numbers of sampling, arguments of the compiled programs.

    Token i of a row is drawn with fold_in(key of the row, first_index + i), so that neither the other rows nor a split
    into several calls change it.
    """

    keys: jax.Array  # [B] PRNG keys
    processors: tuple = ()  # logits processors, applied in this order before a token is chosen
    limit: Integer | None = None  # new tokens of a row over all calls; None: spec.max_new_tokens
