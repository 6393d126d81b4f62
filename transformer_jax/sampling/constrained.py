"""Constrained decoding: logits processors that force a regular expression, one of several strings, or given tokens.

A pattern is an automaton over bytes (regex.py). Given the bytes of each token, it becomes an automaton over tokens: a
table [states, V], in which an accepting state can be reached from every state. Willard and Louf 2023, section 3.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.sampling.automaton import Automaton
from transformer_jax.sampling.logits_processors import RULED_OUT, LogitsProcessor
from transformer_jax.sampling.regex import MAX_CHARACTERS, compile_regex

MAX_CELLS = 2**28  # cells of a table: 1 GB
BLOCK_CELLS = 2**20  # of a table, computed at a time
UNREACHABLE = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Constraint(LogitsProcessor):
    """Constraint: a logits processor that rules out tokens after which no allowed text fits into the remaining length.

    EOS is allowed in accepting states, and only there. Where max_new_tokens is less than the length of the shortest
    allowed text, everything is ruled out from the first token on. The state is the automaton state before the newest
    token (-1: there is no new token yet) and the number of tokens that still fit: two int32 [R].
    """

    table: jax.Array  # int32 [states, V]: the state after each token; -1: not allowed. State 0 is the initial state
    num_to_go: jax.Array  # int32 [states]: the smallest number of tokens to an accepting state

    def init_state(self, tokens, lengths, max_new_tokens):
        return jnp.full_like(lengths, -1), jnp.full_like(lengths, max_new_tokens)

    def __call__(self, logits, tokens, lengths, state):
        before, room = state
        newest = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        current = jnp.where(before < 0, 0, self.table[jnp.maximum(before, 0), newest])
        following = self.table[jnp.maximum(current, 0)]  # arbitrary in rows that have ended; nothing reads it there
        is_allowed = (following >= 0) & (self.num_to_go[following] < room[:, None])
        return jnp.where(is_allowed, logits, RULED_OUT), (current, room - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ForcedTokens(LogitsProcessor):
    """Forced tokens: a logits processor that generates a given text in each row, to get its log-probabilities.

    The state is the index of the next token, int32 [R].
    """

    tokens: jax.Array  # int32 [R, any]

    def init_state(self, tokens, lengths, max_new_tokens):
        return jnp.zeros_like(lengths)

    def __call__(self, logits, tokens, lengths, state):
        token = jnp.take_along_axis(self.tokens, state[:, None], axis=1, mode="clip")
        return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, RULED_OUT), state + 1


def one_of(strings: Sequence[str], token_bytes: Sequence[bytes], eos_ids: Sequence[int]) -> Constraint:
    """Build a constraint to one of `strings`. The other arguments are those of `matching`.

    Raises:
      UserError: no strings, more than MAX_CHARACTERS characters in all, a string that is no sequence of tokens; and as
        `matching`.
    """
    if not strings:
        raise UserError("strings=[]: must have one or more.")
    if (num_characters := sum(map(len, strings))) > MAX_CHARACTERS:
        raise UserError(f"strings: have {num_characters:,} characters in all; at most {MAX_CHARACTERS:,} can be.")
    pieces = set(token_bytes)
    longest = max(map(len, pieces), default=0)
    for string in dict.fromkeys(strings):
        data = string.encode("utf-8", "surrogatepass")  # half of a pair is spelled by no token
        spelled_ends = {0}  # the prefixes data[:end] that are a sequence of tokens
        for end in range(1, len(data) + 1):
            if any(first in spelled_ends and data[first:end] in pieces for first in range(max(0, end - longest), end)):
                spelled_ends.add(end)
        if len(data) not in spelled_ends:
            raise UserError(f"strings: no tokens spell {string!r:.80}. Remove it, or take other token_bytes.")
    return matching("|".join(map(re.escape, dict.fromkeys(strings))), token_bytes, eos_ids)


def matching(pattern: str, token_bytes: Sequence[bytes], eos_ids: Sequence[int]) -> Constraint:
    """Build a constraint to texts that match a regular expression in full, as UTF-8. regex.py lists the syntax.

    Args:
      token_bytes: the bytes of each id; b"" for ids that are no text, which are never allowed.
      eos_ids: allowed where the text may end.
    Raises:
      UserError: a pattern outside the supported syntax; one that no tokens spell; a table of more than 2^28 cells.
    """
    automaton = compile_regex(pattern)
    if len(automaton.table) * len(token_bytes) > MAX_CELLS:
        raise UserError(
            f"pattern={pattern!r:.80}: {len(automaton.table)} states for {len(token_bytes)} tokens need more than "
            "1 GB. Take a simpler pattern."
        )
    table, num_to_go = _prune(pattern, _token_table(automaton, token_bytes), automaton.is_accepting)
    accepting = np.flatnonzero(num_to_go == 0)
    for eos in eos_ids:
        table[:, eos] = -1
        table[accepting, eos] = accepting
    return Constraint(jnp.array(table), jnp.array(num_to_go))


def _token_table(automaton: Automaton, token_bytes: Sequence[bytes]) -> np.ndarray:
    """Compute the state after each token, [states, V]: byte by byte, for all tokens at once, some states at a time."""
    num_states = len(automaton.table)
    by_byte = np.concatenate([automaton.table, np.full((1, 256), -1, np.int32)])  # row -1: state -1 stays -1
    sizes = np.array([len(token) for token in token_bytes])
    longest = sizes.max(initial=0)
    sized = [np.flatnonzero(sizes > i) for i in range(longest)]
    ith_byte = [np.array([token_bytes[token][i] for token in ids.tolist()], np.uint8) for i, ids in enumerate(sized)]
    table = np.repeat(np.arange(num_states, dtype=np.int32)[:, None], len(token_bytes), axis=1)
    table[:, sizes == 0] = -1
    for rows in _row_blocks(table):
        block = table[rows]
        for ids, byte in zip(sized, ith_byte, strict=True):
            before = block[:, ids]
            is_alive = (before >= 0).any(axis=0)  # the others stay -1
            block[:, ids[is_alive]] = by_byte[before[:, is_alive], byte[is_alive]]
    return table


def _row_blocks(table: np.ndarray) -> list[slice]:
    """Split the rows of a table into blocks of few cells, so that what is computed of one needs little memory."""
    size = max(1, BLOCK_CELLS // max(1, table.shape[1]))
    return [slice(start, start + size) for start in range(0, len(table), size)]


def _prune(pattern: str, table: np.ndarray, is_accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the states that tokens can reach and that can reach an accepting state: (table, num_to_go).

    The others exist because a pattern may need bytes that no token has, or that only a longer token has.
    """
    num_states = len(table)
    edges = []
    for state, row in enumerate(table):
        is_next = np.zeros(num_states + 1, bool)
        is_next[row] = True  # -1 marks the last entry
        following = np.flatnonzero(is_next[:-1])
        edges.append(np.stack([np.full_like(following, state), following]).astype(np.int32))
    sources, targets = np.concatenate(edges, axis=1)
    num_to_go = _distances(num_states, targets, sources, np.flatnonzero(is_accepting))
    if num_to_go[0] == UNREACHABLE:
        raise UserError(f"pattern={pattern!r:.80}: no tokens spell a match. Take other token_bytes.")
    is_useful = num_to_go[targets] < UNREACHABLE
    is_reached = _distances(num_states, sources[is_useful], targets[is_useful], np.array([0])) < UNREACHABLE
    is_kept = is_reached & (num_to_go < UNREACHABLE)
    new_index = np.append(np.where(is_kept, np.cumsum(is_kept) - 1, -1), -1).astype(np.int32)  # the last maps -1 to -1
    table = table[is_kept]
    for rows in _row_blocks(table):
        table[rows] = new_index[table[rows]]
    return table, num_to_go[is_kept]


def _distances(num_states: int, sources: np.ndarray, targets: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Compute the number of edges from the nearest of `starts` to each state, int32 [states], or UNREACHABLE."""
    order = np.argsort(sources, kind="stable")
    targets = targets[order]
    first = np.searchsorted(sources[order], np.arange(num_states + 1))
    distances = np.full(num_states, UNREACHABLE, np.int32)
    frontier = starts
    distance = 0
    while len(frontier):
        distances[frontier] = distance
        distance += 1
        following = np.concatenate([targets[first[state] : first[state + 1]] for state in frontier.tolist()])
        frontier = np.unique(following[distances[following] == UNREACHABLE])
    return distances
