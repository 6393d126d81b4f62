"""Commands for tests: in this process (fast), or as a process of their own (exit codes, signals, restarts, imports)."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from absl import flags

from transformer_jax.__main__ import main
from transformer_jax.commands.cli import report_errors

ROOT = Path(__file__).parents[2]


def command(*arguments, stdin=""):
    """`python -m transformer_jax ARGUMENTS` in this process, with absl flags of its own.

    Returns:
      subprocess.CompletedProcess with returncode, stdout and stderr as text.
    """
    words = [str(ROOT / "transformer_jax" / "__main__.py"), *map(str, arguments)]
    source, out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(3))
    source.write(stdin)
    source.seek(0)
    _forget_flags()
    saved = sys.argv, sys.stdin
    sys.argv, sys.stdin = words, source
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = report_errors(main, words)
    finally:
        sys.argv, sys.stdin = saved
        _forget_flags()
    return subprocess.CompletedProcess(words, code or 0, _text(out), _text(err))


def process(*arguments, stdin="", **environment):
    """`python ARGUMENTS` as a process of its own, in the repository's root, on the CPU."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        input=stdin,
        timeout=300,
        capture_output=True,
        text=True,
    )


def assert_is_one_error(done, *words):
    """Exit code 2, nothing on stdout, and one line on stderr that contains `words`."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def _forget_flags():
    """Remove the flags of all commands, and the modules that define them: they do it when they are imported."""
    for name in [name for name in sys.modules if name.startswith("transformer_jax.commands.")]:
        if name != "transformer_jax.commands.cli":  # has no flags of its own
            del sys.modules[name]  # several share the flags that commands.lines defines for them
    for name in list(flags.FLAGS):
        module = flags.FLAGS.find_module_defining_flag(name)
        if name.startswith("config.") or module.startswith(("transformer_jax.", "train.")):
            if not name.startswith("config."):  # ml_collections defines those
                sys.modules.pop(module, None)
            delattr(flags.FLAGS, name)
    for name in ("train.__main__", "train.scaling.__main__"):  # they share the flags of train.recipe
        sys.modules.pop(name, None)
    sys.modules.pop("config_config", None)  # the recipe, as ml_collections names it: a later one would be added to it


def _text(stream):
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", errors="surrogateescape")
