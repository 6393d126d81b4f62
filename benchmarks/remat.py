"""Memory and time of a training step with rematerialization (`train.remat`), compared with none.

    python benchmarks/remat.py                   about five minutes; writes benchmarks/results/remat.json
    python benchmarks/remat.py --dropout_rate=0  without dropout, where attention keeps no weights on a CPU anyway

For each kind: bytes that the gradient keeps from the forward pass (from shapes alone), temporary bytes of the compiled
step (as XLA reports them, which may compute again or share buffers on its own), and seconds of a step: medians of
rounds in which the kinds take turns, and their ratio to none.
"""

import argparse
import functools
import math
import statistics
import sys
import time
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup  # noqa: E402

startup.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from train.config import OptimizerConfig  # noqa: E402
from train.losses import causal_lm  # noqa: E402
from train.optimizer import make_optimizer  # noqa: E402
from train.state import create_state  # noqa: E402
from train.step import train_step  # noqa: E402
from transformer_jax.config import TransformerConfig  # noqa: E402
from transformer_jax.models import GPT, init_params, parameter_shapes  # noqa: E402
from transformer_jax.nn.blocks import REMATS  # noqa: E402

SHAPE = dict(vocab_size=68, num_layers=6, d_model=384, num_heads=6, max_len=256)


def num_bytes(tree) -> int:
    """Bytes of the arrays, or of the shapes, of a pytree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def kept_bytes(model: GPT, batch: dict) -> int:
    """Bytes that the gradient of the loss keeps from the forward pass, without the parameters."""
    params = parameter_shapes(model)

    def backward(params, key):
        def loss(params):
            apply = functools.partial(model.apply, {"params": params}, rngs={"dropout": key})
            return causal_lm(apply, batch, deterministic=False)[0]

        return jax.vjp(loss, params)[1]

    return num_bytes(jax.eval_shape(backward, params, jax.random.key(0))) - num_bytes(params)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout_rate", type=float, default=0.1)
    args = parser.parse_args()
    config = TransformerConfig(**SHAPE, dropout_rate=args.dropout_rate)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(args.batch_size, config.max_len + 1))
    batch = {"tokens": tokens.astype(np.int32), "is_token": np.ones(tokens.shape, bool)}
    optimizer = make_optimizer(OptimizerConfig(), 100)
    params = jax.jit(functools.partial(init_params, GPT(config)))(jax.random.key(0))
    figures: dict[str, dict] = {}
    steps = {}
    for remat in REMATS:
        model = GPT(config, remat=remat)
        step = functools.partial(train_step, model=model, loss_fn=causal_lm, optimizer=optimizer, seed=0)
        step = functools.partial(step, accumulation=1, max_consecutive_skips=3, log_every=1000)
        state = create_state(jax.tree.map(jnp.copy, params), optimizer)
        steps[remat] = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        temporary = steps[remat].memory_analysis().temp_size_in_bytes
        figures[remat] = {"kept_bytes": kept_bytes(model, batch), "temporary_bytes": temporary}
    seconds: dict[str, list[float]] = {remat: [] for remat in REMATS}
    for _ in range(args.rounds + 1):
        for remat in REMATS:
            state = jax.block_until_ready(create_state(jax.tree.map(jnp.copy, params), optimizer))
            began = time.perf_counter()
            loss = float(steps[remat](state, batch).accumulator.loss_sum)
            seconds[remat].append(time.perf_counter() - began)
            figures[remat]["loss_sum"] = loss
    for remat, row in figures.items():
        row["step_seconds"] = statistics.median(seconds[remat][1:])  # the first round warms up
        row |= {f"{name}_ratio": row[name] / figures["none"][name] for name in ("kept_bytes", "temporary_bytes")}
        row["step_ratio"] = statistics.median(
            a / b for a, b in zip(seconds[remat][1:], seconds["none"][1:], strict=True)
        )
        print(remat, {name: round(value, 3) for name, value in row.items()}, flush=True)
    print(report.save("remat", {"arguments": vars(args), "shape": SHAPE, "kinds": figures}))
    return 0 if len({row["loss_sum"] for row in figures.values()}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
