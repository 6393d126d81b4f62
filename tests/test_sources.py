"""Sources of running text, and the split into training and validation."""

import gzip
import json

import pytest
from helpers.text_files import TEXT, lightly, parts_of, text_config, write
from hypothesis import given
from hypothesis import strategies as st

from train.config import DataConfig
from train.data import sources
from train.data.sources import RunningText, load_text, num_train_chars
from transformer_jax.errors import UserError


def text_of(config):
    return "".join(load_text(config).pieces())


# Sources


@pytest.mark.parametrize("name", ["a.txt", "a.weird", "a[1].txt"])
def test_a_single_file_comes_back_character_for_character(tmp_path, name):
    content = "\nA\ufeff\u0301\t\x00 \n\n\n狐\r" + TEXT
    assert text_of(text_config(write(tmp_path / name, content))) == content


def test_a_gz_file_equals_the_plain_one(tmp_path):
    plain, packed = write(tmp_path / "a.txt", TEXT), write(tmp_path / "b.txt.gz", gzip.compress(TEXT.encode()))
    assert text_of(text_config(plain)) == text_of(text_config(packed)) == TEXT


def test_a_folder_gives_its_text_files_in_order_and_nothing_else(tmp_path):
    write(tmp_path / "c.md", "3")
    write(tmp_path / "b" / "z.py", "2")
    write(tmp_path / "b" / "a.txt.gz", gzip.compress(b"1"))
    for other in ("image.png", "notes.gz", ".hidden.txt", ".git/config.txt"):
        write(tmp_path / other, b"\xff")
    write(tmp_path / "empty.txt", "")
    assert text_of(text_config(tmp_path)) == "1\n\n2\n\n3"


def test_a_glob_takes_any_ending_at_any_depth(tmp_path):
    for name in ("g", "b", "k", "x/y/c", "a", "x/d", "i", "e"):
        write(tmp_path / f"{name}.csv", name)
    write(tmp_path / "c.txt", "3")
    (tmp_path / "folder.csv").mkdir()
    text = text_of(text_config(tmp_path / "**" / "*.csv"))
    assert text.split("\n\n") == ["a", "b", "e", "g", "i", "k", "x/d", "x/y/c"]


def test_a_tilde_stands_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", TEXT)
    assert text_of(text_config("~/a.txt")) == TEXT


def test_the_standard_library_is_read_and_what_is_installed_beside_it_is_not():
    text = text_of(DataConfig(source="python_source"))
    assert 7e6 < len(text) < 3e7
    with open(json.decoder.__file__, encoding="utf-8", newline="") as file:
        assert file.read() in text


def test_python_source_skips_tests_packages_and_files_that_are_not_utf8(tmp_path, monkeypatch):
    stdlib = tmp_path / "test" / "stdlib"
    monkeypatch.setattr(sources.sysconfig, "get_path", {"stdlib": str(stdlib)}.get)
    write(stdlib / "a.py", "1")
    write(stdlib / "json" / "b.py", "2")
    write(stdlib / "json" / "latin.py", b"\xe9")
    write(stdlib / "c.txt", "no Python")
    for folder in ("test", "lib2to3/tests", "idlelib/idle_test", "site-packages/jax", "__pycache__"):
        write(stdlib / folder / "d.py", "left out")
    assert text_of(DataConfig(source="python_source")) == "1\n\n2"


def test_the_python_docs_hold_each_text_once_in_the_order_of_their_names(monkeypatch):
    assert 3e5 < len(text_of(DataConfig(source="python_docs"))) < 1e6
    monkeypatch.setattr("pydoc_data.topics.topics", {"c": "1", "a": "2", "b": "1"})
    assert text_of(DataConfig(source="python_docs")) == "2\n\n1"


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(UserError, match="data.source='web': unknown. Choose one of: python_docs, python_source, text"):
        text_of(DataConfig(source="web"))


def test_a_path_that_is_missing_or_names_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.path='': .*Give a file, a folder or a glob"):
        text_of(text_config(""))
    write(tmp_path / "image.png", "1")
    for path in (tmp_path, tmp_path / "missing.txt", tmp_path / "**" / "*.txt"):
        with pytest.raises(UserError, match=r"data.path='.*': must name at least one file") as error:
            text_of(text_config(path))
        assert str(path) in str(error.value)


@pytest.mark.parametrize("pack, name", [(bytes, "bad.txt"), (gzip.compress, "bad.txt.gz")])
def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path, pack, name):
    write(tmp_path / "good.txt", TEXT)
    write(tmp_path / name, pack("häuser".encode() + b"\xe9t\xe9"))
    with pytest.raises(UserError, match=rf"{name}' is not UTF-8: byte 0xe9 at offset 7"):
        text_of(text_config(tmp_path))


def damaged_gz():
    packed = gzip.compress(TEXT.encode())
    wrong_sum = packed[:-5] + bytes([packed[-5] ^ 16]) + packed[-4:]
    no_deflate = packed[:10] + b"\xff" * 23
    return {"truncated": packed[:-11], "wrong sum": wrong_sum, "no deflate": no_deflate, "no gzip": b"plain text"}


@pytest.mark.parametrize("damage", damaged_gz())
def test_a_damaged_gz_is_named(tmp_path, damage):
    file = write(tmp_path / "a.txt.gz", damaged_gz()[damage])
    with pytest.raises(UserError, match="a.txt.gz' cannot be read"):
        text_of(text_config(file))


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="a.txt' cannot be read"):
        text_of(text_config(tmp_path))


def test_a_text_of_empty_files_is_refused(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt.gz", gzip.compress(b""))
    with pytest.raises(UserError, match="data.path='.*': must not be empty"):
        text_of(text_config(tmp_path))


# The split


@lightly
@given(st.text(min_size=2, max_size=211), st.integers(1, 99), st.integers(1, 23))
def test_training_and_validation_split_add_up_to_the_text_without_overlap(text, percent, piece):
    num_train = len(text) * (100 - percent) // 100
    if 0 < num_train < len(text):
        assert num_train_chars(len(text), percent / 100) == num_train
        pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
        train, val = RunningText(lambda: pieces, len(text), num_train, "").splits()
        assert "".join(train) == text[:num_train] and "".join(val) == text[num_train:]
    else:
        with pytest.raises(UserError, match=f"data.val_fraction={percent / 100}: leaves no training text"):
            num_train_chars(len(text), percent / 100)


def test_a_tenth_of_tiny_shakespeare_is_split_where_everyone_splits_it(tmp_path):
    train, val = parts_of(text_config(write(tmp_path / "a.txt", "x" * 1_115_394)))
    assert (len(train), len(val)) == (1_003_854, 111_540)


def test_floating_point_costs_the_training_split_no_character():
    assert num_train_chars(10, 0.9) == 1  # int(10 * (1 - 0.9)) is 0


def test_a_split_that_would_be_empty_is_named():
    with pytest.raises(UserError, match="data.val_fraction=0.5: leaves no training text of 1 characters"):
        num_train_chars(1, 0.5)
    with pytest.raises(UserError, match="data.val_fraction=1e-20: leaves no training text|leaves no validation text"):
        num_train_chars(0, 1e-20)
