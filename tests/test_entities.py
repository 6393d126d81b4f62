"""Entities of tags in every scheme, in lists and on the device, and their F1."""

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.entities import entities, entity_f1, has_entities
from train.losses import count_entities

FIXTURES = Path(__file__).parent / "fixtures"
SCHEMES = {
    "IOB1": "O I-a B-a I-b B-b",
    "BIO": "O B-a I-a B-b I-b",
    "IOE": "O I-a E-a I-b E-b",
    "BIOES": "O B-a I-a E-a S-a B-b I-b E-b S-b",
    "BMES": "O B-a M-a E-a S-a B-b M-b E-b S-b",
    "BILOU": "O B-a I-a L-a U-a B-b I-b L-b U-b",
    "hyphens": "O B-ORG-GOV I-ORG-GOV B-ORG I-ORG",
    "bare": "O B I E S",
    "mixed": "O B I-_ B-a E-a L-a U-b X-a b-a B_a BX",
}
LABELS = sorted(set(" ".join(SCHEMES.values()).split()))
COUNT = jax.jit(functools.partial(count_entities, labels=tuple(LABELS)))  # compiled once for every scheme


def spelled(tags):
    """Entities by a regular expression over a string with a sign a word: an entity is [BI][IE]*, or an S or E alone."""
    kinds, signs = [], ""
    for tag in tags:
        prefix, hyphen, kind = tag.partition("-")
        sign = {"M": "I", "L": "E", "U": "S"}.get(prefix, prefix)
        signs += sign if sign in tuple("BIES") else "."
        kinds.append(kind or "_")
    found = set()
    first = 0
    while first < len(tags):
        same = next((i for i in range(first, len(tags)) if kinds[i] != kinds[first]), len(tags))
        length = max(1, re.match(r"[BI](?:I*E|I*)|[ES]|\.?", signs[first:same]).end())
        if signs[first] != ".":
            found.add((first, first + length, kinds[first]))
        first += length
    return found


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("I-a I-a B-a I-b O B-b", {(0, 2, "a"), (2, 3, "a"), (3, 4, "b"), (5, 6, "b")}),  # IOB1
        ("B-a I-a O I-b B-a I-b", {(0, 2, "a"), (3, 4, "b"), (4, 5, "a"), (5, 6, "b")}),  # BIO, malformed too
        ("I-a E-a E-a O I-b I-b", {(0, 2, "a"), (2, 3, "a"), (4, 6, "b")}),  # IOE
        ("S-PER O B-LOC E-LOC S-LOC", {(0, 1, "PER"), (2, 4, "LOC"), (4, 5, "LOC")}),  # BIOES
        ("B-a I-a E-a I-a E-a", {(0, 3, "a"), (3, 5, "a")}),
        ("B-a M-a E-a S-a", {(0, 3, "a"), (3, 4, "a")}),  # BMES
        ("U-PER O B-LOC I-LOC L-LOC U-LOC", {(0, 1, "PER"), (2, 5, "LOC"), (5, 6, "LOC")}),  # BILOU
        ("B-ORG-GOV I-ORG-GOV I-ORG", {(0, 2, "ORG-GOV"), (2, 3, "ORG")}),
        ("B I O S", {(0, 2, "_"), (3, 4, "_")}),
        ("X-a NN o Bob", set()),
    ],
)
def test_the_entities_of_each_scheme_have_both_ends_and_a_type(tags, expected):
    assert entities(tags.split()) == spelled(tags.split()) == expected


@pytest.mark.parametrize(
    "reference, guess, f1",
    [
        ("S-b O", "S-b O", 1.0),
        ("B-a E-a", "B-a I-a", 1.0),  # as in conlleval and seqeval: an open entity ends with its last tag
        ("B-a E-a", "B-a S-a", 0.0),
        ("B-a E-a O", "B-a I-a E-a", 0.0),
        ("B-a L-a O", "B-a O O", 0.0),
        ("U-b O U-a", "U-b O O", 2 / 3),
        ("B-a I-a O B-b", "B-b I-b O B-b", 0.5),
        ("O O", "O O", 0.0),
    ],
)
def test_a_correct_entity_counts_and_one_with_a_wrong_end_does_not(reference, guess, f1):
    assert entity_f1([reference.split()], [guess.split()]) == pytest.approx(f1)
    rows = np.full((2, 13), LABELS.index("S-a"))  # beyond the words, entities that do not count
    for row, tags in zip(rows, (reference.split(), guess.split()), strict=True):
        row[: len(tags)] = [LABELS.index(tag) for tag in tags]
    part, whole = COUNT(rows[:1], rows[1:], np.arange(13)[None] < len(reference.split()))
    assert float(part) == f1 * float(whole)


def test_the_f1_is_that_of_seqeval_in_its_default_mode():
    cases = json.loads((FIXTURES / "entity_f1.json").read_text())
    assert len(cases) == 40
    for case in cases:
        assert entity_f1(case["references"], case["guesses"]) == pytest.approx(case["f1"], abs=1e-9)


@given(st.sampled_from(sorted(SCHEMES)).flatmap(lambda name: st.lists(st.sampled_from(SCHEMES[name].split()))))
@settings(max_examples=300, deadline=None)
def test_entities_of_random_tags_are_those_of_a_regular_expression(tags):
    assert entities(tags) == spelled(tags)


@pytest.mark.parametrize("name", SCHEMES)
def test_entities_counted_in_the_batch_are_those_counted_in_lists(name):
    rng = np.random.default_rng(5)
    indices = np.array([LABELS.index(label) for label in SCHEMES[name].split()])
    for _ in range(20):
        tag, guess = rng.choice(indices, (2, 7, 13))
        guess = np.where(rng.random(tag.shape) < 0.7, tag, guess)
        is_tagged = rng.random((7, 13)) < 0.7
        tags, guesses = (
            [[LABELS[t] for t in row[w]] for row, w in zip(x, is_tagged, strict=True)] for x in (tag, guess)
        )
        part, whole = COUNT(tag, guess, is_tagged)
        assert float(part / whole) == pytest.approx(entity_f1(tags, guesses))
        assert float(whole) == sum(len(spelled(row)) for row in tags + guesses)


def test_tags_of_entities_are_told_from_other_tags():
    for name, labels in SCHEMES.items():
        assert has_entities(labels.split()), name
    assert has_entities(["B-x"]) and has_entities(["O", "I-a"]) and has_entities(["B", "M", "E", "S"])
    for others in (["NOUN", "VERB"], ["O", "X"], ["O", "N", "S", "L", "M", "E", "^"], ["S-x", "NN"], []):
        assert not has_entities(others), others
