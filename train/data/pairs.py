"""Pairs of texts, a source and its target: from files, or made here."""

import dataclasses
import json
import os
from collections.abc import Callable

import numpy as np

from transformer_jax.errors import UserError, choose
from transformer_jax.tokenizers import PairTokenizer, Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import make_tokenizer, sha256, tokenizer_sha256
from .dates import dates
from .from_tfds import tfds_pairs
from .sources import read_file

TextPairs = list[tuple[str, str]]
SPLITS = {
    "train": ("path", "target_path"),
    "val": ("val_path", "val_target_path"),
    "test": ("test_path", "test_target_path"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs in two parts, and one tokenizer for both sides."""

    train: TextPairs
    validation: TextPairs
    tokenizer: Tokenizer
    fingerprint: dict[str, str | int]


def load_pairs(config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None) -> Pairs:
    """The pairs of `config.source`; a tokenizer, unless one is given, learns from both sides of the training part.

    Raises:
      UserError: an unknown source, and what the source refuses.
    """
    train, validation = (load_split(config, split) for split in ("train", "val"))
    if tokenizer is None:
        sides = zip(*train, *(validation if tokenizer_config.kind == "char" else ()), strict=True)
        lessons = ["\n".join(side) for side in sides]
        if tokenizer_config.separate:
            tokenizer = PairTokenizer.of(*(make_tokenizer(tokenizer_config, lesson) for lesson in lessons))
        else:
            tokenizer = make_tokenizer(tokenizer_config, "\n".join(lessons))
    fingerprint = {
        "pairs_sha256": sha256(json.dumps([train, validation])),
        "train_pairs": len(train),
        "val_pairs": len(validation),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    return Pairs(train, validation, tokenizer, fingerprint)


def load_split(config: DataConfig, split: str) -> TextPairs:
    """One part of the pairs: train, val or test."""
    make = choose(PAIR_SOURCES, config.source, "data.source")
    pairs = make(config, choose(SPLITS, split, "split"), split)
    if not pairs:
        raise UserError(f"data.source={config.source!r}: there is no pair in its {split} part.")
    return [(a.lower(), b.lower()) for a, b in pairs] if config.lowercase else pairs


def parallel(config: DataConfig, fields: tuple[str, str], split: str) -> TextPairs:
    """Two files with a line for a line, or one .tsv (source, tab, target) or .jsonl ("source", "target"); .gz too.

    Raises:
      UserError: no such file, other numbers of lines, an empty line, a line that is no pair. File and line are named.
    """
    path, target_path = (os.path.expanduser(getattr(config, field)) for field in fields)
    if not path:
        raise UserError(f"data.{fields[0]}='': data.source=parallel needs the {split} part. Give a file.")
    if not target_path:
        return _one_file(path, fields[1])
    sources, targets = _lines(path), _lines(target_path)
    if len(sources) != len(targets):
        raise UserError(
            f"{path} has {len(sources)} lines and {target_path} has {len(targets)}: line n of one must be the "
            "translation of line n of the other."
        )
    for file, lines in ((path, sources), (target_path, targets)):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise UserError(f"{file}, line {number}: is empty. Remove the line from both files.")
    return list(zip(sources, targets, strict=True))


def _lines(path: str) -> list[str]:
    return read_file(path).removesuffix("\n").split("\n")


def _one_file(path: str, target_field: str) -> TextPairs:
    kind = path.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("tsv", "jsonl"):
        raise UserError(
            f"data.{target_field}='': {path} needs a file of targets beside it, or must be a .tsv or .jsonl."
        )
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        try:
            pair = line.split("\t") if kind == "tsv" else [json.loads(line)[name] for name in ("source", "target")]
            if len(pair) != 2 or not all(isinstance(side, str) and side.strip() for side in pair):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            rule = "two texts with a tab between them" if kind == "tsv" else 'an object with "source" and "target"'
            raise UserError(f"{path}, line {number}: must be {rule}, neither of them empty.") from error
        pairs.append(tuple(pair))
    return pairs


def _made(rule: Callable[[str], str]) -> Callable:
    """Random words of 3 to 12 letters, and what a rule makes of them. The parts have no word in common."""

    def make(config, fields, split):
        sizes = {"train": 20_000, "val": 500, "test": 500}
        random = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrst"))
        words = {"".join(random.choice(letters, random.integers(3, 13))): None for _ in range(2 * sum(sizes.values()))}
        first = {"train": 1000, "val": 0, "test": 500}[split]
        return [(word, rule(word)) for word in list(words)[first : first + sizes[split]]]

    return make


PAIR_SOURCES = {
    "parallel": parallel,
    "dates": dates,
    "tfds": tfds_pairs,
    "copy": _made(lambda word: word),
    "reverse": _made(lambda word: word[::-1]),
    "sort": _made(lambda word: "".join(sorted(word))),
}
