import concurrent.futures
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import DataConfig, TokenizerConfig
from train.data import sources
from train.data.order import TrainOrder, _epoch_starts
from train.data.pipeline import TrainBatches, eval_batches, load_corpus, train_batches
from train.data.sources import load_text, split_text
from transformer_jax.config import UserError
from transformer_jax.tokenizers import ByteTokenizer, CharTokenizer

ORDER = TrainOrder(num_tokens=211, max_len=7, batch_size=3, seed=5)  # 29 windows, 9 steps an epoch, 2 windows over
TOKENS = np.arange(211, dtype=np.int32)  # each token is its own position
TEXT = "First line.\r\n\tZweite Zeile: Füchse, 狐.\n" * 11

lightly = settings(max_examples=60, deadline=None, database=None)


def text_config(path, val_fraction=0.1):
    return DataConfig(source="text", path=str(path), val_fraction=val_fraction)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Sources


@pytest.mark.parametrize("name", ["a.txt", "a.weird", "a[1].txt"])
def test_a_single_file_comes_back_byte_for_byte(tmp_path, name):
    content = "\ufeff\r\nA\u0301\t\x00 \n\n\n狐\r" + TEXT
    assert load_text(text_config(write(tmp_path / name, content))) == content


def test_a_gz_file_equals_the_plain_one(tmp_path):
    plain, packed = write(tmp_path / "a.txt", TEXT), write(tmp_path / "b.txt.gz", gzip.compress(TEXT.encode()))
    assert load_text(text_config(plain)) == load_text(text_config(packed)) == TEXT


def test_a_folder_gives_its_text_files_in_order_and_nothing_else(tmp_path):
    write(tmp_path / "c.md", "3")
    write(tmp_path / "b" / "z.py", "2")
    write(tmp_path / "b" / "a.txt.gz", gzip.compress(b"1"))
    for other in ("image.png", "notes.gz", ".hidden.txt", ".git/config.txt"):
        write(tmp_path / other, b"\xff")
    write(tmp_path / "empty.txt", "")
    assert load_text(text_config(tmp_path)) == "1\n\n2\n\n3"


def test_a_glob_takes_any_ending_at_any_depth(tmp_path):
    for name in ("g", "b", "k", "x/y/c", "a", "x/d", "i", "e"):
        write(tmp_path / f"{name}.csv", name)
    write(tmp_path / "c.txt", "3")
    (tmp_path / "folder.csv").mkdir()
    text = load_text(text_config(tmp_path / "**" / "*.csv"))
    assert text.split("\n\n") == ["a", "b", "e", "g", "i", "k", "x/d", "x/y/c"]


def test_a_tilde_stands_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", TEXT)
    assert load_text(text_config("~/a.txt")) == TEXT


def test_the_standard_library_is_read_and_what_is_installed_beside_it_is_not():
    text = load_text(DataConfig(source="python_source"))
    assert 7e6 < len(text) < 3e7
    with open(json.decoder.__file__, encoding="utf-8", newline="") as file:
        assert file.read() in text


def test_python_source_leaves_out_tests_packages_and_what_is_not_utf8(tmp_path, monkeypatch):
    stdlib = tmp_path / "test" / "stdlib"
    monkeypatch.setattr(sources.sysconfig, "get_path", {"stdlib": str(stdlib)}.get)
    write(stdlib / "a.py", "1")
    write(stdlib / "json" / "b.py", "2")
    write(stdlib / "json" / "latin.py", b"\xe9")
    write(stdlib / "c.txt", "no Python")
    for folder in ("test", "lib2to3/tests", "idlelib/idle_test", "site-packages/jax", "__pycache__"):
        write(stdlib / folder / "d.py", "left out")
    assert load_text(DataConfig(source="python_source")) == "1\n\n2"


def test_the_python_docs_hold_each_text_once_in_the_order_of_their_names(monkeypatch):
    assert 3e5 < len(load_text(DataConfig(source="python_docs"))) < 1e6
    monkeypatch.setattr("pydoc_data.topics.topics", {"c": "1", "a": "2", "b": "1"})
    assert load_text(DataConfig(source="python_docs")) == "2\n\n1"


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(UserError, match="data.source='web': unknown. Choose one of: python_docs, python_source, text"):
        load_text(DataConfig(source="web"))


def test_a_path_that_is_missing_or_names_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.path='': .*Give a file, a folder or a glob"):
        load_text(text_config(""))
    write(tmp_path / "image.png", "1")
    for path in (tmp_path, tmp_path / "missing.txt", tmp_path / "**" / "*.txt"):
        with pytest.raises(UserError, match=r"data.path='.*': must name at least one file") as error:
            load_text(text_config(path))
        assert str(path) in str(error.value)


@pytest.mark.parametrize("pack, name", [(bytes, "bad.txt"), (gzip.compress, "bad.txt.gz")])
def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path, pack, name):
    write(tmp_path / "good.txt", TEXT)
    write(tmp_path / name, pack("häuser".encode() + b"\xe9t\xe9"))
    with pytest.raises(UserError, match=rf"{name}' is not UTF-8: byte 0xe9 at offset 7"):
        load_text(text_config(tmp_path))


def damaged_gz():
    packed = gzip.compress(TEXT.encode())
    wrong_sum = packed[:-5] + bytes([packed[-5] ^ 16]) + packed[-4:]
    no_deflate = packed[:10] + b"\xff" * 23
    return {"truncated": packed[:-11], "wrong sum": wrong_sum, "no deflate": no_deflate, "no gzip": b"plain text"}


@pytest.mark.parametrize("damage", damaged_gz())
def test_a_damaged_gz_is_named(tmp_path, damage):
    file = write(tmp_path / "a.txt.gz", damaged_gz()[damage])
    with pytest.raises(UserError, match="a.txt.gz' cannot be read"):
        load_text(text_config(file))


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="a.txt' cannot be read"):
        load_text(text_config(tmp_path))


def test_a_text_of_empty_files_is_refused(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt.gz", gzip.compress(b""))
    with pytest.raises(UserError, match="data.path='.*': must not be empty"):
        load_text(text_config(tmp_path))


# The split


@lightly
@given(st.text(min_size=2, max_size=211), st.integers(1, 99))
def test_training_and_validation_part_make_up_the_text_without_overlap(text, percent):
    num_train = len(text) * (100 - percent) // 100
    if 0 < num_train < len(text):
        train, val = split_text(text, percent / 100)
        assert train + val == text and len(train) == num_train
    else:
        with pytest.raises(UserError, match=f"data.val_fraction={percent / 100}: leaves no training text"):
            split_text(text, percent / 100)


def test_a_tenth_of_tiny_shakespeare_is_split_where_everyone_splits_it():
    train, val = split_text("x" * 1_115_394, 0.1)
    assert (len(train), len(val)) == (1_003_854, 111_540)


def test_floating_point_costs_the_training_part_no_character():
    assert len(split_text("x" * 10, 0.9)[0]) == 1  # int(10 * (1 - 0.9)) is 0


def test_a_part_that_would_be_empty_is_named():
    with pytest.raises(UserError, match="data.val_fraction=0.5: leaves no training text of 1 characters"):
        split_text("x", 0.5)
    with pytest.raises(UserError, match="data.val_fraction=1e-20: leaves no training text|leaves no validation text"):
        split_text("", 1e-20)


# The order of training examples


def epoch_of(order, epoch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.stack([order.starts(step) for step in steps])


def test_an_epoch_visits_windows_once_on_one_grid():
    for epoch in range(13):
        starts = epoch_of(ORDER, epoch)
        assert starts.shape == (9, 3) and starts.dtype == np.int64
        assert len(np.unique(starts)) == 27
        assert len(np.unique(starts % 7)) == 1


@lightly
@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 97), st.integers(0, 2**40), st.integers(0, 10**6))
def test_windows_stay_within_the_text_and_no_target_occurs_twice_in_an_epoch(max_len, batch, extra, seed, epoch):
    order = TrainOrder((batch + 1) * max_len + extra, max_len, batch, seed)
    targets = epoch_of(order, epoch).reshape(-1, 1) + np.arange(1, max_len + 1)
    assert targets.min() >= 1 and targets.max() < order.num_tokens
    assert len(np.unique(targets)) == targets.size
    assert order.num_windows - len(targets) < batch  # what is left out would not fill a batch


def test_epochs_differ_in_order_and_offset():
    epochs = [epoch_of(ORDER, epoch) for epoch in range(29)]
    assert {int(starts[0, 0]) % 7 for starts in epochs} == set(range(7))
    orders = {tuple(np.argsort(starts.ravel())) for starts in epochs}
    assert len(orders) == 29


def test_seeds_differ_and_a_step_is_the_same_on_a_fresh_object():
    steps = [23, 2, 11, 41]
    wanted = [ORDER.starts(step).copy() for step in steps]
    _epoch_starts.cache_clear()
    np.testing.assert_array_equal([TrainOrder(211, 7, 3, 5).starts(step) for step in reversed(steps)], wanted[::-1])
    assert not np.array_equal([TrainOrder(211, 7, 3, 11).starts(step) for step in steps], wanted)


def test_threads_get_the_same_order_as_one_after_the_other():
    wanted = [ORDER.starts(step) for step in range(97)]
    _epoch_starts.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        np.testing.assert_array_equal(list(pool.map(ORDER.starts, range(97))), wanted)


def test_the_order_that_all_share_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        ORDER.starts(2)[0] = 0


def test_the_smallest_text_is_one_batch_and_a_shorter_one_is_refused():
    assert TrainOrder(28, 7, 3, 5).steps_per_epoch == 1
    with pytest.raises(UserError) as error:
        TrainOrder(27, 7, 3, 5)
    for part in ("train.batch_size=3", "model.max_len=7", "needs 28 tokens", "has 27", "smaller", "more text"):
        assert part in str(error.value)


# Training batches


def assert_equal_batches(batches, wanted):
    batches, wanted = list(batches), list(wanted)
    assert len(batches) == len(wanted)
    for batch, other in zip(batches, wanted, strict=True):
        np.testing.assert_array_equal(batch["tokens"], other["tokens"])
        np.testing.assert_array_equal(batch["is_token"], other["is_token"])


def test_a_training_batch_holds_consecutive_tokens_from_its_starts():
    batch = TrainBatches(TOKENS, ORDER, 23)[19]
    assert batch["tokens"].dtype == np.int32 and batch["is_token"].dtype == bool
    assert batch["is_token"].shape == (3, 8) and batch["is_token"].all()
    np.testing.assert_array_equal(batch["tokens"], ORDER.starts(19)[:, None] + np.arange(8))


def test_the_prefetched_batches_come_in_the_order_of_steps():
    batches = TrainBatches(TOKENS, ORDER, 31)  # three epochs and a half
    assert len(batches) == 31
    assert_equal_batches(train_batches(TOKENS, ORDER, 0, 31), [batches[step] for step in range(31)])


@pytest.mark.parametrize("start_step", [1, 9, 23, 30, 31])
def test_batches_from_a_later_step_are_the_tail_of_the_batches_from_the_first(start_step):
    whole = list(train_batches(TOKENS, ORDER, 0, 31))
    assert_equal_batches(train_batches(TOKENS, ORDER, start_step, 31), whole[start_step:])


# Evaluation batches


@lightly
@given(st.integers(2, 101), st.integers(1, 13), st.integers(1, 7))
def test_evaluation_counts_every_token_but_the_first_once_whatever_the_batch_size(num_tokens, max_len, batch_size):
    tokens = np.arange(100, 100 + num_tokens, dtype=np.int32)
    targets = []
    for batch in eval_batches(tokens, max_len, batch_size):
        assert batch["tokens"].shape == batch["is_token"].shape == (batch_size, max_len + 1)
        assert batch["tokens"].dtype == np.int32 and batch["is_token"].dtype == bool
        is_token = batch["is_token"]
        assert (batch["tokens"][~is_token] == 0).all() and (batch["tokens"][is_token] >= 100).all()
        assert (np.diff(is_token.astype(int), axis=1) <= 0).all()  # padding stands on the right
        assert (is_token[:, 0] == is_token[:, 1]).all()  # a row without targets is empty
        is_target = is_token[:, 1:]
        np.testing.assert_array_equal((batch["tokens"][:, 1:] - batch["tokens"][:, :-1])[is_target], 1)
        targets += batch["tokens"][:, 1:][is_target].tolist()
    assert targets == tokens[1:].tolist()


def test_evaluation_makes_no_batch_of_padding_alone():
    batches = list(eval_batches(TOKENS[:22], max_len=7, batch_size=3))
    assert len(batches) == 1 and batches[0]["is_token"].all()


# The corpus


@pytest.fixture
def corpus_file(tmp_path):
    return write(tmp_path / "a.txt", TEXT + "ß only here")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_corpus_is_the_text_in_two_parts(corpus_file, kind):
    corpus = load_corpus(text_config(corpus_file), TokenizerConfig(kind, 293))
    train, val = split_text(TEXT + "ß only here", 0.1)
    assert corpus.train_tokens.dtype == corpus.val_tokens.dtype == np.int32
    assert corpus.tokenizer.kind == kind
    assert corpus.tokenizer.decode(corpus.train_tokens) == train
    assert corpus.tokenizer.decode(corpus.val_tokens) == val
    assert corpus.val_bytes_per_token == pytest.approx(len(val.encode()) / len(corpus.val_tokens))


def test_bpe_learns_nothing_from_the_validation_part(tmp_path):
    learned = []
    for end in ("the same end" * 5, "quite another" * 5):
        file = write(tmp_path / "a.txt", ("What to learn from. " * 31 + end)[:631])
        learned.append(load_corpus(text_config(file), TokenizerConfig("bpe", 293)).tokenizer)
    assert learned[0] == learned[1]


def test_a_given_tokenizer_is_used_instead_of_a_new_one(corpus_file):
    corpus = load_corpus(text_config(corpus_file), TokenizerConfig("bpe", 293), ByteTokenizer())
    assert corpus.tokenizer == ByteTokenizer()
    with pytest.raises(UserError, match="no id for 'F'"):
        load_corpus(text_config(corpus_file), TokenizerConfig(), CharTokenizer.train("abc"))


def test_the_fingerprint_changes_with_text_split_and_tokenizer_and_with_nothing_else(corpus_file, tmp_path):
    def fingerprint(path=corpus_file, kind="byte", val_fraction=0.1):
        return load_corpus(text_config(path, val_fraction), TokenizerConfig(kind, 293)).fingerprint

    first = fingerprint()
    assert json.loads(json.dumps(first)) == first == fingerprint(write(tmp_path / "b.txt", corpus_file.read_bytes()))
    other_text = fingerprint(write(tmp_path / "c.txt", corpus_file.read_bytes().replace(b"here", b"hero")))
    assert {key for key in first if first[key] != other_text[key]} == {"text_sha256"}
    other_split = fingerprint(val_fraction=0.2)
    assert {key for key in first if first[key] != other_split[key]} == {"train_tokens", "val_tokens"}
    assert first["tokenizer_sha256"] != fingerprint(kind="char")["tokenizer_sha256"]


def test_a_validation_part_of_one_token_is_refused(tmp_path):
    file = write(tmp_path / "a.txt", "0123456789")
    with pytest.raises(UserError, match="data.val_fraction=0.1: the validation part has 1 token, and needs at least 2"):
        load_corpus(text_config(file), TokenizerConfig("char"))
    assert len(load_corpus(text_config(file, 0.2), TokenizerConfig("char")).val_tokens) == 2
