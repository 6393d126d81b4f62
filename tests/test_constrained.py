"""Constrained decoding: automata against Python's `re`, and texts that match whatever the logits are."""

import dataclasses
import functools
import itertools
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers.beams import beam_search
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.errors import UserError
from transformer_jax.sampling import DecodeSpec, Prompts, SamplingParams, Temperature, generate, matching, one_of
from transformer_jax.sampling.regex import MAX_DEPTH, compile_regex

EOS, PAD = 1, 0
BYTES = [
    b"",
    b"",
    *(bytes([byte]) for byte in b"abc01-. "),
    b"ab",
    b"bc0",
    b"00",
    b"a\xc3",
    b"\xa9",
    b"\xe2\x82",
    b"\xac",
]
V = len(BYTES)
PATTERNS = [
    "a",
    "(ab|bc)+0?",
    "[a-c]{2,5}",
    "a*b*c*",
    "-?(0|10)(\\.[01]{1,3})?",
    "(é|€)+a?",
    "[^abc0-9]{1,3}",
    "((a?)b?){2}c",
    ".{1,4}",
    "\\d+-\\d+",
    "a|ab|abc|abc00",
    "(?:a|b)[.] ",
    "",
]
CHARACTERS = "ab0-é€\n."


def accepts(automaton, data):
    state = 0
    for byte in data:
        state = automaton.table[state, byte]
        if state < 0:
            return False
    return bool(automaton.is_accepting[state])


# Regular expressions


REGEX_PATTERNS = [
    *PATTERNS,
    "\\D\\S",
    "[]a-]+",
    "[\\]\\d_-]*",
    "(a*){0,2}b",
    "(a|)+b",
    "[ä-ö€]+\\w?",
    "(|a)b",
    "\\n.|\\x61\\u00e9",
    "[^a]",
    "a{,2}b{2,}",
    "a{2}",
    "\\W\\s*\\.",
    "((a*)*)*",
]


@pytest.mark.parametrize("pattern", REGEX_PATTERNS)
def test_an_automaton_accepts_what_python_matches(pattern):
    automaton, python = compile_regex(pattern), re.compile(pattern, re.ASCII)
    for size in range(5):
        for text in map("".join, itertools.product(CHARACTERS, repeat=size)):
            assert accepts(automaton, text.encode()) == (python.fullmatch(text) is not None), text


nested = st.recursive(
    st.sampled_from(["a", "b", ".", "é", "[ab]", "[^a€]", "\\d", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}"])).map(lambda p: f"({p[0]}){p[1]}"),
    ),
    max_leaves=7,
)


@given(nested, st.lists(st.text("ab0é€\n", max_size=7), min_size=5, max_size=5))
@settings(max_examples=200, deadline=None, database=None)
def test_any_supported_pattern_accepts_what_python_matches(pattern, texts):
    automaton, python = compile_regex(pattern), re.compile(pattern, re.ASCII)
    for text in texts:
        assert accepts(automaton, text.encode()) == (python.fullmatch(text) is not None)


@pytest.mark.parametrize(
    "low, high",
    [
        (0, 0x10FFFF),
        (0x7F, 0x80),
        (0x7FE, 0x801),
        (0x9, 0xD7FF),
        (0xE000, 0x10000),
        (0x1234, 0x5678),
        (0xFFFF, 0x10FFFF),
        (0x10010, 0x100F0),
    ],
)
def test_a_range_of_characters_accepts_exactly_their_utf_8(low, high):
    automaton = compile_regex(f"[{chr(low)}-{chr(high)}]".replace("\0", "\\x00"))
    edges = (low, high, 0x80, 0x800, 0x10000, 0xD800, 0xE000, 0x3000)
    for point in {edge + step for edge in edges for step in (-65, -1, 0, 1, 65)}:
        if 0 <= point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:
            assert accepts(automaton, chr(point).encode()) == (low <= point <= high)
    assert not accepts(automaton, b"\xed\xa0\x80") and not accepts(automaton, b"\xc0\xaf")  # a surrogate; overlong


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("a(b", "at position 3: must be ')'"),
        ("a)", "at position 1: has no opening"),
        ("*a", "at position 0: '*' has no meaning here"),
        ("^a$", "at position 0: '^' has no meaning here"),
        ("a**", "at position 2: a repetition cannot"),
        ("a+?", "at position 2: a repetition cannot"),
        ("[ab", "at position 3: must not end here"),
        ("[b-a]", "at position 4: a range must go"),
        ("a{3,2}", "repetitions must go"),
        ("a{x}", "must be a number"),
        ("\\b", "\\b is not supported"),
        ("(?=a)", "must be ':'"),
        ("a\\", "must not end here"),
        ("\\xg0", "not a hexadecimal"),
        ("(" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} nested groups"),
        ("((a{999}){999}){9}", "more than 10000 states"),
        ("a{99999}", "at most 10000"),
        ("(a|b)*a(a|b){17}", "more than 10000 states"),
    ],
)
def test_an_unsupported_pattern_is_refused_with_its_position(pattern, message):
    with pytest.raises(UserError) as error:
        compile_regex(pattern)
    assert str(error.value).startswith("pattern=") and message in str(error.value) and "\n" not in str(error.value)


# Token tables


def spelled(tokens):
    return b"".join(BYTES[token] for token in tokens)


@functools.cache
def constraint(pattern):
    return matching(pattern, BYTES, (EOS,))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_state_of_a_table_is_a_dead_end_or_unreachable(pattern):
    table, num_to_go = np.asarray(constraint(pattern).table), np.asarray(constraint(pattern).num_to_go)
    text = np.delete(table, EOS, axis=1)
    assert np.all(table < len(table)) and np.all(table[:, PAD] == -1)
    assert set(range(len(table))) == {0} | set(text[text >= 0].tolist())
    np.testing.assert_array_equal(table[:, EOS] >= 0, num_to_go == 0)
    for state, following in enumerate(text):
        next_to_go = num_to_go[following[following >= 0]].tolist()
        assert num_to_go[state] == 0 or num_to_go[state] == 1 + min(next_to_go)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_table_allows_exactly_the_tokens_after_which_a_match_is_possible(pattern):
    table = np.asarray(constraint(pattern).table)
    automaton = compile_regex(pattern)
    ids = [token for token in range(V) if BYTES[token]]

    def walk(tokens):
        state = 0
        for token in tokens:
            state = table[state, token] if state >= 0 else -1
        return state

    possible = {
        tokens
        for size in range(4)
        for tokens in itertools.product(ids, repeat=size)
        if accepts(automaton, spelled(tokens))
    }
    for tokens in possible:
        assert all(walk(tokens[:n]) >= 0 for n in range(len(tokens) + 1)) and table[walk(tokens), EOS] >= 0
    for tokens in itertools.product(ids, repeat=2):
        assert (walk(tokens) >= 0 and table[walk(tokens), EOS] >= 0) == (tokens in possible)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: matching("xyz", BYTES, (EOS,)), "pattern='xyz': no tokens spell a match."),
        (lambda: matching("[^\\s\\S]", BYTES, (EOS,)), "pattern='[^\\\\s\\\\S]': no tokens spell a match."),
        (lambda: one_of(["ab", "aéé", "a"], BYTES, (EOS,)), "strings: no tokens spell 'aéé'."),
        (lambda: one_of([], BYTES, (EOS,)), "strings=[]: must have one or more."),
        (lambda: matching("a{9000}", [b"a"] * 30000, ()), "pattern='a{9000}': 9001 states for 30000 tokens need more"),
    ],
)
def test_a_constraint_that_no_tokens_spell_is_refused_in_one_line(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# Texts


class Count(NamedTuple):
    """Cache of `random_step`: the number of steps so far, the same for all rows."""

    num_steps: jax.Array

    def reorder(self, rows):
        return self

    def expand(self, num, capacity):
        return self


def random_step(seed, tokens, is_token, cache):
    """Step with random logits at each step and row; the most likely tokens are often not allowed."""
    key = jax.random.fold_in(jax.random.key(seed), cache.num_steps)
    return 5 * jax.random.normal(key, (len(tokens), V)), Count(cache.num_steps + 1)


@functools.cache
def padded_constraint(pattern):
    """A constraint with unreachable states up to 31 of them, so that all patterns share a compiled program."""
    exact = constraint(pattern)
    missing = 31 - len(exact.table)
    table = np.pad(exact.table, ((0, missing), (0, 0)), constant_values=-1)
    return dataclasses.replace(exact, table=table, num_to_go=np.pad(exact.num_to_go, (0, missing)))


ROWS = 29
PROMPTS = np.tile([[3, PAD, 4], [PAD, 5, EOS]], (ROWS, 1))[:ROWS]


def constrained_texts(pattern, method, max_new_tokens, seed, eos_ids=(EOS,)):
    """Texts [rows], and which of them ended with EOS."""
    step, cache = jax.tree_util.Partial(random_step, np.int32(seed)), Count(np.int32(0))
    given = PROMPTS, PROMPTS != PAD
    if method == "beam":
        beams = beam_search(
            step,
            cache,
            *given,
            (padded_constraint(pattern),),
            num_beams=3,
            num_return=2,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=PAD,
        )
        beams = jax.tree.map(np.asarray, beams)
        tokens, lengths = beams.tokens[np.isfinite(beams.scores)], beams.lengths[np.isfinite(beams.scores)]
        assert np.all(np.isfinite(beams.scores[:, 0]))
    else:
        keys = jax.random.split(jax.random.key(seed), ROWS)
        generated = generate(
            step,
            cache,
            Prompts(*given),
            SamplingParams(keys, (padded_constraint(pattern), Temperature(0.7))),
            DecodeSpec(max_new_tokens, eos_ids, PAD, method),
        )
        tokens, lengths = generated.tokens, generated.lengths
    rows = [row[:length] for row, length in zip(np.asarray(tokens).tolist(), np.asarray(lengths).tolist(), strict=True)]
    return [spelled(row).decode() for row in rows], [EOS in row for row in rows]


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern])
def test_every_text_matches_whatever_the_logits_are(pattern, method):
    seen = set()
    for seed in range(3):
        texts, _ = constrained_texts(pattern, method, 5, seed)
        assert all(re.fullmatch(pattern, text, re.ASCII) for text in texts)
        seen |= set(texts)
    assert len(seen) > 1 or pattern == "a"


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_a_text_still_matches_where_only_the_shortest_one_fits(method):
    texts, have_ended = constrained_texts("(ab|bc)+0?-[01]{2}", method, 3, 0)
    assert set(texts) <= {"ab-00", "bc0-00"} and not any(have_ended)  # three tokens
    texts, have_ended = constrained_texts("(ab|bc)+0?-[01]{2}", method, 4, 0)
    assert all(re.fullmatch("(ab|bc)+0?-[01]{2}", text) for text in texts) and len(set(texts)) > 1 and any(have_ended)


def test_where_no_text_fits_rows_are_empty_and_no_beam_is_possible():
    assert constrained_texts("a{4}", "sample", 3, 0) == ([""] * ROWS, [False] * ROWS)
    with pytest.raises(AssertionError):
        constrained_texts("a{4}", "beam", 3, 0)


def test_without_eos_ids_a_row_ends_where_no_token_is_allowed():
    texts, _ = constrained_texts("a|ab|abc|abc00", "sample", 5, 0, eos_ids=())
    assert set(texts) <= {"abc00", "abc", "ab", "a"} and "abc00" in texts


def test_one_of_allows_exactly_the_strings_in_every_tokenization():
    strings = ["abc", "ab", "€ a", "a.b", "aé", "0-0(1)", ""]
    allowed = one_of(strings, [*BYTES, b"(", b")"], (EOS,))
    table, spelled_texts = np.asarray(allowed.table), set()

    def walk(state, tokens):
        if table[state, EOS] >= 0:
            spelled_texts.add(b"".join([*BYTES, b"(", b")"][token] for token in tokens).decode())
        for token in np.flatnonzero(table[state] >= 0):
            if token != EOS:
                walk(table[state, token], [*tokens, token])

    walk(0, [])
    assert spelled_texts == set(strings)
