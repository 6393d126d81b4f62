"""Process setup before JAX starts, and its end when a reader closes the pipe, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import os, sys
from transformer_jax import startup
startup.prepare()
print(sys.argv[1:], os.getppid() == int(os.environ["PARENT"]))
for name in ("XLA_FLAGS", "GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR"):
    print(name, os.environ.get(name))
import jax
print(jax.jit(lambda x: x + 1)(1))
"""
ours_only = pytest.mark.skipif(sys.platform != "linux", reason="huge pages and the flag are for Linux")


def start(tmp_path, *words, **environment):
    tuned = ("XLA_FLAGS", "GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR")
    inherited = {name: value for name, value in os.environ.items() if name not in tuned}
    defaults = {"TRANSFORMER_JAX_TUNING": "on", "XDG_CACHE_HOME": str(tmp_path), "PARENT": str(os.getpid())}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        capture_output=True,
        text=True,
        env={**inherited, **defaults, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment},
    )


@ours_only
def test_tuning_prints_one_line_and_keeps_arguments_and_process(tmp_path):
    done = start(tmp_path, "a b", "--c=d")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("tuning: XLA_FLAGS=--xla_cpu") and len(done.stderr.splitlines()) == 1
    assert "TRANSFORMER_JAX_TUNING=off" in done.stderr
    words, flags, huge_pages, folder, answer = done.stdout.splitlines()
    assert words == "['a b', '--c=d'] True"
    assert "--xla_cpu_experimental_ynn_fusion_type=" in flags and "hugetlb=1" in huge_pages
    assert folder.split()[1].startswith(str(tmp_path)) and answer == "2"


def test_compiled_programs_are_cached_in_a_private_folder_and_reused(tmp_path):
    assert start(tmp_path).returncode == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert files and folders and all(path.stat().st_mode & 0o077 == 0 for path in folders if "xla-" in path.name)
    assert start(tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")} == files


@pytest.mark.parametrize("name", ["transformer_jax", "inner"])
def test_a_folder_that_others_can_write_to_is_not_used_and_is_reported(tmp_path, name):
    assert start(tmp_path).returncode == 0
    outer = tmp_path / "transformer_jax"
    folder = next(outer.iterdir()) if name == "inner" else outer
    folder.chmod(0o777)
    done = start(tmp_path)
    assert done.returncode == 0
    assert f"not kept, because others can write to {folder}" in done.stderr and f"chmod -R go-w {outer}" in done.stderr
    assert "JAX_COMPILATION_CACHE_DIR None" in done.stdout


def test_a_variable_that_the_user_has_set_is_kept(tmp_path):
    own = {
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=false",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine"),
        "GLIBC_TUNABLES": "glibc.malloc.check=0",
    }
    done = start(tmp_path, **own)
    assert done.returncode == 0, done.stderr
    for name, value in own.items():
        assert f"{name} {value}" in done.stdout


def test_off_changes_and_prints_nothing(tmp_path):
    done = start(tmp_path, TRANSFORMER_JAX_TUNING="off")
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("None") == 3
    assert not list(tmp_path.iterdir())


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path):
    done = start(tmp_path, TRANSFORMER_JAX_TUNING="fast")
    assert done.returncode == 1 and "TRANSFORMER_JAX_TUNING='fast': must be on or off." in done.stderr


def test_the_cache_folder_is_private_even_if_the_umask_allows_the_group(tmp_path):
    before = os.umask(0o002)
    try:
        done = start(tmp_path)
    finally:
        os.umask(before)
    assert done.returncode == 0 and "not kept" not in done.stderr
    assert (tmp_path / "transformer_jax").stat().st_mode & 0o077 == 0


def test_a_reader_that_closes_the_pipe_ends_a_command_quietly():
    words = [sys.executable, "-m", "transformer_jax", "--version"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # as by default: what is printed last is still in the buffer
    with open(write_end, "w") as closed:
        done = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=buffered)
    assert (done.returncode, done.stderr) == (141, "")
