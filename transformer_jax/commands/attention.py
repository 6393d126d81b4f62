"""`python -m transformer_jax attention`: what a model looks at in a text, as pictures and as numbers."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help

EXAMPLE = 'python -m transformer_jax attention --run_dir=runs/a --text="To be or not to be" --output=maps'

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A training run, a Hugging Face folder, or a name on the hub.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "Of a run: latest | best | a step")
_TEXT = flags.DEFINE_string("text", None, "What the model reads; the source of a Seq2Seq.")
_TARGET = flags.DEFINE_string("target", None, "What a Seq2Seq has written.")
_OUTPUT = flags.DEFINE_string("output", "attention", "How the files begin: .npz, and _layer_0.png and so on.")

# Inches. A letter of DejaVu Sans Mono, which comes with matplotlib, is 0.602 of its size wide; a size is in 1/72 inch.
FONT, LETTER, TOKEN = "DejaVu Sans Mono", 7 * 0.602 / 72, 0.13  # TOKEN: from a label to the next
SMALLEST, LARGEST = 1.4, 7.8  # a side of a map: of few tokens; and of 60, above which not each is named
MOST_LETTERS, MOST_PIXELS = 14, 8000


def main(argv: list[str]) -> None:
    """Parse, load, look, draw."""
    if HELP_FLAGS & set(argv):
        show_help(f"Draw what every head of a model looks at in a text.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    for flag in (_RUN_DIR, _TEXT, _OUTPUT):
        if not flag.value:
            raise UsageError(f"--{flag.name}: is missing. Example: {EXAMPLE}")
    output = Path(_OUTPUT.value).expanduser()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output={output}: there cannot be such a folder ({error}).") from error
    startup.prepare(is_training=False)
    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    run = tj.open_run(_RUN_DIR.value, _CHECKPOINT.value)
    maps = tj.attention_maps(run, _TEXT.value, _TARGET.value)
    with open(f"{output}.npz", "wb") as file:
        np.savez(file, **maps._asdict())
    print(f"{output}.npz")
    for name, title, *content in pages(maps):
        draw(f"{output}_{name}.png", f"{_RUN_DIR.value}, {title}", *content)
        print(f"{output}_{name}.png")


def pages(maps: Any) -> Iterator[tuple[str, str, np.ndarray, list[str], list[str]]]:
    """A page for each layer: name, title, weights [N, T, S], and the tokens of rows and columns."""
    if hasattr(maps, "tokens"):
        parts = [("layer", "self-attention", maps.weights, maps.tokens, maps.tokens)]
    else:
        source, target = maps.source_tokens, maps.target_tokens
        parts = [
            ("encoder", "self-attention of the encoder", maps.encoder, source, source),
            ("decoder", "self-attention of the decoder", maps.decoder, target, target),
            ("cross", "cross-attention, from target (rows) to source (columns)", maps.cross, target, source),
        ]
    for name, title, layers, rows, columns in parts:
        for i, weights in enumerate(layers):
            number = f"{i:0{len(str(len(layers) - 1))}d}"  # so that names are in the order of the layers
            yield f"{name}_{number}", f"layer {i}: {title}", weights, rows, columns


def draw(path: str, title: str, weights: np.ndarray, rows: list[str], columns: list[str]) -> None:
    """One picture: a map for each head, weights [N, T, S], with a token at each row and each column.

    Sizes are reckoned here: matplotlib's own layout takes long for so many labels, and changes from page to page.
    """
    import matplotlib

    matplotlib.use("Agg")  # needs no screen
    import matplotlib.pyplot as plt
    from matplotlib.colors import PowerNorm

    N, T, S = weights.shape
    rows, columns = ([label(token) for token in tokens] for tokens in (rows, columns))
    height, width = (min(max(TOKEN * n, SMALLEST), LARGEST) for n in (T, S))
    below, left = (LETTER * max(map(len, labels)) + 0.12 for labels in (columns, rows))
    pitch_x, pitch_y = left + width + 0.2, 0.3 + height + below + 0.1
    wide = range(math.isqrt(N - 1) + 1, math.isqrt(4 * N) + 1)  # from a square of maps to one twice as wide
    num_x = min(wide, key=lambda x: -N % x)  # with the least gaps
    head = 0.6  # room for the title
    page = max(num_x * pitch_x + 1.0, 0.1 * len(title), 4.5), -(-N // num_x) * pitch_y + head
    figure = plt.figure(figsize=page)

    def axes(x, y, width, height):  # by its top left corner, from the page's
        return figure.add_axes((x / page[0], 1 - (y + height) / page[1], width / page[0], height / page[1]))

    scale = PowerNorm(0.5, 0, 1)  # the root: among forty tokens, a weight of 0.05 is worth seeing
    for n in range(N):
        y, x = divmod(n, num_x)
        ax = axes(x * pitch_x + left, head + y * pitch_y + 0.2, width, height)
        image = ax.imshow(weights[n], cmap="magma_r", norm=scale, aspect="auto", interpolation="nearest")
        ax.set_title(f"head {n}", fontsize=9, pad=3)
        for axis, labels, side in ((ax.yaxis, rows, height), (ax.xaxis, columns, width)):
            step = math.ceil(TOKEN * len(labels) / side - 1e-6)
            axis.set_ticks(range(0, len(labels), step), labels[::step], parse_math=False, fontfamily=FONT, fontsize=7)
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(length=2, pad=2)
    for y, size, line in ((0.12, 11, title), (0.36, 8, "Rows attend to columns; the weights of a row sum to 1.")):
        figure.text(0.1 / page[0], 1 - y / page[1], line, va="top", fontsize=size, parse_math=False)
    bar = axes(num_x * pitch_x + 0.1, head + 0.2, 0.15, max(height, 1.4))
    figure.colorbar(image, cax=bar, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]).ax.tick_params(labelsize=7)
    bar.set_title("weight", fontsize=8, pad=5)
    figure.savefig(path, dpi=min(130, MOST_PIXELS / max(page)))
    plt.close(figure)


def label(token: str) -> str:
    """A token with all of it to be seen: ␣ for a space, and \\n or \\u4e2d for what the font cannot show."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(FONT))

    def visible(char):
        is_shown = char.isprintable() and font.get_char_index(ord(char))
        return char if is_shown else char.encode("unicode_escape", "surrogatepass").decode()

    text = "".join("␣" if char == " " else visible(char) for char in token)
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
