"""Token files: the token ids of a long running text, encoded once into a cache folder, then memory-mapped.

The cache has a folder for each text, named by its digest, with

    tokenizer-KEY.json   a tokenizer that was trained on the text
    tokens-KEY.bin       HEADER_BYTES bytes of JSON, then the ids of both splits, 2 or 4 bytes each, little-endian

KEY is a digest of all else that the file depends on. A file gets its name once it is complete. It is checked at every
start, by a checksum and by the size of the vocabulary, and written again if it is damaged: it may hold other ids than
those of the text, if somebody has put them there, and nothing worse.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import json
import mmap
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

import transformer_jax
from transformer_jax.errors import RunError, UserError, warn
from transformer_jax.files import make_subfolder, replace_file
from transformer_jax.startup import cache_root
from transformer_jax.tokenizers import Tokenizer, tokenizer_from_dict

from ..config import TokenizerConfig
from .progress import Progress
from .sources import RunningText, utf8

FORMAT = 1  # raise it when a tokenizer encodes a text, or learns from it, in another way than before
HEADER_BYTES = 4096
CHECKED_BYTES = 2**22  # at once

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of an encoded text."""

    train_tokens: int
    val_tokens: int
    val_bytes: int  # of UTF-8


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """Token ids of both splits of a running text: int32, or read-only uint16 or uint32 of a memory-mapped file."""

    train_tokens: np.ndarray
    val_tokens: np.ndarray
    val_bytes: int
    file: Path | None = None

    @classmethod
    def of(cls, tokens: np.ndarray, sizes: Sizes, file: Path | None = None) -> "EncodedText":
        """Split the ids of the whole text."""
        return cls(tokens[: sizes.train_tokens], tokens[sizes.train_tokens :], sizes.val_bytes, file)


def encode_in_memory(text: RunningText, tokenizer: Tokenizer) -> EncodedText:
    """Encode both splits of a text. Raises UserError as `tokenizer.encode` does."""
    tokens = [np.zeros(0, np.int32)]
    sizes = _encode(text, text.splits(), tokenizer, tokens.append)
    return EncodedText.of(np.concatenate(tokens), sizes)


def _encode(
    text: RunningText, splits: Iterable[Iterable[str]], tokenizer: Tokenizer, write: Callable[[np.ndarray], object]
) -> Sizes:
    """Encode the splits of a text, in pieces.

    Raises:
      UserError: the text is no longer the one that was read before; an error of the tokenizer.
    """
    digest = hashlib.sha256()
    num_tokens: list[int] = []
    num_bytes: list[int] = []

    def count_bytes(pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            data = utf8(piece)
            digest.update(data)
            num_bytes[-1] += len(data)
            yield piece

    for split in splits:
        num_tokens.append(0)
        num_bytes.append(0)
        for ids in tokenizer.encode_pieces(count_bytes(split)):
            write(ids)
            num_tokens[-1] += len(ids)
    if digest.hexdigest() != text.sha256:
        raise UserError("data: the text changed while it was read. Start again, once its files are complete.")
    return Sizes(num_tokens[0], num_tokens[1], num_bytes[1])


class TokenCache:
    """Folder of the files of one text, in the cache folder `data.cache_dir`.

    One process at a time works on it; the others wait.

    Args:
      cache_dir: ""; transformer_jax/tokens in XDG_CACHE_HOME or ~/.cache.
    Raises:
      UserError: the folder cannot be made.
    """

    def __init__(self, cache_dir: str, text: RunningText):
        self._text = text
        root = Path(cache_dir).expanduser() if cache_dir else cache_root() / "tokens"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder = make_subfolder(root, text.sha256)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={cache_dir!r}: {root} cannot be used ({error.strerror}). A text of more than "
                "32 million characters is kept there, as token ids. Give a folder that you can write to."
            ) from error

    @classmethod
    def of(cls, cache_dir: str, text: RunningText) -> "TokenCache | None":
        """The cache of a long text; None for a text that is in memory, as its tokens will be."""
        return None if text.is_in_memory else cls(cache_dir, text)

    def tokenizer(self, config: TokenizerConfig, train: Callable[[], Tokenizer]) -> Tokenizer:
        """The tokenizer of `config` that was trained on this text; `train` trains it if there is none yet."""
        path = self._folder / f"tokenizer-{self._key(kind=config.kind, vocab_size=config.vocab_size)}.json"
        with self._locked():
            tokenizer = _sound(path, lambda file: _read_tokenizer(file, config.kind))
            if tokenizer is None:
                tokenizer = train()
                saved = json.dumps(tokenizer.to_dict()).encode()
                with self._advice(), replace_file(path) as file:
                    file.write(b"%s\n%s\n" % (hashlib.sha256(saved).hexdigest().encode(), saved))
        return tokenizer

    def tokens(self, tokenizer: Tokenizer, tokenizer_sha256: str) -> EncodedText:
        """The ids of this text, memory-mapped; it is encoded if it is not yet.

        Args:
          tokenizer_sha256: digest of the tokenizer.
        Raises:
          UserError: the text has changed, or the tokenizer cannot encode it.
          RunError: the file cannot be written, such as to a full disk.
        """
        path = self._folder / f"tokens-{self._key(tokenizer=tokenizer_sha256)}.bin"
        with self._locked():
            encoded = _sound(path, lambda file: _map_tokens(file, path, tokenizer.vocab_size))
            if encoded is None:
                with self._advice():
                    self._write(path, tokenizer)
                encoded = _sound(path, lambda file: _map_tokens(file, path, tokenizer.vocab_size))
        if encoded is None:
            raise RunError(f"{path}: does not hold what was written. The disk may be failing.")
        return encoded

    def _key(self, **values: str | int) -> str:
        values |= {"format": FORMAT, "num_train": self._text.num_train, "version": transformer_jax.__version__}
        values["library"] = importlib.metadata.version("tokenizers")
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that works on {self._folder}", file=sys.stderr, flush=True)
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError:  # no locks here, as on some network file systems
                pass
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _advice(self) -> Iterator[None]:
        try:
            yield
        except RunError as error:
            raise RunError(f"{error} Make room, or give another folder: data.cache_dir.") from error

    def _write(self, path: Path, tokenizer: Tokenizer) -> None:
        dtype = _dtype(tokenizer.vocab_size)
        checksum = 0
        with Progress("encoding the text", self._text.num_chars) as progress, replace_file(path) as file:

            def write(ids: np.ndarray) -> None:
                nonlocal checksum
                if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
                    raise UserError(
                        f"tokenizer: has the id {ids.max()}, and must have {tokenizer.vocab_size} ids only."
                    )
                data = ids.astype(dtype).tobytes()
                checksum = zlib.crc32(data, checksum)
                file.write(data)

            file.write(bytes(HEADER_BYTES))
            splits = map(progress.counting, self._text.splits())
            sizes = _encode(self._text, splits, tokenizer, write)
            header = json.dumps({**dataclasses.asdict(sizes), "checksum": checksum})
            file.seek(0)
            file.write(header.encode().ljust(HEADER_BYTES - 1) + b"\n")


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _sound(path: Path, read: Callable[[io.BufferedReader], T]) -> T | None:
    """Read a file of the cache; None if there is none. A damaged one is reported, and counts as none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("no regular file")
            return read(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warn(f"{path}: is damaged ({str(error) or type(error).__name__}), and is written again")
        return None


def _read_tokenizer(file: io.BufferedReader, kind: str) -> Tokenizer:
    digest, _, saved = file.read().rstrip(b"\n").partition(b"\n")
    if digest.decode() != hashlib.sha256(saved).hexdigest():
        raise ValueError("wrong digest")
    values = json.loads(saved)
    if values["kind"] != kind:
        raise ValueError("wrong kind")
    return tokenizer_from_dict(values)


def _map_tokens(file: io.BufferedReader, path: Path, vocab_size: int) -> EncodedText:
    """Map a token file. Raises ValueError, KeyError, TypeError: it is damaged, or has an id beyond the vocabulary."""
    header = json.loads(file.read(HEADER_BYTES))
    sizes = Sizes(**{field.name: _number(header[field.name]) for field in dataclasses.fields(Sizes)})
    dtype = _dtype(vocab_size)
    num_tokens = sizes.train_tokens + sizes.val_tokens
    if os.fstat(file.fileno()).st_size != HEADER_BYTES + num_tokens * dtype.itemsize:
        raise ValueError("wrong size")
    checksum = 0
    with Progress("checking the tokens", num_tokens, "tokens") as progress:
        while data := file.read(CHECKED_BYTES):
            checksum = zlib.crc32(data, checksum)
            ids = np.frombuffer(data, dtype)
            if ids.max() >= vocab_size:
                raise ValueError("an id beyond the vocabulary")
            progress.advance(len(ids))
    if checksum != header["checksum"]:
        raise ValueError("wrong checksum")
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return EncodedText.of(np.frombuffer(mapped, dtype, offset=HEADER_BYTES), sizes, path)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a header that is none")
    return value
