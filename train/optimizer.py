"""Optimizers (AdamW, Muon) and learning-rate schedules, from optax; weight decay, layer decay, frozen parameters.

The treatment of a parameter depends on its name, not on its number of axes: here kernels have two or three axes, and
some biases have two.
"""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from transformer_jax.errors import UserError, choose
from transformer_jax.models import Params, path_names, split_params
from transformer_jax.nn.layers import num_input_axes

from .config import OptimizerConfig


def _warmup_cosine(config, num_steps):
    return optax.warmup_cosine_decay_schedule(
        0.0, config.peak_lr, config.warmup_steps, num_steps, config.final_lr_fraction * config.peak_lr
    )


def _warmup_linear(config, num_steps):
    rise = optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
    fall = optax.linear_schedule(
        config.peak_lr, config.final_lr_fraction * config.peak_lr, num_steps - config.warmup_steps
    )
    return optax.join_schedules([rise, fall], [config.warmup_steps])


def _constant(config, num_steps):
    rise = optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
    return optax.join_schedules([rise, optax.constant_schedule(config.peak_lr)], [config.warmup_steps])


SCHEDULES = {"warmup_cosine": _warmup_cosine, "warmup_linear": _warmup_linear, "constant": _constant}


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Make the learning-rate schedule: step -> learning rate, with its final value at `num_steps`.

    A run that is resumed with a larger `num_steps` follows the longer curve from there on, so its learning
    rate rises at that point.

    Raises:
      UserError: unknown optimizer.schedule.
    """
    warmup_steps = min(config.warmup_steps, num_steps // 2)  # so that a trial of a few steps needs no other setting
    schedule = choose(SCHEDULES, config.schedule, "optimizer.schedule")
    return schedule(dataclasses.replace(config, warmup_steps=warmup_steps), num_steps)


DECAYED = ("kernel", "embedding", "lora_in", "lora_out")


def is_decayed(params: Params) -> Params:
    """Return a mask for weight decay: True for kernels, embeddings and LoRA's matrices, False for biases and norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_names(path)[-1] in DECAYED, params)


def muon_dimensions(params: Params) -> Params:
    """Return the axes that Muon uses as rows and columns of each parameter; None: the parameter goes to AdamW.

    Muon is for the matrices between activations. Embeddings, the output projection, norms, biases and adapters go to
    AdamW (Jordan 2024). By default optax would send three-dimensional kernels to AdamW and embeddings to Muon.
    """

    def dimensions(path, leaf):
        names = path_names(path)
        if names[-1] != "kernel" or "unembed" in names:
            return None
        num_in = num_input_axes(names, leaf.ndim)
        axes = tuple(range(leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:num_in], axes[num_in:])

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _adamw(config, schedule):
    return optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=is_decayed)


def _muon(config, schedule):
    ratio = config.muon_lr / config.peak_lr
    muon = optax.contrib.muon(
        lambda step: ratio * schedule(step),
        ns_steps=config.muon_steps,
        preconditioning="aol",  # Boissin et al. 2025: a closer initial value, worth a Newton-Schulz step or two
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=muon_dimensions,
    )

    def is_leaf(x):
        return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)

    def labels(params):  # optax's muon contains an AdamW for the rest, but that one would decay norms and biases
        return jax.tree.map(lambda d: "adamw" if d is None else "muon", muon_dimensions(params), is_leaf=is_leaf)

    return optax.partition({"muon": muon, "adamw": _adamw(config, schedule)}, labels)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}


def split_frozen(params: Params, patterns: str) -> tuple[Params, Params]:
    """Split parameters into those to train, and those that `optimizer.freeze` keeps as they are.

    Args:
      patterns: regular expressions with commas between them, searched in names such as
        "stack/block_0/attention/query/kernel"; "": all are trained.
    Raises:
      UserError: a pattern matches no name, or no parameter is left to train.
    """
    if not patterns:
        return params, {}
    names = ["/".join(path_names(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns.split(","):
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"optimizer.freeze: no parameter has {pattern!r} in its name.")
    frozen, trained = split_params(params, lambda name: any(re.search(p, name) for p in patterns.split(",")))
    if not trained:
        raise UserError(f"optimizer.freeze={patterns!r}: leaves no parameter to train.")
    return trained, frozen


def decay_by_layer(decay: float) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay: multiply a block's update by `decay` once for the head and each block above it.

    Updates of embeddings are multiplied once more than those of the lowest block. Clark et al. 2020, appendix A: lower
    layers of a pre-trained model are general already, and should change less.
    """

    def scale(updates, params):
        paths = jax.tree_util.tree_leaves_with_path(updates)
        blocks = [int(name[6:]) for path, _ in paths for name in path_names(path) if name.startswith("block_")]
        num_layers = max(blocks, default=-1) + 1

        def factor(path, update):
            names = path_names(path)
            block = next((int(name[6:]) for name in names if name.startswith("block_")), None)
            if block is not None:
                return update * decay ** (num_layers - block)
            is_below = "embed" in names and "unembed" not in names or "shared" in names
            return update * decay ** (num_layers + 1) if is_below else update

        return jax.tree_util.tree_map_with_path(factor, updates)

    return optax.stateless(scale)


def make_optimizer(
    config: OptimizerConfig, num_steps: int, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """Make the optimizer that `config.name` names, with gradient clipping and layer decay.

    Args:
      schedule: in place of `make_schedule(config, num_steps)`.
    Raises:
      UserError: unknown optimizer.name or optimizer.schedule.
    """
    schedule = schedule or make_schedule(config, num_steps)
    optimizer = choose(OPTIMIZERS, config.name, "optimizer.name")(config, schedule)
    # Without clipping the state has the same structure, so that a resumed run may begin to clip.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    optimizer = optax.chain(clip, optimizer)
    return optax.chain(optimizer, decay_by_layer(config.layer_decay)) if config.layer_decay < 1 else optimizer


class StretchedState(NamedTuple):
    """State of an optimizer whose schedule has the length of the run."""

    num_steps: jax.Array  # int32: of the run
    inner: optax.OptState


def stretched_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Make an optimizer that stretches the schedule of `num_steps` steps, warmup and all, over runs of any length.

    The length is in its state, `StretchedState`, so that runs of all lengths share a compiled program.
    """
    schedule = make_schedule(config, num_steps)

    def init(params: Params) -> StretchedState:
        return StretchedState(jnp.int32(num_steps), make_optimizer(config, num_steps).init(params))

    def update(grads: Params, state: StretchedState, params: Params | None = None) -> tuple[Params, StretchedState]:
        stretched = make_optimizer(config, num_steps, lambda step: schedule(step * num_steps / state.num_steps))
        updates, inner = stretched.update(grads, state.inner, params)
        return updates, StretchedState(state.num_steps, inner)

    return optax.GradientTransformation(init, update)
