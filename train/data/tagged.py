"""Sentences with a tag for each word: from CoNLL and CoNLL-U files, from TFDS, or made here."""

import dataclasses
import json
import os
import sys
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError, choose
from transformer_jax.inference.predict import encode_words
from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import make_tokenizer, sha256, tokenizer_sha256
from .from_tfds import tfds_tagged
from .python_tokens import python_tokens
from .sources import read_file

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


class Sentence(NamedTuple):
    """Words, a tag for each, and the file and line where they begin."""

    words: list[str]
    tags: list[str]
    where: str = ""
    separator: str = " "  # between the words: nothing where they are characters


@dataclasses.dataclass(frozen=True, eq=False)
class Tagged:
    """Sentences in two parts, the tags that training has, and a tokenizer."""

    train: list[Sentence]
    validation: list[Sentence]
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    fingerprint: dict[str, str | int]


def load_tagged(
    config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None, labels: tuple[str, ...]
) -> Tagged:
    """The sentences of `data.source` in two parts; arguments as for `labelled.load_labelled`.

    A tag that only validation has is told with file and line, and is always wrong.

    Raises:
      UserError: no such file, a malformed line. File and line are named.
    """
    train, validation = tagged_split(config, "train"), tagged_split(config, "val")
    seen = {tag for sentence in train for tag in sentence.tags}
    for sentence in validation:
        for tag in sorted(set(sentence.tags) - seen):  # real corpora have such; it has an output that nothing trains
            print(f"warning: {sentence.where}: tag {tag!r:.80} does not occur in training.", file=sys.stderr)
            seen.add(tag)
    labels = labels or tuple(sorted(seen))
    if tokenizer is None:
        lesson = train + (validation if tokenizer_config.kind == "char" else [])
        text = "\n".join("".join(s.separator + word for word in s.words) for s in lesson)
        tokenizer = make_tokenizer(tokenizer_config, text)
    parts = [[(s.words, s.tags) for s in part] for part in (train, validation)]
    fingerprint = {
        "examples_sha256": sha256(json.dumps(parts)),
        "train_examples": len(train),
        "val_examples": len(validation),
        "labels": ", ".join(labels),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    return Tagged(train, validation, labels, tokenizer, fingerprint)


def encode_sentence(
    tokenizer: Tokenizer, sentence: Sentence, index: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens [T] int32, tag [T] int32 and is_tagged [T] bool: a word's tag stands at its first piece."""
    tokens, starts = encode_words(tokenizer, sentence.words, sentence.separator)
    tag, is_tagged = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), bool)
    tag[starts], is_tagged[starts] = [index[t] for t in sentence.tags], True
    return tokens, tag, is_tagged


def tagged_split(config: DataConfig, split: str) -> list[Sentence]:
    """One part, train, val or test, of `data.source`. Raises UserError for an unknown source, and what it refuses."""
    sentences = choose(TAGGED_SOURCES, config.source, "data.source")(config, split)
    if not sentences:
        raise UserError(f"data.source={config.source!r}: there is no sentence in its {split} part.")
    return sentences


def tagged(config: DataConfig, split: str) -> list[Sentence]:
    """The file of `data.path`, `data.val_path` or `data.test_path`, as `read_tagged` reads it."""
    return read_tagged({"train": config.path, "val": config.val_path, "test": config.test_path}[split], config)


TAGGED_SOURCES = {
    "tagged": tagged,
    "python_tokens": lambda *args: [Sentence(*example, separator="") for example in python_tokens(*args)],
    "tfds": lambda *args: [Sentence(*example) for example in tfds_tagged(*args)],
}


def read_tagged(path: str, config: DataConfig) -> list[Sentence]:
    """The sentences of a file; an empty line ends one.

    .conllu: CoNLL-U, with `data.label_field` upos (the default), xpos or deprel. Any other: a word a line, its tag in
    the last column, tabs or spaces between them.

    Raises:
      UserError: no such file; a line with too few columns.
    """
    if not path:
        raise UserError("data.path, data.val_path: data.source=tagged needs a .conll or .conllu file for each.")
    name = os.path.expanduser(path)
    is_conllu = name.removesuffix(".gz").endswith(".conllu")
    field = config.label_field or "upos"
    if is_conllu and field not in CONLLU_COLUMNS:
        raise UserError(f"data.label_field={field!r}: CoNLL-U has {', '.join(CONLLU_COLUMNS)}.")
    column = CONLLU_COLUMNS.index(field) if is_conllu else -1
    sentences, words, tags, first = [], [], [], 1
    for number, line in enumerate([*read_file(name).split("\n"), ""], 1):
        if not line.strip():
            if words:
                sentences.append(Sentence(words, tags, f"{path}, line {first}"))
            words, tags, first = [], [], number + 1
            continue
        if (is_conllu and line.startswith("#")) or line.startswith("-DOCSTART-"):
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        needed = len(CONLLU_COLUMNS) if is_conllu else 2
        if len(cells) < needed:
            raise UserError(f"{path}, line {number}: has {len(cells)} columns, and needs {needed}. Mend the line.")
        if is_conllu and not cells[0].isdecimal():
            continue  # a token of several words, or an empty node: its words have lines of their own
        words.append(cells[1] if is_conllu else cells[0])
        tags.append(cells[column])
    if not sentences:
        raise UserError(f"{path}: there is no sentence in it.")
    return sentences


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """(first word, word after the last, kind) of every entity in BIO tags; an I- that follows nothing begins one."""
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        kind = tag[2:] if tag[:2] in ("B-", "I-") else None
        if start is not None and (tag[:2] != "I-" or kind != tags[start][2:]):
            found.add((start, i, tags[start][2:]))
            start = None
        if start is None and kind is not None:
            start = i
    return found


def entity_f1(references: list[list[str]], guesses: list[list[str]]) -> float:
    """2 P R / (P + R) of entities with both ends and the kind right, over all sentences: the measure of CoNLL 2003."""
    pairs = [(entities(r), entities(g)) for r, g in zip(references, guesses, strict=True)]
    right, both = sum(len(r & g) for r, g in pairs), sum(len(r) + len(g) for r, g in pairs)
    return 2 * right / both if both else 0.0
