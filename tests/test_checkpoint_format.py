"""Format number of a checkpoint's metadata: run directories of another version are refused."""

import hashlib
import json

import numpy as np
import pytest

import transformer_jax as tj
from train.resume import last_checkpoint
from transformer_jax.checkpoint import FORMAT, CheckpointError, Checkpoints


def run_of_format(folder, number):
    """A run directory whose sealed metadata have this format number, or none at all."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(5, {"kernel": np.ones((3, 5))}, {"step": 5, "val_score": -1.5})
    checkpoints.wait()
    meta = folder / "checkpoints" / "5" / "meta" / "metadata"
    values = json.loads(meta.read_text())
    assert values.pop("format") == FORMAT == 2
    meta.write_text(json.dumps(values if number is None else {**values, "format": number}))
    seal = folder / "checkpoints" / "5" / "sha256.json"
    digest = hashlib.sha256(meta.read_bytes()).hexdigest()
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "meta/metadata": digest}))
    return folder


def test_a_checkpoint_of_this_format_is_read(tmp_path):
    checkpoints = Checkpoints(run_of_format(tmp_path / "run", FORMAT))
    assert checkpoints.find("best") == 5 and checkpoints.meta(5) == {"format": 2, "step": 5, "val_score": -1.5}


@pytest.mark.parametrize(
    ("number", "found", "writer"), [(None, 1, "an earlier"), (1, 1, "an earlier"), (3, 3, "another")]
)
def test_another_format_is_refused_in_one_line_at_load_and_at_resume(tmp_path, capsys, number, found, writer):
    run_dir = run_of_format(tmp_path / "run", number)
    ways = {
        "load": lambda: tj.load(run_dir),
        "load best": lambda: tj.load(run_dir, "best"),
        "read_meta": lambda: tj.read_meta(run_dir),
        "resume": lambda: last_checkpoint(Checkpoints(run_dir)),
    }
    for way, refuse in ways.items():
        with pytest.raises(CheckpointError) as error:
            refuse()
        assert str(error.value) == (
            f"{run_dir}: was written by {writer} version of transformer_jax (checkpoint format {found}, "
            "this version reads 2). Train again, or use that version."
        ), way
    assert capsys.readouterr().err == ""  # the checkpoint is undamaged: no warning, and no other one is tried
