"""Loss functions: (apply, batch, deterministic) -> (loss_sum, weight_sum, counts).

Sums, not means: micro-batches and devices may hold different numbers of targets, and only sums can be added before
they are divided. `counts` maps the name of a metric to a sum, which is divided by weight_sum to get the metric, or to a
pair (numerator, denominator).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .entities import OUTSIDE, continues, has_entities, split_tag

MAX_LOGITS = {"cpu": 2**23, "gpu": 2**27, "tpu": 2**27}  # logits in memory at once: 32 MB, 512 MB in float32

Sums = tuple[jax.Array, jax.Array, dict[str, Any]]


def causal_lm(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Causal language modeling loss: predict each token from the tokens before it.

    Args:
      apply: a model's `apply` with its parameters: method="activations" maps tokens [B, T] to [B, T, D],
        method="logits" maps these to [B, T, V].
      batch: `tokens` [B, T + 1] int, `is_token` [B, T + 1] bool. Padding is on the right, where a causal model cannot
        see it, so it needs no mask; it is never a target. For packed documents also `segments` [B, T + 1] int: the
        first token of a document is no target, and sees no token of the document before it. For chats also `is_target`
        [B, T + 1] bool: True for the tokens of answers, the only targets.
      deterministic: False in training: with dropout.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of targets, and no counts.
    """
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    segments = {"segments": batch["segments"][:, :-1]} if "segments" in batch else {}
    is_target = packed_targets(batch)
    activations = apply(inputs, deterministic=deterministic, method="activations", **segments)
    nats = cross_entropy(lambda x: apply(x, method="logits"), activations, targets)
    return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32), {}


def packed_targets(batch: Mapping[str, Any]) -> jax.Array:
    """Target mask of causal_lm, [..., T] bool: tokens that follow one of their own document; of a chat, in answers."""
    is_target = batch["is_token"][..., 1:]
    if "is_target" in batch:
        is_target = is_target & batch["is_target"][..., 1:]
    segments = batch.get("segments")
    return is_target if segments is None else is_target & (segments[..., 1:] == segments[..., :-1])


def classify(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Classification loss: one label for each text.

    Args:
      apply: tokens [B, T] -> logits [B, classes].
      batch: `tokens` [B, T] int, `is_token` [B, T] bool, `label` [B] int, `is_example` [B] bool: False for rows that
        only fill up the batch.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of texts, and the counts `accuracy` (the number of
      correct texts) and `macro_f1`: for each label a pair (2 x true positives, texts with the label + texts predicted
      to have it), whose ratios have the macro-F1 as their mean.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    loss_sum, weight_sum, counts = _classification_sums(logits, batch["label"], batch["is_example"])
    label, predicted = (
        jax.nn.one_hot(x, logits.shape[-1]) * batch["is_example"][:, None]
        for x in (batch["label"], jnp.argmax(logits, axis=-1))
    )
    macro_f1 = 2.0 * jnp.sum(label * predicted, axis=0), jnp.sum(label + predicted, axis=0)  # [classes] each
    return loss_sum, weight_sum, counts | {"macro_f1": macro_f1}


def multi_label(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Multi-label classification loss: any number of labels for each text, a binary cross-entropy for each label.

    Args:
      apply: tokens [B, T] -> logits [B, classes], of independent labels.
      batch: as for `classify`, but `label` [B, classes] bool: True for the labels of a text.
    Returns:
      The sum over texts of the mean over labels of the negative log-likelihoods, in nats; the number of texts; and
      counts of the labels predicted with a probability above 0.5. `micro_f1`: the pair (2 x true positives, true +
      predicted labels). `macro_f1`: such a pair for each label. `exact_match`: the number of texts with all labels
      right. `tasks.scoring.multi_label_scores` is the slow and simple definition.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    is_example = batch["is_example"]
    nats = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch["label"].astype(jnp.float32)), axis=-1)
    label = batch["label"] & is_example[:, None]
    predicted = (logits > 0) & is_example[:, None]
    num_right = 2.0 * jnp.sum(label & predicted, axis=0)  # [classes]
    num_both = jnp.sum(label, axis=0, dtype=jnp.float32) + jnp.sum(predicted, axis=0)
    counts = {
        "micro_f1": (jnp.sum(num_right), jnp.sum(num_both)),
        "macro_f1": (num_right, num_both),
        "exact_match": jnp.sum(is_example & jnp.all(label == predicted, axis=-1), dtype=jnp.float32),
    }
    return jnp.sum(jnp.where(is_example, nats, 0.0)), jnp.sum(is_example, dtype=jnp.float32), counts


def regress(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Regression loss: one number for each text, squared error.

    Args:
      apply: tokens [B, T] -> [B, 1].
      batch: as for `classify`, but `label` [B] float.
    Returns:
      The sum of the squared errors, the number of texts, and the count `mean_absolute_error`: the sum of the absolute
      errors.
    """
    numbers = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)[:, 0]
    errors = numbers - batch["label"]
    errors = jnp.where(batch["is_example"], errors, 0.0)
    weight_sum = jnp.sum(batch["is_example"], dtype=jnp.float32)
    return jnp.sum(errors**2), weight_sum, {"mean_absolute_error": jnp.sum(jnp.abs(errors))}


def tag(
    apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True, *, labels: tuple[str, ...] = ()
) -> Sums:
    """Tagging loss: one tag for each word.

    Args:
      apply: tokens [B, T] -> logits [B, T, tags].
      batch: `tokens` [B, T] int, `is_token` [B, T] bool, `tag` [B, T] int, `is_tagged` [B, T] bool: True for the first
        token of each word.
      labels: names of the tags; if they mark entities (`entities.has_entities`), these are counted, too.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of words, and the counts `accuracy` (the number of
      correct words) and, for tags of entities, `entity_f1`: the pair of `count_entities`.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    loss_sum, weight_sum, counts = _classification_sums(logits, batch["tag"], batch["is_tagged"])
    if has_entities(labels):
        predicted = jnp.argmax(logits, axis=-1)
        counts |= {"entity_f1": count_entities(batch["tag"], predicted, batch["is_tagged"], labels)}
    return loss_sum, weight_sum, counts


def count_entities(
    tag: jax.Array, predicted: jax.Array, is_tagged: jax.Array, labels: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """Count entities in tags of any scheme, [B, T] each; numerator and denominator of the entity F1.

    An entity is correct if both ends and its type are. `entities.entities` is the slow and simple definition.

    Returns:
      2 x the correct entities, and true + predicted entities; float32 scalars.
    """
    is_entity, may_continue, kind = _label_table(labels)
    # Words to the front: the later pieces of a word stand between its tag and the next one.
    order = jnp.argsort(~is_tagged, axis=1, stable=True)
    is_word = jnp.take_along_axis(is_tagged, order, axis=1)

    def entity_ends(tags):
        """Return for each word, [B, T] each: True if an entity ends with it; where that began; its type."""
        tags = jnp.take_along_axis(tags, order, axis=1)
        is_in_entity = is_entity[tags] & is_word
        before, after = tags[:, :-1], tags[:, 1:]
        is_same_entity = may_continue[before, after] & is_word[:, 1:] & is_word[:, :-1]
        is_continued = jnp.pad(is_same_entity, [(0, 0), (1, 0)])  # from the word before
        first = jax.lax.cummax(jnp.where(is_continued, 0, jnp.arange(tags.shape[1])), axis=1)
        return is_in_entity & ~jnp.pad(is_continued[:, 1:], [(0, 0), (0, 1)]), first, kind[tags]

    is_end, first, kinds = entity_ends(tag)
    is_predicted_end, predicted_first, predicted_kinds = entity_ends(predicted)
    is_correct = is_end & is_predicted_end & (first == predicted_first) & (kinds == predicted_kinds)
    numerator = 2 * is_correct
    denominator = is_end + 1 * is_predicted_end
    return jnp.sum(numerator, dtype=jnp.float32), jnp.sum(denominator, dtype=jnp.float32)


def _label_table(labels: tuple[str, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Table of tags: True if in an entity [tags]; True if tag j continues that of tag i [tags, tags]; type [tags]."""
    tags = [split_tag(label) for label in labels]
    kinds = sorted({kind for _, kind in tags})
    may_continue = [[continues(after[0], before[0]) and after[1] == before[1] for after in tags] for before in tags]
    return (
        jnp.array([tag != OUTSIDE for tag in tags]),
        jnp.array(may_continue),
        jnp.array([kinds.index(kind) for _, kind in tags]),
    )


def masked_lm(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Masked language modeling loss: predict the original token at each masked position.

    Devlin et al. 2019, section 3.1.

    Args:
      apply: tokens [B, T] -> logits [B, T, V].
      batch: `tokens` [B, T] int, masked; `is_token` [B, T] bool; `target` [B, T] int; `is_target` [B, T] bool.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of targets, and the count `accuracy`: the number of
      correct targets.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    return _classification_sums(logits, batch["target"], batch["is_target"])


def _classification_sums(logits: jax.Array, target: jax.Array, is_target: jax.Array) -> Sums:
    """Sum the loss, the targets and the correct predictions of logits [..., classes] over the targets [...]."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    is_correct = is_target & (jnp.argmax(logits, axis=-1) == target)
    loss_sum = jnp.sum(jnp.where(is_target, nats, 0.0))
    weight_sum = jnp.sum(is_target, dtype=jnp.float32)
    return loss_sum, weight_sum, {"accuracy": jnp.sum(is_correct, dtype=jnp.float32)}


def seq2seq(
    apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True, *, label_smoothing: float = 0.0
) -> Sums:
    """Sequence-to-sequence loss with teacher forcing: predict each target token from the source and those before it.

    Args:
      apply: as for `causal_lm`, with source, target and their masks.
      batch: `source` [B, S] and `target` [B, T + 1] int, which begins with the decoder's start token; and
        `source_is_token`, `target_is_token` bool of their shapes, False for padding.
      label_smoothing: in training, the share of each target that is spread evenly over the vocabulary.
        Szegedy et al. 2016, section 7.
    Returns:
      The sum of the (smoothed) negative log-likelihoods, in nats, the number of targets, and no counts.
    """
    inputs, targets = batch["target"][:, :-1], batch["target"][:, 1:]
    is_target = batch["target_is_token"][:, 1:]
    activations = apply(
        batch["source"],
        inputs,
        batch["source_is_token"],
        batch["target_is_token"][:, :-1],
        deterministic=deterministic,
        method="activations",
    )
    smoothing = 0.0 if deterministic else label_smoothing
    nats = cross_entropy(lambda x: apply(x, method="logits"), activations, targets, smoothing=smoothing)
    return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32), {}


def cross_entropy(
    project: Callable, x: jax.Array, targets: jax.Array, max_logits: int = 0, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy, -log softmax(project(x))[targets] in nats, without all logits in memory at once.

    The logits are computed for a piece of the time axis at a time, and again in the gradient: with 50,000 tokens in the
    vocabulary they would be the largest array of a step. Logits that fit in one piece are computed at once.

    Args:
      project: [B, t, D] -> [B, t, V].
      x: [B, T, D]; targets: [B, T] int.
      max_logits: number of logits in one piece; 0: chosen for the device, MAX_LOGITS.
      smoothing: label smoothing: the share of each target that is spread evenly over the vocabulary.
    Returns:
      [B, T] float32.
    """
    B, T, D = x.shape
    V = jax.eval_shape(project, x).shape[-1]
    piece = max(1, (max_logits or MAX_LOGITS[jax.default_backend()]) // (B * V))  # positions in a piece

    def nats(x_and_targets):
        x, targets = x_and_targets
        logits = project(x)
        exact = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if not smoothing:
            return exact
        spread = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
        return (1.0 - smoothing) * exact + smoothing * spread

    if piece >= T:
        return nats((x, targets))
    # Pieces of time, not of rows: if rows are sharded over devices, every device works on every piece.
    num_pieces = -(-T // piece)
    piece = -(-T // num_pieces)
    padded = [jnp.pad(a, [(0, 0), (0, num_pieces * piece - T)] + [(0, 0)] * (a.ndim - 2)) for a in (x, targets)]
    pieces = [a.reshape(B, num_pieces, piece, *a.shape[2:]).swapaxes(0, 1) for a in padded]
    return jax.lax.map(jax.checkpoint(nats), tuple(pieces)).swapaxes(0, 1).reshape(B, -1)[:, :T]
