"""Constrained output: a text that is one of some strings, or matches a regular expression, by construction.

What may be written is an automaton over bytes (regex.py). Given the bytes of each token it becomes one over tokens, a
table [states, V], from whose every state the end can be reached. Willard and Louf 2023, section 3.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.sampling.logits_processors import RULED_OUT, LogitsProcessor
from transformer_jax.sampling.regex import Automaton, compile_regex

MAX_CELLS = 2**28  # of a table: 1 GB


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Constraint(LogitsProcessor):
    """A method that rules out what leads to no allowed text, or to none that there is room for.

    EOS is allowed in accepting states, and only there. Where max_new_tokens is less than the shortest allowed text
    has, everything is ruled out from the start. The state is that of the automaton before the newest token (-1: there
    was none) and the number of tokens that there is room for: two int32 [R].
    """

    table: jax.Array  # int32 [states, V]: the state after each token; -1: not allowed. State 0 is the start
    num_to_go: jax.Array  # int32 [states]: the fewest tokens to an accepting state

    def start(self, tokens, lengths, max_new_tokens):
        return jnp.full_like(lengths, -1), jnp.full_like(lengths, max_new_tokens)

    def __call__(self, logits, tokens, lengths, state):
        before, room = state
        newest = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        now = jnp.where(before < 0, 0, self.table[jnp.maximum(before, 0), newest])
        following = self.table[jnp.maximum(now, 0)]  # of rows that have ended, nobody looks at it
        may_come = (following >= 0) & (self.num_to_go[following] < room[:, None])
        return jnp.where(may_come, logits, RULED_OUT), (now, room - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ForcedTokens(LogitsProcessor):
    """Each row is the text given for it: to learn its log-probabilities, say. The state is the place, int32 [R]."""

    tokens: jax.Array  # int32 [R, any]

    def start(self, tokens, lengths, max_new_tokens):
        return jnp.zeros_like(lengths)

    def __call__(self, logits, tokens, lengths, state):
        token = jnp.take_along_axis(self.tokens, state[:, None], axis=1, mode="clip")
        return jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, RULED_OUT), state + 1


def one_of(strings: Sequence[str], token_bytes: Sequence[bytes], eos_ids: Sequence[int]) -> Constraint:
    """The text is one of `strings`, each of which some tokens spell (or UserError). The rest as for `matching`."""
    if not strings:
        raise UserError("strings=[]: must have one or more.")
    pieces = set(token_bytes)
    for string in strings:
        data, is_spelled = string.encode(), {0}
        for end in range(1, len(data) + 1):
            if any(first in is_spelled and data[first:end] in pieces for first in range(end)):
                is_spelled.add(end)
        if len(data) not in is_spelled:
            raise UserError(f"strings: no tokens spell {string!r:.80}. Leave it away, or take other token_bytes.")
    return matching("|".join(map(re.escape, strings)), token_bytes, eos_ids)


def matching(pattern: str, token_bytes: Sequence[bytes], eos_ids: Sequence[int]) -> Constraint:
    """The text matches `pattern` from end to end; it is UTF-8. Which patterns there are: regex.py.

    Args:
      token_bytes: of each id; b"" for those that are no text, which are not allowed then.
      eos_ids: allowed where the text may end.
    Raises:
      UserError: an unknown pattern; one that no tokens spell; a table of more than 2^28 cells.
    """
    automaton = compile_regex(pattern)
    if len(automaton.table) * len(token_bytes) > MAX_CELLS:
        raise UserError(
            f"pattern={pattern!r:.80}: {len(automaton.table)} states for {len(token_bytes)} tokens need more than "
            "1 GB. Take a simpler pattern."
        )
    table, num_to_go = _usable(pattern, _token_table(automaton, token_bytes), automaton.is_accepting)
    accepting = np.flatnonzero(num_to_go == 0)
    for eos in eos_ids:
        table[:, eos] = -1
        table[accepting, eos] = accepting
    return Constraint(jnp.array(table), jnp.array(num_to_go))


def _token_table(automaton: Automaton, token_bytes: Sequence[bytes]) -> np.ndarray:
    """The state after each token [states, V]: its bytes one after the other, for all tokens at once."""
    num, V = len(automaton.table), len(token_bytes)
    by_byte = np.concatenate([automaton.table, np.full((1, 256), -1, np.int32)])  # after -1 comes -1
    sizes = np.array([len(token) for token in token_bytes])
    table = np.repeat(np.arange(num, dtype=np.int32)[:, None], V, axis=1)
    table[:, sizes == 0] = -1
    for i in range(sizes.max(initial=0)):
        ids = np.flatnonzero(sizes > i)
        table[:, ids] = by_byte[table[:, ids], np.array([token_bytes[token][i] for token in ids])]
    return table


def _usable(pattern: str, table: np.ndarray, is_accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Only states that tokens can reach, and from which they can reach an end; and how many it takes to one.

    A pattern may want bytes that no token has, or that only a longer one has.
    """
    far = np.iinfo(np.int32).max
    num_to_go, num = np.where(is_accepting, 0, far), -1
    while num != (num := np.count_nonzero(num_to_go == far)):  # as many rounds as the longest way has tokens, or fewer
        following = np.where(table < 0, far, num_to_go[table]).min(axis=1, initial=far)
        num_to_go = np.minimum(num_to_go, np.where(following == far, far, following + 1))
    if num_to_go[0] == far:
        raise UserError(f"pattern={pattern!r:.80}: no tokens spell a match. Take other token_bytes.")
    table = np.where((table < 0) | (num_to_go[table] == far), -1, table)
    is_reached, waiting = np.zeros(len(table), bool), [0]
    while waiting:
        is_reached[waiting] = True
        following = np.unique(table[waiting])
        waiting = [state for state in following if state >= 0 and not is_reached[state]]
    number = np.append(np.cumsum(is_reached) - 1, -1).astype(np.int32)  # the last one is that of -1
    return number[table[is_reached]], num_to_go[is_reached].astype(np.int32)
