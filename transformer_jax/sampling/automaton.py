"""Finite automata over bytes: nondeterministic ones (Thompson 1968), and the deterministic ones made of them (DFA).

Subset construction: Rabin and Scott 1959. Characters are Unicode, and an automaton reads their UTF-8. The work of both
steps is counted and bounded, since the number of states can grow exponentially with a pattern.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included
MAX_STATES = 10_000
MAX_STEPS = 1_000_000  # of construction, well below a second: nested repetitions multiply, (a{1,100}){1,100}
MAX_CODE_POINT = 0x10FFFF
_ALL_CHARACTERS: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # UTF-8 has no surrogates


class Automaton(NamedTuple):
    """Deterministic automaton. State 0 is the initial one. All states can be reached, but not all lead to a match."""

    table: np.ndarray  # int32 [states, 256]: the state after each byte; -1: no match is possible
    is_accepting: np.ndarray  # bool [states]


def _too_large(pattern: str) -> UserError:
    return UserError(f"pattern={pattern!r:.80}: needs more than {MAX_STATES} states. Repeat less in it.")


def _too_slow(pattern: str) -> UserError:
    return UserError(
        f"pattern={pattern!r:.80}: needs more than {MAX_STEPS:,} steps to compile. Repeat less in it, and put no "
        "repetition or optional part into a repetition with a number."
    )


# (automaton, start state) -> end state: adds the states of a part of the pattern. It may be called several times.
Fragment = Callable[["Nfa", int], int]


def byte_ranges(ranges: Ranges) -> Iterator[Ranges]:
    """Encode character ranges in UTF-8: sequences of byte ranges; a byte from each, in order, is a character."""
    sizes = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, MAX_CODE_POINT))  # 1, 2, 3 and 4 bytes
    for low, high in ranges:
        for part in _ALL_CHARACTERS:
            for size in sizes:
                first = max(low, part[0], size[0])
                last = min(high, part[1], size[1])
                if first <= last:
                    yield from _split(chr(first).encode(), chr(last).encode())


def _split(low: bytes, high: bytes) -> Iterator[Ranges]:
    """Split the characters between two encoded ones of equal size; their order is that of their bytes."""
    if len(low) == 1:
        yield ((low[0], high[0]),)
        return
    if low[0] == high[0]:
        yield from (((low[0], low[0]), *rest) for rest in _split(low[1:], high[1:]))
        return
    first, last = low[0], high[0]
    num = len(low) - 1
    if low[1:] != b"\x80" * num:
        yield from (((first, first), *rest) for rest in _split(low[1:], b"\xbf" * num))
        first += 1
    if high[1:] != b"\xbf" * num:
        yield from (((last, last), *rest) for rest in _split(b"\x80" * num, high[1:]))
        last -= 1
    if first <= last:
        yield ((first, last), *((0x80, 0xBF),) * num)


@functools.lru_cache(maxsize=1024)
def _byte_sequences(ranges: Ranges) -> tuple[Ranges, ...]:
    return tuple(byte_ranges(ranges))


class Nfa:
    """Nondeterministic automaton. State 0 is the initial state. All work on it is counted, and bounded."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.num_steps = 0
        self.byte_edges: list[list[tuple[int, int, int]]] = []  # of each state: (low byte, high byte, next state)
        self.empty_edges: list[list[int]] = []  # of each state: next states that are reached without a byte

    def spend(self, num_steps: int) -> None:
        """Count steps of compilation. Raises UserError when there are too many."""
        self.num_steps += num_steps
        if self.num_steps > MAX_STEPS:
            raise _too_slow(self.pattern)

    def new_state(self) -> int:
        if len(self.byte_edges) >= 10 * MAX_STATES:
            raise _too_large(self.pattern)
        self.byte_edges.append([])
        self.empty_edges.append([])
        return len(self.byte_edges) - 1

    def sequence(self, parts: list[Fragment], start: int) -> int:
        """Add `parts` one after the other."""
        self.spend(1 + len(parts))
        for part in parts:
            start = part(self, start)
        return start

    def join(self, states: list[int]) -> int:
        """Add a state that is reached from all of `states`."""
        end = self.new_state()
        for state in states:
            self.empty_edges[state].append(end)
        return end

    def read(self, ranges: Ranges, start: int) -> int:
        """Add states that read one character of `ranges`."""
        end = self.new_state()
        sequences = _byte_sequences(ranges)
        self.spend(len(sequences))
        for sequence in sequences:
            state = start
            for i, (low, high) in enumerate(sequence):
                following = end if i == len(sequence) - 1 else self.new_state()
                self.byte_edges[state].append((low, high, following))
                state = following
        return end

    def repeat(self, fragment: Fragment, start: int, low: int, high: int | None) -> int:
        """Add `fragment` from `low` to `high` times; None: without a limit."""
        for _ in range(low):
            start = fragment(self, start)
        if high is None:
            hub = self.join([start])
            self.empty_edges[fragment(self, hub)].append(hub)
            return hub
        states = [start]
        for _ in range(high - low):
            states.append(fragment(self, self.join([states[-1]])))
        return self.join(states)

    def closure(self, states: Iterable[int], end: int) -> frozenset[int]:
        """Follow empty edges from `states`: return the reached states, these included, that read bytes or are `end`."""
        reached = set(states)
        waiting = list(reached)
        while waiting:
            new = [state for state in self.empty_edges[waiting.pop()] if state not in reached]
            reached.update(new)
            waiting += new
        self.spend(len(reached))
        return frozenset(state for state in reached if self.byte_edges[state] or state == end)


def to_deterministic(nfa: Nfa, end: int) -> Automaton:
    """Build the deterministic automaton by the subset construction: each state is a set of states of `nfa`."""
    index_of = {nfa.closure([0], end): 0}
    closures: dict[frozenset[int], frozenset[int]] = {}
    rows = []
    for states in (waiting := list(index_of)):  # it grows while it is read
        row = np.full(256, -1, np.int32)
        for low, beyond, targets in _segments(nfa, states):
            if targets not in closures:
                closures[targets] = nfa.closure(targets, end)
            following = closures[targets]
            if following not in index_of:
                index_of[following] = len(index_of)
                waiting.append(following)
            row[low:beyond] = index_of[following]
        rows.append(row)
        if len(waiting) > MAX_STATES:
            raise _too_large(nfa.pattern)
    return Automaton(np.stack(rows), np.array([end in states for states in index_of]))


def _segments(nfa: Nfa, states: frozenset[int]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """The bytes from a first one to below another, and the states of `nfa` that they lead to from `states`."""
    nfa.spend(1 + len(states))
    targets = collections.defaultdict(set)  # of each range of bytes
    for state in states:
        for low, high, following in nfa.byte_edges[state]:
            targets[low, high].add(following)
    cuts = sorted({low for low, _ in targets} | {high + 1 for _, high in targets})
    nfa.spend(sum(map(len, targets.values())) + len(cuts) * len(targets) // 8)
    for low, beyond in zip(cuts, cuts[1:], strict=False):
        reached = [following for (first, last), following in targets.items() if first <= low <= last]
        if reached:
            nfa.spend(sum(map(len, reached)) // 8)
            yield low, beyond, frozenset().union(*reached)
