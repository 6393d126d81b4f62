"""Run directories from somebody else: names and links in them make no command write elsewhere, or read for ever."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import rewrite_meta
from helpers.commands import assert_is_one_error, command

import transformer_jax as tj
from train.loop import run
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints
from transformer_jax.errors import RunError, UserError, printable, warn
from transformer_jax.files import make_subfolder, replace_file

pytestmark = pytest.mark.usefixtures("compilation_cache")
SETTINGS = {
    "tokenizer": {"kind": "byte"},
    "model": {"num_layers": 1, "d_model": 6, "num_heads": 2, "max_len": 5},
    "train": {"batch_size": 3, "num_steps": 2, "log_every": 1, "eval_every": 2},
}
FIXTURES = Path(__file__).parent / "fixtures"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\r\u202eabc"


def train(folder, workdir):
    data = folder / "text.txt"
    data.write_text("The cat sat on the mat. " * 20)
    return run({**SETTINGS, "data": {"source": "text", "path": str(data)}}, workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return train(folder, folder / "run")


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A run directory of a Hugging Face model, whose metadata hold the files of its tokenizer."""
    folder = tmp_path_factory.mktemp("converted") / "run"
    tj.save(tj.from_pretrained(FIXTURES / "gpt2"), folder)
    return folder


def with_files(change):
    """Change of the metadata by which the tokenizer's files, contents by name, are changed."""

    def change_meta(meta):
        saved = json.loads(meta["tokenizer"]["learned"][0])
        saved = change(saved) or saved
        return meta | {"tokenizer": meta["tokenizer"] | {"learned": [json.dumps(saved)]}}

    return change_meta


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


BAD_NAMES = [
    "../owned",
    "/tmp/owned_by_transformer_jax",
    "a/b.json",
    "config.json",
    "model.safetensors",
    "..",
    "",
    "\0",
    ESCAPE,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_saved_tokenizer_writes_only_files_of_known_names(name, converted, tmp_path):
    run_dir = shutil.copytree(converted, tmp_path / "run")
    rewrite_meta(run_dir, with_files(lambda saved: saved["files"].update({name: "owned"})))
    before = listing(tmp_path)
    done = command("convert", f"--from={run_dir}", f"--to={tmp_path / 'to' / 'folder'}")
    assert_is_one_error(done, "saved tokenizer: ", "is not the name of one of its files")
    assert done.stderr[:-1].isprintable()
    assert listing(tmp_path) == before and not os.path.exists("/tmp/owned_by_transformer_jax")


MALFORMED = {
    "no JSON": lambda saved: "x",
    "ids": lambda saved: saved.update(ids=[1]),
    "an id": lambda saved: saved["ids"].update(pad=2**40),
    "an id of another type": lambda saved: saved["ids"].update(pad="0"),
    "files": lambda saved: saved.update(files=["tokenizer.json"]),
    "contents": lambda saved: saved["files"].update({"tokenizer.json": 5}),
    "no file": lambda saved: saved["files"].clear(),
    "text that no file has": lambda saved: saved["files"].update({"added_tokens.json": "\ud800"}),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_saved_tokenizer_is_refused_in_one_line(change, converted, tmp_path):
    run_dir = shutil.copytree(converted, tmp_path / "run")
    rewrite_meta(run_dir, with_files(change))
    with pytest.raises(CheckpointError, match="tokenizer") as error:
        tj.load(run_dir)
    assert str(error.value).isprintable()


# Links

WRITTEN = [".lock", "config.json", "config.json.tmp", "metrics.jsonl", "metrics.jsonl.tmp", "loss.png", "loss.png.tmp"]


def test_training_and_evaluating_write_through_no_link_of_the_run_directory(run_dir, tmp_path):
    victims = [tmp_path / f"victim_{i}" for i in range(len(WRITTEN))]
    for victim, name in zip(victims, WRITTEN, strict=True):
        victim.write_text("mine")
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).symlink_to(victim)
    (run_dir / "evaluation" / "val").mkdir(parents=True)
    (run_dir / "evaluation" / "val" / "scores.json").symlink_to(victims[1])
    with pytest.raises(UserError, match=r"\.lock: is a link"):
        train(tmp_path, run_dir)
    (run_dir / ".lock").unlink()
    shutil.rmtree(run_dir / "checkpoints")  # so that it trains again
    train(tmp_path, run_dir)
    done = command("evaluate", f"--run_dir={run_dir}", "--checkpoint=latest")
    assert done.returncode == 0, done.stderr
    assert [victim.read_text() for victim in victims] == ["mine"] * len(victims)
    written = [run_dir / name for name in ("config.json", "loss.png", "metrics.jsonl", "evaluation/val/scores.json")]
    assert all(path.is_file() and not path.is_symlink() and path.stat().st_size > 50 for path in written)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_link_in_place_of_a_folder_is_refused_before_anything_is_changed(name, run_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    if (run_dir / name).is_dir():
        (run_dir / name).rename(elsewhere)
    (elsewhere / "7.orbax-checkpoint-tmp").mkdir()  # that a run would sweep away
    (run_dir / name).symlink_to(elsewhere)
    (tmp_path / "text.txt").touch()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=f"{name}: is a link, and nothing is written through it"):
        train(tmp_path, run_dir)
    assert listing(tmp_path) == before


def test_evaluate_refuses_a_link_in_place_of_its_folder(run_dir, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run_dir / "evaluation").symlink_to(tmp_path / "elsewhere")
    done = command("evaluate", f"--run_dir={run_dir}", "--checkpoint=latest")
    assert done.returncode == 2 and "evaluation: is a link" in done.stderr
    assert listing(tmp_path / "elsewhere") == []


def test_a_run_directory_may_itself_be_a_link_and_its_checkpoints_are_read_through_links(run_dir, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    train(tmp_path, link)
    (run_dir / "checkpoints").rename(tmp_path / "bigger_disk")
    (run_dir / "checkpoints").symlink_to(tmp_path / "bigger_disk")
    assert tj.load(link).step == 2
    with pytest.raises(UserError, match="is a link"):
        Checkpoints(link).save({}, tj.read_meta(link))


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_file(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert listing(tmp_path) == [str(path)] and path.read_text() == "old"
    with replace_file(path) as file:
        file.write(b"new")
    assert listing(tmp_path) == [str(path)] and path.read_text() == "new"
    assert make_subfolder(tmp_path, "a", "b").is_dir()
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


# Text that a terminal would obey


def test_errors_and_warnings_show_control_characters_and_never_send_them(capsys):
    text = f"line\n{ESCAPE} 中 é \ud800"
    shown = r"line\n\x1b]0;owned\x07\x1b[2J\r\u202eabc 中 é \ud800"
    assert printable(text) == shown and printable(shown) == shown
    for error in (UserError(text), RunError(text), CheckpointError(text)):
        assert str(error) == shown
    warn(text)
    assert capsys.readouterr().err == f"warning: {shown}\n"


def test_labels_of_somebody_else_are_printed_as_text(tmp_path):
    run = tj.from_pretrained(FIXTURES / "bert_classifier")
    tj.save(dataclasses.replace(run, labels=tuple(f"{ESCAPE}\n{i}" for i in range(len(run.labels)))), tmp_path / "run")
    done = command("classify", f"--run_dir={tmp_path / 'run'}", "--checkpoint=latest", stdin="a cat\nthe mat\n")
    assert done.returncode == 0, done.stderr
    assert [line.isprintable() for line in done.stdout.replace("\t", " ").splitlines()] == [True, True]
