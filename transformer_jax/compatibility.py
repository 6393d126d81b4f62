"""What goes with what: each cell of the table works and is tested, or is refused with a message that is."""

import itertools

from transformer_jax.attention import BACKENDS, cannot
from transformer_jax.config import choose
from transformer_jax.positions import POSITIONS


def refusal(
    positions: str, backend: str = "auto", window: bool = False, is_linear: bool = False, cache: bool = False,
    bias: bool = False,
) -> str | None:  # fmt: skip
    """Why these do not go together, in a line with the way out; None: they do. The compatibility table is made of this."""
    scheme = choose(POSITIONS, positions, "model.positions")
    if is_linear:
        if scheme.turn or scheme.bias or scheme.is_relative:
            return (
                f"model.positions={positions!r}: linear attention has no score for each pair of tokens to change. "
                "Take 'none', 'learned' or 'sinusoidal'."
            )
        if bias:
            return "attention='linear': has no scores that a bias could be added to. Take attention='softmax'."
        if window:
            return "model.window: linear attention sums over all keys before the query. Take window=0."
        if backend != "auto":
            return f"model.backend={backend!r}: linear attention has one of its own. Take 'auto'."
    elif backend != "auto":
        asked = {name for name, is_asked in (("bias", bias or scheme.bias), ("relative", scheme.is_relative)) if is_asked}
        if asked - choose(BACKENDS, backend, "model.backend").can:
            return cannot(backend, asked - BACKENDS[backend].can)
    return None


def compatibility_table() -> str:
    """What goes with what, as Markdown: yes, or no (then `refusal` says why). Windows and caches go with all softmax."""
    columns = ["auto", *BACKENDS, "linear"]
    lines = ["| positions | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for positions, extra in itertools.product(POSITIONS, ("", "bias", "window", "cache")):
        cells = []
        for column in columns:
            is_linear = column == "linear"
            why_not = refusal(
                positions, "auto" if is_linear else column, extra == "window", is_linear, extra == "cache",
                extra == "bias",
            )  # fmt: skip
            cells.append("no" if why_not else "yes")
        lines.append(f"| {positions}{' + ' + extra if extra else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
