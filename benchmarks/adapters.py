"""Cost of a step with LoRA beside one of full fine-tuning: bytes, and times in pairs, on a GPT-2 of random weights.

python benchmarks/adapters.py --pairs=5
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup  # noqa: E402

startup.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from train.adapters import adapter_spec, first_adapter, split_trained  # noqa: E402
from train.config import Config  # noqa: E402
from train.flops import num_bytes  # noqa: E402
from train.losses import causal_lm  # noqa: E402
from train.optimizer import make_optimizer  # noqa: E402
from train.state import create_state  # noqa: E402
from train.step import train_step  # noqa: E402
from transformer_jax.config import TransformerConfig  # noqa: E402
from transformer_jax.models import GPT, init_params  # noqa: E402
from transformer_jax.models.adapters import with_adapter  # noqa: E402

SHAPE = TransformerConfig(vocab_size=50257, max_len=1024, num_layers=12, d_model=768, num_heads=12, positions="learned")
LENGTH = 128


def make(params: dict, adapter: dict) -> tuple:
    """Make a compiled step, and its state."""
    model, config = GPT(SHAPE), Config.from_dict({"adapter": adapter, "train": {"init_from": "random"}})
    optimizer = make_optimizer(config.optimizer, 100)
    step = functools.partial(train_step, model=model, loss_fn=causal_lm, optimizer=optimizer)
    step = functools.partial(step, seed=0, accumulation=1, max_consecutive_skips=3, log_every=100)
    spec = adapter_spec(model, config.adapter)
    layers = first_adapter(model, spec, config.adapter, jax.random.key(1), params) if spec else {}
    trained, frozen = split_trained(with_adapter(jax.tree.map(jnp.copy, params), layers), config, model)
    return jax.jit(step, donate_argnums=0), create_state(trained, optimizer, frozen=frozen)


def main() -> None:
    """Measure, and print a line for each number and place of adapters."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    params = jax.jit(functools.partial(init_params, GPT(SHAPE)))(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (1, LENGTH + 1), dtype=np.int32)
    batch = {"tokens": tokens, "is_token": np.ones_like(tokens, bool)}
    full = make(params, {})
    for where in ("attention", "all-linear"):
        runs = [full, make(params, {"kind": "lora", "rank": 8, "where": where})]
        shares = [num_bytes((state.params, state.opt_state)) for _, state in runs]
        ratios = []
        for i in range(pairs + 1):  # the first pair compiles
            times = []
            for j, (step, state) in enumerate(runs):
                started = time.perf_counter()
                runs[j] = (step, jax.block_until_ready(step(state, batch)))
                times.append(time.perf_counter() - started)
            ratios += [times[1] / times[0]] if i else []
        full = runs[0]
        print(
            f"LoRA r=8, {where}: gradients and optimizer {shares[1] / shares[0]:.2%} of full fine-tuning's, "
            f"step {statistics.median(ratios):.2f} of its time ({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs)"
        )


if __name__ == "__main__":
    main()
