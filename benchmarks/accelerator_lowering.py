"""Worker of benchmarks/accelerator_checks.py: GPT-2's training and decode step, lowered for CUDA where there is no GPU.

Shapes only: nothing is computed or allocated. It needs pytest, and tests/ on its path, for the tests' own way to
pretend that a GPU is there.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accelerator_part import GPT2
from helpers.accelerators import HOPPER, lowered, pretend

from train import loop
from train.config import Config
from train.initialization import InitFrom
from train.losses import causal_lm
from train.optimizer import make_optimizer
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.nn.kv_cache_kinds import make_cache

B = 32


def training_step() -> str:
    """StableHLO of the training step for CUDA."""
    config = Config.from_dict({"model": GPT2, "train": {"batch_size": B}})
    model = GPT(config.model)
    optimizer = make_optimizer(config.optimizer, 100)
    parallel = loop.build_parallel(config, model, causal_lm, optimizer)
    state = jax.eval_shape(lambda: loop.init_state(config, model, optimizer, InitFrom())[0])
    tokens = jax.ShapeDtypeStruct((1, B, GPT2["max_len"] + 1), jnp.int32)
    batches = {"tokens": tokens, "is_token": jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)}
    return lowered(parallel._train, state, batches, np.int32(1))


def decode_step() -> str:
    """StableHLO of a decode step for CUDA: one token of each of 64 rows."""
    config = Config.from_dict({"model": GPT2}).model
    model = GPT(config)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), parameter_shapes(model))
    cache = jax.eval_shape(lambda: make_cache(config, 64, 160))
    extend = functools.partial(model.apply, last_only=True, method="extend")
    tokens = jax.ShapeDtypeStruct((64, 1), jnp.int32)
    is_token = jax.ShapeDtypeStruct((64, 1), jnp.bool_)
    return lowered(jax.jit(lambda params, *args: extend({"params": params}, *args)), params, tokens, is_token, cache)


if __name__ == "__main__":
    sys.stdin.readline()
    pretend(pytest.MonkeyPatch(), "gpu", HOPPER)
    figures = {}
    for name, text in {"training": training_step(), "decoding": decode_step()}.items():
        figures[name] = {
            "lines": text.count("\n"),
            "cudnn_calls": text.count('"__cudnn$fmha') or text.count("@__cudnn$fmha"),
        }
    figures["passed"] = figures["training"]["cudnn_calls"] > 0
    print(json.dumps(figures), flush=True)
