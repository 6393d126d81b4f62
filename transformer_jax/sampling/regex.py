"""Regular expressions as automata over bytes: a plain subset, compiled once.

Literals, `.`, classes, `\\d \\w \\s` and their opposites (ASCII, as with re.ASCII), groups, `|`, `*`, `+`, `?`, `{m}`,
`{m,}`, `{,n}`, `{m,n}`. All of a text must match. Characters are those of Unicode, and the automaton reads their
UTF-8: parse -> a nondeterministic automaton (Thompson 1968) -> a deterministic one (Rabin and Scott 1959, subsets).
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included
MAX_STATES, MAX_DEPTH = 10_000, 100
_EVERYTHING: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # UTF-8 has no surrogates
_CLASSES = {"d": ((48, 57),), "w": ((48, 57), (65, 90), (95, 95), (97, 122)), "s": ((9, 13), (32, 32))}
_REPEAT = ("*", "+", "?", "{")
_ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}


class Automaton(NamedTuple):
    """State 0 is the start. All states can be reached, but not all need lead to a match."""

    table: np.ndarray  # int32 [states, 256]: the state after each byte; -1: no match any more
    is_accepting: np.ndarray  # bool [states]


@functools.lru_cache(maxsize=16)
def compile_regex(pattern: str) -> Automaton:
    """The automaton of the texts that match `pattern` from end to end.

    Raises:
      UserError: what is not of the subset, with its place; more than MAX_STATES states.
    """
    parser = _Parser(pattern)
    node = parser.alternatives()
    if parser.at < len(pattern):
        parser.fail("has no opening parenthesis")
    nfa = _Nfa(pattern)
    end = node(nfa, nfa.new())
    return _subsets(nfa, end)


def _too_large(pattern: str) -> UserError:
    return UserError(f"pattern={pattern!r:.80}: needs more than {MAX_STATES} states. Repeat less in it.")


_Node = Callable[["_Nfa", int], int]  # (automaton, state) -> the state behind it; may be called several times


class _Parser:
    def __init__(self, pattern):
        self.pattern, self.at, self.depth = pattern, 0, 0

    def fail(self, rule):
        raise UserError(
            f"pattern={self.pattern!r:.80}: at position {self.at}: {rule}. A literal sign needs a backslash before it."
        )

    @property
    def next(self):
        return self.pattern[self.at : self.at + 1]

    def take(self, expected=""):
        if not self.next or (expected and self.next != expected):
            self.fail(f"must be {expected!r}" if expected else "must not end here")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self) -> _Node:
        options = [self.sequence()]
        while self.next == "|":
            self.take()
            options.append(self.sequence())
        return options[0] if len(options) == 1 else lambda nfa, start: nfa.join([o(nfa, start) for o in options])

    def sequence(self) -> _Node:
        parts = []
        while self.next and self.next not in "|)":
            parts.append(self.repeated(self.atom()))
        return lambda nfa, start: functools.reduce(lambda state, part: part(nfa, state), parts, start)

    def repeated(self, node: _Node) -> _Node:
        if self.next not in _REPEAT:
            return node
        sign = self.take()
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign) or self.bounds()
        if self.next in _REPEAT:
            self.fail("a repetition cannot be repeated, or made lazy. Put it into parentheses")
        return lambda nfa, start: nfa.repeat(node, start, low, high)

    def bounds(self):
        match = re.match(r"([0-9]*)(,?)([0-9]*)\}", self.pattern[self.at :])
        if not match or match.group() == "}":
            self.fail("must be a number of repetitions, {2} or {2,3}")
        self.at += match.end()
        low, comma, high = match.groups()
        low, high = int(low or 0), int(high) if high else None if comma else int(low)
        if max(low, high or 0) > MAX_STATES or (high is not None and high < low):
            self.fail(f"repetitions must go from a number to one not below it, at most {MAX_STATES}")
        return low, high

    def atom(self) -> _Node:
        char = self.take()
        if char == "(":
            if self.next == "?":
                self.take()
                self.take(":")
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.fail(f"more than {MAX_DEPTH} groups in each other")
            node = self.alternatives()
            self.depth -= 1
            self.take(")")
            return node
        if char in "*+?{}])^$":
            self.at -= 1
            self.fail(f"{char!r} means nothing here: all of a text is matched, and nothing else")
        ranges = ((ord(char), ord(char)),)
        if char == ".":
            ranges = _without(((10, 10),))
        elif char == "[":
            ranges = self.bracket()
        elif char == "\\":
            ranges = self.escaped()
        return lambda nfa, start: nfa.read(ranges, start)

    def escaped(self) -> Ranges:
        char = self.take()
        if char.lower() in _CLASSES:
            return _CLASSES[char] if char.islower() else _without(_CLASSES[char.lower()])
        if char in _ESCAPES:
            return ((_ESCAPES[char],) * 2,)
        if char in "xu":
            digits = "".join(self.take() for _ in range(2 if char == "x" else 4))
            if not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self.fail(f"{digits!r} is no hexadecimal number")
            return ((int(digits, 16),) * 2,)
        if char.isalnum():
            self.fail(f"\\{char} is not known here")
        return ((ord(char),) * 2,)

    def bracket(self) -> Ranges:
        ranges, is_not = [], self.next == "^"
        if is_not:
            self.take()
        is_first = True
        while is_first or self.next != "]":
            is_first, char = False, self.take()
            one = self.escaped() if char == "\\" else ((ord(char),) * 2,)
            if self.next == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.take()
                char = self.take()
                last = self.escaped() if char == "\\" else ((ord(char),) * 2,)
                ends = [*one, *last]
                if any(low != high for low, high in ends) or len(ends) != 2 or ends[1] < ends[0]:
                    self.fail("a range must go from a character to one not below it")
                one = ((ends[0][0], ends[1][0]),)
            ranges += one
        self.take("]")
        return _without(tuple(ranges)) if is_not else tuple(ranges)


def _without(ranges: Ranges) -> Ranges:
    """All characters but these."""
    left, first = [], 0
    for low, high in sorted(ranges):
        if low > first:
            left.append((first, low - 1))
        first = max(first, high + 1)
    return (*left, (first, 0x10FFFF)) if first <= 0x10FFFF else tuple(left)


def byte_ranges(ranges: Ranges) -> Iterator[Ranges]:
    """UTF-8 of characters: sequences of ranges of bytes, which any choice of a byte from each is a character of."""
    sizes = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))
    for low, high in ranges:
        for part in _EVERYTHING:
            for size in sizes:
                first, last = max(low, part[0], size[0]), min(high, part[1], size[1])
                if first <= last:
                    yield from _split(chr(first).encode(), chr(last).encode())


def _split(low: bytes, high: bytes) -> Iterator[Ranges]:
    """Of all between two encoded characters of one size, whose order is that of their bytes."""
    if len(low) == 1:
        yield ((low[0], high[0]),)
        return
    if low[0] == high[0]:
        yield from (((low[0], low[0]), *rest) for rest in _split(low[1:], high[1:]))
        return
    first, last, num = low[0], high[0], len(low) - 1
    if low[1:] != b"\x80" * num:
        yield from (((first, first), *rest) for rest in _split(low[1:], b"\xbf" * num))
        first += 1
    if high[1:] != b"\xbf" * num:
        yield from (((last, last), *rest) for rest in _split(b"\x80" * num, high[1:]))
        last -= 1
    if first <= last:
        yield ((first, last), *((0x80, 0xBF),) * num)


class _Nfa:
    def __init__(self, pattern):
        self.pattern = pattern
        self.bytes, self.free = [], []  # of each state: (low, high, next) that read a byte, and next ones without

    def new(self):
        if len(self.bytes) >= 10 * MAX_STATES:
            raise _too_large(self.pattern)
        self.bytes.append([])
        self.free.append([])
        return len(self.bytes) - 1

    def join(self, states):
        end = self.new()
        for state in states:
            self.free[state].append(end)
        return end

    def read(self, ranges, start):
        end = self.new()
        for sequence in byte_ranges(ranges):
            state = start
            for i, (low, high) in enumerate(sequence):
                following = end if i == len(sequence) - 1 else self.new()
                self.bytes[state].append((low, high, following))
                state = following
        return end

    def repeat(self, node, start, low, high):
        for _ in range(low):
            start = node(self, start)
        if high is None:
            hub = self.join([start])
            self.free[node(self, hub)].append(hub)
            return hub
        states = [start]
        for _ in range(high - low):
            states.append(node(self, self.join([states[-1]])))
        return self.join(states)

    def closure(self, states):
        found, waiting = set(states), list(states)
        while waiting:
            new = [state for state in self.free[waiting.pop()] if state not in found]
            found.update(new)
            waiting += new
        return frozenset(found)


def _subsets(nfa, end):
    """Deterministic: a state is a set of states."""
    sets = {nfa.closure([0]): 0}
    rows = []
    for states in (waiting := list(sets)):
        row, edges = np.full(256, -1, np.int32), [edge for state in states for edge in nfa.bytes[state]]
        cuts = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
        for low, beyond in zip(cuts, cuts[1:], strict=False):
            following = nfa.closure({state for first, last, state in edges if first <= low <= last})
            if following:
                if following not in sets:
                    sets[following] = len(sets)
                    waiting.append(following)
                row[low:beyond] = sets[following]
        rows.append(row)
        if len(rows) > MAX_STATES:
            raise _too_large(nfa.pattern)
    return Automaton(np.stack(rows), np.array([end in states for states in sets]))
