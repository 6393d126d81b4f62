"""Long running texts: encoded in pieces, once, into files that training maps; the same batches as from memory."""

import contextlib
import itertools
import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.text_files import lightly, write
from hypothesis import given
from hypothesis import strategies as st

import transformer_jax as tj
from train.config import Config, DataConfig, TokenizerConfig
from train.data import batches, sources, token_files
from train.data.batches import load_corpus
from train.initialization import InitFrom
from train.signals import Stopped, StopSignals
from train.tasks.base import load_task
from transformer_jax.errors import RunError, UserError
from transformer_jax.tokenizers import TOKENIZERS, CharTokenizer, train_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
ALPHABET = "ab '.1_é狐\n\t\u3000\x1c"
LONG = "".join(np.random.default_rng(5).choice([*ALPHABET, "  ", "\n\n", "'s", "the "], 1009))
SIZES = {"bpe": 293, "wordpiece": 557, "unigram": 293}


def cut(text, places):
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def config(folder, **data):
    return DataConfig(source="text", path=str(folder / "a.txt"), cache_dir=str(folder / "cache"), **data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a text that is longer than what is kept in memory, and read in many pieces."""
    write(tmp_path / "a.txt", LONG)
    monkeypatch.setattr(sources, "IN_MEMORY_CHARS", 97)
    monkeypatch.setattr(sources, "PIECE_CHARS", 101)
    return tmp_path


def files_of(folder):
    return sorted(path for path in (folder / "cache").rglob("*") if path.is_file())


def token_file(folder):
    [path] = [path for path in files_of(folder) if path.name.startswith("tokens-")]
    return path


# Pieces


TRAINED = {kind: train_tokenizer(kind, SIZES.get(kind, 0), LONG) for kind in TOKENIZERS}


@pytest.mark.parametrize("kind", TOKENIZERS)
@lightly
@given(st.text(st.sampled_from(ALPHABET), max_size=97), st.lists(st.integers(0, 97), max_size=5))
def test_tokens_of_a_text_do_not_depend_on_where_its_pieces_are_cut(kind, text, places):
    ids = list(TRAINED[kind].encode_pieces(cut(text, places)))
    assert all(part.dtype == np.int32 for part in ids)
    np.testing.assert_array_equal(np.concatenate([*ids, np.zeros(0, np.int32)]), TRAINED[kind].encode(text))


def test_subwords_of_a_long_text_are_encoded_before_it_ends():
    asked = []
    pieces = (asked.append(i) or "the quick fox " for i in range(11))
    next(TRAINED["bpe"].encode_pieces(pieces))
    assert asked == [0]


@pytest.mark.parametrize("kind", ["char", "bpe"])
@lightly
@given(st.lists(st.integers(0, len(LONG)), max_size=7))
def test_a_tokenizer_learns_the_same_from_a_text_in_pieces(kind, places):
    assert train_tokenizer(kind, 307, iter(cut(LONG, places))) == train_tokenizer(kind, 307, LONG)


def test_a_tokenizer_of_files_adds_its_ends_once():
    for name in ("gpt2", "bert", "t5"):
        tokenizer = tj.from_pretrained(FIXTURES / name).tokenizer
        [ids] = tokenizer.encode_pieces(["the quick", " brown fox"])
        np.testing.assert_array_equal(ids, tokenizer.encode("the quick brown fox"))


def test_an_unknown_character_in_a_later_piece_is_named_by_its_position_in_the_text():
    text = "abc\nabcé\né"
    for places in ([], [2], [4, 6], [3, 4, 5], [8, 9]):
        with pytest.raises(UserError) as error:
            list(CharTokenizer.train("abc\n").encode_pieces(cut(text, places)))
        assert "'é' (U+00E9) at position 7 (line 2, column 4)" in str(error.value)


# Files


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_text_gives_the_tokens_and_the_fingerprint_of_a_short_one(folder, kind, monkeypatch):
    settings = TokenizerConfig(kind, SIZES.get(kind, 293))
    first = load_corpus(config(folder), settings)
    again = load_corpus(config(folder), settings)
    monkeypatch.setattr(sources, "IN_MEMORY_CHARS", len(LONG))
    short = load_corpus(config(folder), settings, first.tokenizer)
    assert short.file is None and short.train_tokens.dtype == np.int32
    for corpus in (first, again):
        assert corpus.file == token_file(folder) and str(corpus.file) in corpus.description
        assert corpus.train_tokens.dtype == np.uint16 and not corpus.train_tokens.flags.writeable
        np.testing.assert_array_equal(corpus.train_tokens, short.train_tokens)
        np.testing.assert_array_equal(corpus.val_tokens, short.val_tokens)
        assert corpus.fingerprint == short.fingerprint and corpus.tokenizer == first.tokenizer
        assert corpus.val_bytes_per_token == short.val_bytes_per_token


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "spans"])
def test_batches_from_a_token_file_are_bit_equal_to_those_from_memory(folder, task, monkeypatch):
    values = {
        "data": {"source": "text", "path": str(folder / "a.txt"), "cache_dir": str(folder / "cache")},
        "model": {"num_layers": 1, "d_model": 10, "num_heads": 2, "max_len": 29},
        "train": {"task": task, "batch_size": 3},
    }
    made = []
    for limit in (97, len(LONG)):
        monkeypatch.setattr(sources, "IN_MEMORY_CHARS", limit)
        of_run = load_task(Config.from_dict(values), InitFrom())
        made.append([*map(of_run.train_batch, (0, 5, 13)), *of_run.eval_batches()])
    for mapped, wanted in zip(*made, strict=True):
        assert mapped.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(mapped[name], array)
            assert mapped[name].dtype == array.dtype
    assert len(files_of(folder)) == 2


def test_a_second_start_neither_trains_nor_encodes(folder, monkeypatch):
    settings = TokenizerConfig("bpe", 293)
    first = load_corpus(config(folder), settings)
    monkeypatch.setattr(TOKENIZERS["bpe"], "train", None)
    monkeypatch.setattr(TOKENIZERS["bpe"], "encode_pieces", None)
    assert load_corpus(config(folder), settings).fingerprint == first.fingerprint


def test_another_text_split_or_tokenizer_has_a_file_of_its_own(folder):
    settings = TokenizerConfig("bpe", 293)
    load_corpus(config(folder), settings)
    for changes, other in (({"val_fraction": 0.2}, settings), ({}, TokenizerConfig("bpe", 307))):
        before = files_of(folder)
        load_corpus(config(folder, **changes), other)
        assert len(files_of(folder)) == len(before) + 2
    times = os.stat(folder / "a.txt")
    write(folder / "a.txt", LONG.replace("the", "teh"))
    os.utime(folder / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    before = files_of(folder)
    load_corpus(config(folder), settings)  # of the same length and age
    assert len(files_of(folder)) == len(before) + 2


def test_a_large_vocabulary_has_four_bytes_an_id(folder):
    assert [token_files._dtype(size).itemsize for size in (2**16, 2**16 + 1)] == [2, 4]
    text = "".join(map(chr, range(0x10000, 0x20011)))
    write(folder / "a.txt", text)
    corpus = load_corpus(config(folder), TokenizerConfig("char"))
    assert corpus.train_tokens.dtype == np.uint32
    assert corpus.tokenizer.decode(np.concatenate([corpus.train_tokens, corpus.val_tokens])) == text


def damage():
    def changed(path):
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)

    def truncated(path):
        os.truncate(path, path.stat().st_size - 2)

    def of_another(path):
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"checksum"', b'"chekcsum"'))

    def linked(path):
        os.rename(path, path.with_name("other"))
        path.symlink_to("other")

    def pipe(path):
        path.unlink()
        os.mkfifo(path)

    def beyond(path):  # an id that no token has, with a checksum that fits
        header, data = path.read_bytes()[:4096], bytearray(path.read_bytes()[4096:])
        data[6:8] = b"\xff\xff"
        fields = token_files.json.loads(header) | {"checksum": token_files.zlib.crc32(data)}
        path.write_bytes(token_files.json.dumps(fields).encode().ljust(4096) + data)

    def empty(path):
        path.write_bytes(b"")

    def no_header(path):
        path.write_bytes(b"[" * 4096 + path.read_bytes()[4096:])

    def huge(path):
        path.write_bytes(path.read_bytes().replace(b'"train_tokens": ', b'"train_tokens": 1e999, "a": '))

    return [changed, truncated, of_another, linked, pipe, beyond, empty, no_header, huge]


@pytest.mark.parametrize("spoil", damage(), ids=lambda spoil: spoil.__name__)
def test_a_damaged_token_file_is_reported_and_written_again(folder, spoil, capfd):
    settings = TokenizerConfig("byte")
    wanted = np.array(load_corpus(config(folder), settings).train_tokens)
    path = token_file(folder)
    spoil(path)
    np.testing.assert_array_equal(load_corpus(config(folder), settings).train_tokens, wanted)
    assert f"warning: {path}: is damaged" in capfd.readouterr().err
    assert path.is_file() and not path.is_symlink()
    load_corpus(config(folder), settings)
    assert "damaged" not in capfd.readouterr().err


def test_a_damaged_tokenizer_of_the_cache_is_reported_and_trained_again(folder, capfd):
    settings = TokenizerConfig("bpe", 293)
    tokenizer = load_corpus(config(folder), settings).tokenizer
    [path] = [path for path in files_of(folder) if path.name.startswith("tokenizer-")]
    path.write_bytes(path.read_bytes().replace(b"bpe", b"byt", 1))
    assert load_corpus(config(folder), settings).tokenizer == tokenizer
    assert f"{path}: is damaged (wrong digest)" in capfd.readouterr().err


# Failures


def test_a_cache_folder_that_cannot_be_made_is_named_with_the_setting(folder):
    write(folder / "cache", "a file")
    with pytest.raises(UserError, match="data.cache_dir='.*cache': .*cache cannot be used .*Give a folder"):
        load_corpus(config(folder), TokenizerConfig("byte"))


@contextlib.contextmanager
def largest_file(num_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_nothing(folder):
    with largest_file(5000), pytest.raises(RunError) as error:
        load_corpus(config(folder), TokenizerConfig("byte"))
    assert "cannot be written" in str(error.value) and "data.cache_dir" in str(error.value)
    assert [path.name[:9] for path in files_of(folder)] == ["tokenizer"]


def test_a_text_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    encode_text = token_files._encode

    def change(*args):
        write(folder / "a.txt", LONG.replace("the", "teh"))
        return encode_text(*args)

    monkeypatch.setattr(token_files, "_encode", change)
    with pytest.raises(UserError, match="data: the text changed while it was read"):
        load_corpus(config(folder), TokenizerConfig("byte"))
    assert [path.name[:9] for path in files_of(folder)] == ["tokenizer"]


def test_a_second_process_waits_and_uses_what_the_first_one_wrote(folder, capfd):
    settings = TokenizerConfig("byte")
    text = sources.load_text(config(folder))
    cache = token_files.TokenCache.of(str(folder / "cache"), text)
    with cache._locked():
        thread = threading.Thread(target=load_corpus, args=(config(folder), settings), daemon=True)
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and files_of(folder) == []
    thread.join(60.0)
    assert len(files_of(folder)) == 2
    assert "waiting for another process" in capfd.readouterr().err


def test_a_signal_ends_the_training_of_a_tokenizer(folder):
    text = sources.RunningText(lambda: itertools.repeat("the quick fox ", 3_000_000), 10**9, 10**8, "")
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with StopSignals() as stop, pytest.raises(Stopped):
        stop.nothing_to_save = True
        timer.start()
        batches._train_on_text(TokenizerConfig("bpe", 293), text)


def test_a_signal_while_a_text_is_encoded_leaves_no_file(folder, monkeypatch):
    def encode_pieces(self, pieces):
        for piece in pieces:
            yield np.zeros(len(piece), np.int32)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TOKENIZERS["byte"], "encode_pieces", encode_pieces)
    with StopSignals() as stop, pytest.raises(Stopped):
        stop.nothing_to_save = True
        load_corpus(config(folder), TokenizerConfig("byte"))
    assert [path.name[:9] for path in files_of(folder)] == ["tokenizer"]
