"""Worker of benchmarks/train.py: our training step, as in `python -m train`; protocol: train_torch.py."""

import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup

startup.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from train import flops, loop  # noqa: E402
from train.config import Config  # noqa: E402
from train.initialization import InitFrom  # noqa: E402
from train.losses import causal_lm  # noqa: E402
from train.optimizer import make_optimizer  # noqa: E402
from transformer_jax.models import GPT  # noqa: E402


def matmul_gflops(rows: int, width: int) -> float:
    """Rate of a feed-forward product and its two gradients, in billions of operations per second."""
    x = jnp.ones((rows, width))
    w = jnp.ones((width, 4 * width))

    @jax.jit
    def products(x, w):
        y = x @ w
        return y @ w.T, x.T @ y

    jax.block_until_ready(products(x, w))
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        jax.block_until_ready(products(x, w))
        seconds.append(time.perf_counter() - began)
    return 3 * 2 * rows * width * 4 * width / sorted(seconds)[5] / 1e9


def main():
    setup = json.loads(sys.stdin.readline())
    batches = np.load(setup["batches"])  # [n, B, T + 1]
    no_bias = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False)
    config = Config.from_dict(
        {
            "model": {**setup["shape"], "vocab_size": setup["vocab_size"], **no_bias},
            "optimizer": {"peak_lr": setup["lr"], "schedule": "constant", "warmup_steps": 0},
            "train": {"batch_size": batches.shape[1], "log_every": 1},
        }
    )
    model = GPT(config.model)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    parallel = loop.build_parallel(config, model, causal_lm, optimizer)
    state = parallel.put(loop.init_state(config, model, optimizer, InitFrom())[0])
    steps_per_call = 10 if config.model.d_model < 256 else 1  # as the training loop chooses for these shapes
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    np.savez(setup["weights"], **{"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves})
    done = 0

    def steps(n):
        nonlocal state, done
        tokens = batches[(done + np.arange(steps_per_call)) % len(batches)]
        state = parallel.train(state, {"tokens": tokens, "is_token": np.ones(tokens.shape, bool)}, n)
        done += n
        return float(state.accumulator.loss_sum / state.accumulator.weight_sum)  # of the last step

    def answer(value):
        print(json.dumps(value), flush=True)

    answer({"flops_per_token": flops.flops_per_token(state.params, config.model)})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "losses":
            answer([steps(1) for _ in range(order["steps"])])
        elif order["do"] == "time":
            began = time.perf_counter()
            for _ in range(order["steps"] // steps_per_call):
                steps(steps_per_call)
            answer((time.perf_counter() - began) / order["steps"])
        elif order["do"] == "matmul":
            answer(matmul_gflops(order["rows"], config.model.d_model))
        elif order["do"] == "memory":
            answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
