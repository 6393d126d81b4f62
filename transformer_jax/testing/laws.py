"""How a law is stated: equal to the bit, or close; and how one that is broken is told."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-5  # of the largest value, or of 1 where all are smaller: float32 after a different order of sums


class LawBroken(AssertionError):
    """A law that does not hold: which, where, by how much."""


def equal(law: str, actual: Any, expected: Any, where: Any = True) -> None:
    """Every number is the same to the bit, where `where` (broadcast) is True."""
    _compare(law, actual, expected, where, 0.0, "to the bit")


def close(law: str, actual: Any, expected: Any, where: Any = True, tolerance: float = TOLERANCE) -> None:
    """Every number differs by at most `tolerance` times max(1, largest value), where `where` is True."""
    expected = np.asarray(expected, np.float64)
    shown = expected[np.broadcast_to(where, expected.shape)]
    shown = shown[np.isfinite(shown)]
    allowed = tolerance * np.abs(shown).max(initial=1.0)
    _compare(law, actual, expected, where, allowed, f"within {allowed:.1e}")


def _compare(law, actual, expected, where, allowed, rule):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise LawBroken(f"{law}: the result has shape {list(actual.shape)}, expected {list(expected.shape)}.")
    where = np.broadcast_to(where, actual.shape)
    with np.errstate(invalid="ignore"):
        off = np.abs(actual - expected)
    off = np.where((actual == expected) | ~where, 0.0, np.where(np.isnan(off), np.inf, off))
    if not off.size or off.max() <= allowed:
        return
    place = np.unravel_index(off.argmax(), off.shape)
    raise LawBroken(
        f"{law}: at [{', '.join(map(str, place))}] there is {actual[place]:.6g} where {expected[place]:.6g} is "
        f"expected ({rule}); {int((off > allowed).sum())} of {int(where.sum())} numbers are off, by up to "
        f"{off.max():.2g}."
    )


def finite(law: str, tree: Any) -> None:
    """No NaN and no infinity in any array of a pytree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        bad = ~np.isfinite(np.asarray(leaf, np.float64))
        if bad.any():
            place = ", ".join(map(str, np.argwhere(bad)[0]))
            name = jax.tree_util.keystr(path)
            raise LawBroken(f"{law}: {int(bad.sum())} of {bad.size} numbers are not finite, first at [{place}] {name}.")


def differs(law: str, a: Any, b: Any) -> None:
    """Every row (leading axis) has a number that is not the same in both."""
    a, b = np.asarray(a), np.asarray(b)
    same = np.array([np.array_equal(x, y) for x, y in zip(a, b, strict=True)])
    if same.any():
        raise LawBroken(f"{law}: nothing changed in row {int(np.argmax(same))}, and it must.")


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(fn: Callable, arrays: Sequence[jax.Array]) -> tuple[Any, tuple]:
    """fn(*arrays), and the gradients of the sum of sines of all its numbers (no direction is special there)."""

    def loss(arrays):
        out = fn(*arrays)
        return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(out)), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(tuple(arrays))
    return out, gradients


def check_twins(fn: Callable, twin: Callable, *arrays: jax.Array, tolerance: float = TOLERANCE) -> None:
    """Two ways to compute the same thing agree in value and in gradient: a fast one and the formula, say."""
    out, gradients = value_and_gradients(fn, arrays)
    twin_out, twin_gradients = value_and_gradients(twin, arrays)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(twin_out), strict=True):
        close("both compute the same", a, b, tolerance=tolerance)
    for i, (a, b) in enumerate(zip(jax.tree.leaves(gradients), jax.tree.leaves(twin_gradients), strict=True)):
        close(f"both have the same gradient for array {i}", a, b, tolerance=tolerance)
