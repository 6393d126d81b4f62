"""Regular expressions compiled to automata over bytes (DFA), for constrained decoding.

Supported syntax: literals, `.`, classes, `\\d \\w \\s` and their complements (ASCII, as with re.ASCII), groups, `|`,
`*`, `+`, `?`, `{m}`, `{m,}`, `{,n}`, `{m,n}`. A pattern always matches the full text. Characters are Unicode, and the
automaton reads their UTF-8. Steps: parse -> nondeterministic automaton (Thompson 1968) -> deterministic automaton
(subset construction, Rabin and Scott 1959).
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, NoReturn

import numpy as np

from transformer_jax.errors import UserError

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included
MAX_STATES = 10_000
MAX_DEPTH = 100  # of nested groups
MAX_CODE_POINT = 0x10FFFF
_ALL_CHARACTERS: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # UTF-8 has no surrogates
_CLASSES = {"d": ((48, 57),), "w": ((48, 57), (65, 90), (95, 95), (97, 122)), "s": ((9, 13), (32, 32))}
# How often: (least, most or None for no limit); None: the numbers stand in the pattern.
_REPEATS: dict[str, tuple[int, int | None] | None] = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": None}
_ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}


class Automaton(NamedTuple):
    """Deterministic automaton. State 0 is the initial one. All states can be reached, but not all lead to a match."""

    table: np.ndarray  # int32 [states, 256]: the state after each byte; -1: no match is possible
    is_accepting: np.ndarray  # bool [states]


@functools.lru_cache(maxsize=16)
def compile_regex(pattern: str) -> Automaton:
    """Compile `pattern` into the automaton of the texts that match it in full.

    Raises:
      UserError: syntax that is not supported, with its position; more than MAX_STATES states.
    """
    parser = _Parser(pattern)
    fragment = parser.alternatives()
    if parser.position < len(pattern):
        parser.fail("has no opening parenthesis")
    nfa = _Nfa(pattern)
    end = fragment(nfa, nfa.new_state())
    return _to_deterministic(nfa, end)


def _too_large(pattern: str) -> UserError:
    return UserError(f"pattern={pattern!r:.80}: needs more than {MAX_STATES} states. Repeat less in it.")


# (automaton, start state) -> end state: adds the states of a part of the pattern. It may be called several times.
_Fragment = Callable[["_Nfa", int], int]


class _Parser:
    """Recursive-descent parser: each method reads one part of the grammar and returns its fragment."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.position = 0
        self.depth = 0  # of open groups

    def fail(self, rule: str) -> NoReturn:
        raise UserError(
            f"pattern={self.pattern!r:.80}: at position {self.position}: {rule}. A literal character needs a backslash "
            "before it."
        )

    @property
    def next(self) -> str:
        """The next character, or "" at the end."""
        return self.pattern[self.position : self.position + 1]

    def take(self, expected: str = "") -> str:
        """Read the next character, which must be `expected` if that is given."""
        if not self.next or (expected and self.next != expected):
            self.fail(f"must be {expected!r}" if expected else "must not end here")
        self.position += 1
        return self.pattern[self.position - 1]

    def alternatives(self) -> _Fragment:
        options = [self.sequence()]
        while self.next == "|":
            self.take()
            options.append(self.sequence())
        return options[0] if len(options) == 1 else lambda nfa, start: nfa.join([o(nfa, start) for o in options])

    def sequence(self) -> _Fragment:
        parts = []
        while self.next and self.next not in "|)":
            parts.append(self.repeated(self.atom()))
        return lambda nfa, start: functools.reduce(lambda state, part: part(nfa, state), parts, start)

    def repeated(self, fragment: _Fragment) -> _Fragment:
        if self.next not in _REPEATS:
            return fragment
        sign = self.take()
        low, high = _REPEATS[sign] or self.bounds()
        if self.next in _REPEATS:
            self.fail("a repetition cannot be repeated, or made lazy. Put it into parentheses")
        return lambda nfa, start: nfa.repeat(fragment, start, low, high)

    def bounds(self) -> tuple[int, int | None]:
        """Read the numbers of a repetition, up to its closing brace."""
        match = re.match(r"([0-9]*)(,?)([0-9]*)\}", self.pattern[self.position :])
        if not match or match.group() == "}":
            self.fail("must be a number of repetitions, {2} or {2,3}")
        self.position += match.end()
        low_digits, comma, high_digits = match.groups()
        low = int(low_digits or 0)
        high = int(high_digits) if high_digits else None if comma else low
        if max(low, high or 0) > MAX_STATES or (high is not None and high < low):
            self.fail(f"repetitions must go from a number to one that is not smaller, at most {MAX_STATES}")
        return low, high

    def atom(self) -> _Fragment:
        char = self.take()
        if char == "(":
            if self.next == "?":
                self.take()
                self.take(":")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.fail(f"more than {MAX_DEPTH} nested groups")
            fragment = self.alternatives()
            self.depth -= 1
            self.take(")")
            return fragment
        if char in "*+?{}])^$":
            self.position -= 1
            self.fail(f"{char!r} has no meaning here: a pattern always matches the full text")
        ranges = _single(ord(char))
        if char == ".":
            ranges = _complement(((10, 10),))  # no line feed
        elif char == "[":
            ranges = self.bracket()
        elif char == "\\":
            ranges = self.escaped()
        return lambda nfa, start: nfa.read(ranges, start)

    def escaped(self) -> Ranges:
        """Read what follows a backslash."""
        char = self.take()
        if char.lower() in _CLASSES:
            return _CLASSES[char] if char.islower() else _complement(_CLASSES[char.lower()])
        if char in _ESCAPES:
            return _single(_ESCAPES[char])
        if char in "xu":
            digits = "".join(self.take() for _ in range(2 if char == "x" else 4))
            if not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self.fail(f"{digits!r} is not a hexadecimal number")
            return _single(int(digits, 16))
        if char.isalnum():
            self.fail(f"\\{char} is not supported")
        return _single(ord(char))

    def bracket(self) -> Ranges:
        """Read a character class, up to its closing bracket."""
        is_complement = self.next == "^"
        if is_complement:
            self.take()
        ranges: Ranges = ()
        is_first = True  # a bracket in the first position is a literal
        while is_first or self.next != "]":
            is_first = False
            part = self.class_member()
            if self.next == "-" and self.pattern[self.position + 1 : self.position + 2] not in ("]", ""):
                self.take()
                ends = (*part, *self.class_member())
                if any(low != high for low, high in ends) or len(ends) != 2 or ends[1] < ends[0]:
                    self.fail("a range must go from a character to one that is not below it")
                part = ((ends[0][0], ends[1][0]),)
            ranges += part
        self.take("]")
        return _complement(ranges) if is_complement else ranges

    def class_member(self) -> Ranges:
        char = self.take()
        return self.escaped() if char == "\\" else _single(ord(char))


def _single(code_point: int) -> Ranges:
    return ((code_point, code_point),)


def _complement(ranges: Ranges) -> Ranges:
    """Return all characters outside `ranges`."""
    result = []
    first = 0
    for low, high in sorted(ranges):
        if low > first:
            result.append((first, low - 1))
        first = max(first, high + 1)
    if first <= MAX_CODE_POINT:
        result.append((first, MAX_CODE_POINT))
    return tuple(result)


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


class _Nfa:
    """Nondeterministic automaton. State 0 is the initial state."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.byte_edges: list[list[tuple[int, int, int]]] = []  # of each state: (low byte, high byte, next state)
        self.empty_edges: list[list[int]] = []  # of each state: next states that are reached without a byte

    def new_state(self) -> int:
        if len(self.byte_edges) >= 10 * MAX_STATES:
            raise _too_large(self.pattern)
        self.byte_edges.append([])
        self.empty_edges.append([])
        return len(self.byte_edges) - 1

    def join(self, states: list[int]) -> int:
        """Add a state that is reached from all of `states`."""
        end = self.new_state()
        for state in states:
            self.empty_edges[state].append(end)
        return end

    def read(self, ranges: Ranges, start: int) -> int:
        """Add states that read one character of `ranges`."""
        end = self.new_state()
        for sequence in byte_ranges(ranges):
            state = start
            for i, (low, high) in enumerate(sequence):
                following = end if i == len(sequence) - 1 else self.new_state()
                self.byte_edges[state].append((low, high, following))
                state = following
        return end

    def repeat(self, fragment: _Fragment, start: int, low: int, high: int | None) -> int:
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

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """Return `states` and all states that are reached from them without a byte."""
        reached = set(states)
        waiting = list(reached)
        while waiting:
            new = [state for state in self.empty_edges[waiting.pop()] if state not in reached]
            reached.update(new)
            waiting += new
        return frozenset(reached)


def _to_deterministic(nfa: _Nfa, end: int) -> Automaton:
    """Build the deterministic automaton by the subset construction: each state is a set of states of `nfa`."""
    index_of = {nfa.closure([0]): 0}
    rows = []
    for states in (waiting := list(index_of)):  # it grows while it is read
        row = np.full(256, -1, np.int32)
        edges = [edge for state in states for edge in nfa.byte_edges[state]]
        cuts = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
        for low, beyond in zip(cuts, cuts[1:], strict=False):
            following = nfa.closure({state for first, last, state in edges if first <= low <= last})
            if following:
                if following not in index_of:
                    index_of[following] = len(index_of)
                    waiting.append(following)
                row[low:beyond] = index_of[following]
        rows.append(row)
        if len(rows) > MAX_STATES:
            raise _too_large(nfa.pattern)
    return Automaton(np.stack(rows), np.array([end in states for states in index_of]))
