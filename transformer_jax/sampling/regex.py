"""Regular expressions compiled to automata over bytes (DFA), for constrained decoding.

Supported syntax: literals, `.`, classes, `\\d \\w \\s` and their complements (ASCII, as with re.ASCII), groups, `|`,
`*`, `+`, `?`, `{m}`, `{m,}`, `{,n}`, `{m,n}`. A pattern always matches the full text. Characters are Unicode, and the
automaton reads their UTF-8. This file parses; automaton.py makes the automaton.
"""

import functools
import re
from collections.abc import Iterable
from typing import NoReturn

from transformer_jax.errors import UserError
from transformer_jax.sampling.automaton import (
    MAX_CODE_POINT,
    MAX_STATES,
    Automaton,
    Fragment,
    Nfa,
    Ranges,
    to_deterministic,
)

MAX_CHARACTERS = 50_000  # of a pattern
MAX_DEPTH = 100  # of nested groups
_CLASSES = {"d": ((48, 57),), "w": ((48, 57), (65, 90), (95, 95), (97, 122)), "s": ((9, 13), (32, 32))}
# How often: (least, most or None for no limit); None: the numbers stand in the pattern.
_REPEATS: dict[str, tuple[int, int | None] | None] = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": None}
_BOUNDS = re.compile(r"([0-9]*)(,?)([0-9]*)\}")
_ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}


@functools.lru_cache(maxsize=16)
def compile_regex(pattern: str) -> Automaton:
    """Compile `pattern` into the automaton of the texts that match it in full.

    Raises:
      UserError: syntax that is not supported, with its position; more than MAX_STATES states, MAX_CHARACTERS
        characters, or MAX_STEPS steps of compilation.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise UserError(f"pattern={pattern!r:.80}: has {len(pattern):,} characters; at most {MAX_CHARACTERS:,} can be.")
    parser = _Parser(pattern)
    fragment = parser.alternatives()
    if parser.position < len(pattern):
        parser.fail("has no opening parenthesis")
    nfa = Nfa(pattern)
    end = fragment(nfa, nfa.new_state())
    return to_deterministic(nfa, end)


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

    def alternatives(self) -> Fragment:
        options = [self.sequence()]
        while self.next == "|":
            self.take()
            options.append(self.sequence())
        return options[0] if len(options) == 1 else lambda nfa, start: nfa.join([o(nfa, start) for o in options])

    def sequence(self) -> Fragment:
        parts = []
        while self.next and self.next not in "|)":
            parts.append(self.repeated(self.atom()))
        return lambda nfa, start: nfa.sequence(parts, start)

    def repeated(self, fragment: Fragment) -> Fragment:
        if self.next not in _REPEATS:
            return fragment
        sign = self.take()
        low, high = _REPEATS[sign] or self.bounds()
        if self.next in _REPEATS:
            self.fail("a repetition cannot be repeated, or made lazy. Put it into parentheses")
        return lambda nfa, start: nfa.repeat(fragment, start, low, high)

    def bounds(self) -> tuple[int, int | None]:
        """Read the numbers of a repetition, up to its closing brace."""
        match = _BOUNDS.match(self.pattern, self.position)
        if not match or match.group() == "}":
            self.fail("must be a number of repetitions, {2} or {2,3}")
        self.position = match.end()
        low_digits, comma, high_digits = match.groups()
        low = _repetitions(low_digits or "0")
        high = _repetitions(high_digits) if high_digits else None if comma else low
        if max(low, high or 0) > MAX_STATES or (high is not None and high < low):
            self.fail(f"repetitions must go from a number to one that is not smaller, at most {MAX_STATES}")
        return low, high

    def atom(self) -> Fragment:
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
        ranges: list[tuple[int, int]] = []
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
        return _complement(ranges) if is_complement else tuple(ranges)

    def class_member(self) -> Ranges:
        char = self.take()
        return self.escaped() if char == "\\" else _single(ord(char))


def _repetitions(digits: str) -> int:
    """A number of repetitions; one of very many digits, which Python does not read, counts as too many."""
    return int(digits) if len(digits) < 10 else MAX_STATES + 1


def _single(code_point: int) -> Ranges:
    return ((code_point, code_point),)


def _complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
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
