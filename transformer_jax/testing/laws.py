"""Assertions for laws: equal to the bit, close, finite, different; LawBroken reports the failure."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

TOLERANCE = 1e-5  # relative to max(1, largest value): the error of float32 sums in a different order


class LawBroken(AssertionError):
    """Error of a law that does not hold: its name, the index and the difference."""


def equal(law: str, actual: ArrayLike, expected: ArrayLike, where: ArrayLike = True) -> None:
    """Assert that all numbers are equal to the bit, where `where` (broadcast) is True."""
    _compare(law, actual, expected, where, 0.0, "to the bit")


def close(
    law: str, actual: ArrayLike, expected: ArrayLike, where: ArrayLike = True, tolerance: float = TOLERANCE
) -> None:
    """Assert that all numbers differ by at most `tolerance` times max(1, largest value), where `where` is True."""
    expected = np.asarray(expected, np.float64)
    compared = expected[np.broadcast_to(where, expected.shape)]
    compared = compared[np.isfinite(compared)]
    allowed = tolerance * np.abs(compared).max(initial=1.0)
    _compare(law, actual, expected, where, allowed, f"within {allowed:.1e}")


def _compare(law, actual, expected, where, allowed, rule):
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise LawBroken(f"{law}: the result has shape {list(actual.shape)}, expected {list(expected.shape)}.")
    where = np.broadcast_to(where, actual.shape)
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual - expected)
    difference = np.where(np.isnan(difference), np.inf, difference)
    difference = np.where((actual == expected) | ~where, 0.0, difference)
    if not difference.size or difference.max() <= allowed:
        return
    index = np.unravel_index(difference.argmax(), difference.shape)
    raise LawBroken(
        f"{law}: at [{', '.join(map(str, index))}] there is {actual[index]:.6g} where {expected[index]:.6g} is "
        f"expected ({rule}); {int((difference > allowed).sum())} of {int(where.sum())} numbers differ, by up to "
        f"{difference.max():.2g}."
    )


def finite(law: str, tree: object) -> None:
    """Assert that no array of a pytree has a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        bad = ~np.isfinite(np.asarray(leaf, np.float64))
        if bad.any():
            index = ", ".join(map(str, np.argwhere(bad)[0]))
            name = jax.tree_util.keystr(path)
            raise LawBroken(f"{law}: {int(bad.sum())} of {bad.size} numbers are not finite, first at [{index}] {name}.")


def differs(law: str, a: ArrayLike, b: ArrayLike) -> None:
    """Assert that every row (leading axis) differs in at least one number."""
    is_same = np.array([np.array_equal(x, y) for x, y in zip(np.asarray(a), np.asarray(b), strict=True)])
    if is_same.any():
        raise LawBroken(f"{law}: nothing changed in row {int(np.argmax(is_same))}, but it must.")


def normal(seed: int, *shape: int) -> jax.Array:
    """Generate standard normal numbers, float32 of `shape`, from a seed."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(fn: Callable, arrays: Sequence[jax.Array]) -> tuple:
    """Compute fn(*arrays) and the gradients of the sum of sines of its numbers (a sum that no symmetry cancels)."""

    def loss(arrays):
        out = fn(*arrays)
        return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(out)), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(tuple(arrays))
    return out, gradients


def check_twins(fn: Callable, twin: Callable, *arrays: jax.Array, tolerance: float = TOLERANCE) -> None:
    """Check that two implementations of a function agree in value and gradient, such as a fast one and the formula."""
    out, gradients = value_and_gradients(fn, arrays)
    twin_out, twin_gradients = value_and_gradients(twin, arrays)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(twin_out), strict=True):
        close("both have the same value", a, b, tolerance=tolerance)
    for i, (a, b) in enumerate(zip(jax.tree.leaves(gradients), jax.tree.leaves(twin_gradients), strict=True)):
        close(f"both have the same gradient for array {i}", a, b, tolerance=tolerance)
