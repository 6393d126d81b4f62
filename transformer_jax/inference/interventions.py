"""Interventions: patch activations, ablate heads, activation patching between two texts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from transformer_jax.errors import UserError, check, choose
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters
from transformer_jax.inference.capture import Texts, match_names, read_inputs
from transformer_jax.inference.recording import Function, activation_names, forward, sides
from transformer_jax.inference.texts import check_position, token_id
from transformer_jax.models import Model
from transformer_jax.run import Run

Patch = ArrayLike | Callable[[jax.Array], jax.Array]
HOW = ("zero", "mean")


@dataclasses.dataclass(frozen=True)
class _Calls:
    """A function of a user, in the form of `Function`; equal for the same function, so that it is compiled once."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array, operand: object) -> jax.Array:
        try:
            return self.function(x)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
            raise UserError(
                "patches: a function is compiled, and this one needs numbers, for NumPy or an `if`. Write it with "
                "jax.numpy, or call tj.patch within `with jax.disable_jit():`."
            ) from None


def _value(x: jax.Array, operand: object) -> jax.Array:
    return jnp.asarray(operand)


def patch(
    run: Run,
    text: Texts,
    patches: Mapping[str, Patch],
    *,
    target: Texts | None = None,
    is_token: ArrayLike | None = None,
    target_is_token: ArrayLike | None = None,
    adapter_names: AdapterNames = None,
) -> jax.Array:
    """Logits of a text while arrays inside the model are replaced.

    Args:
      patches: by a name of `capture_names`, or a pattern of them: an array of the shape that `capture` returns, a
        number for all of it, or a function of the array to its replacement. A function is traced and compiled in: use
        jax.numpy; the same function object is compiled once. Logits by layer cannot be replaced.
      text, target, is_token, target_is_token, adapter_names: as for `capture`.
    Returns:
      The output of the model: logits [B, T, V], or as `logits` has them for another kind.
    Raises:
      UserError: a name that matches nothing, a value of another shape, two patches of one array; as `capture`.
    """
    if not isinstance(patches, Mapping) or not patches:
        raise UserError('patches: must be a dict of names and values, such as {"block_0/attention/heads": 0.0}.')
    functions: dict[str, Function] = {}
    operands: dict[str, object] = {}
    for pattern, new in patches.items():
        for name in match_names(run.model, [pattern], activation_names(run.model), "patches"):
            if name in functions:
                raise UserError(f"patches: {pattern!r:.80} and an earlier one both match {name!r}. Give one for each.")
            functions[name] = _Calls(new) if callable(new) else _value
            operands[name] = None if callable(new) else _numbers(name, new)
    inputs = read_inputs(run, text, target, is_token, target_is_token)
    run = choose_adapters(run, adapter_names, len(inputs.tokens))
    return forward(run.model, (), tuple(functions.items()), run.variables, inputs.args, operands)[0]


def _numbers(name: str, value: object) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise UserError(
            f"patches[{name!r}]: must be numbers or a function, not of type {type(value).__name__}."
        ) from None
    return array


def ablate(
    run: Run,
    text: Texts,
    heads: Sequence[tuple[int, int]] | np.ndarray,
    how: str = "zero",
    *,
    part: str = "",
    target: Texts | None = None,
    is_token: ArrayLike | None = None,
    target_is_token: ArrayLike | None = None,
    adapter_names: AdapterNames = None,
) -> jax.Array:
    """Logits of a text without the outputs of some attention heads. Michel et al. 2019, section 2.3.

    All heads are computed by one compiled program, so a loop over heads compiles once.

    Args:
      heads: (layer, head) of each, from 0.
      how: "zero": their output becomes 0; "mean": it becomes its mean over the tokens of the batch.
      part: "attention" or, for a Seq2Seq, "decoder/attention", "decoder/cross" or "encoder/attention"; "": the first.
      text, target, is_token, target_is_token, adapter_names: as for `capture`.
    Returns:
      The output of the model: logits [B, T, V], or as `logits` has them for another kind.
    Raises:
      UserError: no head, a layer or head that does not exist, an unknown `how` or `part`; as `capture`.
    """
    choose(dict.fromkeys(HOW), how, "how")
    parts = {f"{side.prefix}{name}": side for side in reversed(sides(run.model)) for name in side.attentions}
    part = part or next(iter(parts))
    side = choose(parts, part, "part")
    is_kept = np.ones((side.config.num_layers, side.config.num_heads), bool)
    for layer, head in _head_list(heads):
        check(layer in range(len(is_kept)), "layer", layer, f"must lie between 0 and {len(is_kept) - 1}")
        check(head in range(is_kept.shape[1]), "head", head, f"must lie between 0 and {is_kept.shape[1] - 1}")
        is_kept[layer, head] = False
    inputs = read_inputs(run, text, target, is_token, target_is_token)
    run = choose_adapters(run, adapter_names, len(inputs.tokens))
    mask = inputs.is_token if target is None or side.prefix == "encoder/" else inputs.target_is_token
    names = [f"{side.prefix}block_{i}/{part.removeprefix(side.prefix)}/heads" for i in range(len(is_kept))]
    function = _keep_or_zero if how == "zero" else _keep_or_mean
    functions = tuple((name, function) for name in names)
    operands = {name: (kept, mask) for name, kept in zip(names, is_kept, strict=True)}
    return forward(run.model, (), functions, run.variables, inputs.args, operands)[0]


def _head_list(heads: object) -> list[tuple[int, int]]:
    heads = heads.tolist() if isinstance(heads, np.ndarray) else heads
    if isinstance(heads, Sequence) and heads and not isinstance(heads, str):
        pairs = [tuple(pair) if isinstance(pair, Sequence | np.ndarray) else () for pair in heads]
        if all(len(pair) == 2 and all(_is_index(number) for number in pair) for pair in pairs):
            return pairs
    raise UserError(f"heads={heads!r:.80}: must be a list of pairs (layer, head), such as [(0, 3)].")


def _is_index(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _keep_or_zero(heads_BTNH: jax.Array, operand: tuple[jax.Array, jax.Array | None]) -> jax.Array:
    is_kept_N, _ = operand
    return jnp.where(is_kept_N[:, None], heads_BTNH, 0.0)


def _keep_or_mean(heads_BTNH: jax.Array, operand: tuple[jax.Array, jax.Array | None]) -> jax.Array:
    is_kept_N, is_token = operand
    B, T = heads_BTNH.shape[:2]
    weights_BT = jnp.ones((B, T)) if is_token is None else is_token.astype(jnp.float32)
    weights_BT = jnp.pad(weights_BT, ((0, 0), (T - weights_BT.shape[1], 0)), constant_values=1.0)  # a soft prompt
    mean_NH = jnp.einsum("BTNH,BT->NH", heads_BTNH.astype(jnp.float32), weights_BT) / jnp.maximum(weights_BT.sum(), 1.0)
    return jnp.where(is_kept_N[:, None], heads_BTNH, mean_NH.astype(heads_BTNH.dtype))


class ActivationPatching(NamedTuple):
    """Effects of restoring one layer's activation at one position, on the difference of two logits."""

    effects: np.ndarray  # [L, T] float32: the difference after patching, less `corrupted`
    clean: float  # difference of the logits of the clean text
    corrupted: float  # and of the corrupted text


def activation_patching(
    run: Run,
    clean: str,
    corrupted: str,
    tokens: tuple[str | int, str | int],
    *,
    at: str = "residual_before",
    target: str | None = None,
    position: int = -1,
) -> ActivationPatching:
    """Activation patching: the layers and positions that carry what differs in two texts. Meng et al. 2022, section 2.

    The model reads `corrupted`, and what it computed for `clean` is put back in one layer at one position, for each of
    them in turn. A position where nothing differs has effect 0, and is not computed.

    Args:
      clean, corrupted: two texts of as many tokens; the sources of a Seq2Seq.
      tokens: the right token and the wrong one, as strings or ids, or labels: the metric is the difference of their
        logits.
      at: the activation of each block: "residual_before", "attention/out", "feed_forward/out" or another one of
        `capture_names` with positions; for a Seq2Seq with the side before it, "decoder/residual_before".
      target: for a Seq2Seq only: the text that its decoder reads.
      position: of the logits, -1: the last; a model with one row of logits for a text has none.
    Raises:
      UserError: texts of different lengths, a string that is not one token, an unknown activation; as `capture`.
    """
    model = run.model
    names = _names_of_layers(model, at)
    right, wrong = _two_tokens(run, tokens)
    inputs = [read_inputs(run, text, target) for text in (clean, corrupted)]
    lengths = [read.tokens.shape for read in inputs]
    if lengths[0] != lengths[1] or lengths[0][0] != 1:
        raise UserError(
            f"corrupted: has the shape {list(lengths[1])}, and clean {list(lengths[0])}. Give two texts of as many "
            "tokens."
        )
    (clean_logits, values), (corrupted_logits, others) = (
        forward(model, names, (), run.variables, read.args, {}) for read in inputs
    )

    def difference(logits: jax.Array) -> float:
        row = logits[0] if logits.ndim == 2 else logits[0][check_position(position, logits.shape[1])]
        return float(row[right] - row[wrong])

    base = difference(corrupted_logits)
    effects = np.zeros((len(names), values[names[0]].shape[1]), np.float32)
    functions = tuple((name, _restore) for name in names)
    for layer, name in enumerate(names):
        axes = tuple(range(2, values[name].ndim))
        differs = np.any(np.asarray(values[name] != others[name]), axis=(0, *axes))
        for t in np.flatnonzero(differs):
            operands = {other: (values[other], np.int32(t if other == name else -1)) for other in names}
            out = forward(model, (), functions, run.variables, inputs[1].args, operands)[0]
            effects[layer, t] = difference(out) - base
    return ActivationPatching(effects, difference(clean_logits), base)


def _restore(x: jax.Array, operand: tuple[jax.Array, jax.Array]) -> jax.Array:
    clean, position = operand  # a position of -1 is none
    is_here = jnp.arange(x.shape[1]) == position
    return jnp.where(is_here.reshape(-1, *[1] * (x.ndim - 2)), clean, x)


def _names_of_layers(model: Model, at: str) -> tuple[str, ...]:
    """Names of an activation in every block of its side, the last one unless `at` begins with another."""
    known = activation_names(model)
    side = next((side for side in sides(model) if side.prefix and str(at).startswith(side.prefix)), sides(model)[-1])
    name = str(at).removeprefix(side.prefix)
    names = tuple(f"{side.prefix}block_{i}/{name}" for i in range(side.config.num_layers))
    choices = [
        known_name.removeprefix(f"{side.prefix}block_0/")
        for known_name, letters in known.items()
        if known_name.startswith(f"{side.prefix}block_0/") and letters.split()[1] in "TS"
    ]
    choose(dict.fromkeys(choices), name, "at")
    return names


def _two_tokens(run: Run, tokens: object) -> tuple[int, int]:
    if isinstance(tokens, str) or not isinstance(tokens, Sequence) or len(tokens) != 2:
        raise UserError(f"tokens={tokens!r:.80}: must be two, the right token and the wrong one.")
    return token_id(run, "tokens[0]", tokens[0]), token_id(run, "tokens[1]", tokens[1])
