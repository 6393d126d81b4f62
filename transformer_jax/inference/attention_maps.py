"""What a model looks at: the attention weights of every layer and head, of one text."""

import functools
import json
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.models import GPT, Seq2Seq
from transformer_jax.nn import linear_attention
from transformer_jax.run import Run
from transformer_jax.tokenizers import Tokenizer


class AttentionMaps(NamedTuple):
    """`weights[l, n, t, s]`: how much head n of layer l takes from token s for token t.

    Each row of a map sums to 1, and what may not be attended is 0.
    """

    tokens: list[str]  # T: the pieces of the text, and the special tokens around it
    weights: np.ndarray  # [L, N, T, T] float32


class Seq2SeqAttentionMaps(NamedTuple):
    """The same for both sides of a Seq2Seq, and for what the target takes from the source."""

    source_tokens: list[str]  # S
    target_tokens: list[str]  # T: the token that starts a target, and its pieces; from each the next one is told
    encoder: np.ndarray  # [L, N, S, S] float32
    decoder: np.ndarray  # [L, N, T, T]
    cross: np.ndarray  # [L, N, T, S]


def attention_maps(run: Run, text: str, target: str | None = None) -> AttentionMaps | Seq2SeqAttentionMaps:
    """The attention weights of all layers and heads while a model reads a text.

    They are made by the formula from the queries and keys that the model has, whatever its backend does with these.

    Args:
      text: as long as the context at most; the source of a Seq2Seq.
      target: a Seq2Seq's alone: what its decoder reads, say `tj.translate(run, [text])[0]`.
    Raises:
      UserError: linear attention, no tokenizer, a target that is missing or one too many, a text that does not fit.
    """
    is_seq2seq = isinstance(run.model, Seq2Seq)
    sides = (run.config.encoder, run.config.decoder) if is_seq2seq else (run.config,)
    if any(side.attention == "linear" for side in sides):
        raise UserError(linear_attention.cannot("weights to see"))
    if run.tokenizer is None:
        raise UserError("this model came without a tokenizer that is known here, so no text can be given to it.")
    if is_seq2seq != (target is not None):
        rule = "needs one, say tj.translate(run, [text])[0]" if is_seq2seq else "has no decoder, so no target"
        raise UserError(f"target: a {type(run.model).__name__} {rule}.")
    names = ("text", "target")[: len(sides)]
    rows = [_encode(run, *args) for args in zip(names, (text, target), sides, strict=False)]
    recorded = jax.device_get(_record(run.model, run.params, *(row[None] for row in rows)))
    tokenizers = (run.tokenizer.source, run.tokenizer)
    tokens = [_pieces(tokenizer, row) for tokenizer, row in zip(tokenizers, rows, strict=False)]
    if is_seq2seq:
        encoder, decoder = recorded["encoder"], recorded["decoder"]
        parts = (encoder, "attention"), (decoder, "attention"), (decoder, "cross")
        return Seq2SeqAttentionMaps(*tokens, *(_layers(*part) for part in parts))
    while "stack" not in recorded:  # the model is a head, and the one part of it that attends is the encoder
        (recorded,) = recorded.values()
    return AttentionMaps(*tokens, _layers(recorded, "attention"))


@functools.partial(jax.jit, static_argnums=0)
def _record(model: Any, params: Any, *inputs: jax.Array) -> dict:
    return model.apply({"params": params}, *inputs, mutable=["attention"])[1]["attention"]


def _layers(recorded: dict, part: str) -> np.ndarray:
    """What `block` of every block of a stack recorded for the only row: [L, N, T, S]."""
    blocks = recorded["stack"]
    return np.stack([blocks[f"block_{i}"][part]["weights"][0][0] for i in range(len(blocks))])


def _encode(run: Run, name: str, text: str, side: Any) -> np.ndarray:
    """Token ids [T] as this side of the model reads them while it is trained."""
    if not isinstance(text, str):
        raise UserError(f"{name}={text!r:.80}: must be one text.")
    tokenizer = run.tokenizer
    if name == "target":
        start, tokens = run.generation_defaults.start_id, tokenizer.encode_target(run.prepare(text)).tolist()
        tokens = tokens[tokens[:1] == [start] :]  # what begins any text is what starts a target in some models only
        tokens = [start, *(tokens[:-1] if tokens[-1:] and tokens[-1] in run.generation_defaults.eos_ids else tokens)]
    elif isinstance(run.model, Seq2Seq):
        tokens = tokenizer.encode_source(run.prepare(text))
    else:
        tokens = tokenizer.encode(text) if isinstance(run.model, GPT) else tokenizer.encode_whole(text)
    tokens = np.array(tokens, np.int32)
    if not tokens.size or name == "text" and not text:
        raise UserError(f"{name}={text!r:.80}: has no tokens. Give at least one character.")
    if len(tokens) > side.max_len:
        raise UserError(f"{name}: {len(tokens)} tokens, and the model's context is {side.max_len}. Shorten it.")
    if tokens.min() < 0 or tokens.max() >= side.vocab_size:
        i = tokens.min() if tokens.min() < 0 else tokens.max()
        raise UserError(f"{name}: has token {i}, and the model knows 0 to {side.vocab_size - 1}. Is the tokenizer its?")
    return tokens


def _pieces(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """The text of each token alone; the name of a special one, and <7> for what is no text, as half a character."""
    names = {getattr(tokenizer, f"{name}_id"): f"<{name}>" for name in ("bos", "eos", "pad")}
    files = getattr(tokenizer, "files", {})
    if "tokenizer.json" in files:
        added = json.loads(files["tokenizer.json"]).get("added_tokens", [])
        names |= {token["id"]: token["content"] for token in added}
    texts = [tokenizer.decode([i]) for i in tokens]
    return [
        text if text and "\ufffd" not in text else names.get(int(i), f"<{i}>")
        for i, text in zip(tokens, texts, strict=True)
    ]
