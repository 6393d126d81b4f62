"""Process setup before JAX starts: a compiler flag, huge pages, the cache of compiled programs.

Only commands call `prepare`; importing the library changes no environment variable. A variable that the user has set
is kept, and TRANSFORMER_JAX_TUNING=off changes nothing.
"""

import hashlib
import os
import platform
import stat
import sys
from importlib.metadata import version
from pathlib import Path

from transformer_jax.errors import UserError

SWITCH = "TRANSFORMER_JAX_TUNING"

# YNNPACK's fusions make a large training step slower and keep more in memory. XLA aborts on a flag that it does not
# know, so this one is set only for versions of JAX that it was tried with.
XLA_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
KNOWN_JAX = ("0.10.", "0.11.", "0.12.")

# The system allocates a step's temporary arrays of 100 MB each time; pages of 2 MB cost far fewer page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def prepare(is_training: bool = True) -> None:
    """Tune the process for JAX on a CPU and report it in one line on stderr. Call it before JAX has a device.

    glibc reads its settings only when a program starts, so the command may replace itself once, by exec, in the same
    process.

    Raises:
      UserError: TRANSFORMER_JAX_TUNING is neither on nor off.
    """
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise UserError(f"{SWITCH}={switch!r}: must be on or off.")
    if switch == "off":
        return
    is_linux_pc = platform.system() == "Linux" and platform.machine() == "x86_64"
    if is_linux_pc and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    flags = os.environ.get("XLA_FLAGS", "")
    if is_training and is_linux_pc and version("jax").startswith(KNOWN_JAX) and XLA_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {XLA_FLAG}".strip()
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or _private_folder()
    if isinstance(folder, Path):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    values = [f"{name}={os.environ[name]}" for name in ("XLA_FLAGS", "GLIBC_TUNABLES") if os.environ.get(name)]
    print(f"tuning: {' '.join([*values, f'compiled programs: {folder}'])} ({SWITCH}=off: none)", file=sys.stderr)


def cache_root() -> Path:
    """Folder of all caches: transformer_jax in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformer_jax"


def _private_folder() -> Path | str:
    """Cache folder that no other user can write to, since its compiled programs are run; or the reason for none."""
    root = cache_root()
    folder = root / f"xla-{_processor()}"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for path in (root, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            info = path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
                return f"not kept, because others can write to {path} (chmod -R go-w {root})"
    except OSError as error:
        return f"not kept, because {folder} cannot be used ({error.strerror})"
    return folder


def _processor() -> str:
    """Digest of the processor's features: a program compiled for another processor may not run here."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.machine(), platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))} or lines)
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:12]
