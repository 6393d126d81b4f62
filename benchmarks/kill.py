"""Kill test: a run that is killed many times must end bit-equal to an undisturbed one.

    python benchmarks/kill.py --workdir=runs/kill [--kills=20] [--in_saves=5] [--CONFIG...]

Trains once undisturbed and once with `kills` times kill -9, at least `in_saves` of them while a checkpoint is being
written, each time starting the same command again. Then one bit of the newest checkpoint is flipped, and both runs
continue for some steps. Every logged loss must be equal to the bit. Exit code 1 if not.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

EVAL_EVERY = 100
MORE_STEPS = 50


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
        "--config.optimizer.schedule=constant",
        *extra,
    ]


def losses(workdir: Path) -> dict[tuple[str, int], str]:
    """Read the logged losses: (split, step) -> loss as an exact hexadecimal number."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    logged = {(event["split"], event["step"]): event["loss"].hex() for event in events}
    assert len(logged) == len(events), "a step was logged twice"
    return logged


def is_saving(workdir: Path, since: float) -> bool:
    """Return True while a checkpoint begun after `since` is being written; older folders are left by earlier kills."""
    folders = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
    try:
        return any(folder.stat().st_ctime > since for folder in folders)
    except FileNotFoundError:  # it was completed in between
        return False


def last_logged(workdir: Path) -> int:
    """Return the last step in the log, 0 without one."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:
        return 0


def run_until_killed(args: list[str], workdir: Path, at_step: int, within_save: bool) -> tuple[int, bool]:
    """Start the run and kill it at a step, on request during a save. Returns (step, was during a save)."""
    since = time.time()
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if last_logged(workdir) >= at_step and (is_saving(workdir, since) or not within_save):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return last_logged(workdir), is_saving(workdir, since)  # the folder of a killed save remains
        time.sleep(0.0005)
    raise SystemExit(f"the run ended by itself (exit code {process.returncode}) before it could be killed")


def flip_one_bit(workdir: Path) -> Path:
    """Flip one bit in the largest file of the newest checkpoint; return the file."""
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def main() -> None:
    """Run both, compare, print one line per kill and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/kill"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--in_saves", type=int, default=5)
    parser.add_argument("--num_steps", type=int, default=1000)
    args, extra = parser.parse_known_args()
    if args.num_steps % EVAL_EVERY:  # the last step is always evaluated, but not when a longer run passes it
        parser.error(f"--num_steps={args.num_steps}: must be a multiple of {EVAL_EVERY}, the steps between evaluations")
    undisturbed = args.workdir / "undisturbed"
    killed = args.workdir / "killed"
    shutil.rmtree(args.workdir, ignore_errors=True)
    subprocess.run(command(undisturbed, args.num_steps, extra), check=True, stdout=subprocess.DEVNULL)

    rng = random.Random(0)
    num_in_saves = 0
    for i in range(args.kills):
        # Spread over the run; the first kills wait for a save to hit.
        at_step = int(args.num_steps * (i + rng.random() * 0.8) / args.kills)
        step, in_save = run_until_killed(command(killed, args.num_steps, extra), killed, at_step, i < args.in_saves)
        num_in_saves += in_save
        print(f"kill {i + 1:2}: step {step}{', during a save' if in_save else ''}", flush=True)
    subprocess.run(command(killed, args.num_steps, extra), check=True, stdout=subprocess.DEVNULL)
    same = losses(killed) == losses(undisturbed)
    print(
        f"{args.kills} kills, {num_in_saves} during a save: {len(losses(undisturbed))} losses, "
        f"{'all equal to the bit' if same else 'NOT EQUAL'}"
    )

    print(f"flipped one bit of {flip_one_bit(killed)}")
    for workdir in (undisturbed, killed):
        subprocess.run(command(workdir, args.num_steps + MORE_STEPS, extra), check=True, stdout=subprocess.DEVNULL)
    same_after = losses(killed) == losses(undisturbed)
    print(f"{MORE_STEPS} more steps: {'all equal to the bit' if same_after else 'NOT EQUAL'}")
    sys.exit(not (same and same_after and num_in_saves >= args.in_saves))


if __name__ == "__main__":
    main()
