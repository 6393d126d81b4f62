"""Tagged sentences for token classification: CoNLL and CoNLL-U files, TFDS, or generated; entity F1."""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError, choose, warn
from transformer_jax.inference.predict import encode_words
from transformer_jax.lines import read_file, split_lines
from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import examples_fingerprint, make_tokenizer, tokenizer_lesson
from .from_tfds import tfds_tagged
from .python_tokens import python_tokens

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


class Sentence(NamedTuple):
    """Words, a tag for each, and the location (file and line) for messages."""

    words: list[str]
    tags: list[str]
    where: str = ""
    separator: str = " "  # between the words; "" if they are characters


@dataclasses.dataclass(frozen=True, eq=False)
class Tagged:
    """Tagged sentences: a training and a validation split, the tags, and a tokenizer."""

    train: list[Sentence]
    validation: list[Sentence]
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    fingerprint: dict[str, str | int]


def load_tagged(
    config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None, labels: tuple[str, ...]
) -> Tagged:
    """Load the tagged sentences of `data.source`: training and validation split.

    A tag that only validation has is reported with file and line, and is always predicted wrong.

    Args:
      tokenizer: one to use; None: train one on the training sentences.
      labels: known tags, in order; (): the sorted tags of the data.
    Raises:
      UserError: no such file, a malformed line. File and line are named.
    """
    train = tagged_split(config, "train")
    validation = tagged_split(config, "val")
    known_tags = {tag for sentence in train for tag in sentence.tags}
    for sentence in validation:
        for tag in sorted(set(sentence.tags) - known_tags):  # as in real corpora; its output is never trained
            warn(f"{sentence.where}: tag {tag!r:.80} does not occur in training.")
            known_tags.add(tag)
    labels = labels or tuple(sorted(known_tags))
    if tokenizer is None:
        texts = [["".join(s.separator + word for word in s.words) for s in part] for part in (train, validation)]
        tokenizer = make_tokenizer(tokenizer_config, tokenizer_lesson(tokenizer_config, *texts))
    train_examples, val_examples = ([(s.words, s.tags) for s in part] for part in (train, validation))
    fingerprint = examples_fingerprint(train_examples, val_examples, labels, tokenizer)
    return Tagged(train, validation, labels, tokenizer, fingerprint)


def encode_sentence(
    tokenizer: Tokenizer, sentence: Sentence, index: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode a sentence to tokens and tags, int32 [T], and is_tagged, bool [T]: only a word's first token is tagged."""
    tokens, starts = encode_words(tokenizer, sentence.words, sentence.separator)
    tag = np.zeros(len(tokens), np.int32)
    tag[starts] = [index[t] for t in sentence.tags]
    is_tagged = np.zeros(len(tokens), bool)
    is_tagged[starts] = True
    return tokens, tag, is_tagged


def tagged_split(config: DataConfig, split: str) -> list[Sentence]:
    """Load one split (train, val or test) of `data.source`. Raises UserError: unknown source, or no sentence in it."""
    sentences = choose(TAGGED_SOURCES, config.source, "data.source")(config, split)
    if not sentences:
        raise UserError(f"data.source={config.source!r}: there is no sentence in its {split} split.")
    return sentences


def tagged(config: DataConfig, split: str) -> list[Sentence]:
    """Load a split from the file `data.path`, `data.val_path` or `data.test_path`; see `read_tagged`."""
    return read_tagged({"train": config.path, "val": config.val_path, "test": config.test_path}[split], config)


def _python_sentences(config: DataConfig, split: str) -> list[Sentence]:
    return [Sentence(*example, separator="") for example in python_tokens(config, split)]


def _tfds_sentences(config: DataConfig, split: str) -> list[Sentence]:
    return [Sentence(*example) for example in tfds_tagged(config, split)]


TAGGED_SOURCES: dict[str, Callable[[DataConfig, str], list[Sentence]]] = {
    "tagged": tagged,
    "python_tokens": _python_sentences,
    "tfds": _tfds_sentences,
}


def read_tagged(path: str, config: DataConfig) -> list[Sentence]:
    """Read the sentences of a CoNLL file; an empty line ends one.

    .conllu: CoNLL-U, with `data.label_field` upos (the default), xpos or deprel. Any other: one word per line, its tag
    in the last column, columns separated by tabs or spaces.

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
    sentences = []
    words: list[str] = []
    tags: list[str] = []
    first_line = 1
    for number, line in enumerate([*split_lines(read_file(name)), ""], 1):
        if not line.strip():
            if words:
                sentences.append(Sentence(words, tags, f"{path}, line {first_line}"))
            words, tags = [], []
            first_line = number + 1
            continue
        if (is_conllu and line.startswith("#")) or line.startswith("-DOCSTART-"):
            continue
        cells = line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]
        needed = len(CONLLU_COLUMNS) if is_conllu else 2
        if len(cells) < needed:
            raise UserError(f"{path}, line {number}: has {len(cells)} columns, and needs {needed}. Fix the line.")
        if is_conllu and not cells[0].isdecimal():
            continue  # a multi-word token, or an empty node: the words have their own lines
        words.append(cells[1] if is_conllu else cells[0])
        tags.append(cells[column])
    if not sentences:
        raise UserError(f"{path}: there is no sentence in it.")
    return sentences


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """Find the entities in BIO tags: (first word, word after the last, kind); an I- without a B- begins one, too."""
    found = set()
    start = None
    for i, tag in enumerate([*tags, "O"]):
        kind = tag[2:] if tag[:2] in ("B-", "I-") else None
        if start is not None and (tag[:2] != "I-" or kind != tags[start][2:]):
            found.add((start, i, tags[start][2:]))
            start = None
        if start is None and kind is not None:
            start = i
    return found


def entity_f1(references: list[list[str]], guesses: list[list[str]]) -> float:
    """Entity F1 of CoNLL 2003, 2 P R / (P + R) over all sentences; an entity needs both ends and the kind right."""
    pairs = [(entities(r), entities(g)) for r, g in zip(references, guesses, strict=True)]
    num_right = sum(len(r & g) for r, g in pairs)
    num_both = sum(len(r) + len(g) for r, g in pairs)
    return 2 * num_right / num_both if num_both else 0.0
