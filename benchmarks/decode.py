"""How close is decoding to the least it can cost: reading every weight once for each token?

    python benchmarks/decode.py        a few minutes; writes benchmarks/results/decode.json

Greedy decoding at GPT-2's shape (124M parameters, float32, batch 1, prompt 32, 128 new tokens), beside the
bare products of a vector with the same matrices, in turn. Compilation and prefill are not in the time: a
run of 129 tokens less a run of 1.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup

startup.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from transformer_jax import sampling  # noqa: E402
from transformer_jax.cache import make_cache  # noqa: E402
from transformer_jax.config import TransformerConfig  # noqa: E402
from transformer_jax.layers import num_input_axes  # noqa: E402
from transformer_jax.models import GPT  # noqa: E402
from transformer_jax.run import Run, step_function  # noqa: E402

PROMPT, NEW, ROUNDS = 32, 128, 7
CONFIG = TransformerConfig(
    vocab_size=50257, max_len=1024, num_layers=12, d_model=768, num_heads=12, feed_forward="gelu_tanh"
)


def matrices(params) -> list[jax.Array]:
    """Every weight that a token is multiplied with, as [in, out] or (the embedding) [out, in]."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == "kernel":
            num_in = num_input_axes(tuple(names), leaf.ndim)
            found.append(leaf.reshape(int(np.prod(leaf.shape[:num_in])), -1))
        elif names[-2:] == ["tokens", "embedding"]:
            found.append(leaf.T)
    return found


@jax.jit
def bare_pass(weights, passes):
    """Each vector times each matrix, `passes` times; every pass depends on the one before."""

    def one(_, x):
        outs = [jnp.full((1, w.shape[0]), x) @ w for w in weights]
        return sum(out[0, 0] for out in outs) * 1e-6

    return jax.lax.fori_loop(0, passes, one, jnp.float32(1))


def seconds(function) -> float:
    """Of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = GPT(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    step = step_function(Run(model, params, None, CONFIG))
    tokens = jnp.arange(PROMPT)[None] + 1000
    keys = jax.random.split(jax.random.key(0), 1)

    def decode(num_new):
        return sampling.generate(
            step, make_cache(CONFIG, 1, PROMPT + NEW), tokens, jnp.ones_like(tokens, bool), keys,
            max_new_tokens=num_new, choice="greedy", eos_ids=(), pad_id=0,
        )  # fmt: skip

    weights = matrices(params)
    for warm in (lambda: decode(1), lambda: decode(1 + NEW), lambda: bare_pass(weights, NEW)):
        seconds(warm)
    ours, bare = [], []
    for i in range(ROUNDS):
        ours.append((seconds(lambda: decode(1 + NEW)) - seconds(lambda: decode(1))) / NEW * 1e3)
        bare.append(seconds(lambda: bare_pass(weights, NEW)) / NEW * 1e3)
        print(f"round {i + 1}: decoding {ours[-1]:.2f} ms a token, bare products {bare[-1]:.2f} ms")
    gigabytes = sum(w.size for w in weights) * 4 / 1e9
    figures = {
        "prompt": PROMPT, "new_tokens": NEW, "ms_per_token": round(statistics.median(ours), 2),
        "bare_products_ms": round(statistics.median(bare), 2),
        "times_the_bare_products": round(statistics.median(o / b for o, b in zip(ours, bare, strict=True)), 3),
        "gigabytes_per_second": round(gigabytes / statistics.median(ours) * 1e3, 1),
        "rounds_ms": [[round(o, 2), round(b, 2)] for o, b in zip(ours, bare, strict=True)],
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    print(f"written: {report.save('decode', figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
