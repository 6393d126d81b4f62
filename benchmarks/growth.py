"""How cost grows: time and memory of a training step and of a decode step over T, B, L, D and V, beside the formula.

    python benchmarks/growth.py     about five minutes on two cores; writes benchmarks/results/growth.json and .png

For each letter a shape is doubled a few times, the others stay. The exponent of a quantity is the slope of log2 of its
increments: so what does not depend on the letter, such as parameters for T, falls out. The formula has the exponent of
its own increments over the same shapes. What grows faster than its formula, by more than twice the error, is marked.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup  # noqa: E402

startup.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402

from train.config import OptimizerConfig  # noqa: E402
from train.losses import causal_lm  # noqa: E402
from train.optimizer import make_optimizer  # noqa: E402
from train.state import create_state  # noqa: E402
from train.step import train_step  # noqa: E402
from transformer_jax.config import TransformerConfig  # noqa: E402
from transformer_jax.models import GPT, init_params  # noqa: E402
from transformer_jax.nn.kv_cache_kinds import make_cache  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

LETTERS = {"T": "context", "B": "batch", "L": "layers", "D": "width", "V": "vocabulary"}
START = {"T": {"T": 1024, "B": 1}}  # below some 1,000 tokens blockwise attention is one block


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of a step."""

    T: int = 256
    B: int = 4
    L: int = 2
    D: int = 128
    V: int = 512

    def model(self, backend: str) -> GPT:
        """A GPT with heads of width 32."""
        return GPT(
            TransformerConfig(
                vocab_size=self.V,
                max_len=self.T,
                num_layers=self.L,
                d_model=self.D,
                num_heads=self.D // 32,
                positions="rotary",
                tie_embeddings=False,
                backend=backend,
            )
        )


def train_flops(s: Shape) -> float:
    """Multiply-adds, times 2, of forward and backward pass: weights, and attention over all pairs."""
    return 6.0 * s.B * s.T * (s.L * 12 * s.D**2 + s.D * s.V) + 12.0 * s.L * s.B * s.T**2 * s.D


def train_numbers(s: Shape) -> float:
    """Numbers of a step: activations, logits, and seven a weight: state before and after (3 each), gradient."""
    return s.B * s.T * (s.L * 16 * s.D + s.V) + 7.0 * (s.L * 12 * s.D**2 + 2 * s.D * s.V)


def decode_flops(s: Shape) -> float:
    """The same for one token in each row: weights, and attention over the cache."""
    return 2.0 * s.B * (s.L * 12 * s.D**2 + s.D * s.V) + 4.0 * s.L * s.B * s.T * s.D


def decode_numbers(s: Shape) -> float:
    """Numbers in memory: weights, keys and values of all rows, the logits."""
    return s.L * 12 * s.D**2 + 2 * s.D * s.V + 2 * s.B * s.T * s.L * s.D + s.B * s.V


def train_program(s: Shape) -> tuple[Callable, tuple]:
    """A training step with blockwise attention, compiled, and its arguments."""
    model = s.model("blockwise")
    optimizer = make_optimizer(OptimizerConfig(), 100)
    step = functools.partial(train_step, model=model, loss_fn=causal_lm, optimizer=optimizer, seed=0)
    step = functools.partial(step, accumulation=1, max_consecutive_skips=3, log_every=1000)
    tokens = np.random.default_rng(0).integers(s.V, size=(s.B, s.T + 1), dtype=np.int32)
    state = create_state(jax.jit(functools.partial(init_params, model))(jax.random.key(0)), optimizer)
    arguments = state, {"tokens": tokens, "is_token": np.ones(tokens.shape, bool)}
    return jax.jit(step).lower(*arguments).compile(), arguments


def decode_program(s: Shape) -> tuple[Callable, tuple]:
    """A decode step at the end of a full cache, compiled, and its arguments."""
    model = s.model("auto")
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    cache = make_cache(model.config, s.B, s.T).append(jnp.ones((s.B, s.T - 1), bool))

    def step(params, tokens, cache):
        is_token = jnp.ones(tokens.shape, bool)
        return model.apply({"params": params}, tokens, is_token, cache, last_only=True, method="extend")

    arguments = params, jnp.zeros((s.B, 1), jnp.int32), cache
    return jax.jit(step).lower(*arguments).compile(), arguments


def total_bytes(program: Callable) -> int:
    """Bytes of arguments, results and temporary arrays of a compiled program."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def seconds(program: Callable, arguments: tuple, rounds: int) -> float:
    """Median time of a call, of at least three and about a second."""
    jax.block_until_ready(program(*arguments))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1.0 and len(times) < rounds):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def exponent(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """Slope of log(increment) over log(size), and its standard error."""
    increments = np.maximum(np.diff(values), 1e-12)
    x, y = np.log2(sizes[1:]), np.log2(increments)
    (slope, offset), rest = np.polyfit(x, y, 1), len(x) - 2
    error = math.sqrt(((y - slope * x - offset) ** 2).sum() / rest / ((x - x.mean()) ** 2).sum()) if rest else 0.0
    return float(slope), error


STEPS = {
    "training": (train_program, train_flops, train_numbers),
    "decoding": (decode_program, decode_flops, decode_numbers),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doublings", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=50, help="most calls that are timed for each shape")
    args = parser.parse_args()
    figures: dict[str, dict] = {}
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for row, (name, (make, flops, numbers)) in enumerate(STEPS.items()):
        for letter, word in LETTERS.items():
            base = Shape(**START.get(letter, {}))
            num = args.doublings + (letter != "L")  # 32 layers compile for minutes
            sizes = [getattr(base, letter) * 2**i for i in range(num)]
            shapes = [dataclasses.replace(base, **{letter: size}) for size in sizes]
            measured: dict[str, list[float]] = {"bytes": [], "seconds": []}
            for shape in shapes:
                program, arguments = make(shape)
                measured["bytes"].append(total_bytes(program))
                measured["seconds"].append(seconds(program, arguments, args.rounds))
            for column, (quantity, formula) in enumerate((("bytes", numbers), ("seconds", flops))):
                found, error = exponent(sizes, measured[quantity])
                expected, _ = exponent(sizes, [formula(shape) for shape in shapes])
                is_faster = found > expected + max(2 * error, 0.1)
                figures[f"{name} {quantity} {letter}"] = {
                    "sizes": sizes, "values": measured[quantity], "exponent": found, "error": error,
                    "formula": expected, "is_faster": is_faster,
                }  # fmt: skip
                print(
                    f"{name:9} {quantity:8} {letter}  exponent {found:.2f} +- {error:.2f}  formula {expected:.2f}"
                    f"{'  FASTER than its formula' if is_faster else ''}",
                    flush=True,
                )
                axes[row, column].plot(np.divide(sizes, sizes[0]), measured[quantity], "o-", label=f"{letter} ({word})")
    for row, name in enumerate(STEPS):
        for column, quantity in enumerate(("bytes", "seconds")):
            axes[row, column].set(xscale="log", yscale="log", title=f"{name}: {quantity} of a step", xlabel="factor")
            axes[row, column].legend(fontsize=8)
            axes[row, column].grid(alpha=0.3)
    path = report.save(
        "growth", {"arguments": vars(args), "base": dataclasses.asdict(Shape()), "start": START, "figures": figures}
    )
    figure.savefig(Path(path).with_suffix(".png"), dpi=110)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
