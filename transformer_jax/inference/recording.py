"""Recording and replacing activations of a forward pass by name, from outside: flax method interceptors, no hooks.

A recorder sees every call of a module's method while a model is traced. It keeps what was asked for, as further
outputs of the compiled program, and replaces what is to be patched.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import Encoder, Model, Params, SentenceEmbedder
from transformer_jax.models.embed import Embedder
from transformer_jax.nn.attention import Attention, attention_weights, weighted_values
from transformer_jax.nn.blocks import NORM_PLACEMENTS, Block, Stack
from transformer_jax.nn.layers import FeedForward

ATTENTION_NAMES = {  # of self-attention; S keys, those of a prefix or cache included
    "query": "B T N H",  # after norm and rotation
    "key": "B S K H",
    "value": "B S K H",
    "weights": "B N T S",
    "heads": "B T N H",  # output of each head, the input of the output projection
    "out": "B T D",  # added to the residual stream
}
LINEAR_HAS_NOT = "weights"
Function = Callable[[jax.Array, object], jax.Array]  # (what is there, operand) -> what is there instead
Arguments = tuple[jax.Array | np.ndarray | None, ...]  # of a model's __call__


class Side(NamedTuple):
    """One stack of blocks of a model, and the beginning of its names."""

    prefix: str  # "" or, in a Seq2Seq, "encoder/" or "decoder/"
    config: TransformerConfig
    has_source: bool = False

    @property
    def attentions(self) -> tuple[str, ...]:
        """Names of the attention modules of a block."""
        return ("attention", "cross") if self.has_source else ("attention",)


def sides(model: Model) -> tuple[Side, ...]:
    """The stacks of a model; the last one makes the logits."""
    if model.reads_source:
        return Side("encoder/", model.config.encoder), Side("decoder/", model.config.decoder, True)
    return (Side("", model.config.decoder),)


def output_name(model: Model) -> str:
    """Name of the output of a model."""
    return "vectors" if isinstance(model, Encoder | SentenceEmbedder) else "logits"


def activation_names(model: Model) -> dict[str, str]:
    """All names that a forward pass of a model has, in order, with the dimension letters of their arrays."""
    names = {}
    for side in sides(model):
        T, S = ("S", "S") if side.prefix == "encoder/" else ("T", "S")
        names[f"{side.prefix}embed"] = f"B {T} D"
        for i in range(side.config.num_layers):
            block = f"{side.prefix}block_{i}"
            names[f"{block}/residual_before"] = f"B {T} D"
            for part in side.attentions:
                for name, letters in ATTENTION_NAMES.items():
                    if side.config.attention == "linear" and part == "attention" and name == LINEAR_HAS_NOT:
                        continue
                    names[f"{block}/{part}/{name}"] = letters.replace("T", T)
            names[f"{block}/feed_forward/activations"] = f"B {T} F"
            names[f"{block}/feed_forward/out"] = f"B {T} D"
            names[f"{block}/residual_after"] = f"B {T} D"
        names[f"{side.prefix}final"] = f"B {T} D"
    names[output_name(model)] = output_letters(model)
    return names


def output_letters(model: Model) -> str:
    """Dimension letters of the output of a model; C classes or tags."""
    kinds = {"Encoder": "B T D", "SentenceEmbedder": "B D", "SequenceClassifier": "B C", "TokenTagger": "B T C"}
    return kinds.get(type(model).__name__, "B T V")


class Recorder:
    """Interceptor of a forward pass: keeps the arrays of `wanted` names, and replaces those that have a function."""

    def __init__(
        self, model: Model, wanted: tuple[str, ...], functions: Mapping[str, Function], operands: Mapping[str, object]
    ):
        self.model = model
        self.wanted = frozenset(wanted)
        self.functions = functions
        self.operands = operands
        self.recorded: dict[str, jax.Array] = {}

    def __call__(self, next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> object:
        """Interceptor of flax.linen.intercept_methods."""
        module, method = context.module, context.method_name
        if isinstance(module, Attention) and method in ("_attend", "_attend_linearly"):
            return self._attention(next_fun, args, module, method)
        if method != "__call__":
            return next_fun(*args, **kwargs)
        name = self._name(module)
        if isinstance(module, Block):
            args = (self._see(f"{name}/residual_before", args[0]), *args[1:])
        elif name.endswith(("/attention/out", "/cross/out")):  # the projection, not its output after a norm
            args = (self._see(name.removesuffix("out") + "heads", args[0]),)
        elif name.endswith("/feed_forward/down"):
            args = (self._see(name.removesuffix("down") + "activations", args[0]),)
        out = next_fun(*args, **kwargs)
        output = self._output(module, name)
        if not output:
            return out
        return (self._see(output, out[0]), *out[1:]) if isinstance(out, tuple) else self._see(output, out)

    def _name(self, module: nn.Module) -> str:
        """Path of a module without the stack, and without the encoder that a head is around: "block_0/attention"."""
        path = tuple(part for part in module.path if part != "stack")
        is_around = path[:1] == ("encoder",) and not self.model.reads_source
        return "/".join(path[1:] if is_around else path)

    def _output(self, module: nn.Module, name: str) -> str:
        """Name of the output of a module; "": none."""
        if not module.path:
            return output_name(self.model)
        if isinstance(module, Embedder):
            return name
        if isinstance(module, Block):
            return f"{name}/residual_after"
        if isinstance(module, Stack):
            return f"{name}/final" if name else "final"
        if isinstance(module, Attention | FeedForward):
            return "" if NORM_PLACEMENTS[module.config.norm_placement].of_output else f"{name}/out"
        return name.removesuffix("_out_norm") + "/out" if name.endswith("_out_norm") else ""

    def _attention(self, next_fun: Callable, args: tuple, module: Attention, method: str) -> object:
        name = self._name(module)
        q, k, v = (self._see(f"{name}/{part}", x) for part, x in zip(("query", "key", "value"), args, strict=False))
        weights_name = f"{name}/weights"
        if method == "_attend" and (weights_name in self.wanted or weights_name in self.functions):
            mask, bias, deterministic = args[3:]
            options = module.options(q, bias, deterministic)
            weights = self._see(weights_name, attention_weights(q, k, mask, options))
            if weights_name in self.functions:
                return weighted_values(weights, v, mask, options)
        return next_fun(q, k, v, *args[3:])

    def _see(self, name: str, x: jax.Array) -> jax.Array:
        if name in self.functions:
            x = check_like(name, self.functions[name](x, self.operands[name]), x)
        if name in self.wanted:
            self.recorded[name] = x
        return x


def check_like(name: str, new: object, old: jax.Array) -> jax.Array:
    """Check a replaced value: a number, or an array of the same shape. Raises UserError with the expected shape."""
    rule = f"must be a number, or an array of shape {list(old.shape)}"
    try:
        array = jnp.asarray(new)
    except (TypeError, ValueError):
        raise UserError(f"patches[{name!r}]: {rule}, not of type {type(new).__name__}.") from None
    if array.ndim and array.shape != old.shape:
        raise UserError(f"patches[{name!r}]: {rule}, not {list(array.shape)}.")
    if not jnp.issubdtype(array.dtype, jnp.floating) and not jnp.issubdtype(array.dtype, jnp.integer):
        raise UserError(f"patches[{name!r}]: {rule}, of real numbers, not of {array.dtype}.")
    return jnp.broadcast_to(array, old.shape).astype(old.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def forward(
    model: Model,
    wanted: tuple[str, ...],
    functions: tuple[tuple[str, Function], ...],
    variables: Params,
    args: Arguments,
    operands: dict[str, object],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Output of a model, and the arrays of the `wanted` names.

    Args:
      functions: by name, what replaces an array; compiled in.
      operands: by name, the second argument of each function: an argument of the program, so that another value of the
        same shape compiles nothing.
    """
    recorder = Recorder(model, wanted, dict(functions), operands)
    with nn.intercept_methods(recorder):
        out = model.apply(variables, *args)
    assert isinstance(out, jax.Array)
    return out, recorder.recorded


@functools.partial(jax.jit, static_argnums=0)
def lens(model: Model, variables: Params, args: Arguments, residuals: jax.Array) -> jax.Array:
    """Outputs of a model from the residual stream after each block, as if the blocks behind it were not there.

    Args:
      residuals: [L, B, T, D], of the side that makes the logits.
    Returns:
      [L, ...], an output of the model for each. The last is that of the model.
    """
    is_last = "decoder" if model.reads_source else ""

    def output(x):
        def skip_blocks(next_fun, args, kwargs, context):
            module = context.module
            is_stack = isinstance(module, Stack) and context.method_name == "__call__"
            if not is_stack or is_last and module.path[0] != is_last:
                return next_fun(*args, **kwargs)
            return (module.norm(x) if module.norm else x), None

        with nn.intercept_methods(skip_blocks):
            return model.apply(variables, *args)

    return jax.lax.map(output, residuals)
