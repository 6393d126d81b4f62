"""Memory of a training run, from shapes alone: more than there is is refused before it is allocated."""

import functools

import jax
import jax.numpy as jnp

from transformer_jax.inference.memory import check_memory
from transformer_jax.models.adapters import all_shapes
from transformer_jax.models.quantization import quantize_params

from .adapters import adapter_spec, split_trained
from .config import Config
from .flops import count_params, num_bytes
from .optimizer import make_optimizer
from .state import create_state
from .tasks.base import Task


def check_training_memory(config: Config, task: Task) -> None:
    """Check that the state of a training run, and the activations of a step, fit into the memory of a device.

    Counted are the parameters, their gradients, the optimizer's state, and the input of each layer, which the gradient
    needs even with `train.remat=block`. A run uses more than that, so one that passes may still be too large.

    Raises:
      UserError: there is less memory in all.
    """
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    create = functools.partial(create_state, optimizer=optimizer, has_ema=config.train.ema_decay > 0)
    shapes = all_shapes(task.model, adapter_spec(task.model, config.adapter))
    trained, frozen = split_trained(shapes, config, task.model)
    frozen = jax.eval_shape(quantize_params, frozen) if config.adapter.int8 else frozen
    state = num_bytes(jax.eval_shape(create, trained)) + num_bytes((trained, frozen))
    check_memory(
        state,
        f"model: {count_params(shapes):,} parameters",
        "they, their gradients and the optimizer",
        "Take a smaller model.d_model, model.num_layers, model.vocab_size or model.max_len.",
    )
    shape = task.model.config.decoder
    num_tokens = max(task.tokens_per_step, config.train.batch_tokens or config.train.batch_size)
    num_tokens = num_tokens // config.train.accumulation // jax.device_count()
    check_memory(
        state + num_tokens * shape.d_model * shape.num_layers * jnp.dtype(shape.dtype).itemsize,
        f"train: {num_tokens:,} tokens in a micro-batch",
        "the inputs of the layers, the parameters and the optimizer",
        "Take a smaller train.batch_size or train.batch_tokens, or a larger train.accumulation.",
    )
