"""Attention explorer: size of its pages, and times in Chromium: to inflate and open, to draw all heads, of a hover.

    python benchmarks/explorer.py

Random models of 12 layers of 12 heads, 128 tokens, and a vocabulary of 5,000 pieces; the budget is beside each figure.
Needs Chromium on the PATH and the packages of requirements-dev.txt.
"""

import shutil
import statistics
import tempfile
from pathlib import Path

import jax
import numpy as np
from playwright.sync_api import Page, sync_playwright

import transformer_jax as tj
from transformer_jax.models import GPT, MaskedLM, init_params
from transformer_jax.tokenizers import CharTokenizer

TEXT = "".join(chr(0x4E00 + i) for i in range(5000))
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]
INFLATE = """async () => {
  const start = performance.now();
  const blocks = [...document.querySelectorAll("script[type='text/plain']")];
  await Promise.all(blocks.map(({ textContent }) => {
    const bytes = Uint8Array.from(atob(textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  }));
  return performance.now() - start;
}"""
DRAW = """() => {
  const sort = document.getElementById("sort");
  sort.value = "entropy";
  const start = performance.now();
  sort.dispatchEvent(new Event("change"));
  return performance.now() - start;
}"""
HOVER = """(i) => {
  const start = performance.now();
  const button = document.querySelectorAll(".tokens button")[i];
  button.dispatchEvent(new PointerEvent("pointerenter", { pointerType: "mouse" }));
  return performance.now() - start;
}"""


def make_run(kind: type[GPT] | type[MaskedLM]) -> tj.Run:
    """A random model whose attention is neither uniform nor sharp."""
    tokenizer = CharTokenizer.train(TEXT)
    config = tj.TransformerConfig(
        vocab_size=tokenizer.vocab_size, max_len=130, num_layers=12, num_heads=12, d_model=96, init_std=0.3
    )
    return tj.Run(kind(config), init_params(kind(config), jax.random.key(0)), tokenizer, config)


def measure(page: Page, path: Path) -> dict[str, float]:
    """Milliseconds of what a reader waits for, in Chromium."""
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    opened = page.evaluate("performance.now()")
    times = [page.evaluate(HOVER, i) for i in range(5, 125)]
    return {
        "inflate": page.evaluate(INFLATE),
        "open": opened,
        "heads": page.evaluate(DRAW),
        "hover": statistics.median(times),
    }


def main() -> None:
    """Print a row for each kind of model."""
    text = "".join(np.random.default_rng(0).choice(list(TEXT), 126))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        print("size in MB (budget); ms, with budgets of 500 to inflate and 5 of a hover")
        for kind, most in ((GPT, 1.8), (MaskedLM, 3.0)):
            run = make_run(kind)
            path = Path(folder) / "page.html"
            tj.explore(run, text + text[:2] * (kind is GPT), max_new_tokens=0).save(path)
            found = measure(browser.new_page(), path)
            size = path.stat().st_size / 1e6
            times = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
            print(f"{kind.__name__:<9} {size:.2f} ({most})   {times}")
        browser.close()


if __name__ == "__main__":
    main()
