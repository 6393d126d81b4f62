"""Entropy floor: the smallest expected loss that any model can have on a text from a known distribution.

A loss clearly below the floor means that the model saw its targets (a leak), or that the loss is computed wrongly. Loss
and floor are compared window by window: a window that is hard for one is hard for the other, so their difference
scatters far less than the losses do.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.tokenizers import Tokenizer

from .data.batches import Batch
from .data.entropy import TRUTHS, known_truth

ERRORS = 3.0  # standard errors below the floor that count as a leak: chance for an unbiased loss, 1 in 740
ROUNDING = 1e-5  # tolerated relative to the floor; float32 loses less


def floor_of(source: str, tokenizer: Tokenizer) -> Callable[[Batch], np.ndarray] | None:
    """Make the function from a batch to the entropy floor of each row: true negative log-likelihood in nats, f32 [B].

    Returns:
      The function, or None if the distribution of the source is not known, or tokens are not characters: then a token
      has no probability of its own.
    """
    if source not in TRUTHS or tokenizer.kind not in ("char", "byte"):
        return None
    truth = known_truth(source)
    symbol = np.full(tokenizer.vocab_size, -1)  # index: token id
    symbol[tokenizer.encode(truth.characters)] = np.arange(len(truth.characters))

    def floor(batch: Batch) -> np.ndarray:
        symbols = np.where(batch["is_token"], symbol[batch["tokens"]], -1)
        return truth.nats(symbols).sum(axis=1).astype(np.float32)

    return floor


def with_floor(
    batches: Callable[[], Iterable[Batch]], floor: Callable[[Batch], np.ndarray]
) -> Callable[[], list[Batch]]:
    """Add `floor` [B] to every batch. Computed once and kept, because every evaluation uses the same batches."""
    cached: list[Batch] = []

    def batches_with_floor() -> list[Batch]:
        if not cached:
            cached.extend(batch | {"floor": floor(batch)} for batch in batches())
        return cached

    return batches_with_floor


def paired(loss_fn: Callable) -> Callable:
    """Wrap a loss function: for a batch with a floor it also returns the counts for `compare`, paired by window.

    Training batches have no floor; they go to `loss_fn` unchanged.
    """

    def paired_loss(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> tuple:
        if "floor" not in batch:
            return loss_fn(apply, batch, deterministic=deterministic)
        batch = dict(batch)
        floors = batch.pop("floor")  # [B]

        def row_loss(row):  # as a batch of one row: loss functions only return sums over a batch
            return loss_fn(apply, jax.tree.map(lambda x: x[None], row), deterministic=deterministic)

        losses, weights, counts = jax.vmap(row_loss)(batch)  # [B] each
        is_window = weights > 0
        gaps = jnp.where(is_window, losses - floors, 0.0)
        counts |= {"floor": floors, "gap_squares": gaps**2, "windows": is_window.astype(jnp.float32)}
        return jax.tree.map(jnp.sum, (losses, weights, counts))

    return paired_loss


def compare(sums: dict[str, float], num_targets: float) -> dict[str, float]:
    """Compare the loss with the entropy floor; detect a leak.

    Args:
      sums: over all windows: `loss` and `floor` in nats, `gap_squares` in nats squared, the number of `windows`.
    Returns:
      In nats per target: `loss`, `floor`, `gap` = loss - floor, and `gap_error`, the standard error of the gap as a
      mean over windows (NaN for one window); and `leak`, a bool: the gap is more than ERRORS standard errors below 0.
    """
    sums = dict(sums)
    squares = sums.pop("gap_squares")
    num_windows = sums.pop("windows")
    gap = sums["loss"] - sums["floor"]  # of all windows together
    error = math.nan
    if num_windows > 1:
        variance = max(0.0, squares - gap**2 / num_windows) / (num_windows - 1)  # of the gap of a window
        error = math.sqrt(variance * num_windows)
    means = {name: value / num_targets for name, value in (sums | {"gap": gap, "gap_error": error}).items()}
    return means | {"leak": gap < -ERRORS * error - ROUNDING * sums["floor"]}


def describe(values: dict[str, Any]) -> str:
    """Format the floor, the gap and its standard error for a validation line."""
    share = values["gap"] / values["floor"]
    return f"floor {values['floor']:.4f}  gap {values['gap']:.4f} ({share:+.1%}) +- {values['gap_error']:.4f}"


def leak_warning(values: dict[str, Any]) -> str:
    """Format the warning about a leak: how far the loss is below the floor, and where to look."""
    errors = -values["gap"] / values["gap_error"] if values["gap_error"] else math.inf
    return (
        f"leak? the loss is {-values['gap']:.4f} nats per token below the floor, {errors:.1f} standard errors: "
        "impossible for a model that sees only the tokens before each target. Look for targets among the inputs, and "
        "check the mask, the shift and the loss."
    )
