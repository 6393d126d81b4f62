"""Cost of a step of cheaper ways to fine-tune, beside full fine-tuning: bytes, and times in pairs, on a random GPT-2.

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
from transformer_jax.models.quantization import quantize_params  # noqa: E402

SHAPE = TransformerConfig(vocab_size=50257, max_len=1024, num_layers=12, d_model=768, num_heads=12, positions="learned")
LENGTH = 128
LORA = {"kind": "lora", "rank": 8}
FULL = "full fine-tuning"
KINDS: dict[str, dict] = {  # settings of a run
    FULL: {},
    "LoRA r=8, attention": {"adapter": LORA | {"where": "attention"}},
    "LoRA r=8, all-linear": {"adapter": LORA | {"where": "all-linear"}},
    "LoRA r=8, all-linear, int8 base": {"adapter": LORA | {"where": "all-linear", "int8": True}},
    "all but the last two blocks frozen": {"optimizer": {"freeze": "embed/,block_[0-9]/"}},
}


def make(kind: str) -> tuple:
    """Make a compiled step, and its state."""
    model, config = GPT(SHAPE), Config.from_dict({"train": {"init_from": "random"}} | KINDS[kind])
    params = jax.jit(functools.partial(init_params, GPT(SHAPE)))(jax.random.key(0))
    optimizer = make_optimizer(config.optimizer, 100)
    step = functools.partial(train_step, model=model, loss_fn=causal_lm, optimizer=optimizer)
    step = functools.partial(step, seed=0, accumulation=1, max_consecutive_skips=3, log_every=100)
    spec = adapter_spec(model, config.adapter)
    layers = first_adapter(model, spec, config.adapter, jax.random.key(1), params) if spec else {}
    trained, frozen = split_trained(with_adapter(params, layers), config, model)
    if config.adapter.int8:
        frozen = quantize_params(frozen)
    state = create_state(jax.tree.map(jnp.copy, trained), optimizer, frozen=frozen)
    return jax.jit(step, donate_argnums=0).lower(state, make_batch()).compile(), state


def make_batch() -> dict[str, np.ndarray]:
    """Random tokens."""
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (1, LENGTH + 1), dtype=np.int32)
    return {"tokens": tokens, "is_token": np.ones_like(tokens, bool)}


def memory(step: jax.stages.Compiled) -> int:
    """State and temporary arrays of a compiled step, in MB, as XLA plans them."""
    plan = step.memory_analysis()
    return (plan.argument_size_in_bytes + plan.temp_size_in_bytes) // 10**6


def main() -> None:
    """Measure, and print a line for each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--kinds", default="", help="a part of the names of those to measure")
    args = parser.parse_args()
    batch, full = make_batch(), make(FULL)
    for kind in [kind for kind in KINDS if kind != FULL and args.kinds in kind]:
        runs = [full, make(kind)]
        shares = [num_bytes((state.params, state.opt_state)) for _, state in runs]
        ratios = []
        for i in range(args.pairs + 1):  # the first pair warms up
            times = []
            for j, (step, state) in enumerate(runs):
                started = time.perf_counter()
                runs[j] = (step, jax.block_until_ready(step(state, batch)))
                times.append(time.perf_counter() - started)
            ratios += [times[1] / times[0]] if i else []
        full = runs[0]
        print(
            f"{kind}: gradients and optimizer {shares[1] / 1e6:,.0f} MB, {shares[1] / shares[0]:.2%} of full's; "
            f"state and temporary arrays {memory(runs[1][0]):,} MB of {memory(full[0]):,}; "
            f"step {statistics.median(ratios):.2f} of its time ({min(ratios):.2f} to {max(ratios):.2f}, "
            f"{args.pairs} pairs)",
            flush=True,
        )


if __name__ == "__main__":
    main()
