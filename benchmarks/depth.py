"""The depth dial against a sweep by hand: validation loss of configs/depth.py at other learning rates, three seeds.

    python benchmarks/depth.py --data=input.txt --sizes=2,4,6,2x128,2x192     hours on two cores

2x128 is depth 2 at a width of 128, where AdamW's learning rate goes by 1 / width as the dial has it. Both learning
rates are multiplied by each factor. Printed, for each size: the mean loss by factor, and how far the dial, factor 1, is
from the best. A run that is there, in runs/depth, is not made again.
"""

import argparse
import json
import sys
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup  # noqa: E402

startup.prepare()

from ml_collections import ConfigDict  # noqa: E402

from configs import depth  # noqa: E402
from train.loop import run  # noqa: E402
from train.metrics import read_metrics  # noqa: E402


def config_of(size: str) -> ConfigDict:
    """The dial's recipe: "4", or "2x128" with a width of its own, whose heads and learning rate follow the width."""
    number, _, width = size.partition("x")
    config = depth.get_config(number)
    if width:
        dial = depth.get_config(str(int(width) // 32))
        config.model.d_model = dial.model.d_model
        config.model.num_heads = dial.model.num_heads
        config.optimizer.peak_lr = dial.optimizer.peak_lr
    return config


def loss_of(size: str, factor: float, seed: int, data: str, folder: Path) -> float:
    """Validation loss at the last step of a run with the dial's learning rates times a factor, in nats per token."""
    config = config_of(size)
    config.data.source = "text"
    config.data.path = data
    config.optimizer.peak_lr *= factor
    config.optimizer.muon_lr *= factor
    config.train.seed = seed
    config.train.tensorboard = False
    config.train.eval_every = config.train.num_steps
    config.checkpoint.save_every = config.train.num_steps
    workdir = run(config, folder / f"{size}-{factor:g}-{seed}")
    losses = [event["loss"] for event in read_metrics(workdir / "metrics.jsonl") if event["split"] == "val"]
    return losses[-1] if losses[-1] is not None else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a text, such as Tiny Shakespeare")
    parser.add_argument(
        "--sizes", default="2,4,6,2x128,2x192", help="depths, or DEPTHxWIDTH, of widths that 32 divides"
    )
    parser.add_argument("--factors", default="1,0.5,2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/depth"))
    args = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    for size in args.sizes.split(","):
        means: dict[float, float] = {}
        for factor in map(float, args.factors.split(",")):
            losses = [loss_of(size, factor, seed, args.data, args.folder) for seed in range(args.seeds)]
            results.setdefault(size, {})[f"{factor:g}"] = losses
            means[factor] = sum(losses) / len(losses)
            print(f"size {size}  factor {factor:g}  loss {means[factor]:.4f}  {json.dumps(losses)}", flush=True)
        best = min(means, key=lambda factor: means[factor])
        print(f"size {size}: the dial is {means[1.0] - means[best]:+.4f} nats from the best, factor {best:g}")
    print(report.save("depth", {"arguments": {**vars(args), "folder": str(args.folder)}, "losses": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
