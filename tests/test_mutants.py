"""The laws bite: the package is loaded with one bug at a time (mutants.py), and a check has to notice each of them."""

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from pathlib import Path

import mutant_checks
import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parents[1] / "transformer_jax"


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from changed source."""

    def __init__(self, module, before, after):
        self.name, self.path = f"transformer_jax.{module}", ROOT / f"{module.replace('.', '/')}.py"
        source = self.path.read_text()
        assert source.count(before) >= 1, f"{module} has no such text any more: {before}"
        self.source = source.replace(before, after)

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def get_filename(self, name):
        return f"{self.path} (mutated)"  # no cached bytecode is found there

    def get_data(self, path):
        return self.source.encode()


@contextlib.contextmanager
def fresh_package(*finders):
    """Import the package again, in place of the one that other tests use; restore that one at the end."""
    names = [name for name in sys.modules if name.split(".")[0] == "transformer_jax"]
    saved = {name: sys.modules.pop(name) for name in names}
    sys.meta_path[:0] = finders
    try:
        yield
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "transformer_jax"]:
            del sys.modules[name]
        sys.modules.update(saved)


CHECKS = {}
for *_, (check, arguments) in MUTANTS.values():
    CHECKS[f"{check} {arguments or ''}".strip()] = (check, arguments)


@pytest.fixture(scope="module")
def package_as_it_is():
    """One fresh import for all checks, of which some set sizes of blocks in its modules; the tests share it."""
    with fresh_package():
        yield


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_passes_on_the_package_as_it_is(name, package_as_it_is):
    check, arguments = CHECKS[name]
    getattr(mutant_checks, check)(**arguments)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_is_noticed(name):
    module, before, after, (check, arguments) = MUTANTS[name]
    with fresh_package(Mutated(module, before, after)), pytest.raises(AssertionError):
        getattr(mutant_checks, check)(**arguments)


def test_there_are_many_bugs():
    assert len(MUTANTS) >= 25
