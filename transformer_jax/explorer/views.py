"""Data of the attention explorer, computed from a run: attention maps of a text, and the predictions of the model."""

from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.explorer.continuations import Continuation, compute_continuations
from transformer_jax.explorer.layers import Effects, Lens, compute_effects, compute_lens
from transformer_jax.inference.attention_maps import AttentionMaps, attention_maps, pieces
from transformer_jax.inference.forward import logits
from transformer_jax.inference.texts import encode_target, encode_text
from transformer_jax.models import GPT, MaskedLM, SequenceClassifier, TokenTagger
from transformer_jax.run import Run

MAX_WEIGHTS = 2_400_000  # of a page: all maps together, a causal one without its empty half; about 3 MB
NUM_CANDIDATES = 100  # tokens with a logit of their own, of a vocabulary above MAX_DENSE
MAX_DENSE = 1024  # tokens of a vocabulary of which every logit is stored
NUM_BINS = 32  # of the histogram of the other logits


class Map(NamedTuple):
    """Attention maps of one kind, and the numbers by which their heads are sorted."""

    name: str  # self | encoder | decoder | cross
    title: str
    rows: str  # side whose tokens attend: text | source | target
    columns: str  # side that they attend to
    is_causal: bool
    num_kv_heads: int
    weights: np.ndarray  # [L, N, T, S]
    effects: Effects | None = None

    def scores(self) -> dict[str, np.ndarray]:
        """Numbers of each head [L, N]: entropy in nats, weight of the token before and of the first, by query."""
        weights = self.weights.astype(np.float64)
        entropy = -np.sum(weights * np.log(np.maximum(weights, 1e-30)), axis=-1).mean(-1)
        scores = {"entropy": entropy, "first": weights[..., 0].mean(-1)}
        if self.rows == self.columns and weights.shape[-1] > 1:
            scores["previous"] = np.diagonal(weights, offset=-1, axis1=-2, axis2=-1).mean(-1)
        return scores | ({"effect": self.effects.change} if self.effects else {})


class Predictions(NamedTuple):
    """Logits of the model at each position, in the order of the vocabulary or of the labels."""

    kind: str  # next | here | tag | class
    side: str  # whose positions they belong to
    activation: str  # softmax | sigmoid | none
    logits: np.ndarray  # [T, V] float32; [1, V] for class
    truth: list[int | None]  # id of the token that really came, where it is known


class Views(NamedTuple):
    """Data of a page."""

    model: str  # class of the model
    name: str  # of the run
    sides: dict[str, list[str]]  # tokens of the text, or of source and target
    maps: list[Map]
    predictions: Predictions | None  # None: the model predicts no tokens and no labels
    lens: Lens | None
    continuations: list[Continuation]
    names: dict[int, str]  # text of every id that the page can show as a prediction


def collect_views(run: Run, text: str, target: str | None, ablation: bool, max_new_tokens: int) -> Views:
    """Compute the data of a page.

    Raises:
      UserError: as `attention_maps`; a text with more attention weights than a page holds.
    """
    _check_size(run, text, target)
    found = attention_maps(run, text, target)
    encoder = run.config.encoder
    decoder = run.config.decoder
    if isinstance(found, AttentionMaps):
        sides = {"text": found.tokens}
        is_causal = isinstance(run.model, GPT)
        maps = [Map("self", "self-attention", "text", "text", is_causal, encoder.num_kv_heads, found.weights)]
    else:
        sides = {"source": found.source_tokens, "target": found.target_tokens}
        names = ("encoder", "self-attention of the encoder"), ("decoder", "self-attention of the decoder")
        maps = [
            Map(*names[0], "source", "source", False, encoder.num_kv_heads, found.encoder),
            Map(*names[1], "target", "target", True, decoder.num_kv_heads, found.decoder),
            Map("cross", "cross-attention to the source", "target", "source", False, decoder.num_kv_heads, found.cross),
        ]
    predictions = _predict(run, text, target)
    lens = None
    if predictions:
        known = (predictions.truth, predictions.activation)
        lens = compute_lens(run, text, target, *known)
        if ablation:
            effects = [compute_effects(run, text, target, predictions.logits, *known, each.name) for each in maps]
            maps = [each._replace(effects=effect) for each, effect in zip(maps, effects, strict=True)]
    continuations = compute_continuations(run, text, max_new_tokens)
    tops = [each.effects.top for each in maps if each.effects] + ([lens.top] if lens else [])
    tops += [np.array(each.tokens, np.int32) for each in continuations]
    names_by_id = _names(run, predictions, tops) if predictions else {}
    return Views(type(run.model).__name__, run.name, sides, maps, predictions, lens, continuations, names_by_id)


def _check_size(run: Run, text: str, target: str | None) -> None:
    """Refuse a text whose maps would make the page too large, before anything is computed."""
    if not isinstance(text, str) or run.tokenizer is None or run.model.reads_source != (target is not None):
        return  # attention_maps has the message
    encoder = run.config.encoder
    decoder = run.config.decoder
    S = len(encode_text(run, "text", text))
    T = S if target is None else len(encode_target(run, "target", target))
    heads = encoder.num_layers * encoder.num_heads
    half = T * (T + 1) // 2
    num = heads * (half if isinstance(run.model, GPT) else S * S)
    if target is not None:
        num += decoder.num_layers * decoder.num_heads * (half + T * S)
    if num > MAX_WEIGHTS:
        tokens = f"{S} tokens" if target is None else f"{S} tokens, and {T} in the target,"
        rule = f"{tokens} have {num:,} attention weights in all heads, and a page holds {MAX_WEIGHTS:,}"
        raise UserError(f"text: {rule}. Shorten it to about {int(S * (MAX_WEIGHTS / num) ** 0.5)} tokens.")


def _predict(run: Run, text: str, target: str | None) -> Predictions | None:
    """Predictions of the model for the text."""
    source = encode_text(run, "text", text)
    if target is not None:
        inputs = encode_target(run, "target", target)
        out = np.asarray(logits(run, source[None], target=inputs[None])[0], np.float32)
        return Predictions("next", "target", "softmax", out, [*inputs[1:].tolist(), None])
    if not isinstance(run.model, GPT | MaskedLM | SequenceClassifier | TokenTagger):
        return None
    out = np.asarray(logits(run, source[None])[0], np.float32)
    nothing: list[int | None] = [None] * len(source)
    match run.model:
        case GPT():
            return Predictions("next", "text", "softmax", out, [*source[1:].tolist(), None])
        case MaskedLM():
            return Predictions("here", "text", "softmax", out, source.tolist())
        case TokenTagger():
            return Predictions("tag", "text", "softmax", out, nothing)
    activations = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
    return Predictions("class", "text", activations.get(run.problem_type, "none"), out[None], [None])


def _names(run: Run, predictions: Predictions, tops: list[np.ndarray]) -> dict[int, str]:
    """Text of every id that can be shown: of all of a small vocabulary, of the likeliest at each position otherwise."""
    V = predictions.logits.shape[-1]
    if predictions.kind in ("tag", "class"):
        return {i: run.labels[i] if i < len(run.labels) else str(i) for i in range(V)}
    ids = set(range(V)) if V <= MAX_DENSE else set(candidates(predictions.logits).ravel().tolist())
    ids |= {i for i in predictions.truth if i is not None}
    ids.update(*(top.ravel().tolist() for top in tops))
    known = np.array(sorted(i for i in ids if i < run.text_tokenizer.vocab_size), np.int32)
    named = dict(zip(known.tolist(), pieces(run.text_tokenizer, known), strict=True))
    return {i: named.get(i, f"<{i}>") for i in sorted(ids)}


def candidates(logits: np.ndarray) -> np.ndarray:
    """Ids of the NUM_CANDIDATES largest logits of each position, the largest first; of equal ones the lower id."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :NUM_CANDIDATES]
