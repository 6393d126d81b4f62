"""Check of checkpoint folders that has to notice bugs of mutants.py; it imports the package as it is at that moment."""

import importlib
import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock


def checkpoint_folders():
    """A folder is sealed and flushed; copies and hollow ones are no checkpoints; one that is read is not deleted."""
    seal, lock = (importlib.import_module(f"transformer_jax.checkpoints.{name}") for name in ("seal", "lock"))
    flushed = []
    flush = seal.flush_to_disk
    with (
        tempfile.TemporaryDirectory() as root,
        mock.patch.object(seal, "flush_to_disk", lambda path: (flushed.append(path.name), flush(path))),
    ):
        folder, copy, hollow = (Path(root) / name for name in ("5", "7", "9"))
        for name, text in (("meta/metadata", '{"step": 5}'), ("params/_METADATA", "{}")):
            file = folder.with_name("saving") / name
            file.parent.mkdir(parents=True)
            file.write_text(text)
        seal.commit(folder.with_name("saving"), folder)
        assert {"metadata", "params", seal.SEAL, "saving", folder.parent.name} <= set(flushed)
        assert seal.find_problem(folder) is None
        shutil.copytree(folder, copy)
        assert (seal.find_problem(copy) or ("sound",))[0] == "misnamed"
        shutil.copytree(folder / "meta", hollow / "meta")
        digests = json.loads((folder / seal.SEAL).read_text())
        (hollow / seal.SEAL).write_text(json.dumps({"meta/metadata": digests["meta/metadata"]}))
        assert (seal.find_problem(hollow) or ("sound",))[0] == "damaged"
        with lock.HeldFolders() as held:
            held.add(folder)
            lock.delete(folder)
            assert folder.is_dir() and held.are_in_place()
        lock.delete(folder)
        assert not folder.exists()
