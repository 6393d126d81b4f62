"""Entities of tags in the schemes IOB1, BIO (IOB2), IOE, BIOES (IOBES, BMES) and BILOU; entity F1.

No scheme has to be named: the rules are those of seqeval's default mode, which are those of the script conlleval of
CoNLL 2003, with L of BILOU read as E, and U as S. A tag continues the entity of the tag before it if it is I or E, that
is B or I, and both are of one type; any other tag but O begins an entity. So in a malformed sequence, such as an I-
without a B-, every tag but O is in some entity; seqeval's strict mode would leave it out.

A tag is a prefix, a hyphen and a type, which may have hyphens (B-ORG-GOV), or a bare prefix, of the type "_". All other
tags are outside of entities.
"""

from collections.abc import Sequence

PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "M": "I", "L": "E", "U": "S"}  # and the one of BIOES that it is
OUTSIDE = ("O", "")


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix (B, I, E or S) and type of a tag; OUTSIDE for a tag that is in no entity."""
    if tag[:1] in PREFIXES and tag[1:2] in ("", "-"):
        return PREFIXES[tag[:1]], tag[2:] or "_"
    return OUTSIDE


def has_entities(labels: Sequence[str]) -> bool:
    """True if tags mark entities: one begins with B-, or O and another prefix occur, or all are bare prefixes.

    Tags of parts of speech may have an O, and letters that are prefixes, but no such hyphen.
    """
    has_types = any(label[1:2] == "-" and split_tag(label) != OUTSIDE for label in labels)
    is_bare = "B" in labels and all(label in (*PREFIXES, "O") for label in labels)
    return any(label.startswith("B-") for label in labels) or (has_types and "O" in labels) or is_bare


def continues(prefix: str, before: str) -> bool:
    """True if a prefix continues the entity of the prefix before it, where both have one type."""
    return prefix in ("I", "E") and before in ("B", "I")


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Find the entities in the tags of a sentence: (first word, word after the last, type)."""
    found = set()
    start = 0
    before = OUTSIDE
    for i, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        if not (continues(prefix, before[0]) and kind == before[1]):
            if before != OUTSIDE:
                found.add((start, i, before[1]))
            start = i
        before = (prefix, kind)
    return found


def entity_f1(references: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> float:
    """Entity F1, 2 P R / (P + R) over all sentences; an entity needs both ends and the type right."""
    pairs = [(entities(r), entities(g)) for r, g in zip(references, guesses, strict=True)]
    num_right = sum(len(r & g) for r, g in pairs)
    num_both = sum(len(r) + len(g) for r, g in pairs)
    return 2 * num_right / num_both if num_both else 0.0
