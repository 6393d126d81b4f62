"""Attention maps: the attention weights of every layer and head for one text."""

from typing import NamedTuple

import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.inference.recording import activation_names, forward
from transformer_jax.inference.texts import encode_target, encode_text
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
        return AttentionMaps(source_tokens, _stack_layers(_weights(run, source), config.decoder, "attention"))
    target_ids = encode_target(run, "target", target)
    weights = _weights(run, source, target_ids)
    return Seq2SeqAttentionMaps(
        source_tokens,
        pieces(tokenizer, target_ids),
        encoder=_stack_layers(weights, config.encoder, "attention", "encoder/"),
        decoder=_stack_layers(weights, config.decoder, "attention", "decoder/"),
        cross=_stack_layers(weights, config.decoder, "cross", "decoder/"),
    )


def _weights(run: Run, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Attention weights by name, for one text or a source and its target."""
    names = tuple(name for name in activation_names(run.model) if name.endswith("/weights"))
    recorded = forward(run.model, names, (), run.variables, tuple(tokens[None] for tokens in inputs), {})[1]
    return {name: np.asarray(weights) for name, weights in recorded.items()}


def _stack_layers(weights: dict[str, np.ndarray], side: TransformerConfig, part: str, prefix: str = "") -> np.ndarray:
    """Weights of `part` ("attention" or "cross") of every block of a side, for the only row: [L, N, T, S]."""
    return np.stack([weights[f"{prefix}block_{i}/{part}/weights"][0] for i in range(side.num_layers)])


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
