"""`python -m transformer_jax attention`: draw the attention weights of a model for a text, and save the numbers."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import ADAPTER_MEANING, HELP_FLAGS, UsageError, parse_flags, required, show_help
from transformer_jax.files import replace_file

if TYPE_CHECKING:  # these modules load JAX
    from transformer_jax.inference.attention_maps import AttentionMaps, Seq2SeqAttentionMaps

EXAMPLE = 'python -m transformer_jax attention --run_dir=runs/a --text="To be or not to be" --output=maps'

_RUN_DIR = flags.DEFINE_string("run_dir", None, "training run, Hugging Face folder, or name of a model on the hub")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "of a training run: latest | best | a step")
_ADAPTER = flags.DEFINE_string("adapter", "", ADAPTER_MEANING)
_TEXT = flags.DEFINE_string("text", None, "text that the model reads; the source of a Seq2Seq")
_TARGET = flags.DEFINE_string("target", None, "target that the decoder of a Seq2Seq reads")
_OUTPUT = flags.DEFINE_string("output", "attention", "prefix of the files: OUTPUT.npz, OUTPUT_layer_0.png and so on")

FONT = "DejaVu Sans Mono"  # comes with matplotlib
FONT_SIZE = 7  # points, of 1/72 inch
CHARACTER = FONT_SIZE * 0.602 / 72  # inches: a character's width is 0.602 of its size
LABEL_PITCH = 0.13  # inches from a label to the next
MIN_SIDE = 1.4  # inches: a map of few tokens
MAX_SIDE = 7.8  # inches: a map of 60 tokens; of more, not every token has a label
HEAD = 0.6  # inches above the maps, for the title
MAX_LABEL = 14  # characters
MAX_PIXELS = 8000  # of a page's longer side


def main(argv: list[str]) -> None:
    """Parse, load, compute, draw."""
    if HELP_FLAGS & set(argv):
        show_help(f"Draw the attention weights of every head of a model for a text.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    run_dir = required(_RUN_DIR, EXAMPLE)
    text = required(_TEXT, EXAMPLE)
    output = Path(required(_OUTPUT, EXAMPLE)).expanduser()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output={output}: its folder cannot be made ({error}).") from error
    startup.prepare(is_training=False)
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    run = tj.open_run(run_dir, _CHECKPOINT.value, _ADAPTER.value)
    maps = tj.attention_maps(run, text, _TARGET.value)
    with replace_file(Path(f"{output}.npz")) as file:
        np.savez(file, **maps._asdict())
    print(f"{output}.npz")
    for page in pages(maps):
        path = f"{output}_{page.name}.png"
        draw(Path(path), f"{run_dir}, {page.title}", page.weights, page.rows, page.columns)
        print(path)


class Page(NamedTuple):
    """One picture: the maps of all heads of a layer."""

    name: str
    title: str
    weights: np.ndarray  # [N, T, S]
    rows: list[str]  # T tokens
    columns: list[str]  # S tokens


def pages(maps: "AttentionMaps | Seq2SeqAttentionMaps") -> Iterator[Page]:
    """A page for each layer of each kind of attention."""
    from transformer_jax.inference import attention_maps  # loads JAX

    if isinstance(maps, attention_maps.AttentionMaps):
        parts = [("layer", "self-attention", maps.weights, maps.tokens, maps.tokens)]
    else:
        source = maps.source_tokens
        target = maps.target_tokens
        parts = [
            ("encoder", "self-attention of the encoder", maps.encoder, source, source),
            ("decoder", "self-attention of the decoder", maps.decoder, target, target),
            ("cross", "cross-attention, from target (rows) to source (columns)", maps.cross, target, source),
        ]
    for name, title, layers, rows, columns in parts:
        for i, weights in enumerate(layers):
            number = f"{i:0{len(str(len(layers) - 1))}d}"  # with zeros, so that names sort in the order of the layers
            yield Page(f"{name}_{number}", f"layer {i}: {title}", weights, rows, columns)


class Layout(NamedTuple):
    """Sizes of a page in inches. matplotlib's own layout is slow for so many labels, and differs from page to page."""

    map_width: float
    map_height: float
    left: float  # room for the labels of rows
    pitch_x: float  # from a map to the next
    pitch_y: float
    num_columns: int  # maps side by side
    page: tuple[float, float]  # width and height

    @classmethod
    def fit(cls, num_maps: int, title: str, rows: list[str], columns: list[str]) -> "Layout":
        """Layout for `num_maps` maps with these labels."""
        width = min(max(LABEL_PITCH * len(columns), MIN_SIDE), MAX_SIDE)
        height = min(max(LABEL_PITCH * len(rows), MIN_SIDE), MAX_SIDE)
        left = CHARACTER * max(map(len, rows)) + 0.12
        below = CHARACTER * max(map(len, columns)) + 0.12
        pitch_x = left + width + 0.2
        pitch_y = 0.3 + height + below + 0.1
        candidates = range(math.isqrt(num_maps - 1) + 1, math.isqrt(4 * num_maps) + 1)  # a square, up to twice as wide
        num_columns = min(candidates, key=lambda n: -num_maps % n)  # with the fewest gaps
        page_width = max(num_columns * pitch_x + 1.0, 0.1 * len(title), 4.5)
        page_height = -(-num_maps // num_columns) * pitch_y + HEAD
        return cls(width, height, left, pitch_x, pitch_y, num_columns, (page_width, page_height))


def draw(path: Path, title: str, weights: np.ndarray, rows: list[str], columns: list[str]) -> None:
    """Draw a map for each head, weights [N, T, S], with a token at each row and each column."""
    import matplotlib

    matplotlib.use("Agg")  # needs no screen
    import matplotlib.pyplot as plt
    from matplotlib.colors import PowerNorm

    row_labels = [label(token) for token in rows]
    column_labels = [label(token) for token in columns]
    layout = Layout.fit(len(weights), title, row_labels, column_labels)
    page_width, page_height = layout.page
    figure = plt.figure(figsize=layout.page)

    def add_axes(x, y, width, height):
        """Axes by their top left corner, in inches from the page's."""
        box = (x / page_width, 1 - (y + height) / page_height, width / page_width, height / page_height)
        return figure.add_axes(box)

    scale = PowerNorm(0.5, 0, 1)  # the root: among forty tokens, a weight of 0.05 should be visible
    for n, head_weights in enumerate(weights):
        row, column = divmod(n, layout.num_columns)
        left = column * layout.pitch_x + layout.left
        axes = add_axes(left, HEAD + row * layout.pitch_y + 0.2, layout.map_width, layout.map_height)
        image = axes.imshow(head_weights, cmap="magma_r", norm=scale, aspect="auto", interpolation="nearest")
        axes.set_title(f"head {n}", fontsize=9, pad=3)
        for axis, labels, side in (
            (axes.yaxis, row_labels, layout.map_height),
            (axes.xaxis, column_labels, layout.map_width),
        ):
            step = math.ceil(LABEL_PITCH * len(labels) / side - 1e-6)
            ticks = range(0, len(labels), step)
            axis.set_ticks(ticks, labels[::step], parse_math=False, fontfamily=FONT, fontsize=FONT_SIZE)
        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(length=2, pad=2)
    lines = ((0.12, 11, title), (0.36, 8, "Rows attend to columns; the weights of a row sum to 1."))
    for y, size, line in lines:
        figure.text(0.1 / page_width, 1 - y / page_height, line, va="top", fontsize=size, parse_math=False)
    bar = add_axes(layout.num_columns * layout.pitch_x + 0.1, HEAD + 0.2, 0.15, max(layout.map_height, 1.4))
    figure.colorbar(image, cax=bar, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]).ax.tick_params(labelsize=7)
    bar.set_title("weight", fontsize=8, pad=5)
    with replace_file(path) as file:
        figure.savefig(file, dpi=min(130, MAX_PIXELS / max(layout.page)))
    plt.close(figure)


def label(token: str) -> str:
    """Printable label of a token: ␣ for a space, and \\n or \\u4e2d for what the font has no glyph for."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(FONT))

    def printable(character: str) -> str:
        has_glyph = character.isprintable() and font.get_char_index(ord(character))
        return character if has_glyph else character.encode("unicode_escape", "surrogatepass").decode()

    text = "".join("␣" if character == " " else printable(character) for character in token)
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
