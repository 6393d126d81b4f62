"""Attention explorer: `explore` makes a self-contained HTML page, with no request to any network and no library."""

import base64
import dataclasses
import hashlib
import html
from importlib.resources import files
from pathlib import Path

from transformer_jax.errors import check
from transformer_jax.explorer.pack import pack
from transformer_jax.explorer.views import collect_views
from transformer_jax.files import replace_file
from transformer_jax.run import Run

SCRIPTS = (
    "data",
    "sampling",
    "state",
    "elements",
    "text",
    "heads",
    "map",
    "head",
    "prediction",
    "lens",
    "ablation",
    "tree",
    "export",
    "main",
)


@dataclasses.dataclass(frozen=True, repr=False)
class Page:
    """HTML page of the explorer. A notebook shows it in a frame."""

    html: str

    def save(self, path: str | Path) -> None:
        """Write the page as a file. Raises RunError if it cannot be written."""
        with replace_file(Path(path).expanduser()) as file:
            file.write(self.html.encode("utf-8"))

    def _repr_html_(self) -> str:
        frame = 'width="100%" height="900" style="border:0" title="attention explorer"'
        return f'<iframe {frame} srcdoc="{html.escape(self.html)}"></iframe>'

    def __repr__(self) -> str:
        return f"<explorer page, {len(self.html):,} bytes: .save(path) writes it, a notebook shows it>"


def explore(run: Run, text: str, target: str | None = None, *, ablation: bool = True, max_new_tokens: int = 12) -> Page:
    """Explore a text inside a model: attention of all heads, and the predictions, as an interactive page.

    Weights are stored to 0.004, probabilities to 0.002. The page needs a browser of 2023 or later and no network.

    Args:
      text: at most as long as the context; the source of a Seq2Seq.
      target: for a Seq2Seq only: the text that its decoder reads, such as `tj.translate(run, text)`.
      ablation: with the effect of every head, which takes a forward pass for each.
      max_new_tokens: of each continuation; 0: none.
    Raises:
      UserError: as `tj.attention_maps`; a text with more attention weights than a page holds.
    """
    is_count = isinstance(max_new_tokens, int) and max_new_tokens >= 0
    check(is_count, "max_new_tokens", max_new_tokens, "must be an int of at least 0")
    return Page(assemble(pack(collect_views(run, text, target, ablation, max_new_tokens))))


def assemble(blocks: dict[str, str]) -> str:
    """Assemble the page from its files and the packed data.

    Its policy allows this style and this script alone, so that nothing in the data can run or be fetched.
    """
    style = _read("page.css")
    script = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    packed = "\n".join(f'<script type="text/plain" id="{name}">{block}</script>' for name, block in blocks.items())
    policy = f"default-src 'none'; img-src data: blob:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    parts = {"POLICY": policy, "STYLE": style, "DATA": packed, "SCRIPT": script}
    page = _read("page.html")
    for name, part in parts.items():
        assert page.count(f"%{name}%") == 1
        page = page.replace(f"%{name}%", part)
    return page


def _hash(source: str) -> str:
    """Hash of an inline style or script, as a Content-Security-Policy has it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _read(name: str) -> str:
    return (files("transformer_jax.explorer") / name).read_text(encoding="utf-8")
