"""Benchmark reports: the figures with machine, versions, date and command."""

import datetime
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def processor() -> str:
    """Name of the processor, if the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names) or os.cpu_count()} x {names[0] if names else platform.processor()}"


def package_version(name: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def save(name: str, figures: dict, versions: dict[str, str] | None = None) -> Path:
    """Write benchmarks/results/NAME.json: the figures with machine, versions, date and command."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    ours = {package: package_version(package) for package in PACKAGES}
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "versions": {"python": platform.python_version(), **ours, **(versions or {})},
        **figures,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path
