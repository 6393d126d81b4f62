"""Forward pass of a run: logits of a batch, and the decode step that `sampling` takes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters
from transformer_jax.models import Encoder, Model, Params
from transformer_jax.nn.rope_scaling import LENGTH_DEPENDENT
from transformer_jax.run import Run

MAX_CHUNK = 2**30


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Model, variables: Params, args: tuple, kwargs: dict) -> jax.Array:
    out = model.apply(variables, *args, **kwargs)
    assert isinstance(out, jax.Array)
    return out


@functools.cache  # one function object per model: jit tells functions apart by identity, and would compile again
def _extend(model: Model, last_only: bool) -> Callable:
    return functools.partial(model.apply, last_only=last_only, method="extend")


def step_function(run: Run, last_only: bool = True) -> jax.tree_util.Partial:
    """Decode step of a run, `step(tokens, is_token, cache) -> (last logits, cache)`, in the form that `sampling` takes.

    The parameters are arguments of the Partial: a closure would compile them into the program as constants.
    With last_only=False it returns the logits at every position: `verify` of speculative decoding.
    """
    return jax.tree_util.Partial(_extend(run.model, last_only), run.variables)


def prefill_chunk(run: Run) -> int:
    """Positions that are read at once into a full cache: all, where the rotations depend on the length of the text."""
    return MAX_CHUNK if run.config.decoder.rope_scaling in LENGTH_DEPENDENT else sampling.PREFILL_CHUNK


def logits(
    run: Run,
    tokens: ArrayLike,
    is_token: ArrayLike | None = None,
    target: ArrayLike | None = None,
    *,
    target_is_token: ArrayLike | None = None,
    token_types: ArrayLike | None = None,
    adapter_names: AdapterNames = None,
) -> jax.Array:
    """Compute the logits of a batch of token ids in one forward pass.

    Args:
      tokens: [B, T] ints, T at most max_len: the sequences, or the source of a Seq2Seq.
      is_token: [B, T] bool, False for padding; None: no padding.
      target: Seq2Seq only, [B, U] ints: the target shifted right, so that it begins with the decoder's start token.
      target_is_token: [B, U] bool, False for padding; None: no padding.
      token_types: [B, T] ints, for an encoder that has them.
      adapter_names: for a run with adapters by name: one for all sequences, or one for each; "": none.
    Returns:
      float32: [B, T, V] (GPT, masked LM; [B, U, V] for a Seq2Seq), [B, T, tags], or [B, classes]. A prefix of the run
      comes before every sequence, and has no logits itself.
    Raises:
      UserError: shapes that do not fit, ids outside the vocabulary, more tokens than the context has room for; an
        unknown adapter.
    """
    is_seq2seq = run.model.reads_source
    if is_seq2seq != (target is not None):
        rule = "needs target, the tokens of the decoder" if is_seq2seq else "has no decoder, so no target"
        raise UserError(f"target: a {type(run.model).__name__} {rule}.")
    encoder = run.config.encoder
    inputs = [check_ids_array("tokens", tokens, encoder.vocab_size)]
    masks = [check_mask("is_token", is_token, inputs[0])]
    if target is not None:
        inputs.append(check_ids_array("target", target, run.config.decoder.vocab_size))
        masks.append(check_mask("target_is_token", target_is_token, inputs[1]))
    kwargs = {}
    if token_types is not None:
        kwargs["token_types"] = check_ids_array("token_types", token_types, max(1, encoder.num_token_types))
    run = choose_adapters(run, adapter_names, len(inputs[0]))
    if run.prefix:
        _check_room("tokens", inputs[0], run.encoder_context, run.prefix.length)
        _check_room("target", inputs[-1], run.decoder_context if is_seq2seq else run.encoder_context, run.prefix.length)
    out = _apply(run.model, run.variables, (*inputs, *masks), kwargs)
    return out[:, -inputs[0].shape[1] :] if isinstance(run.model, Encoder) else out


def _check_room(name: str, tokens: jax.Array, room: int, length: int) -> None:
    if tokens.shape[1] > room:
        rule = f"{tokens.shape[1]} in a row, and the context has room for {room} after the prefix of {length}"
        raise UserError(f"{name}: {rule}. Shorten them.")


def check_ids_array(name: str, tokens: ArrayLike, vocab_size: int) -> jax.Array:
    """Check token ids [B, T]. Raises UserError: not integers of two axes, ids outside the vocabulary."""
    try:
        tokens = np.asarray(tokens)
    except ValueError:  # rows of unequal lengths
        raise UserError(f"{name}: must be integers [B, T], and its rows differ in length. Pad them.") from None
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise UserError(f"{name}: must be integers [B, T], not {tokens.dtype} {list(tokens.shape)}.")
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise UserError(
            f"{name}: ids must lie between 0 and {vocab_size - 1}, not between {tokens.min()} and {tokens.max()}."
        )
    return jnp.asarray(tokens, jnp.int32)


def check_mask(name: str, is_token: ArrayLike | None, tokens: jax.Array) -> jax.Array | None:
    """Check a padding mask, bool of the shape of its tokens; None: no padding. Raises UserError for another shape."""
    if is_token is None:
        return None
    if np.shape(is_token) != tokens.shape:
        raise UserError(
            f"{name}: must have the shape of its tokens, {list(tokens.shape)}, not {list(np.shape(is_token))}."
        )
    return jnp.asarray(is_token, bool)
