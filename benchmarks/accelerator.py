"""Checks and figures of an accelerator: right when it gets there, and done in eight minutes.

    python benchmarks/accelerator.py                    on the machine with the GPU; writes results/accelerator.json
    python benchmarks/accelerator.py --only=decoding    one part; the others' figures in that file stay
    python benchmarks/accelerator.py --device=cpu       the same at a tiny shape, three minutes: accelerator_cpu.json

| part     | minutes | figures |
|----------|---------|---------|
| checks   | 1.5     | attention's backends, dropout, training, decoding and resuming, each beside a CPU or float32 |
| training | 4       | GPT-2 124M, context 1,024, bfloat16, at the best batch found; beside torch.compile; the loop |
| decoding | 1.75    | GPT-2 124M, batch 1 and 64, beside the reference library's compiled static cache |
| profile  | 0.75    | where the time of a training step and of a decode step goes |

Each part is a process of its own with that much time, and with what the parts before it left of theirs. One that
fails, hangs or runs out of memory costs its own figures only, and every figure is in the file as soon as it is known.
No network is used. A part needs jax, flax, optax, orbax-checkpoint, safetensors, tokenizers, sentencepiece, rich and
matplotlib beside this Python, and the rival torch and transformers, here or in .bench; no grain, no ml_collections, no
TensorBoard. Only on a GPU are the figures compared with those that were asked for.

On the day: run it, read the last lines, repair what failed, run that part again with --only.
"""

import argparse
import importlib.util
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import report
from accelerator_asked import checks_of, verdicts
from accelerator_part import SHAPES, environment
from worker import BENCH_PYTHON, HERE

PARTS = {"checks": 1.5, "training": 4.0, "decoding": 1.75, "profile": 0.75}  # minutes
OURS = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "absl",
    "numpy",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "rich",
    "matplotlib",
)
RIVAL = ("torch", "transformers")
FIND_DEVICE = """
import jax, json
device = jax.devices()[0]
print(json.dumps({"platform": device.platform, "kind": device.device_kind, "number": jax.device_count()}))
"""
LIST_MISSING = (
    "import importlib.util as u, json, sys; print(json.dumps([m for m in sys.argv[1:] if not u.find_spec(m)]))"
)


def find_device() -> dict:
    """The device that JAX finds, asked in a process of its own, which leaves no memory taken."""
    answer = subprocess.run([sys.executable, "-c", FIND_DEVICE], capture_output=True, text=True, timeout=120)
    if answer.returncode:
        print(f"JAX finds no device: {answer.stderr.strip().splitlines()[-1:]}")
        return {"platform": "cpu", "kind": "cpu", "number": 1}
    return json.loads(answer.stdout.splitlines()[-1])


def missing_packages(python: str, packages: tuple[str, ...]) -> list[str]:
    """Packages that the Python at this path cannot import; all of them if there is no such Python."""
    if not Path(python).exists():
        return list(packages)
    answer = subprocess.run([python, "-c", LIST_MISSING, *packages], capture_output=True, text=True)
    return json.loads(answer.stdout) if answer.returncode == 0 else list(packages)


def rival_python(given: str) -> str:
    """Path of the Python that has the rival: the one given, or this one, or .bench's. "" if none has it."""
    candidates = [given] if given else [sys.executable, BENCH_PYTHON]
    missing = {python: missing_packages(python, RIVAL) for python in candidates}
    for python, names in missing.items():
        if not names:
            return python
    print(f"no rival, so no ratios: {'; '.join(f'{python} lacks {names}' for python, names in missing.items())}")
    return ""


def set_figure(tree: dict, name: str, value: object) -> None:
    """Set tree["a"]["b"] = value for the name "a/b"."""
    *path, last = name.split("/")
    for key in path:
        tree = tree.setdefault(key, {})
    tree[last] = value


def run_part(command: list[str], settings: dict, on_figure) -> str:
    """Run a part's process; call on_figure(name, value) for each figure at once. Returns how it ended.

    The process and its children get a signal when their time is over: settings["seconds"].
    """
    deadline = time.monotonic() + settings["seconds"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment(settings["device"])},
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        try:
            print(json.dumps(settings), file=process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended already, and its exit code says why
        while True:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            if line is None:
                code = process.wait()
                return "complete" if code == 0 else f"ended with exit code {code}"
            try:
                figure = json.loads(line)
                name, value = figure["name"], figure["value"]
            except (ValueError, TypeError, KeyError):
                print(f"  {line.rstrip()}", flush=True)  # some library's message
                continue
            on_figure(name, value)
    except queue.Empty:
        return f"stopped after {settings['seconds']:.0f} s; what it reported until then counts"
    finally:
        end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """Kill a process that began a session, with all of its children, which may have outlived it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"parts to run, with commas between them: {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("gpu", "cpu"), help="default: a GPU if JAX finds one")
    parser.add_argument("--shape", choices=SHAPES, help="default: gpt2 on a GPU, tiny on a CPU")
    parser.add_argument("--minutes", type=float, help="of all chosen parts together, shared out as in the table")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/accelerator.json (or accelerator_cpu.json)"
    )
    parser.add_argument("--torch_python", default="", help="default: this Python, or .bench/bin/python")
    args = parser.parse_args(argv)
    args.parts = list(PARTS) if args.only is None else args.only.split(",")
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"--only={args.only}: {name!r} must be one of {', '.join(PARTS)}")
    if args.minutes is not None and args.minutes <= 0:
        parser.error(f"--minutes={args.minutes}: must be above 0")
    return args


def choose_device(args: argparse.Namespace) -> tuple[dict, str, str]:
    """The device that was found, "gpu" or "cpu", and the shape; the first line of the output says them."""
    found = {"platform": "cpu", "kind": report.processor(), "number": 1}
    if args.device != "cpu":
        found = find_device()
    if args.device == "gpu" and found["platform"] != "gpu":
        sys.exit('--device=gpu: JAX finds none. Install "jax[cuda13]", or take --device=cpu.')
    device = "gpu" if found["platform"] == "gpu" else "cpu"
    shape = args.shape or {"gpu": "gpt2", "cpu": "tiny"}[device]
    note = "" if device == "gpu" else ". No GPU: nothing here says how fast one is."
    print(f"device: {found['number']} x {found['kind']}, shape {shape}{note}", flush=True)
    return found, device, shape


def record_part(name: str, settings: dict, results: dict, output: Path) -> None:
    """Run a part, its entry in `results` written anew with every figure."""
    entry = results[name]
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def on_figure(figure, value):
        set_figure(entry["figures"], figure, value)
        report.write(output, results)
        print(f"{name}: {figure} {json.dumps(value)}"[:400], flush=True)

    print(f"{name}: at most {settings['seconds']:.0f} s", flush=True)
    entry["state"] = run_part([sys.executable, str(HERE / f"accelerator_{name}.py")], settings, on_figure)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    entry["seconds"] = round(time.monotonic() - began, 1)
    entry["processor_seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
    report.write(output, results)
    print(f"{name}: {entry['state']}, {entry['seconds']} s", flush=True)


def main() -> int:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended, too
    missing = [name for name in OURS if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}, which every part needs. Install: requirements.txt.")
    found, device, shape = choose_device(args)
    output = args.output or report.RESULTS / ("accelerator.json" if device == "gpu" else "accelerator_cpu.json")
    results = json.loads(output.read_text()) if output.exists() else {}
    scale = {"gpu": 1.0, "cpu": 2.0}[device]  # a CPU may have other work, and its minutes are not scarce
    if args.minutes is not None:
        scale = args.minutes / sum(PARTS[name] for name in args.parts)
    settings = {"device": device, "shape": shape, "torch_python": rival_python(args.torch_python)}
    spare = 0.0  # seconds that a part leaves to the next one
    for name in args.parts:
        settings["seconds"] = PARTS[name] * scale * 60 + spare
        trained = results.get("training", {})
        is_alike = trained.get("shape") == shape
        settings["best"] = trained["figures"].get("best", {}) if is_alike else {}  # for the profile
        results[name] = {"state": "running", **report.header(), "device": found, "shape": shape, "figures": {}}
        record_part(name, settings, results, output)
        spare = max(0.0, settings["seconds"] - results[name]["seconds"])
    chosen = {name: results[name] for name in args.parts}
    print("\n".join(verdicts(chosen, device)))
    print(f"written: {output}")
    is_complete = all(result["state"] == "complete" for result in chosen.values())
    return 0 if is_complete and all(passed for _, passed in checks_of(chosen)) else 1


if __name__ == "__main__":
    sys.exit(main())
