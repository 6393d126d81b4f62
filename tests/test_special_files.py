"""FIFOs, devices and gzip bombs in the place of files: nothing waits for a writer or grows without limit."""

import gzip
import os
import shutil
import threading
from pathlib import Path

import pytest

from train.data.sources import files_under
from train.metrics import MetricsLog
from transformer_jax import lines
from transformer_jax.checkpoints.seal import find_problem
from transformer_jax.errors import UserError
from transformer_jax.files import open_lock, read_regular
from transformer_jax.lines import read_file
from transformer_jax.run import open_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_fifo_in_a_folder_of_texts_is_no_file_of_it(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    assert files_under(str(tmp_path), (".txt",)) == [str(tmp_path / "a.txt")]


def test_a_link_to_nothing_in_a_folder_of_texts_is_still_an_error(tmp_path):
    (tmp_path / "a.txt").symlink_to("missing")
    (file,) = files_under(str(tmp_path), (".txt",))
    assert "cannot be read" in refusal(read_file, file)


def test_a_fifo_that_a_user_names_is_read_to_its_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("one\ntwo",))
    writer.start()
    assert read_file(str(tmp_path / "pipe")) == "one\ntwo"
    writer.join()


def test_a_device_without_an_end_is_refused_and_the_empty_one_is_read():
    assert "is a device" in refusal(read_file, "/dev/zero")
    assert read_file("/dev/null") == ""


@pytest.mark.parametrize("name", ["sha256.json", "meta/metadata", "params/_METADATA"])
def test_a_fifo_in_a_checkpoint_is_damage(name, tmp_path):
    folder = tmp_path / "3"
    for file in ("meta/metadata", "params/_METADATA"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("{}")
    (folder / "sha256.json").write_text('{"meta/metadata": "0", "params/_METADATA": "0"}')
    (folder / name).unlink()
    os.mkfifo(folder / name)
    problem = find_problem(folder)
    assert problem.kind == "damaged" and ("not a regular file" in problem.reason or "does not match" in problem.reason)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_what_is_no_regular_file_is_neither_read_locked_nor_appended_to(make, tmp_path):
    for name in ("lock", "metrics.jsonl"):
        make(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file|Is a directory"):
        read_regular(tmp_path / "lock")
    assert "lock: is not a regular file" in refusal(open_lock, tmp_path / "lock")
    assert "metrics.jsonl: is not a regular file" in refusal(MetricsLog, tmp_path, 0, 3, False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_fifo_in_the_place_of_a_tokenizer_is_no_file(name, tmp_path):
    shutil.copy(FIXTURES / "gpt2" / "tokenizer.json", tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name == "tokenizer.json":
        assert "there is no tokenizer" in refusal(open_tokenizer, tmp_path)
    else:
        assert open_tokenizer(tmp_path).vocab_size > 0


def test_a_gzip_bomb_is_refused_at_its_limit_and_not_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_GZIP_BYTES", 5003)
    monkeypatch.setattr(lines, "PIECE_BYTES", 997)
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"a" * 1_000_003))
    assert f"holds more than {lines.MAX_GZIP_RATIO} times its size" in refusal(read_file, str(file))
    num_read = 0
    with pytest.raises(UserError):
        for piece in lines.read_pieces(str(file)):
            num_read += len(piece)
    assert num_read <= max(5003, lines.MAX_GZIP_RATIO * file.stat().st_size)


def test_a_small_file_may_be_as_repetitive_as_it_likes(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a" * 1_000_003))
    assert len(read_file(str(tmp_path / "a.gz"))) == 1_000_003


def test_members_of_a_gzip_file_are_joined_and_damaged_ones_refused(tmp_path):
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(b"one") + gzip.compress(b"two"))
    assert read_file(str(file)) == "onetwo"
    for damaged in (file.read_bytes()[:-5], b"one", b"\x1f\x8b", gzip.compress(b"one")[:10] + b"\xff" * 9):
        file.write_bytes(damaged)
        assert "cannot be read" in refusal(read_file, str(file))
