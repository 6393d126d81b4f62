"""Ablation of the Shakespeare recipe: change one ingredient at a time, three seeds each.

    python benchmarks/ablation.py --data=input.txt [--workdir=runs/ablation] [--jobs=2] [--only=NAME,NAME]

Every run is the command `python -m train --config=configs/shakespeare_char.py` with the fields below changed,
on one core (`--jobs` at a time). Finished runs are not trained again, so it can be stopped and restarted.
Writes benchmarks/results/ablation.json and ablation.png: nats per character over the whole validation split.
"""

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import matplotlib
import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from train.metrics import read_metrics  # noqa: E402

SEEDS = (0, 1, 2)
ADAMW = {
    "optimizer.name": "adamw",
    "optimizer.muon_lr": 0.02,
    "optimizer.muon_steps": 5,
}  # Muon's own at their defaults
PLAIN = {  # GPT-2's choices with the best learning rate found for them
    "model.positions": "learned",
    "model.norm": "layernorm",
    "model.qk_norm": "none",
    "model.feed_forward": "gelu",
    "model.zero_init": False,
    "model.logit_softcap": 0.0,
    **ADAMW,
    "optimizer.peak_lr": 4e-3,
    "optimizer.b2": 0.99,
    "optimizer.weight_decay": 0.1,
    "optimizer.schedule": "warmup_cosine",
    "optimizer.final_lr_fraction": 0.1,
}
VARIANTS = {
    "the recipe": {},
    "AdamW at 4e-3 for Muon": ADAMW | {"optimizer.peak_lr": 4e-3},
    "learned positions for rotary": {"model.positions": "learned"},
    "no normalised queries and keys": {"model.qk_norm": "none"},
    "LayerNorm for RMSNorm": {"model.norm": "layernorm"},
    "GELU for SwiGLU": {"model.feed_forward": "gelu"},
    "squared ReLU for SwiGLU": {"model.feed_forward": "squared_relu"},
    "outputs not initialised with 0": {"model.zero_init": False},
    "no soft-cap on the logits": {"model.logit_softcap": 0.0},
    "weight decay 0.1": {"optimizer.weight_decay": 0.1},
    "cosine to 10 % for a line to 0": {"optimizer.schedule": "warmup_cosine", "optimizer.final_lr_fraction": 0.1},
    "plain GPT-2": PLAIN,
}


def train(data: str, workdir: Path, name: str, seed: int, core: int) -> float | None:
    """Train one run, or reuse a finished one; return its validation loss, None if it failed."""
    folder = workdir / f"{name.replace(' ', '_').replace('%', 'percent')}-{seed}"
    changes = {"data.path": data, "train.seed": seed, **VARIANTS[name]}
    flags = [f"--config.{field}={value}" for field, value in changes.items()]
    recipe = ["--config=configs/shakespeare_char.py", f"--workdir={folder}", *flags]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "a") as output:
        subprocess.run(
            [sys.executable, "-m", "train", *recipe],
            stdout=output,
            stderr=output,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    losses = [event["loss"] for event in read_metrics(folder / "metrics.jsonl") if event["split"] == "val"]
    return losses[-1] if losses else None


def draw(results: dict[str, list[float]], path: Path) -> None:
    """Plot one line per variant: its seeds as points, their mean as a bar."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted(results, key=lambda name: statistics.mean(results[name]), reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(names) + 1.2), layout="constrained")
    best = statistics.mean(results["the recipe"]) if "the recipe" in results else None
    for y, name in enumerate(names):
        mean = statistics.mean(results[name])
        axes.plot(results[name], [y] * len(results[name]), "o", color="#3b6ea5", alpha=0.55, markersize=5)
        axes.plot([mean], [y], "|", color="#13294b", markersize=16, markeredgewidth=2)
        axes.annotate(f"{mean:.3f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    if best:
        axes.axvline(best, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("validation loss, nats per character (points: seeds; bars and numbers: means)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file to train on")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(VARIANTS)
    for name in names:
        if name not in VARIANTS:
            parser.error(f"--only={name}: unknown. Choose one of: {', '.join(VARIANTS)}")
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: args.jobs]:
        cores.put(core)

    def job(name_and_seed):
        name, seed = name_and_seed
        core = cores.get()
        loss = train(args.data, args.workdir, name, seed, core)
        cores.put(core)
        print(name, seed, "failed" if loss is None else f"{loss:.4f}", flush=True)
        return name, loss

    results: dict[str, list[float]] = {}
    jobs = [(name, seed) for name in names for seed in SEEDS]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        for name, loss in pool.map(job, jobs):
            if loss is not None:
                results.setdefault(name, []).append(loss)
    figures = {
        name: {
            "seeds": [round(x, 4) for x in losses],
            "mean": round(statistics.mean(losses), 4),
            "spread": round(max(losses) - min(losses), 4),
            "changes": VARIANTS[name],
        }
        for name, losses in results.items()
    }
    path = report.save("ablation", {"nats_per_character": figures})
    draw(results, path.with_suffix(".png"))
    print(f"written: {path} and {path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
