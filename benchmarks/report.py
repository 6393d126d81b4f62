"""Benchmark reports: the figures with machine, versions, date and command."""

import datetime
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
RESULTS = Path(__file__).parent / "results"


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


def header(versions: dict[str, str] | None = None) -> dict:
    """Command, date, machine and versions."""
    ours = {package: package_version(package) for package in PACKAGES}
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "versions": {"python": platform.python_version(), **ours, **(versions or {})},
    }


def write(path: Path, report: dict) -> Path:
    """Write a report in one step, so that a reader, or whoever kills this process, never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(scratch, path)
    return path


def save(name: str, figures: dict, versions: dict[str, str] | None = None) -> Path:
    """Write benchmarks/results/NAME.json: the figures with machine, versions, date and command."""
    return write(RESULTS / f"{name}.json", {**header(versions), **figures})
