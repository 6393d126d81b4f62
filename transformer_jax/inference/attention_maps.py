"""Attention maps: the attention weights of every layer and head for one text."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.inference.texts import encode_target, encode_text
from transformer_jax.models import Model, Params
from transformer_jax.nn import linear_attention
from transformer_jax.run import Run
from transformer_jax.tokenizers import Tokenizer
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer


class AttentionMaps(NamedTuple):
    """Self-attention of one text: `weights[l, n, t, s]` is the weight of token s for token t in head n of layer l.

    Each row of a map sums to 1; a weight is 0 where attention is not allowed.
    """

    tokens: list[str]  # T: the pieces of the text, and the special tokens around it
    weights: np.ndarray  # [L, N, T, T] float32


class Seq2SeqAttentionMaps(NamedTuple):
    """Self-attention of both sides of a Seq2Seq, and cross-attention from target to source."""

    source_tokens: list[str]  # S
    target_tokens: list[str]  # T: the token that starts a target, then its pieces; each position predicts the next
    encoder: np.ndarray  # [L, N, S, S] float32
    decoder: np.ndarray  # [L, N, T, T]
    cross: np.ndarray  # [L, N, T, S]


def attention_maps(run: Run, text: str, target: str | None = None) -> AttentionMaps | Seq2SeqAttentionMaps:
    """Attention weights of all layers and heads while a model reads a text.

    They are computed from the model's own queries and keys by the attention formula, whatever its backend.

    Args:
      text: at most as long as the context; the source of a Seq2Seq.
      target: for a Seq2Seq only: the text that its decoder reads, such as `tj.translate(run, text)`.
    Raises:
      UserError: linear attention, no tokenizer, a missing or superfluous target, a text that does not fit.
    """
    is_seq2seq = run.model.reads_source
    config = run.config
    if run.prefix:
        raise UserError("run: has a prefix, and maps are those of a text alone. Take tj.with_prefix(run, None).")
    if "linear" in (config.encoder.attention, config.decoder.attention):
        raise UserError(linear_attention.unsupported("weights to see"))
    if is_seq2seq != (target is not None):
        rule = "needs one, say tj.translate(run, text)" if is_seq2seq else "has no decoder, so no target"
        raise UserError(f"target: a {type(run.model).__name__} {rule}.")
    tokenizer = run.text_tokenizer
    source = encode_text(run, "text", text)
    source_tokens = pieces(tokenizer.source, source)
    if target is None:
        weights = jax.device_get(_record(run.model, run.variables, source[None]))
        while "stack" not in weights:  # a head around the encoder, which alone has attention
            (weights,) = weights.values()
        return AttentionMaps(source_tokens, _stack_layers(weights, "attention"))
    target_ids = encode_target(run, "target", target)
    weights = jax.device_get(_record(run.model, run.variables, source[None], target_ids[None]))
    return Seq2SeqAttentionMaps(
        source_tokens,
        pieces(tokenizer, target_ids),
        encoder=_stack_layers(weights["encoder"], "attention"),
        decoder=_stack_layers(weights["decoder"], "attention"),
        cross=_stack_layers(weights["decoder"], "cross"),
    )


@functools.partial(jax.jit, static_argnums=0)
def _record(model: Model, variables: Params, *inputs: jax.Array) -> dict:
    """Attention weights that the model records in its collection "attention"."""
    return model.apply(variables, *inputs, mutable=["attention"])[1]["attention"]


def _stack_layers(recorded: dict, part: str) -> np.ndarray:
    """Weights of `part` ("attention" or "cross") of every block, for the only row: [L, N, T, S]."""
    blocks = recorded["stack"]
    return np.stack([blocks[f"block_{i}"][part]["weights"][0][0] for i in range(len(blocks))])


def pieces(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """Text of each token alone; the name of a special token; <7>, the id, for part of a character."""
    names = {getattr(tokenizer, f"{name}_id"): f"<{name}>" for name in ("bos", "eos", "pad")}
    if isinstance(tokenizer, JsonTokenizer):
        added = tokenizer.added_tokens()
        names |= {int(i): name for i in tokens if (name := tokenizer.token_name(int(i))) in added}
    texts = [tokenizer.decode([i]) for i in tokens]
    return [
        text if text and "\ufffd" not in text else names.get(int(i), f"<{i}>")
        for i, text in zip(tokens, texts, strict=True)
    ]
