"""Pieces of words, learned from a text: byte-pair encoding, WordPiece and a unigram language model.

All three work on bytes, written as 256 printable characters, within the words that GPT-2's pattern cuts (Radford et al.
2019, section 2.2). So they have an id for every text, and give back exactly what went in. Of the same text BPE learns
the same each time; the library lets chance decide between equals in WordPiece, and rounds in any order in unigram.
"""

import collections
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable

import numpy as np
import tokenizers as hugging_face
from tokenizers.pre_tokenizers import ByteLevel

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import FIRST_TEXT_ID, Tokenizer, malformed, no_id

PIECE_CHARS = 65536  # long texts are taken in pieces of about this length: 11 MB at once would fill 2 GB
INSIDE = "\u2581"  # before a piece that does not begin a word; none of the 256 characters
UNSEEN = -99.0  # log-probability of a byte that no lesson had: less than any that was learned
LONGEST_WORD = 64  # characters; longer ones are cut, since WordPiece takes quadratic time


@dataclasses.dataclass(frozen=True)
class SubwordTokenizer(Tokenizer):
    """What the three share: `_model`, of the library, has the ids of text from 0 on."""

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "SubwordTokenizer":
        """As many pieces as make `vocab_size` ids, or fewer. UserError: too few for all bytes; a lone surrogate."""
        smallest = FIRST_TEXT_ID + len(cls._alphabet())
        if vocab_size < smallest:
            rule = f"{cls.kind} needs at least {smallest}, for 256 bytes and {FIRST_TEXT_ID} special ids"
            raise UserError(f"tokenizer.vocab_size={vocab_size}: {rule}. Take 4096, or tokenizer.kind=byte.")
        # The library reserves memory for all the ids asked for; a text yields fewer pieces than it has bytes.
        num_ids = min(vocab_size - FIRST_TEXT_ID, len(cls._alphabet()) + 4 * len(text))
        model = cls()._model
        if text.strip():  # of nothing, the library's trainer of unigrams cannot learn
            model.train_from_iterator(_pieces(text), cls._trainer(num_ids))
        return cls(cls._learn(json.loads(model.to_str())["model"], num_ids))

    @classmethod
    def _alphabet(cls) -> list[str]:
        return sorted(ByteLevel.alphabet())

    @property
    def vocab_size(self) -> int:
        return FIRST_TEXT_ID + self._model.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T]. Raises UserError for a lone surrogate, which UTF-8 cannot write."""
        pieces = self._model.encode_batch_fast(_pieces(text))
        return np.concatenate([np.array(piece.ids, np.int32) + FIRST_TEXT_ID for piece in pieces])

    def _decode(self, ids: np.ndarray) -> str:
        return self._model.decode(ids)

    @functools.cached_property
    def _model(self) -> hugging_face.Tokenizer:
        # No special tokens: the library would also find them in users' text.
        model = hugging_face.Tokenizer(self._library_model())
        model.pre_tokenizer = ByteLevel(add_prefix_space=False)
        model.decoder = hugging_face.decoders.ByteLevel()
        return model


@dataclasses.dataclass(frozen=True)
class BPETokenizer(SubwordTokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    It learns merges, "th e", in order. The ids of text are first the 256 bytes, then the tokens that merges make.
    """

    kind = "bpe"

    def __post_init__(self):
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
        merges = [tuple(merge.split(" ")) for merge in self.learned]
        tokens = dict.fromkeys([*self._alphabet(), *map("".join, merges)])  # two merges can make one token
        return hugging_face.models.BPE({token: i for i, token in enumerate(tokens)}, merges)

    def dropping(self, rate: float, *seed: int) -> "DroppingBPE":
        """The same tokens, but words in pieces that chance chooses: a pure function of `seed`.

        Args:
          rate: the share of the merges that is left out at each step; 0: none, as `encode`; 1: all, single bytes.
        """
        return DroppingBPE(self.learned, rate, seed)


@dataclasses.dataclass(frozen=True)
class DroppingBPE(BPETokenizer):
    """BPE-dropout (Provilkov et al. 2020, algorithm 1): of rare words a model learns the pieces, too.

    The library draws from a generator that cannot be seeded, so the merging is done here; a word has one cut in all
    texts that this one encodes.
    """

    rate: float = 0.0
    seed: tuple[int, ...] = ()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [T]. Raises UserError for a lone surrogate, which UTF-8 cannot write."""
        words = [word for piece in _pieces(text) for word, _ in self._model.pre_tokenizer.pre_tokenize_str(piece)]
        return np.array([id for word in words for id in self._ids_of(word)], np.int32)

    @functools.cached_property
    def _ids_of(self) -> Callable[[str], list[int]]:
        """The ids of a word; those of frequent words are kept."""
        id_of = self._model.token_to_id
        return functools.lru_cache(2**16)(lambda word: [id_of(piece) + FIRST_TEXT_ID for piece in self._cut(word)])

    def _cut(self, word: str) -> list[str]:
        random = np.random.default_rng([*self.seed, *word.encode()])  # of the word alone, not of those before it
        pieces = list(word)
        while True:
            ranks = [self._rank.get(pair, np.inf) for pair in itertools.pairwise(pieces)]
            is_kept = random.random(len(ranks)) >= self.rate
            candidates = [(rank, i) for i, rank in enumerate(ranks) if is_kept[i] and rank < np.inf]
            if not candidates:
                return pieces
            _, i = min(candidates)
            pieces[i : i + 2] = ["".join(pieces[i : i + 2])]

    @functools.cached_property
    def _rank(self) -> dict[tuple[str, str], int]:
        return {tuple(merge.split(" ")): i for i, merge in enumerate(self.learned)}


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer(SubwordTokenizer):
    """WordPiece: of each word the longest known piece from its start, and so on. Devlin et al. 2019, section 3.

    It learns pieces; the ids of text are those of the 256 bytes at the start and inside of a word, then the pieces.
    """

    kind = "wordpiece"

    def __post_init__(self):
        known = set(ByteLevel.alphabet())
        for piece, times in collections.Counter(self.learned).items():
            if not known.issuperset(piece.removeprefix(INSIDE)) or len(piece.removeprefix(INSIDE)) < 2 or times > 1:
                raise malformed(f"pieces of known characters for kind 'wordpiece', not {piece!r:.80}")

    @classmethod
    def _alphabet(cls) -> list[str]:
        alphabet = sorted(ByteLevel.alphabet())
        return [*alphabet, *(INSIDE + character for character in alphabet)]

    @classmethod
    def _trainer(cls, num_ids: int) -> hugging_face.trainers.WordPieceTrainer:
        return hugging_face.trainers.WordPieceTrainer(
            vocab_size=num_ids,
            min_frequency=2,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
            continuing_subword_prefix=INSIDE,
        )

    @classmethod
    def _learn(cls, model: dict, num_ids: int) -> tuple[str, ...]:
        known = set(cls._alphabet())  # of it, the trainer has only what it met inside of words
        pieces = [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in known]
        return tuple(pieces[: num_ids - len(known)])

    def _library_model(self) -> hugging_face.models.WordPiece:
        vocab = {token: i for i, token in enumerate([*self._alphabet(), *self.learned])}
        return hugging_face.models.WordPiece(
            vocab,
            unk_token=self._alphabet()[0],
            continuing_subword_prefix=INSIDE,
            max_input_chars_per_word=LONGEST_WORD,
        )

    @functools.cached_property
    def _model(self) -> hugging_face.Tokenizer:
        model = hugging_face.Tokenizer(self._library_model())
        short = hugging_face.pre_tokenizers.Split(hugging_face.Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
        model.pre_tokenizer = hugging_face.pre_tokenizers.Sequence([ByteLevel(add_prefix_space=False), short])
        model.decoder = hugging_face.decoders.Sequence(
            [hugging_face.decoders.Replace(INSIDE, ""), hugging_face.decoders.ByteLevel()]
        )
        return model


@dataclasses.dataclass(frozen=True)
class UnigramTokenizer(SubwordTokenizer):
    """The likeliest cut of each word under a language model of independent pieces. Kudo 2018, section 3.2.

    It learns pieces with their log-probabilities, "the -3.5"; every byte is one of them.
    """

    kind = "unigram"

    def __post_init__(self):
        known, pieces = set(self._alphabet()), set()
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
        pieces = dict(item.split(" ") for item in self.learned)
        scores = {piece: float(score) for piece, score in pieces.items()}
        return hugging_face.models.Unigram([*(dict.fromkeys(self._alphabet(), UNSEEN) | scores).items()])


def _pieces(text: str) -> list[str]:
    """`text` cut where a word ends before a space or newline: GPT-2's pattern never joins the two."""
    if lone_surrogate := re.search(r"[\ud800-\udfff]", text):
        raise no_id("bpe", text, lone_surrogate.start(), "byte")
    return re.findall(rf"(?s).{{{PIECE_CHARS},}}?\S(?=[ \n])|.+", text) or [""]
