"""Kernel times from a trace of jax.profiler, grouped by what they compute; without TensorFlow.

A trace names each kernel by its HLO instruction; the compiled program's text says which operation of which module that
came from. Times are those of the kernels themselves, without the ones that run inside of them (a loop's body).
"""

import collections
import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

GROUPS = ("products", "attention", "loss and logits", "norms and elementwise", "optimizer", "copies", "other")
PRODUCT = re.compile(r"gemm|cublas|cutlass|xmma|nvjet|matmul|\bdot|convolution|onednn", re.I)
FLASH = re.compile(r"fmha|sdpa|flash", re.I)
COPY = re.compile(r"copy|memcpy|memset|transpose|concatenate|slice", re.I)
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?([a-z][\w\-]*)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{\s*$")


class Kernel(NamedTuple):
    """One run of one kernel, in microseconds."""

    name: str  # of the HLO instruction where that is known
    start: float
    own: float  # without kernels inside
    end: float


def instructions(hlo: str) -> dict[str, str]:
    """Instructions of a compiled program: name -> opcode, operation and module; of a fusion also of all it contains."""
    bodies: dict[str, list[str]] = collections.defaultdict(list)
    lines: dict[str, tuple[str, str]] = {}
    computation = ""
    for line in hlo.splitlines():
        header = COMPUTATION.match(line)
        if header and " = " not in line.split("(")[0]:
            computation = header[1]
            continue
        found = INSTRUCTION.match(line)
        if not found:
            continue
        metadata = re.search(r'op_name="([^"]*)"', line)
        target = re.search(r'custom_call_target="([^"]*)"', line)
        text = " ".join([found[2], *(m[1] for m in (target, metadata) if m)])
        called = re.search(r"calls=%?([\w.\-]+)", line)
        lines[found[1]] = (text, called[1] if called else "")
        bodies[computation].append(text)
    texts = {name: " ".join([text, *bodies.get(called, ())]) for name, (text, called) in lines.items()}
    return {re.sub(r"[.\-]", "_", name): text for name, text in texts.items()} | texts  # kernels have no dots or dashes


def group(name: str, text: str) -> str:
    """Group of a kernel with this name and the text of its instruction ("" if it is not known)."""
    both = f"{name} {text}"
    if text.startswith(("while", "conditional", "call")):
        return "other"  # what a loop costs besides its body
    is_projection = re.search(r"attention/(query|key|value|out)\b", text)
    if FLASH.search(both) or ("attention/" in text and not is_projection):
        return "attention"
    if re.search(r"logits|softmax_cross_entropy|logsumexp", text):
        return "loss and logits"
    if PRODUCT.search(both):
        return "products"
    if COPY.match(text) or COPY.match(name):
        return "copies"
    if re.search(r"stack|embed|block_", text):
        return "norms and elementwise"
    if "jit(train" in text:
        return "optimizer"  # and the norm of the gradient: what is in no module
    return "other"


def read_kernels(folder: Path, known: set[str]) -> list[Kernel]:
    """Kernels of the trace in a folder: on a GPU all of its streams, on a CPU the instructions that are known."""
    (path,) = folder.rglob("*.trace.json.gz")
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    # Beside its streams a GPU has lines that say the same again, by HLO instruction and by module.
    streams = {t for t, name in threads.items() if "device" in processes.get(t[0], "") and "Stream" in name}
    by_thread = collections.defaultdict(list)
    for event in events:
        if event.get("ph") != "X":
            continue
        thread = event["pid"], event["tid"]
        name = event.get("args", {}).get("hlo_op") or event["name"]
        if thread in streams or not streams and name in known:
            by_thread[thread].append((event["ts"], event.get("dur", 0.0), name))
    return [kernel for runs in by_thread.values() for kernel in own_times(runs)]


def own_times(runs: list[tuple[float, float, str]]) -> list[Kernel]:
    """Kernels of one thread or stream, (start, duration, name), with the time of those within subtracted."""
    kernels: list[list] = []
    open_kernels: list[list] = []
    for start, duration, name in sorted(runs, key=lambda run: (run[0], -run[1])):
        while open_kernels and open_kernels[-1][3] <= start:
            open_kernels.pop()
        if open_kernels:
            open_kernels[-1][2] -= duration
        kernel = [name, start, duration, start + duration]
        kernels.append(kernel)
        open_kernels.append(kernel)
    return [Kernel(*kernel) for kernel in kernels]


def summarize(kernels: list[Kernel], texts: dict[str, str], num_steps: int, num_top: int = 8) -> dict:
    """Milliseconds of a step by group, with shares; idle time; the kernels that take most."""
    if not kernels:
        return {"failed": "the trace names no kernel of this program"}
    first = min(kernel.start for kernel in kernels)
    span = max(kernel.end for kernel in kernels) - first
    busy, reached = 0.0, first
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        busy += max(0.0, kernel.end - max(reached, kernel.start))
        reached = max(reached, kernel.end)
    by_group: collections.Counter[str] = collections.Counter()
    by_name: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        by_group[group(kernel.name, texts.get(kernel.name, ""))] += kernel.own
        by_name[kernel.name] += kernel.own
    total = sum(by_group.values())

    def ms(microseconds: float) -> float:
        return round(microseconds / 1e3 / num_steps, 4)

    return {
        "ms_per_step": ms(span),
        "idle_ms": ms(span - busy),
        "kernels_per_step": round(len(kernels) / num_steps, 1),
        "groups": {name: {"ms": ms(by_group[name]), "share": round(by_group[name] / total, 3)} for name in GROUPS},
        "top": {f"{name} ({texts.get(name, '')[:90]})": ms(time) for name, time in by_name.most_common(num_top)},
    }


def table(title: str, summary: dict) -> str:
    """A summary as text for people."""
    lines = [f"{title}: {summary['ms_per_step']} ms a step, idle {summary['idle_ms']}"]
    lines += [f"  {name:<22} {row['ms']:>9.3f} ms  {row['share']:>6.1%}" for name, row in summary["groups"].items()]
    return "\n".join([*lines, *(f"  {ms:>9.3f} ms  {name}" for name, ms in summary["top"].items())])
