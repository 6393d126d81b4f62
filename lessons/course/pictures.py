"""Pictures of the lessons: one style, and the heat map of an attention matrix."""

from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from course import lesson

matplotlib.rcParams.update(
    {
        "figure.figsize": (6, 3),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]),
        "image.cmap": "Blues",
        "font.size": 9,
    }
)


def heatmap(weights, queries: Sequence[str], keys: Sequence[str], title: str = "", axis=None) -> None:
    """Draw an attention matrix [T, S], one row a query and one column a key, with its numbers where they fit.

    `axis`: axes of a figure with several matrices; None: a figure of its own.
    """
    weights = np.asarray(weights)
    if axis is None:
        size = 1.2 + 0.38 * len(keys), 0.9 + 0.32 * len(queries)
        axis = plt.subplots(figsize=size)[1]
    axis.imshow(weights, vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(keys)), keys, rotation=90 if max(map(len, keys)) > 2 else 0)
    axis.set_yticks(range(len(queries)), queries)
    axis.set_title(title)
    if weights.size <= 100:
        for t, s in np.ndindex(*weights.shape):
            color = "white" if weights[t, s] > 0.6 else "black"
            axis.text(s, t, f"{weights[t, s]:.2f}".lstrip("0"), ha="center", va="center", size=7, color=color)


def picture(alt: str) -> None:
    """Show the current figure, or write it for the page. `alt` describes it to readers who cannot see it."""
    current = lesson.current
    current.num_pictures += 1
    name = f"{current.name}_{current.num_pictures}.png"
    if current.pictures is not None:
        print(f"![{alt}](pictures/{name})")
        plt.savefig(current.pictures / name, dpi=90, bbox_inches="tight", metadata={"Software": None})
    else:
        print(f"picture: lessons/pictures/{name} ({alt})")
        if plt.get_backend().lower() != "agg":
            plt.show()
    plt.close()
