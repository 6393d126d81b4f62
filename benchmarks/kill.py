"""Kill test: a run that is killed and stopped many times must end bit-equal to an undisturbed one.

    python benchmarks/kill.py [--workdir=runs/kill --kills=15 --in_saves=5 --in_pruning=10 --in_evaluations=10 ...]

Trains once undisturbed, and once with so many disturbances, each time starting the same command again: kill -9
anywhere, while a checkpoint is being written, and while an old one is being deleted; SIGTERM while the validation split
is evaluated. Then one bit of the newest checkpoint is flipped, and both runs continue for some steps. Every logged loss
must be equal to the bit, and nothing may be left behind. Exit code 1 if not.
"""

import argparse
import itertools
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from train.metrics import Event, parse_event, read_metrics  # noqa: E402
from transformer_jax.checkpoints.store import Checkpoints  # noqa: E402

EVAL_EVERY = 25
MORE_STEPS = 50
NUM_FILES = 3000  # put into each old checkpoint, so that its deletion takes long enough to be hit
OWN = {".lock", "checkpoints", "config.json", "loss.png", "metrics.jsonl", "tensorboard"}  # of a run directory


def command(workdir: Path, num_steps: int, extra: list[str]) -> list[str]:
    """Build the training command: log and save often, so that there is much to compare and many saves to kill."""
    return [
        sys.executable,
        "-m",
        "train",
        "--config=configs/gpt_char.py",
        f"--workdir={workdir}",
        f"--config.train.num_steps={num_steps}",
        "--config.train.log_every=1",
        f"--config.train.eval_every={EVAL_EVERY}",
        "--config.checkpoint.save_every=10",
        "--config.checkpoint.keep=2",
        "--config.optimizer.schedule=constant",
        *extra,
    ]


def losses(workdir: Path) -> list[tuple[int, str, str]]:
    """Read the logged losses in their order: (step, split, loss as an exact hexadecimal number)."""
    return [(e["step"], e["split"], (e["loss"] or 0.0).hex()) for e in read_metrics(workdir / "metrics.jsonl")]


def last_logged(workdir: Path) -> Event:
    """Return the last complete event in the log."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    events = (parse_event(line) for line in reversed(lines))
    return next(filter(None, events), {"step": 0, "split": "val", "loss": None})


# Moments: is the run in this one, from `at_step` on? `since` is the time of its start.


def anywhere(workdir: Path, at_step: int, since: float) -> bool:
    """Return True from this step on."""
    return last_logged(workdir)["step"] >= at_step


def in_save(workdir: Path, at_step: int, since: float) -> bool:
    """Return True while a checkpoint is being written."""
    return _has_new(workdir, "*.orbax-checkpoint-tmp*", since) and anywhere(workdir, at_step, since)


def in_pruning(workdir: Path, at_step: int, since: float) -> bool:
    """Return True while an old checkpoint is being deleted."""
    return _has_new(workdir, "*.deleting", since) and anywhere(workdir, at_step, since)


def _has_new(workdir: Path, pattern: str, since: float) -> bool:
    """Return whether there is a folder that was changed after `since`; older ones are left by earlier kills."""
    try:
        return any(folder.stat().st_ctime > since for folder in (workdir / "checkpoints").glob(pattern))
    except FileNotFoundError:  # it went in between
        return False


def in_evaluation(workdir: Path, at_step: int, since: float) -> bool:
    """Return True while a step is logged and its evaluation is not, where one is due."""
    last = last_logged(workdir)
    return last["step"] >= at_step and last["step"] % EVAL_EVERY == 0 and last["split"] == "train"


def disturb(args: list[str], workdir: Path, moment: Callable[..., bool], at_step: int) -> tuple[int, bool]:
    """Start the run, and kill or stop it at a moment. Returns the last step in the log, and whether it was hit.

    A kill has hit a save or a deletion if the folder under its temporary name remains. A signal has hit an evaluation
    if its step is the newest checkpoint and is not logged as evaluated.
    """
    if moment is in_pruning:
        for step in Checkpoints(workdir).steps()[:-1]:
            for i in range(NUM_FILES):
                (workdir / "checkpoints" / str(step) / f"file{i}").touch()
    since = time.time()
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and not moment(workdir, at_step, since):
        time.sleep(0.0002)
    if process.poll() is not None:
        raise SystemExit(f"the run ended by itself (exit code {process.returncode}) before it could be disturbed")
    if moment is not in_evaluation:
        process.kill()
        process.wait()
        return last_logged(workdir)["step"], moment(workdir, at_step, since)
    time.sleep(random.random() * 0.3)
    process.terminate()
    code = process.wait()
    last = last_logged(workdir)
    return last["step"], code == 143 and last["split"] == "train" and Checkpoints(workdir).steps()[-1] == last["step"]


def flip_one_bit(workdir: Path) -> Path:
    """Flip one bit in the largest file of the newest checkpoint; return the file."""
    newest = workdir / "checkpoints" / str(Checkpoints(workdir).steps()[-1])
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def leftovers(workdir: Path) -> list[str]:
    """List what is in a run directory and is not its own."""
    strange = [path.name for path in workdir.iterdir() if path.name not in OWN]
    return strange + [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdecimal()]


def main() -> None:
    """Run both, compare, print one line per disturbance and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/kill"))
    moments = {"kills": anywhere, "in_saves": in_save, "in_pruning": in_pruning, "in_evaluations": in_evaluation}
    for name, default in zip(moments, (15, 5, 10, 10), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--num_steps", type=int, default=500)
    args, extra = parser.parse_known_args()
    if args.num_steps % EVAL_EVERY:  # the last step is always evaluated, but not when a longer run passes it
        parser.error(f"--num_steps={args.num_steps}: must be a multiple of {EVAL_EVERY}, the steps between evaluations")
    workdir = args.workdir.absolute()
    undisturbed = workdir / "undisturbed"
    disturbed = workdir / "disturbed"
    shutil.rmtree(workdir, ignore_errors=True)

    def train(folder: Path, num_steps: int) -> None:
        subprocess.run(command(folder, num_steps, extra), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    train(undisturbed, args.num_steps)
    random.seed(0)
    planned = list(itertools.chain.from_iterable([name] * getattr(args, name) for name in moments))
    random.shuffle(planned)
    hits = dict.fromkeys(moments, 0)
    last_step = 0
    for i, name in enumerate(planned):
        # Spread over the run, whose last part is left for those that were missed.
        at_step = max(int(args.num_steps * 0.9 * (i + random.random() * 0.8) / len(planned)), last_step + 1)
        for _ in range(5):
            last_step, is_hit = disturb(command(disturbed, args.num_steps, extra), disturbed, moments[name], at_step)
            print(f"{i + 1:2}: step {last_step:4}, {name if is_hit else f'missed: {name}'}", flush=True)
            hits[name] += is_hit
            if is_hit:
                break
    train(disturbed, args.num_steps)
    left = leftovers(disturbed)
    same = losses(disturbed) == losses(undisturbed)
    print(f"{hits}: {len(losses(undisturbed))} losses, {'all equal to the bit' if same else 'NOT EQUAL'}")
    print(f"left behind: {left or 'nothing'}")

    print(f"flipped one bit of {flip_one_bit(disturbed).relative_to(workdir)}")
    for folder in (undisturbed, disturbed):
        train(folder, args.num_steps + MORE_STEPS)
    same_after = losses(disturbed) == losses(undisturbed)
    print(f"{MORE_STEPS} more steps: {'all equal to the bit' if same_after else 'NOT EQUAL'}")
    all_hit = all(hits[name] == getattr(args, name) for name in moments)
    sys.exit(not (same and same_after and all_hit and not left))


if __name__ == "__main__":
    main()
