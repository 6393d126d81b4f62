"""Checks of mutants: files that are written, their names, and the text of errors."""

import contextlib
import importlib
import tempfile
from pathlib import Path


def files():
    files, errors = (importlib.import_module(f"transformer_jax.{name}") for name in ("files", "errors"))
    with tempfile.TemporaryDirectory() as folder:
        victim, link = Path(folder) / "victim", Path(folder) / "link"
        victim.write_text("mine")
        for path in (link, link.with_name("link.tmp")):
            path.symlink_to(victim)
        with contextlib.suppress(errors.RunError):
            files.write_text(link, "new")
        assert victim.read_text() == "mine" and link.read_text() == "new" and not link.is_symlink()
    for name in ("../a", 5):
        try:
            files.check_file_name(name, ("a",), "tokenizer")
        except errors.UserError:
            continue
        raise AssertionError(name)
    assert str(errors.UserError("a\x1b\n")) == "a\\x1b\\n"
