"""Worker of benchmarks/decode.py: our decoding, as in `tj.generate` and `tj.translate`; protocol: decode_rivals.py."""

import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup

startup.prepare(is_training=False)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import rates  # noqa: E402

import transformer_jax as tj  # noqa: E402
from transformer_jax import sampling  # noqa: E402
from transformer_jax.inference.forward import step_function  # noqa: E402
from transformer_jax.inference.prefill import beam_search_inputs  # noqa: E402
from transformer_jax.models import GPT  # noqa: E402
from transformer_jax.nn.layers import num_input_axes  # noqa: E402


def matrices(params) -> list[jax.Array]:
    """List every weight matrix that a token is multiplied with, as [in, out]."""
    weights = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == "kernel":
            num_in = num_input_axes(tuple(names), leaf.ndim)
            weights.append(leaf.reshape(int(np.prod(leaf.shape[:num_in])), -1))
        elif names[-2:] == ["tokens", "embedding"]:
            weights.append(leaf.T)
    return weights


@jax.jit
def bare_products(weights, passes):
    """Multiply a vector with each matrix, `passes` times; every pass depends on the previous one."""

    def one(_, x):
        outs = [jnp.full((1, w.shape[0]), x) @ w for w in weights]
        return sum(out[0, 0] for out in outs) * 1e-6

    return jax.lax.fori_loop(0, passes, one, jnp.float32(1))


def generate(run, rows: list[list[int]], num_new: int, num_beams: int) -> list[list[int]]:
    if num_beams == 1:
        completions = tj.generate_tokens(run, rows, method="greedy", max_new_tokens=num_new)
        return [list(completion.tokens) for completion in completions]
    beams = sampling.beam_search(
        step_function(run),
        *beam_search_inputs(run, [np.array(row, np.int32) for row in rows], num_new),
        sampling.BeamParams.of(num_new),
        sampling.DecodeSpec(num_new, (), run.generation_defaults.pad_id, beams=sampling.BeamSpec(num_beams)),
    )
    return np.asarray(beams.tokens[:, 0]).tolist()


def main():
    setup = json.loads(sys.stdin.readline())
    runs = {}
    for name in ("gpt2", "marian"):
        run = tj.from_pretrained(Path(setup["folder"]) / name)
        run = dataclasses.replace(
            run, generation_defaults=dataclasses.replace(run.generation_defaults, eos_ids=(), processors=())
        )
        if setup["is_half"] and name == "gpt2":  # weights, cache and products, as the rival does
            config = dataclasses.replace(run.config, dtype="bfloat16")
            params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), run.params)
            run = dataclasses.replace(run, model=GPT(config), config=config, params=params)
        runs[name] = run
    weights = matrices(runs["gpt2"].params)
    print(json.dumps({"num_bytes": sum(w.nbytes for w in weights)}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        if order["model"] == "bare":
            tokens = float(bare_products(weights, order["num_new"]))
        elif order["model"] == "copy":
            tokens = rates.copy_bandwidth(order["num_bytes"])
        else:
            tokens = generate(runs[order.pop("model")], **order)
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
