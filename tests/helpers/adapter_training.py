"""Short training runs of adapters, on a text, from the fixtures."""

import functools

import jax
import numpy as np

import transformer_jax as tj
from configs import finetune_lora
from helpers.adapter_cases import FIXTURES

SHORT = {
    "optimizer.warmup_steps": 1,
    "optimizer.schedule": "constant",
    "optimizer.final_lr_fraction": 0.1,
    "optimizer.peak_lr": 0.03,
    "train.batch_size": 5,
    "train.num_steps": 4,
    "train.eval_every": 2,
    "train.log_every": 2,
    "train.tensorboard": False,
    "checkpoint.save_every": 2,
}


def config_of(folder, recipe=finetune_lora, base="gpt2", **changes):
    """A recipe with few steps, on a text that it writes into a folder."""
    text = folder / "my.txt"
    text.write_text("The cat sat on the mat, and the dog walked in the garden. " * 60)
    config = recipe.get_config()
    config.update_from_flattened_dict(SHORT | {"data.path": str(text)} | changes)
    config.train.init_from = str(FIXTURES / base)
    return config


@functools.cache
def pretrained(base):
    """The run of a fixture."""
    return tj.from_pretrained(FIXTURES / base)


def assert_equal(a, b):
    """Two trees have the same numbers."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
