"""Checks of mutants: files that are written, their names, and the text of errors."""

import contextlib
import importlib
import json
import tempfile
from pathlib import Path

import numpy as np


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


def folder_tokenizers():
    read, batching, errors = (
        importlib.import_module(f"transformer_jax.{name}")
        for name in ("tokenizers.pretrained", "inference.batching", "errors")
    )

    def tokenizer_of(name, settings=None, **parts):
        folder = Path(__file__).parents[1] / "fixtures" / name
        values = json.loads((folder / "tokenizer.json").read_text()) | parts
        files = {"tokenizer.json": values, "tokenizer_config.json": settings or {}}
        return read.read_tokenizer(files.__contains__, lambda name: json.dumps(files[name]).encode(), {})

    def is_refused(call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except errors.UserError:
            return True
        return False

    llama = tokenizer_of("llama")
    assert [end.tolist() for end in llama.ends] == [[1], []]
    assert [end.tolist() for end in tokenizer_of("bert").ends] == [[2], [3]]
    cased = tokenizer_of("bert", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    assert cased.encode("The").tolist() == [2, 1, 3]
    times = lambda n: {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * n}  # noqa: E731
    hopeless = {"type": "Sequence", "normalizers": [times(33)] * 4}  # hardly above the bound: a mutant makes them all
    assert is_refused(tokenizer_of, "llama", normalizer=hopeless)
    grows = tokenizer_of("llama", normalizer={"type": "Sequence", "normalizers": [times(10)] * 4})
    assert is_refused(grows.encode, "aa")
    assert is_refused(batching.check_ids, "text", [np.array([5])], llama, 5)
    assert not is_refused(batching.check_ids, "text", [np.array([5])], llama, 6)
