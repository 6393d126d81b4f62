"""The depth dial against a sweep by hand: validation loss of configs/depth.py at other learning rates, three seeds.

    python benchmarks/depth.py --data=input.txt --depths=2,4,6     hours on two cores; each run is kept in runs/depth

Both learning rates are multiplied by each factor. Printed, for each depth: the mean loss by factor, and how far the
dial, factor 1, is from the best. A run that is there is not made again.
"""

import argparse
import json
import sys
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup  # noqa: E402

startup.prepare()

from configs import depth  # noqa: E402
from train.loop import run  # noqa: E402
from train.metrics import read_metrics  # noqa: E402


def loss_of(number: int, factor: float, seed: int, data: str, folder: Path) -> float:
    """Validation loss at the last step of a run with the dial's learning rates times a factor, in nats per token."""
    config = depth.get_config(str(number))
    config.data.source = "text"
    config.data.path = data
    config.optimizer.peak_lr *= factor
    config.optimizer.muon_lr *= factor
    config.train.seed = seed
    config.train.tensorboard = False
    config.train.eval_every = config.train.num_steps
    config.checkpoint.save_every = config.train.num_steps
    workdir = run(config, folder / f"{number}-{factor:g}-{seed}")
    losses = [event["loss"] for event in read_metrics(workdir / "metrics.jsonl") if event["split"] == "val"]
    return losses[-1] if losses[-1] is not None else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a text, such as Tiny Shakespeare")
    parser.add_argument("--depths", default="2,4,6")
    parser.add_argument("--factors", default="1,0.5,2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/depth"))
    args = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    for number in map(int, args.depths.split(",")):
        means: dict[float, float] = {}
        for factor in map(float, args.factors.split(",")):
            losses = [loss_of(number, factor, seed, args.data, args.folder) for seed in range(args.seeds)]
            results.setdefault(str(number), {})[f"{factor:g}"] = losses
            means[factor] = sum(losses) / len(losses)
            print(f"depth {number}  factor {factor:g}  loss {means[factor]:.4f}  {json.dumps(losses)}", flush=True)
        best = min(means, key=lambda factor: means[factor])
        print(f"depth {number}: the dial is {means[1.0] - means[best]:+.4f} nats from the best, factor {best:g}")
    print(report.save("depth", {"arguments": {**vars(args), "folder": str(args.folder)}, "losses": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
