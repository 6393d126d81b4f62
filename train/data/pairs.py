"""Pairs of a source and a target text, for translation: parallel files, TFDS, or generated."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable

import numpy as np

from transformer_jax.errors import UserError, choose
from transformer_jax.lines import check_is_text, read_file, split_lines
from transformer_jax.tokenizers import PairTokenizer, Tokenizer

from ..config import DataConfig, TokenizerConfig
from .batches import make_tokenizer, sha256, tokenizer_lesson, tokenizer_sha256
from .columns import check_no_side_names
from .dates import dates
from .from_tfds import tfds_pairs

TextPairs = list[tuple[str, str]]
Source = Callable[[DataConfig, tuple[str, str], str], TextPairs]  # (config, file fields, split) -> pairs
SPLITS = {  # the config fields of the source and the target file
    "train": ("path", "target_path"),
    "val": ("val_path", "val_target_path"),
    "test": ("test_path", "test_target_path"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of texts: a training and a validation split, and one tokenizer for both sides."""

    train: TextPairs
    validation: TextPairs
    tokenizer: Tokenizer
    fingerprint: dict[str, str | int]


def load_pairs(config: DataConfig, tokenizer_config: TokenizerConfig, tokenizer: Tokenizer | None) -> Pairs:
    """Load the pairs of `config.source`: training and validation split.

    Args:
      tokenizer: one to use; None: train one on both sides of the training pairs.
    Raises:
      UserError: an unknown source, or an error while reading it.
    """
    train, validation = (load_split(config, split) for split in ("train", "val"))
    if tokenizer is None:
        lessons = [
            tokenizer_lesson(tokenizer_config, [pair[side] for pair in train], [pair[side] for pair in validation])
            for side in (0, 1)
        ]
        if tokenizer_config.separate:
            tokenizer = PairTokenizer.of(*(make_tokenizer(tokenizer_config, lesson) for lesson in lessons))
        else:
            tokenizer = make_tokenizer(tokenizer_config, "\n".join(lessons))
    fingerprint: dict[str, str | int] = {
        "pairs_sha256": sha256(json.dumps([train, validation])),
        "train_pairs": len(train),
        "val_pairs": len(validation),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    return Pairs(train, validation, tokenizer, fingerprint)


def load_split(config: DataConfig, split: str) -> TextPairs:
    """Load one split of the pairs: train, val or test."""
    load = choose(PAIR_SOURCES, config.source, "data.source")
    pairs = load(config, choose(SPLITS, split, "split"), split)
    if not pairs:
        raise UserError(f"data.source={config.source!r}: there is no pair in its {split} split.")
    return [(a.lower(), b.lower()) for a, b in pairs] if config.lowercase else pairs


def parallel(config: DataConfig, fields: tuple[str, str], split: str) -> TextPairs:
    """Read pairs from two line-aligned files, a .tsv (source, tab, target) or a .jsonl ("source", "target"); .gz too.

    Raises:
      UserError: no such file, unequal numbers of lines, an empty line, a line that is no pair. File and line are named.
    """
    path, target_path = (os.path.expanduser(getattr(config, field)) for field in fields)
    if not path:
        raise UserError(f"data.{fields[0]}='': data.source=parallel needs the {split} split. Give a file.")
    if not target_path:
        return _one_file(path, fields[1])
    sources, targets = (split_lines(read_file(file)) for file in (path, target_path))
    if len(sources) != len(targets):
        raise UserError(
            f"{path} has {len(sources)} lines and {target_path} has {len(targets)}: line n of one must be the "
            "translation of line n of the other."
        )
    for file, lines in ((path, sources), (target_path, targets)):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise UserError(f"{file}, line {number}: is empty. Remove the line from both files.")
    if sources:
        check_no_side_names((sources[0], targets[0]), f"{path} and {target_path}, line 1")
    return list(zip(sources, targets, strict=True))


def _one_file(path: str, target_field: str) -> TextPairs:
    kind = path.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("tsv", "jsonl"):
        raise UserError(
            f"data.{target_field}='': {path} needs a file of targets beside it, or must be a .tsv or .jsonl."
        )
    pairs: TextPairs = []
    for number, line in enumerate(split_lines(read_file(path)), 1):
        try:
            sides = line.split("\t") if kind == "tsv" else [json.loads(line)[name] for name in ("source", "target")]
            if len(sides) != 2 or not all(isinstance(side, str) and side.strip() for side in sides):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            rule = "two texts with a tab between them" if kind == "tsv" else 'an object with "source" and "target"'
            raise UserError(f"{path}, line {number}: must be {rule}, neither of them empty.") from error
        check_is_text("".join(sides), f"{path}, line {number}")
        if number == 1 and kind == "tsv":
            check_no_side_names(sides, f"{path}, line 1")
        pairs.append((sides[0], sides[1]))
    return pairs


def _generated(rule: Callable[[str], str]) -> Source:
    """Source of random words of 3 to 12 letters, each with its transformation by a rule. Splits share no word."""

    def generate(config: DataConfig, fields: tuple[str, str], split: str) -> TextPairs:
        sizes = {"train": 20_000, "val": 500, "test": 500}
        first = {"train": 1000, "val": 0, "test": 500}[split]
        words = _random_words(2 * sum(sizes.values()))
        return [(word, rule(word)) for word in words[first : first + sizes[split]]]

    return generate


@functools.cache  # one draw for all splits
def _random_words(num_draws: int) -> tuple[str, ...]:
    """Distinct words of 3 to 12 letters, in the order of their first draw."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrst"))
    return tuple(dict.fromkeys("".join(random.choice(letters, random.integers(3, 13))) for _ in range(num_draws)))


PAIR_SOURCES: dict[str, Source] = {
    "parallel": parallel,
    "dates": dates,
    "tfds": tfds_pairs,
    "copy": _generated(lambda word: word),
    "reverse": _generated(lambda word: word[::-1]),
    "sort": _generated(lambda word: "".join(sorted(word))),
}
