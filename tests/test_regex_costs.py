"""Patterns and choices whose automata would take hours or gigabytes: refused by a count of steps, in one line."""

import numpy as np
import pytest

from transformer_jax.errors import UserError
from transformer_jax.sampling import matching, one_of
from transformer_jax.sampling.automaton import MAX_STEPS
from transformer_jax.sampling.regex import MAX_CHARACTERS, compile_regex

STEPS = f"needs more than {MAX_STEPS:,} steps to compile. Repeat less"
STATES = "needs more than 10000 states"
CLASS = "[" + "".join(chr(200 + 2 * i) for i in range(20000)) + "]"


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("(a{1,100}){1,100}", STEPS),
        ("(a?){0,9999}", STEPS),
        ("a?" * 5000, STEPS),
        ("(|a){9999}", STEPS),
        ("((){9999}){9999}", STEPS),
        ("(((){9999}){9999}){9999}", STEPS),
        ("((a|b){0,10}c?){0,300}", STEPS),
        (CLASS + "{99}", STATES),
        ("(a|b)*a(a|b){20}", STATES),
        (".{0,5000}", STATES),
        ("a" * (MAX_CHARACTERS + 1), f"has {MAX_CHARACTERS + 1:,} characters; at most {MAX_CHARACTERS:,} can be."),
        ("|".join(map(str, range(100_003))), "characters; at most"),
        ("a{" + "1" * 5003 + "}", "at most 10000"),
        ("a{,99999999999999999999}", "at most 10000"),
    ],
    ids=lambda text: text[:25],
)
def test_a_pattern_that_would_take_too_long_is_refused_in_one_line(pattern, message):
    with pytest.raises(UserError) as error:
        compile_regex(pattern)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "pattern, num_states",
    [
        ("(a*){1000}", 1),
        ("(){9999}", 1),
        ("(ab?c*){300}", 601),
        ("a?" * 500, 501),
        ("[a-z]{1,5000}@[a-z]{1,4000}", 9002),
    ],
    ids=lambda text: str(text)[:25],
)
def test_a_long_pattern_of_few_states_is_compiled(pattern, num_states):
    assert len(compile_regex(pattern).table) == num_states


def test_a_class_of_very_many_characters_has_exactly_these():
    automaton = compile_regex(CLASS)

    def accepts(text):
        state = 0
        for byte in text.encode():
            state = automaton.table[state, byte] if state >= 0 else -1
        return state >= 0 and automaton.is_accepting[state]

    assert [accepts(chr(code)) for code in range(190, 2203)] == [
        200 <= code and code % 2 == 0 for code in range(190, 2203)
    ]


def test_a_hundred_thousand_choices_are_refused_in_one_line():
    with pytest.raises(UserError, match=f"strings: have .* characters in all; at most {MAX_CHARACTERS:,} can be"):
        one_of(list(map(str, range(100_003))), [b"", *(b"%d" % i for i in range(10))], (0,))


def test_repeated_choices_are_one():
    tokens = [b"", b"a", b"b"]
    repeated, once = (one_of(["ab", "b"] * n, tokens, (0,)) for n in (97, 1))
    np.testing.assert_array_equal(repeated.table, once.table)


def test_a_long_choice_is_checked_for_its_tokens():
    with pytest.raises(UserError, match="no tokens spell 'aaaa"):
        one_of(["a" * 9001 + "c"], [b"", b"a", b"aa"], (0,))


def test_the_way_to_the_end_of_a_long_pattern_is_counted_in_tokens():
    constraint = matching("a{7001}", [b"", b"a", b"aaa"], (0,))
    expected = [(7001 - done) // 3 + (7001 - done) % 3 for done in range(7002)]
    np.testing.assert_array_equal(constraint.num_to_go, expected)


def test_a_choice_with_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(UserError, match="no tokens spell"):
        one_of(["a\ud800"], [b"", b"a"], (0,))
