"""Tagged sentences for token classification: CoNLL and CoNLL-U files, TFDS, or generated."""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError, choose, warn
from transformer_jax.inference.predict import NO_TOKENS, encode_words
from transformer_jax.lines import read_file
from transformer_jax.tokenizers import Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import examples_fingerprint, make_tokenizer, tokenizer_lesson
from .conll import CONLLU_COLUMNS, read_conll, read_conllu
from .from_tfds import tfds_tagged
from .python_tokens import python_tokens


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
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    tokenizer: Tokenizer | None,
    labels: tuple[str, ...],
    head_labels: tuple[str, ...] = (),
) -> Tagged:
    """Load the tagged sentences of `data.source`: training and validation split.

    A tag that only validation has is reported with file and line, and is always predicted wrong.

    Args:
      tokenizer: one to use; None: train one on the training sentences.
      labels: known tags, in order; (): the sorted tags of the data.
      head_labels: tags of a trained head; if they are the same set, their order is kept.
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
    if len(known_tags) == 1:
        warn(f"data: all words have the tag {train[0].tags[0]!r:.80}. There is nothing to learn from the words.")
    labels = labels or (head_labels if set(head_labels) == known_tags else tuple(sorted(known_tags)))
    if tokenizer is None:
        texts = [["".join(s.separator + word for word in s.words) for s in part] for part in (train, validation)]
        tokenizer = make_tokenizer(tokenizer_config, tokenizer_lesson(tokenizer_config, *texts))
    train_examples, val_examples = ([(s.words, s.tags) for s in part] for part in (train, validation))
    fingerprint = examples_fingerprint(train_examples, val_examples, labels, tokenizer)
    return Tagged(train, validation, labels, tokenizer, fingerprint)


def encode_sentence(
    tokenizer: Tokenizer, sentence: Sentence, index: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode a sentence to tokens and tags, int32 [T], and is_tagged, bool [T]: only a word's first token is tagged.

    A word without tokens has no tag to learn.
    """
    tokens, starts = encode_words(tokenizer, sentence.words, sentence.separator)
    has_tokens = starts != NO_TOKENS
    tag = np.zeros(len(tokens), np.int32)
    tag[starts[has_tokens]] = np.array([index[t] for t in sentence.tags], np.int32)[has_tokens]
    is_tagged = np.zeros(len(tokens), bool)
    is_tagged[starts[has_tokens]] = True
    return tokens, tag, is_tagged


def tagged_split(config: DataConfig, split: str) -> list[Sentence]:
    """Load one split (train, val or test) of `data.source`. Raises UserError: unknown source, or no sentence in it."""
    sentences = choose(TAGGED_SOURCES, config.source, "data.source")(config, split)
    if not sentences:
        raise UserError(f"data.source={config.source!r}: there is no sentence in its {split} split.")
    if config.lowercase:
        return [sentence._replace(words=[word.lower() for word in sentence.words]) for sentence in sentences]
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
    """Read the sentences of a CoNLL file, with the tag in the last column; `conll` has the rules.

    .conllu: CoNLL-U, with `data.label_field` upos (the default), xpos or another of its columns.

    Raises:
      UserError: no such file, no sentence in it, or a malformed line.
    """
    if not path:
        raise UserError("data.path, data.val_path: data.source=tagged needs a .conll or .conllu file for each.")
    name = os.path.expanduser(path)
    text = read_file(name)
    if name.removesuffix(".gz").endswith(".conllu"):
        field = config.label_field or "upos"
        if field not in CONLLU_COLUMNS:
            raise UserError(f"data.label_field={field!r}: CoNLL-U has {', '.join(CONLLU_COLUMNS)}.")
        sentences = read_conllu(path, text, field)
    else:
        sentences = read_conll(path, text)
    if not sentences:
        raise UserError(f"{path}: there is no sentence in it.")
    return [Sentence(words, tags, f"{path}, line {number}") for words, tags, number in sentences]
