"""Subword tokenizers trained on a text: byte-pair encoding (BPE), WordPiece and the unigram language model.

All three work on bytes, written as 256 printable characters, within the words that GPT-2's pattern splits off (Radford
et al. 2019, section 2.2). So they can encode every text, and decode it exactly. Training is reproducible for BPE only:
the library breaks ties at random in WordPiece, and sums in any order in unigram.
"""

import collections
import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import tokenizers as hugging_face
from tokenizers.pre_tokenizers import ByteLevel

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import FIRST_TEXT_ID, Tokenizer, malformed, no_id

CHUNK_CHARS = 65536  # long texts are encoded in chunks of about this length: 11 MB at once would fill 2 GB
WORD_END = r"\S(?=[ \n])"  # where a text may be cut: GPT-2's pattern never joins these two characters
CONTINUATION = "\u2581"  # prefix of a piece that does not begin a word; none of the 256 characters
UNSEEN = -99.0  # log-probability of a byte that the training text lacks: below any that was learned
MAX_WORD_CHARS = 64  # longer words are split, since WordPiece takes quadratic time
# Training takes quadratic time too (BPE), or recursion that overflows the stack (unigram): longer words, such as
# base64 or DNA, are split for it. Encoding takes them whole, in time that is almost linear.
MAX_TRAINING_WORD_CHARS = 1024


@dataclasses.dataclass(frozen=True)
class SubwordTokenizer(Tokenizer):
    """Base class of subword tokenizers, around a model of the library whose ids of text start at 0."""

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> "SubwordTokenizer":
        """Train on a text, or on its pieces in order, until there are `vocab_size` ids, or no more to learn.

        Raises:
          UserError: a vocabulary too small for all bytes; a lone surrogate in the text.
        """
        smallest = FIRST_TEXT_ID + len(cls._alphabet())
        if vocab_size < smallest:
            rule = f"{cls.kind} needs at least {smallest}, for 256 bytes and {FIRST_TEXT_ID} special ids"
            raise UserError(f"tokenizer.vocab_size={vocab_size}: {rule}. Take 4096, or tokenizer.kind=byte.")
        pieces = iter([text]) if isinstance(text, str) else _whole_words(text)
        beginning: list[str] = []  # of the text: enough to know that it is not blank, nor short
        while not any(map(str.strip, beginning)) or 4 * sum(map(len, beginning)) < vocab_size:
            if (piece := next(pieces, None)) is None:
                break
            beginning.append(piece)
        # The library allocates memory for every id requested; a text yields fewer pieces than it has bytes.
        num_ids = min(vocab_size - FIRST_TEXT_ID, len(cls._alphabet()) + 4 * sum(map(len, beginning)))
        model = cls()._model
        model.pre_tokenizer = _split_words(MAX_TRAINING_WORD_CHARS, model.pre_tokenizer)
        if any(map(str.strip, beginning)):  # the library's unigram trainer fails on an empty text
            chunks = (chunk for piece in itertools.chain(beginning, pieces) for chunk in _chunks(piece))
            model.train_from_iterator(chunks, cls._trainer(num_ids))
        return cls(cls._learn(json.loads(model.to_str())["model"], num_ids))

    @classmethod
    def _alphabet(cls) -> list[str]:
        return sorted(ByteLevel.alphabet())

    @classmethod
    def _trainer(cls, num_ids: int) -> Any:
        """The library's trainer for at most `num_ids` ids."""
        raise NotImplementedError

    @classmethod
    def _learn(cls, model: dict, num_ids: int) -> tuple[str, ...]:
        """`learned` from the library's trained model, as its JSON describes it."""
        raise NotImplementedError

    def _library_model(self) -> Any:
        """The library's model that `learned` describes."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""
        return FIRST_TEXT_ID + self._model.get_vocab_size()

    def pieces(self) -> list[str]:
        """The piece of each id of text, from FIRST_TEXT_ID on, in the 256 printable characters."""
        vocabulary = self._model.get_vocab()
        return sorted(vocabulary, key=lambda piece: vocabulary[piece])

    def encode(self, text: str) -> np.ndarray:
        """Encode a text, int32 [T]. Raises UserError for a lone surrogate, which UTF-8 cannot represent."""
        encodings = self._model.encode_batch_fast(_chunks(text))
        return np.concatenate([np.array(encoding.ids, np.int32) + FIRST_TEXT_ID for encoding in encodings])

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Encode a long text that comes in pieces; a word is in one array. Between spaces all is kept in memory."""
        return map(self.encode, _whole_words(pieces))

    def _decode_text_ids(self, ids: np.ndarray) -> str:
        return self._model.decode(cast(Sequence[int], ids))

    @functools.cached_property
    def _model(self) -> hugging_face.Tokenizer:
        # Without special tokens, which the library would also recognize in users' text.
        model = hugging_face.Tokenizer(self._library_model())
        model.pre_tokenizer = ByteLevel(add_prefix_space=False)
        model.decoder = hugging_face.decoders.ByteLevel()
        return model


@dataclasses.dataclass(frozen=True)
class BPETokenizer(SubwordTokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    `learned` holds merges, "th e", in order. Ids of text are first the 256 bytes, then the results of the merges.
    """

    kind = "bpe"

    def __post_init__(self) -> None:
        known = set(ByteLevel.alphabet())
        for merge in self.learned:
            pair = merge.split(" ")
            if len(pair) != 2 or not known.issuperset(pair):
                raise malformed(f"merges of known tokens for kind 'bpe', not {merge!r:.80}")
            known.add("".join(pair))

    @classmethod
    def _trainer(cls, num_ids: int) -> hugging_face.trainers.BpeTrainer:
        return hugging_face.trainers.BpeTrainer(
            vocab_size=num_ids, min_frequency=2, initial_alphabet=cls._alphabet(), show_progress=False
        )

    @classmethod
    def _learn(cls, model: dict, num_ids: int) -> tuple[str, ...]:
        return tuple(map(" ".join, model["merges"]))

    def _library_model(self) -> hugging_face.models.BPE:
        merges = self._merges()
        tokens = dict.fromkeys([*self._alphabet(), *map("".join, merges)])  # two merges can make one token
        return hugging_face.models.BPE({token: i for i, token in enumerate(tokens)}, merges)

    def _merges(self) -> list[tuple[str, str]]:
        pairs = [merge.partition(" ") for merge in self.learned]
        return [(first, second) for first, _, second in pairs]

    def with_dropout(self, rate: float, *seed: int) -> "DropoutBPE":
        """BPE-dropout: the same vocabulary, words segmented at random as a pure function of `seed`.

        Args:
          rate: the share of the merges dropped at each step; 0: none, as `encode`; 1: all, single bytes.
        """
        return DropoutBPE(self.learned, rate, seed)


@dataclasses.dataclass(frozen=True)
class DropoutBPE(BPETokenizer):
    """BPE-dropout (Provilkov et al. 2020, algorithm 1): a model also learns the pieces of rare words.

    The library's random generator cannot be seeded, so the merging is done here. A word has the same segmentation in
    all texts that one instance encodes. Words of more than MAX_TRAINING_WORD_CHARS bytes are segmented in parts.
    """

    rate: float = 0.0
    seed: tuple[int, ...] = ()

    def encode(self, text: str) -> np.ndarray:
        """Encode a text, int32 [T]. Raises UserError for a lone surrogate, which UTF-8 cannot represent."""
        pre_tokenizer = _split_words(MAX_TRAINING_WORD_CHARS, self._model.pre_tokenizer)
        words = [word for chunk in _chunks(text) for word, _ in pre_tokenizer.pre_tokenize_str(chunk)]
        return np.array([id for word in words for id in self._word_ids(word)], np.int32)

    @functools.cached_property
    def _word_ids(self) -> Callable[[str], list[int]]:
        """Encoder of one word, with a cache for frequent words."""
        id_of = self._model.get_vocab()
        return functools.lru_cache(2**16)(lambda word: [id_of[piece] + FIRST_TEXT_ID for piece in self._segment(word)])

    def _segment(self, word: str) -> list[str]:
        random = np.random.default_rng([*self.seed, *word.encode()])  # a function of the word, not of earlier words
        pieces = list(word)
        ranks = [self._ranks.get(pair, math.inf) for pair in itertools.pairwise(pieces)]
        while True:
            is_kept = random.random(len(ranks)) >= self.rate
            rank, i = min(itertools.compress(zip(ranks, itertools.count()), is_kept.tolist()), default=(math.inf, 0))
            if rank == math.inf:
                return pieces
            pieces[i : i + 2] = ["".join(pieces[i : i + 2])]
            first = max(i - 1, 0)  # pairs before it and from i + 2 on are what they were
            ranks[first : i + 2] = [
                self._ranks.get(pair, math.inf) for pair in itertools.pairwise(pieces[first : i + 2])
            ]

    @functools.cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {merge: i for i, merge in enumerate(self._merges())}


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer(SubwordTokenizer):
    """WordPiece: greedy longest match, piece by piece from the start of a word. Devlin et al. 2019, section 3.

    `learned` holds pieces. Ids of text are first the 256 bytes at the start and inside of a word, then the pieces.
    """

    kind = "wordpiece"

    def __post_init__(self) -> None:
        known = set(ByteLevel.alphabet())
        for piece, count in collections.Counter(self.learned).items():
            characters = piece.removeprefix(CONTINUATION)
            if not known.issuperset(characters) or len(characters) < 2 or count > 1:
                raise malformed(f"pieces of known characters for kind 'wordpiece', not {piece!r:.80}")

    @classmethod
    def _alphabet(cls) -> list[str]:
        alphabet = sorted(ByteLevel.alphabet())
        return [*alphabet, *(CONTINUATION + character for character in alphabet)]

    @classmethod
    def _trainer(cls, num_ids: int) -> hugging_face.trainers.WordPieceTrainer:
        return hugging_face.trainers.WordPieceTrainer(
            vocab_size=num_ids,
            min_frequency=2,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
            continuing_subword_prefix=CONTINUATION,
        )

    @classmethod
    def _learn(cls, model: dict, num_ids: int) -> tuple[str, ...]:
        known = set(cls._alphabet())  # the trainer's vocabulary has only the part that occurs inside of words
        pieces = [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in known]
        return tuple(pieces[: num_ids - len(known)])

    def _library_model(self) -> hugging_face.models.WordPiece:
        vocab = {token: i for i, token in enumerate([*self._alphabet(), *self.learned])}
        return hugging_face.models.WordPiece(
            vocab,
            unk_token=self._alphabet()[0],
            continuing_subword_prefix=CONTINUATION,
            max_input_chars_per_word=MAX_WORD_CHARS,
        )

    @functools.cached_property
    def _model(self) -> hugging_face.Tokenizer:
        model = hugging_face.Tokenizer(self._library_model())
        model.pre_tokenizer = _split_words(MAX_WORD_CHARS, ByteLevel(add_prefix_space=False))
        model.decoder = hugging_face.decoders.Sequence(
            [hugging_face.decoders.Replace(CONTINUATION, ""), hugging_face.decoders.ByteLevel()]
        )
        return model


@dataclasses.dataclass(frozen=True)
class UnigramTokenizer(SubwordTokenizer):
    """Unigram language model: the likeliest segmentation of a word into independent pieces. Kudo 2018, section 3.2.

    `learned` holds pieces with their log-probabilities, "the -3.5"; every byte is a piece as well.
    """

    kind = "unigram"

    def __post_init__(self) -> None:
        known = set(self._alphabet())
        pieces: set[str] = set()
        for item in self.learned:
            piece, _, number = item.partition(" ")
            is_number = re.fullmatch(r"-?\d{1,3}(\.\d+)?(e-\d+)?", number)
            if not known.issuperset(piece) or not is_number or piece in pieces or not piece:
                raise malformed(f"pieces and their log-probabilities for kind 'unigram', not {item!r:.80}")
            pieces.add(piece)

    @classmethod
    def _trainer(cls, num_ids: int) -> hugging_face.trainers.UnigramTrainer:
        return hugging_face.trainers.UnigramTrainer(
            vocab_size=num_ids, initial_alphabet=cls._alphabet(), show_progress=False, special_tokens=[]
        )

    @classmethod
    def _learn(cls, model: dict, num_ids: int) -> tuple[str, ...]:
        pieces = sorted((-round(score, 4), piece) for piece, score in model["vocab"] if score > UNSEEN)
        return tuple(f"{piece} {-score:.4f}" for score, piece in pieces)

    def _library_model(self) -> hugging_face.models.Unigram:
        items = [item.partition(" ") for item in self.learned]
        scores = {piece: float(score) for piece, _, score in items}
        return hugging_face.models.Unigram([*(dict.fromkeys(self._alphabet(), UNSEEN) | scores).items()])


def _split_words(max_chars: int, pre_tokenizer: Any) -> hugging_face.pre_tokenizers.Sequence:
    """Pre-tokenizer that also splits words of more than `max_chars` of the 256 characters."""
    split_long = hugging_face.pre_tokenizers.Split(hugging_face.Regex(f".{{1,{max_chars}}}"), "isolated")
    return hugging_face.pre_tokenizers.Sequence([pre_tokenizer, split_long])


def _whole_words(pieces: Iterable[str]) -> Iterator[str]:
    """Cut a text that comes in pieces elsewhere: each ends at the last WORD_END of what has come, or at the end."""
    waiting = [""]
    for piece in pieces:
        last = waiting[-1][-1:]  # a word may end between two pieces
        if found := re.match(rf"(?s).*{WORD_END}", last + piece):
            cut = found.end() - len(last)
            yield "".join(waiting) + piece[:cut]
            waiting = [piece[cut:]]
        else:
            waiting.append(piece)
    if rest := "".join(waiting):
        yield rest


def _chunks(text: str) -> list[str]:
    """Split a long text at a WORD_END after every CHUNK_CHARS characters."""
    if lone_surrogate := re.search(r"[\ud800-\udfff]", text):
        raise no_id("bpe", text, lone_surrogate.start(), "byte")
    return re.findall(rf"(?s).{{{CHUNK_CHARS},}}?{WORD_END}|.+", text) or [""]
