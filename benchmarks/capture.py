"""Cost of looking inside a random GPT-2: capture beside a forward pass in pairs, and the ablation of all heads in turn.

python benchmarks/capture.py --pairs=5
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup  # noqa: E402

startup.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

import transformer_jax as tj  # noqa: E402
from transformer_jax.models import GPT, init_params  # noqa: E402

SHAPE = tj.TransformerConfig(
    vocab_size=50257, max_len=1024, num_layers=12, d_model=768, num_heads=12, positions="learned"
)


def cpu_seconds(function: Callable[[], object]) -> float:
    """Seconds of all cores for a call: on a busy machine they say more than seconds of a clock."""
    start = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - start


def main() -> None:
    """Print CPU seconds of each call, and its ratio to a forward pass, as medians of pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--length", type=int, default=64)
    flags = parser.parse_args()
    params = jax.jit(lambda key: init_params(GPT(SHAPE), key))(jax.random.key(0))
    run = tj.Run(GPT(SHAPE), params, None, SHAPE)
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (1, flags.length))
    everything = [name for name in tj.capture_names(run) if not name.endswith("/logits")]
    calls: dict[str, Callable[[], object]] = {
        "forward pass": lambda: tj.logits(run, tokens),
        "capture of everything": lambda: tj.capture(run, tokens, everything),
        "and of the logits by layer": lambda: tj.capture(run, tokens, "*"),
        "ablation of a head": lambda: tj.ablate(run, tokens, [(0, 0)]),
    }
    first = {name: cpu_seconds(call) for name, call in calls.items()}
    rounds = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(flags.pairs)]
    for name in calls:
        seconds = statistics.median(times[name] for times in rounds)
        ratio = statistics.median(times[name] / times["forward pass"] for times in rounds)
        print(f"{name:28s} {seconds:6.3f} s of CPU, {ratio:5.2f} times a forward pass; compiled in {first[name]:.1f} s")
    start = time.perf_counter()
    total = 0.0
    for layer in range(SHAPE.num_layers):
        for head in range(SHAPE.num_heads):
            total += cpu_seconds(lambda heads=[(layer, head)]: tj.ablate(run, tokens, heads))
    clock = time.perf_counter() - start
    num_heads = SHAPE.num_layers * SHAPE.num_heads
    print(f"{num_heads} heads on {flags.length} tokens: {total:.1f} s of CPU, {clock:.1f} s by the clock")


if __name__ == "__main__":
    main()
