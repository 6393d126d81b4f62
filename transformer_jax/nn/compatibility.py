"""Compatibility of positions, backends and linear attention: every pair works or is refused; both are tested."""

from transformer_jax.errors import choose
from transformer_jax.nn import linear_attention
from transformer_jax.nn.attention import BACKENDS, unsupported
from transformer_jax.nn.positions import POSITIONS

EXTRAS = ("bias", "window", "softcap", "cache")  # options on top of a position scheme and a backend


def incompatibility(
    positions: str, backend: str = "auto", is_linear: bool = False, extras: tuple[str, ...] = ()
) -> str | None:
    """Return an error message if these options cannot be combined, else None.

    Args:
      positions: a name in POSITIONS; backend: one in BACKENDS, or auto.
      is_linear: linear attention in place of softmax attention.
      extras: names in EXTRAS.
    """
    scheme = choose(POSITIONS, positions, "model.positions")
    if is_linear:
        if scheme.rotate or scheme.bias or scheme.is_relative:
            return (
                f"model.positions={positions!r}: linear attention has no score for each pair of tokens to change. "
                "Take 'none', 'learned' or 'sinusoidal'."
            )
        for extra in ("bias", "window", "softcap"):
            if extra in extras:
                return linear_attention.unsupported(extra)
        if backend != "auto":
            return f"model.backend={backend!r}: linear attention has only one implementation. Take 'auto'."
        return None
    if backend == "auto":
        return None
    requested = {extra for extra in extras if extra in ("bias", "softcap")}
    if scheme.bias:
        requested.add("bias")
    if scheme.is_relative:
        requested.add("relative")
    missing = requested - choose(BACKENDS, backend, "model.backend").supports
    return unsupported(backend, missing) if missing else None


def compatibility_table() -> str:
    """Markdown table of position schemes by backends. EXTRAS that a cell does not name are supported."""
    columns = ["auto", *BACKENDS, "linear"]
    lines = ["| positions | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for positions in POSITIONS:
        cells = []
        for column in columns:
            pair = (positions, "auto", True) if column == "linear" else (positions, column, False)
            without = [extra for extra in EXTRAS if incompatibility(*pair, (extra,))]
            cells.append("no" if incompatibility(*pair) else f"yes, no {' or '.join(without)}" if without else "yes")
        lines.append(f"| {positions} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
