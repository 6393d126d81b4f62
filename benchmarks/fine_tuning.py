"""Ways to fine-tune side by side on one task: numbers trained, bytes, seconds and score, over three seeds.

python benchmarks/fine_tuning.py                    all methods, then the table of docs/fine_tuning.md
python benchmarks/fine_tuning.py lora ia3           these alone; the results of the others stay
python benchmarks/fine_tuning.py --sweep lora     one seed at a third, once and three times its learning rate
python benchmarks/fine_tuning.py --table            only write the table into the page again

The task: a small GPT of bytes that has learned Python's documentation continues on Python's code, for STEPS steps of
1,024 bytes. Both texts are those of the standard library, so that nothing is downloaded.
"""

import argparse
import contextlib
import importlib
import json
import statistics
import sys
import sysconfig
import tempfile
from pathlib import Path

import report

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "fine_tuning.md"
NAME = "fine_tuning"
MARKS = ("<!-- table of benchmarks/fine_tuning.py -->\n", "<!-- end of the table -->\n")

STEPS = 150
BASE_STEPS = 1500
CHARS = 300_000  # of the code to fine-tune on, a tenth of them for validation
SHAPE = {"num_layers": 4, "d_model": 64, "num_heads": 4, "max_len": 128, "positions": "learned"}
SHORT = {
    "train.batch_size": 8,
    "train.num_steps": STEPS,
    "train.eval_every": STEPS,
    "train.log_every": 25,
    "train.tensorboard": False,
    "checkpoint.save_every": STEPS,
    "optimizer.warmup_steps": 15,
    "optimizer.layer_decay": 1.0,
    "optimizer.weight_decay": 0.0,
}

METHODS: dict[str, tuple[str, dict[str, str | int | float | bool]]] = {  # recipe, and its settings
    "base": ("finetune_gpt2", {"train.num_steps": 1}),  # the rate is so low that no parameter changes
    "full": ("finetune_gpt2", {}),
    "freeze": ("finetune_gpt2", {"optimizer.freeze": "embed/,block_[012]/"}),
    "lora": ("finetune_lora", {"adapter.where": "all-linear"}),
    "lora_int8": ("finetune_lora", {"adapter.where": "all-linear", "adapter.int8": True}),
    "dora": ("finetune_lora", {"adapter.where": "all-linear", "adapter.kind": "dora"}),
    "ia3": ("finetune_lora", {"adapter.kind": "ia3"}),
    "prefix": ("finetune_prompt", {"adapter.kind": "prefix"}),
    "prompt": ("finetune_prompt", {}),
}
WORDS = {
    "base": "the base, not trained",
    "full": "all parameters",
    "freeze": "the last block alone (`optimizer.freeze`)",
    "lora": "LoRA, rank 8, all-linear",
    "lora_int8": "LoRA on an int8 base",
    "dora": "DoRA, rank 8, all-linear",
    "ia3": "IA3",
    "prefix": "a prefix of 20 tokens",
    "prompt": "a prompt of 20 tokens",
}
LEARNING_RATES = {  # the best by --sweep
    "base": 1e-30,
    "full": 3e-3,
    "freeze": 3e-2,
    "lora": 1e-2,
    "lora_int8": 1e-2,
    "dora": 1e-2,
    "ia3": 3e-1,
    "prefix": 3e-1,
    "prompt": 1e-1,
}


def train(config: dict, recipe: str, workdir: Path) -> Path:
    """Train as `python -m train` does, with the log in a file beside the run."""
    from train.loop import run

    settings = importlib.import_module(f"configs.{recipe}").get_config()
    settings.update_from_flattened_dict(config)
    with workdir.with_suffix(".log").open("w") as log, contextlib.redirect_stdout(log):
        return run(settings, workdir)


def make_base(folder: Path) -> tuple[Path, Path]:
    """Train the base on Python's documentation, and write the text to fine-tune on. Returns both."""
    code = folder / "code.txt"
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    code.write_text("\n\n".join(file.read_text("utf-8") for file in files)[:CHARS], "utf-8")
    changes = {f"model.{name}": value for name, value in SHAPE.items()} | {
        "data.source": "python_docs",
        "tokenizer.kind": "byte",
        "optimizer.peak_lr": 3e-3,
        "train.batch_size": 8,
        "train.num_steps": BASE_STEPS,
        "train.eval_every": BASE_STEPS,
        "train.tensorboard": False,
        "checkpoint.save_every": BASE_STEPS,
    }
    return train(changes, "default", folder / "base"), code


def measure(name: str, base: Path, code: Path, folder: Path, seed: int, rate: float) -> dict:
    """Fine-tune once, and measure."""
    recipe, changes = METHODS[name]
    of_task = {"train.init_from": str(base), "data.path": str(code), "train.seed": seed, "optimizer.peak_lr": rate}
    workdir = train(SHORT | changes | of_task, recipe, folder / f"{name}_{seed}_{rate}")
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = [event["tokens_per_second"] for event in events if event["split"] == "train"]
    tokens = SHORT["train.batch_size"] * SHAPE["max_len"]
    step = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return {
        "seed": seed,
        "loss": next(event["loss"] for event in reversed(events) if event["split"] == "val"),
        "step_seconds": tokens / max(speeds) if all(speeds) else None,  # a single step is not timed
        "checkpoint_bytes": sum(file.stat().st_size for file in step.rglob("*") if file.is_file()),
        **sizes(workdir),
    }


def sizes(workdir: Path) -> dict[str, int]:
    """Numbers of a run that are trained, bytes of all parameters, and of the gradients and the optimizer's state."""
    import jax

    import transformer_jax as tj
    from train.adapters import adapter_spec, split_trained
    from train.config import Config
    from train.flops import count_params, num_bytes
    from train.optimizer import make_optimizer
    from transformer_jax.models.adapters import all_shapes
    from transformer_jax.models.quantization import quantize_params

    meta = tj.read_meta(workdir)
    config = Config.from_dict(meta.training.config)
    shapes = all_shapes(meta.model, adapter_spec(meta.model, config.adapter))
    trained, frozen = split_trained(shapes, config, meta.model)
    frozen = jax.eval_shape(quantize_params, frozen) if config.adapter.int8 else frozen
    state = jax.eval_shape(make_optimizer(config.optimizer, config.train.num_steps).init, trained)
    return {
        "trained": count_params(trained),
        "parameter_bytes": num_bytes((trained, frozen)),
        "training_bytes": num_bytes(trained) + num_bytes(state),
    }


def table(methods: dict[str, list[dict]]) -> str:
    """The table of the page, from the measurements of each method."""
    full_seconds = min(run["step_seconds"] for run in methods["full"])
    all_numbers = methods["full"][0]["trained"]
    lines = [
        "| trained | numbers | share | parameters | gradients, optimizer | a checkpoint | time | loss, nats a byte |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        runs = methods[name]
        losses = [run["loss"] for run in runs]
        mean, spread = statistics.mean(losses), max(abs(loss - statistics.mean(losses)) for loss in losses)
        first = runs[0]
        row = [WORDS[name], *["-"] * 6, f"{mean:.3f}"]
        if name != "base":
            ratio = min(run["step_seconds"] for run in runs) / full_seconds
            row = [WORDS[name], f"{first['trained']:,}", f"{first['trained'] / all_numbers:.1%}"]
            row += [f"{first[f'{part}_bytes'] / 1e3:,.0f} kB" for part in ("parameter", "training", "checkpoint")]
            row += [f"{ratio:.2f}", f"{mean:.3f} ± {spread:.3f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def write_page(methods: dict[str, list[dict]]) -> None:
    """Write the table into the page, between its marks."""
    before, rest = PAGE.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + table(methods) + MARKS[1] + after)


def sweep(names: list[str], base: Path, code: Path, folder: Path) -> None:
    """Print the loss of one seed at three learning rates."""
    for name in names:
        for rate in (LEARNING_RATES[name] / 3, LEARNING_RATES[name], 3 * LEARNING_RATES[name]):
            print(f"{name} {rate:.2g}: {measure(name, base, code, folder, 0, rate)['loss']:.4f}", flush=True)


def main() -> None:
    """Measure the methods named, and write results and page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", help=", ".join(METHODS))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", help="keep the runs here, and take the base that is there")
    args = parser.parse_args()
    names = args.methods or list(METHODS)
    if unknown := set(names) - METHODS.keys():
        parser.error(f"unknown: {', '.join(unknown)}")
    path = report.RESULTS / f"{NAME}.json"
    methods = json.loads(path.read_text())["methods"] if path.exists() else {}
    if not args.table:
        from transformer_jax import startup

        startup.prepare()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(args.folder or temporary)
            folder.mkdir(exist_ok=True)
            base, code = make_base(folder)
            if args.sweep:
                sweep([name for name in names if name != "base"], base, code, folder)
                return
            for seed in range(args.seeds):
                for name in names:
                    runs = [run for run in methods.get(name, []) if run["seed"] != seed]
                    runs.append(measure(name, base, code, folder, seed, LEARNING_RATES[name]))
                    methods[name] = sorted(runs, key=lambda run: run["seed"])
                    print(seed, name, methods[name][-1], flush=True)
            command = "python benchmarks/fine_tuning.py"
            report.save(
                NAME, {"command": command, "steps": STEPS, "learning_rates": LEARNING_RATES, "methods": methods}
            )
    if methods.keys() >= METHODS.keys():
        write_page(methods)


if __name__ == "__main__":
    main()
