"""Memory of a device, and the memory that a computation needs at least: too much is refused before it is allocated."""

import os
from pathlib import Path

import jax

from transformer_jax.errors import UserError

# Limits of a container, in the files of both versions of cgroups; "max" or a number near 2**63: none.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_bytes() -> int:
    """Bytes of memory in all, used or not, of the first device; for a CPU, of the machine or of its container."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    limits = [path.read_text().strip() for path in map(Path, CGROUP_LIMITS) if path.is_file()]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(int(limit) for limit in limits if limit.isdecimal())])


def check_memory(needed: int, field: str, need: str, fix: str) -> None:
    """Check that a device has as many bytes as are needed at least.

    Args:
      field: "name=value" of the setting to blame.
      need: the things that need them.
      fix: advice, a sentence.
    Raises:
      UserError: it has fewer.
    """
    available = device_bytes()
    if needed > available:
        raise UserError(f"{field}: {need} need at least {si(needed)}B of memory, and there are {si(available)}B. {fix}")


def si(value: float) -> str:
    """Format a number with three digits and an SI prefix: 8.65e6 -> "8.65 M"."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    i = 0
    while value >= 1000 and i + 1 < len(prefixes):
        value /= 1000
        i += 1
    return f"{value:.3g} {prefixes[i]}"
