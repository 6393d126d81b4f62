"""Capture: hidden states, attention weights, outputs of heads and feed-forward activations of a text, by name."""

import difflib
import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from transformer_jax.errors import UserError
from transformer_jax.inference.adapter_names import AdapterNames, choose_adapters
from transformer_jax.inference.batching import pad_batch
from transformer_jax.inference.forward import check_ids_array, check_mask
from transformer_jax.inference.recording import (
    LINEAR_HAS_NOT,
    Arguments,
    activation_names,
    forward,
    lens,
    output_letters,
    output_name,
    sides,
)
from transformer_jax.inference.texts import encode_target, encode_text
from transformer_jax.models import Model
from transformer_jax.nn import linear_attention
from transformer_jax.run import Run

Texts = str | Sequence[str] | ArrayLike  # one text, several, or token ids [B, T]


class Inputs(NamedTuple):
    """Token ids of a batch, and masks that are False for padding; the target is that of a Seq2Seq."""

    tokens: jax.Array  # [B, T], or [B, S] of a source
    is_token: jax.Array | None
    target: jax.Array | None = None
    target_is_token: jax.Array | None = None

    @property
    def args(self) -> Arguments:
        """Arguments of the model's __call__."""
        if self.target is None:
            return self.tokens, self.is_token
        return self.tokens, self.target, self.is_token, self.target_is_token


def read_inputs(
    run: Run,
    text: Texts,
    target: Texts | None = None,
    is_token: ArrayLike | None = None,
    target_is_token: ArrayLike | None = None,
) -> Inputs:
    """Read texts or token ids as the inputs of a model. Several texts are padded on the right.

    Raises:
      UserError: as `encode_text`; token ids and masks as `logits`; a missing or superfluous target, not one for each.
    """
    is_seq2seq = run.model.reads_source
    if is_seq2seq != (target is not None):
        rule = "needs one, say tj.translate(run, text)" if is_seq2seq else "has no decoder, so no target"
        raise UserError(f"target: a {type(run.model).__name__} {rule}.")
    tokens, mask = _read(run, "text", text, is_token)
    if target is None:
        return Inputs(tokens, mask)
    target_tokens, target_mask = _read(run, "target", target, target_is_token)
    if len(target_tokens) != len(tokens):
        raise UserError(f"target: {len(target_tokens)} of them, and {len(tokens)} texts. Give one for each.")
    return Inputs(tokens, mask, target_tokens, target_mask)


def _read(run: Run, name: str, given: Texts, is_token: ArrayLike | None) -> tuple[jax.Array, jax.Array | None]:
    mask_name = "is_token" if name == "text" else "target_is_token"
    side = run.config.encoder if name == "text" else run.config.decoder
    texts = given.tolist() if isinstance(given, np.ndarray) and given.dtype.kind == "U" else given
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple | np.ndarray | jax.Array):
        rule = f"must be a string, a list of strings, or token ids [B, T], not of type {type(given).__name__}"
        raise UserError(f"{name}: {rule}.")
    if not len(texts):
        raise UserError(f"{name}: is empty. Give a text, a list of texts, or token ids [B, T].")
    if not isinstance(texts, list | tuple) or not isinstance(texts[0], str):
        tokens = check_ids_array(name, texts, side.vocab_size)
        if not tokens.size:
            raise UserError(f"{name}: has the shape {list(tokens.shape)}, and so no tokens. Give at least one.")
        return tokens, check_mask(mask_name, is_token, tokens)
    if is_token is not None:
        raise UserError(f"{mask_name}: belongs to token ids, and {name} has strings. Omit it.")
    encode = encode_text if name == "text" else encode_target
    names = [name] if isinstance(given, str) else [f"{name}[{i}]" for i in range(len(texts))]
    rows = [encode(run, name, text) for name, text in zip(names, texts, strict=True)]
    width = max(map(len, rows))
    array, mask = pad_batch(rows, width, run.generation_defaults.pad_id)
    return jnp.asarray(array), None if mask.all() else jnp.asarray(mask)


def capture_names(run: Run) -> dict[str, str]:
    """Names that `capture` knows for this run, in the order of the computation, with the letters of their arrays.

    The letters are those of the glossary in config.py; S are the keys, those of a prefix included.
    """
    return _all_names(run.model)


def _all_names(model: Model) -> dict[str, str]:
    names = activation_names(model)
    return names | dict.fromkeys(_lens_names(model), output_letters(model))


def _lens_names(model: Model) -> list[str]:
    """Names of the logits by layer: those of the last side, if the model makes any."""
    if output_name(model) != "logits":
        return []
    side = sides(model)[-1]
    return [f"{side.prefix}block_{i}/logits" for i in range(side.config.num_layers)]


def match_names(model: Model, patterns: str | Sequence[str], known: dict[str, str], field: str = "names") -> list[str]:
    """The known names that match any of the patterns, in their order.

    Raises:
      UserError: no pattern, one that is no string, or one that matches nothing, with the nearest name.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, Sequence) or isinstance(given, bytes) or not all(isinstance(x, str) for x in given):
        raise UserError(f"{field}: must be a name or a list of names, not {patterns!r:.80}.")
    if not given or "" in given:
        raise UserError(f"{field}={patterns!r:.80}: is empty. tj.capture_names(run) has the names; '*' takes all.")
    chosen = set()
    for pattern in given:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise _unknown_name(model, field, pattern, known)
        chosen.update(found)
    return [name for name in known if name in chosen]


def _unknown_name(model: Model, field: str, pattern: str, known: dict[str, str]) -> UserError:
    is_linear = any(side.config.attention == "linear" for side in sides(model))
    if is_linear and LINEAR_HAS_NOT in pattern:
        return UserError(linear_attention.unsupported("weights to see"))
    near = difflib.get_close_matches(pattern.lower(), known, 1, 0.0)
    return UserError(
        f"{field}: {pattern!r:.80} matches no name. The nearest is {near[0]!r}; tj.capture_names(run) has them all."
    )


def capture(
    run: Run,
    text: Texts,
    names: str | Sequence[str],
    *,
    target: Texts | None = None,
    is_token: ArrayLike | None = None,
    target_is_token: ArrayLike | None = None,
    adapter_names: AdapterNames = None,
) -> dict[str, jax.Array]:
    """Arrays inside the model while it reads a text: residual stream, attention, feed-forward activations, logits.

    They are further outputs of one compiled program, and change none of the others.

    Args:
      text: a text, a list of texts (padded on the right), or token ids [B, T]; the source of a Seq2Seq.
      names: one or several of `capture_names`, or patterns of them with the wildcards of a shell (fnmatch):
        "block_*/attention/weights"; "*" also matches "/".
      target: for a Seq2Seq only: texts or token ids that its decoder reads, such as tj.translate(run, text).
      is_token, target_is_token: [B, T] bool, False for padding, on either side, beside token ids.
      adapter_names: for a run with adapters by name: one for all texts, or one for each; "": none.
    Returns:
      Arrays by name, each with the axis B, of size 1 for one string. Values at padding are arbitrary.
    Raises:
      UserError: a name that matches nothing, weights of linear attention; texts as `attention_maps`, ids as `logits`.
    """
    model = run.model
    chosen = match_names(model, names, _all_names(model))
    inputs = read_inputs(run, text, target, is_token, target_is_token)
    run = choose_adapters(run, adapter_names, len(inputs.tokens))
    by_lens = [name for name in _lens_names(model) if name in chosen]
    residuals = [name.removesuffix("logits") + "residual_after" for name in by_lens]
    direct = [name for name in chosen if name not in by_lens]
    recorded = forward(model, (*direct, *residuals), (), run.variables, inputs.args, {})[1]
    if by_lens:
        stacked = jnp.stack([recorded[name] for name in residuals])
        recorded |= dict(zip(by_lens, lens(model, run.variables, inputs.args, stacked), strict=True))
    return {name: recorded[name] for name in chosen}


def hidden_states(
    run: Run,
    text: Texts,
    target: Texts | None = None,
    *,
    is_token: ArrayLike | None = None,
    target_is_token: ArrayLike | None = None,
    adapter_names: AdapterNames = None,
) -> jax.Array:
    """Hidden states of a text: the embedding, and the residual stream after each block.

    As in transformers, the last one is after the final norm.

    Args:
      text, target, is_token, target_is_token, adapter_names: as for `capture`. For a Seq2Seq the hidden states are
        those of its decoder.
    Returns:
      [L + 1, B, T, D].
    Raises:
      UserError: as `capture`.
    """
    side = sides(run.model)[-1]
    names = [f"{side.prefix}embed"]
    names += [f"{side.prefix}block_{i}/residual_after" for i in range(side.config.num_layers - 1)]
    names += [f"{side.prefix}final"]
    masks = {"is_token": is_token, "target_is_token": target_is_token}
    captured = capture(run, text, names, target=target, **masks, adapter_names=adapter_names)
    return jnp.stack([captured[name] for name in names])


def logit_lens(
    run: Run,
    text: Texts,
    target: Texts | None = None,
    *,
    is_token: ArrayLike | None = None,
    target_is_token: ArrayLike | None = None,
    adapter_names: AdapterNames = None,
) -> jax.Array:
    """Logit lens: logits by layer, from the residual stream after each block. nostalgebraist 2020.

    Args:
      text, target, is_token, target_is_token, adapter_names: as for `capture`.
    Returns:
      [L + 1, B, T, V] float32: of the embedding, then after each block; the last are the logits. With the letters of
      the output for another head: [L + 1, B, C] of a classifier.
    Raises:
      UserError: as `capture`; a model without logits.
    """
    model = run.model
    if output_name(model) != "logits":
        raise UserError(f"run: is a {type(model).__name__}, which makes no logits. Take tj.hidden_states.")
    side = sides(model)[-1]
    names = [f"{side.prefix}block_0/residual_before"]
    names += [f"{side.prefix}block_{i}/residual_after" for i in range(side.config.num_layers)]
    inputs = read_inputs(run, text, target, is_token, target_is_token)
    run = choose_adapters(run, adapter_names, len(inputs.tokens))
    recorded = forward(model, tuple(names), (), run.variables, inputs.args, {})[1]
    return lens(model, run.variables, inputs.args, jnp.stack([recorded[name] for name in names]))
