"""What a model is trained to do: (apply, batch, deterministic) -> (loss_sum, weight_sum, counts).

Sums, not means: micro-batches and devices may hold different numbers of real targets, and only sums can
be added before they are divided. `counts` are sums, too, by the name of the metric that they become when divided by
weight_sum; a pair is divided by itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

MANY_LOGITS = {"cpu": 2**23, "gpu": 2**27, "tpu": 2**27}  # in one piece: 32 MB, 512 MB


Sums = tuple[jax.Array, jax.Array, dict[str, Any]]


def causal_lm(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Predict each token from those before it.

    Args:
      apply: a model's `apply` with its parameters: method="activations" turns tokens [B, T] into [B, T, D],
        method="logits" these into [B, T, V].
      batch: `tokens` [B, T + 1] int, `is_token` [B, T + 1] bool. Padding stands on the right, where a causal
        model cannot see it, so it needs no mask; it only never counts as a target. Where documents are packed into
        rows, also `segments` [B, T + 1] int: the first token of one is no target, and sees none before it.
      deterministic: False while training: dropout.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of targets, and no counts.
    """
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    segments = {"segments": batch["segments"][:, :-1]} if "segments" in batch else {}
    is_target = packed_targets(batch)
    activations = apply(inputs, deterministic=deterministic, method="activations", **segments)
    nats = cross_entropy(lambda x: apply(x, method="logits"), activations, targets)
    return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32), {}


def packed_targets(batch: dict[str, jax.Array]) -> jax.Array:
    """Which of the tokens after the first are targets, [..., T] bool: those that follow one of their own document."""
    is_target = batch["is_token"][..., 1:]
    segments = batch.get("segments")
    return is_target if segments is None else is_target & (segments[..., 1:] == segments[..., :-1])


def classify(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Give each text its label.

    Args:
      apply: tokens [B, T] -> logits [B, classes].
      batch: `tokens` [B, T] int, `is_token` [B, T] bool, `label` [B] int, `is_example` [B] bool: False for rows that
        only fill up the batch.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of texts, how many are right, and of each label
      twice the right ones beside all that have it or were given it: their ratios' mean is the macro-F1.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    loss_sum, weight_sum, counts = _of_classes(logits, batch["label"], batch["is_example"])
    label, guess = (
        jax.nn.one_hot(x, logits.shape[-1]) * batch["is_example"][:, None]
        for x in (batch["label"], jnp.argmax(logits, axis=-1))
    )
    macro_f1 = 2.0 * jnp.sum(label * guess, axis=0), jnp.sum(label + guess, axis=0)  # [classes] each
    return loss_sum, weight_sum, counts | {"macro_f1": macro_f1}


def regress(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Give each text its number.

    Args:
      apply: tokens [B, T] -> [B].
      batch: as for `classify`, `label` [B] float.
    Returns:
      The sum of the squared errors, the number of texts, and the sum of the errors' sizes.
    """
    errors = apply(batch["tokens"], batch["is_token"], deterministic=deterministic) - batch["label"]
    errors = jnp.where(batch["is_example"], errors, 0.0)
    weight_sum = jnp.sum(batch["is_example"], dtype=jnp.float32)
    return jnp.sum(errors**2), weight_sum, {"mean_absolute_error": jnp.sum(jnp.abs(errors))}


def tag(
    apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True, *, labels: tuple[str, ...] = ()
) -> Sums:
    """Give each word its tag.

    Args:
      apply: tokens [B, T] -> logits [B, T, tags].
      batch: `tokens` [B, T] int, `is_token` [B, T] bool, `tag` [B, T] int, `is_tagged` [B, T] bool: the first token of
        each word.
      labels: names of the tags; where some begin with "B-", entities are counted, too.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of words, how many are right, and twice the right
      entities beside all: their ratio is the entity F1.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    loss_sum, weight_sum, counts = _of_classes(logits, batch["tag"], batch["is_tagged"])
    if any(label.startswith("B-") for label in labels):
        guess = jnp.argmax(logits, axis=-1)
        counts |= {"entity_f1": count_entities(batch["tag"], guess, batch["is_tagged"], labels)}
    return loss_sum, weight_sum, counts


def count_entities(
    tag: jax.Array, guess: jax.Array, is_tagged: jax.Array, labels: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """Entities in BIO tags with both ends and the kind right, twice, and all of both sides: [B, T] each -> scalars.

    `train.data.tagged.entities` says what an entity is, slowly and plainly.
    """
    is_entity, is_inside, kind = _label_table(labels)
    # Words to the front: the later pieces of a word stand between its tag and the next one.
    order = jnp.argsort(~is_tagged, axis=1, stable=True)
    is_word = jnp.take_along_axis(is_tagged, order, axis=1)

    def ends_of(tags):
        """Of each word: whether an entity ends with it, where that began, and its kind, [B, T] each."""
        tags = jnp.take_along_axis(tags, order, axis=1)
        inside = is_entity[tags] & is_word
        same = (kind[tags][:, 1:] == kind[tags][:, :-1]) & inside[:, 1:] & inside[:, :-1]
        goes_on = jnp.pad(is_inside[tags][:, 1:] & same, [(0, 0), (1, 0)])  # from the word before
        first = jax.lax.cummax(jnp.where(goes_on, 0, jnp.arange(tags.shape[1])), axis=1)
        return inside & ~jnp.pad(goes_on[:, 1:], [(0, 0), (0, 1)]), first, kind[tags]

    (is_end, first, kinds), (is_guessed, guessed_first, guessed_kinds) = ends_of(tag), ends_of(guess)
    is_right = is_end & is_guessed & (first == guessed_first) & (kinds == guessed_kinds)
    return tuple(jnp.sum(x, dtype=jnp.float32) for x in (2 * is_right, is_end + 1 * is_guessed))


def _label_table(labels: tuple[str, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each label: whether it is in an entity, whether it may go on with one, and the number of its kind."""
    kinds = [label[2:] if label[:2] in ("B-", "I-") else "" for label in labels]
    names = sorted(set(kinds))
    is_entity, is_inside = [label[:2] in ("B-", "I-") for label in labels], [label[:2] == "I-" for label in labels]
    return jnp.array(is_entity), jnp.array(is_inside), jnp.array([names.index(kind) for kind in kinds])


def masked_lm(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> Sums:
    """Which token stood in each gap. Devlin et al. 2019, section 3.1.

    Args:
      apply: tokens [B, T] -> logits [B, T, V].
      batch: `tokens` [B, T] int, with gaps, `is_token` [B, T] bool, `target` [B, T] int, `is_target` [B, T] bool.
    Returns:
      The sum of the negative log-likelihoods, in nats, the number of gaps, and how many are filled right.
    """
    logits = apply(batch["tokens"], batch["is_token"], deterministic=deterministic)
    return _of_classes(logits, batch["target"], batch["is_target"])


def _of_classes(logits: jax.Array, target: jax.Array, is_target: jax.Array) -> Sums:
    """Losses, number and right answers of [..., classes] logits, where there is a target [...]."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    is_right = is_target & (jnp.argmax(logits, axis=-1) == target)
    loss_sum, weight_sum = jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32)
    return loss_sum, weight_sum, {"accuracy": jnp.sum(is_right, dtype=jnp.float32)}


def seq2seq(
    apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True, *, label_smoothing: float = 0.0
) -> Sums:
    """Write the target of a source, each token from the right ones before it (teacher forcing).

    Args:
      apply: as for `causal_lm`, with source, target and their masks.
      batch: `source` [B, S] and `target` [B, T + 1] int, which begins with the token that starts one; and
        `source_is_token`, `target_is_token` bool of their shapes, False for padding.
      label_smoothing: while training, the share of each target that is spread evenly over the vocabulary.
        Szegedy et al. 2016, section 7.
    Returns:
      The sum of the (smoothed) negative log-likelihoods, in nats, the number of targets, and no counts.
    """
    inputs, targets = batch["target"][:, :-1], batch["target"][:, 1:]
    is_target = batch["target_is_token"][:, 1:]
    x = apply(
        batch["source"],
        inputs,
        batch["source_is_token"],
        batch["target_is_token"][:, :-1],
        deterministic=deterministic,
        method="activations",
    )
    smoothing = 0.0 if deterministic else label_smoothing
    nats = cross_entropy(lambda x: apply(x, method="logits"), x, targets, smoothing=smoothing)
    return jnp.sum(jnp.where(is_target, nats, 0.0)), jnp.sum(is_target, dtype=jnp.float32), {}


def cross_entropy(
    project: Callable, x: jax.Array, targets: jax.Array, most: int = 0, smoothing: float = 0.0
) -> jax.Array:
    """-log softmax(project(x))[targets], in nats, without ever holding all logits.

    They are projected, used and forgotten a piece of the time axis after the other, and in the gradient once more: with
    50,000 tokens in the vocabulary they would be the largest array of a step. What fits in one piece is done at once.

    Args:
      project: [B, t, D] -> [B, t, V].
      x: [B, T, D]; targets: [B, T] int.
      most: logits in one piece; 0: what suits the device.
      smoothing: the share of each target that is the mean over all tokens.
    Returns:
      [B, T] float32.
    """
    B, T, D = x.shape
    V = jax.eval_shape(project, x).shape[-1]
    piece = max(1, (most or MANY_LOGITS[jax.default_backend()]) // (B * V))

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
    # Pieces of time, not of rows: where rows are spread over devices, each device works on each piece.
    num_pieces = -(-T // piece)
    piece = -(-T // num_pieces)
    padded = [jnp.pad(a, [(0, 0), (0, num_pieces * piece - T)] + [(0, 0)] * (a.ndim - 2)) for a in (x, targets)]
    pieces = [a.reshape(B, num_pieces, piece, *a.shape[2:]).swapaxes(0, 1) for a in padded]
    return jax.lax.map(jax.checkpoint(nats), tuple(pieces)).swapaxes(0, 1).reshape(B, -1)[:, :T]
