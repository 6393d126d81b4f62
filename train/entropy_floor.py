"""The loss beside the floor: where the truth behind a text is known, no model can have a smaller expected loss than it.

A loss that is clearly smaller means that the model was shown what it should predict, or that the loss is not what it
says. Both losses are compared window by window, because what is hard for one is hard for the other: the difference
scatters far less than the losses do.
"""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.tokenizers import Tokenizer

from .data.batches import Batch
from .data.entropy import TRUTHS, known_truth

ERRORS = 3.0  # standard errors below the floor that are called a leak: an unbiased loss is there once in 740 times
ROUNDING = 1e-5  # of the floor; float32 loses less


def floor_of(source: str, tokenizer: Tokenizer) -> Callable[[Batch], np.ndarray] | None:
    """The function that says what the truth's negative log-likelihood of a batch's rows is, in nats: float32 [B].

    None where the truth is not known, or tokens are not characters: then a token has no probability of its own.
    """
    if source not in TRUTHS or tokenizer.kind not in ("char", "byte"):
        return None
    truth = known_truth(source)
    symbol = np.full(tokenizer.vocab_size, -1)  # of each token id
    symbol[tokenizer.encode(truth.characters)] = np.arange(len(truth.characters))

    def floor(batch: Batch) -> np.ndarray:
        symbols = np.where(batch["is_token"], symbol[batch["tokens"]], -1)
        return truth.nats(symbols).sum(axis=1).astype(np.float32)

    return floor


def with_floor(batches: Callable[[], Iterable[Batch]], floor: Callable[[Batch], np.ndarray]) -> Callable:
    """The same batches with `floor` [B] beside the tokens; made once, since every evaluation has the same."""
    made: list[Batch] = []

    def again() -> list[Batch]:
        if not made:
            made.extend(batch | {"floor": floor(batch)} for batch in batches())
        return made

    return again


def paired(loss_fn: Callable) -> Callable:
    """An loss_fn that, where a batch has a floor, also counts what `compare` needs. Training batches have none."""

    def compared(apply: Callable, batch: dict[str, jax.Array], deterministic: bool = True) -> tuple:
        if "floor" not in batch:
            return loss_fn(apply, batch, deterministic=deterministic)
        batch = dict(batch)
        floors = batch.pop("floor")  # [B]

        def one(row):  # whatever the loss_fn is, it says the loss of a batch of one row
            return loss_fn(apply, jax.tree.map(lambda x: x[None], row), deterministic=deterministic)

        losses, weights, counts = jax.vmap(one)(batch)  # [B] each
        is_window = weights > 0
        gaps = jnp.where(is_window, losses - floors, 0.0)
        counts |= {"floor": floors, "gap_squares": gaps**2, "windows": is_window.astype(jnp.float32)}
        return jax.tree.map(jnp.sum, (losses, weights, counts))

    return compared


def compare(sums: dict[str, float], num_targets: float) -> dict[str, float | bool]:
    """The loss beside the floor.

    Args:
      sums: over all windows: `loss` and `floor` in nats, `gap_squares` in nats squared, the number of `windows`.
    Returns:
      In nats per target: `loss`, `floor`, `gap` = loss - floor, and `gap_error`, the standard error of the gap as a
      mean over windows (NaN for one window); and `leak`: whether the gap is more than ERRORS of these below 0.
    """
    sums = dict(sums)
    squares, num_windows = sums.pop("gap_squares"), sums.pop("windows")
    gap = sums["loss"] - sums["floor"]  # of all windows together
    error = math.nan
    if num_windows > 1:
        variance = max(0.0, squares - gap**2 / num_windows) / (num_windows - 1)  # of the gap of a window
        error = math.sqrt(variance * num_windows)
    means = {name: value / num_targets for name, value in (sums | {"gap": gap, "gap_error": error}).items()}
    return means | {"leak": gap < -ERRORS * error - ROUNDING * sums["floor"]}


def describe(values: dict[str, float | bool]) -> str:
    """Of a line about an evaluation, the part about the floor."""
    share = values["gap"] / values["floor"]
    return f"floor {values['floor']:.4f}  gap {values['gap']:.4f} ({share:+.1%}) +- {values['gap_error']:.4f}"


def warn(values: dict[str, float | bool]) -> str:
    """What to say of a leak."""
    errors = -values["gap"] / values["gap_error"] if values["gap_error"] else math.inf
    return (
        f"leak? the loss is {-values['gap']:.4f} nats per token below the floor, {errors:.1f} standard errors: no "
        "model that sees only what stands before a token can do that. Look for targets among the inputs, and at the "
        "mask, the shift and the loss."
    )
