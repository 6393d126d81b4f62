"""What goes with what: each cell of the table works and is tested, or is refused with a message that is."""

from transformer_jax.errors import choose
from transformer_jax.nn import linear_attention
from transformer_jax.nn.attention import BACKENDS, cannot
from transformer_jax.nn.positions import POSITIONS

EXTRAS = ("bias", "window", "softcap", "cache")  # what may come on top of a position scheme and a backend


def refusal(positions: str, backend: str = "auto", is_linear: bool = False, extras: tuple[str, ...] = ()) -> str | None:
    """Why these do not go together, in a line with the way out; None: they do.

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
                return linear_attention.cannot(extra)
        if backend != "auto":
            return f"model.backend={backend!r}: linear attention has one of its own. Take 'auto'."
        return None
    if backend == "auto":
        return None
    asked = {extra for extra in ("bias", "softcap") if extra in extras}
    asked |= {name for name, is_asked in (("bias", scheme.bias), ("relative", scheme.is_relative)) if is_asked}
    missing = asked - choose(BACKENDS, backend, "model.backend").can
    return cannot(backend, missing) if missing else None


def compatibility_table() -> str:
    """Position schemes by backends, as Markdown. What a cell leaves out of EXTRAS goes, too."""
    columns = ["auto", *BACKENDS, "linear"]
    lines = ["| positions | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for positions in POSITIONS:
        cells = []
        for column in columns:
            pair = (positions, "auto", True) if column == "linear" else (positions, column, False)
            without = [extra for extra in EXTRAS if refusal(*pair, (extra,))]
            cells.append("no" if refusal(*pair) else f"yes, no {' or '.join(without)}" if without else "yes")
        lines.append(f"| {positions} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
