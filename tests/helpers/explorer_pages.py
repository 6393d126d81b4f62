"""Pages of the attention explorer for tests: views of no model, and what a page shows."""

import functools

import jax
import numpy as np

from transformer_jax.explorer.continuations import Continuation
from transformer_jax.explorer.layers import Effects, Lens
from transformer_jax.explorer.pack import pack
from transformer_jax.explorer.page import Page, assemble
from transformer_jax.explorer.views import Map, Predictions, Views

HOSTILE = "</script><img src=x onerror=alert(1)>"
TOKENS = ["the", " cat", "\n", HOSTILE, "<!--", "中", "\ud800", "", "&amp;", "%SCRIPT%", "\u202e"]


def softmax(logits, axis=-1):
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float64), axis))


def made_views(*, L=2, N=3, tokens=TOKENS, V=1500, is_causal=True, seed=0):
    """Views of no model: random weights and logits."""
    random = np.random.default_rng(seed)
    T = len(tokens)
    scores = random.normal(scale=2, size=(L, N, T, T))
    weights = softmax(np.where(np.tril(np.ones((T, T), bool)) | (not is_causal), scores, -1e30)).astype(np.float32)
    change = random.normal(size=(L, N, T)).astype(np.float32)
    top = random.integers(V, size=(L, N, 5)).astype(np.int32)
    is_measured = np.arange(T) < T - 1
    effects = Effects("loss", change, top, random.uniform(size=top.shape).astype(np.float32), is_measured)
    maps = [Map("self", "self-attention", "text", "text", is_causal, N, weights, effects)]
    logits = random.normal(scale=3, size=(T, V)).astype(np.float32)
    truth = [*random.integers(V, size=T - 1).tolist(), None]
    names = {i: f"{HOSTILE}{i}" for i in range(V)}
    predictions = Predictions("next", "text", "softmax", logits, truth)
    ranks = random.integers(1, V, size=(L + 1, T)).astype(np.int32) * is_measured
    values = random.uniform(size=(L + 1, T, 5)).astype(np.float32)
    lens = Lens(random.integers(V, size=values.shape).astype(np.int32), values, values[..., 0] * is_measured, ranks)
    continuations = [
        Continuation(name, ids, tuple(np.log(random.uniform(size=len(ids)))))
        for name, ids in (("greedy", (1, 2, 3)), ("beam 1", (1, 2, 3)), ("beam 2", (1, 4)), ("sample", (1, 2)))
    ]
    return Views("GPT", f"runs/{HOSTILE}", {"text": tokens}, maps, predictions, lens, continuations, names)


def page_writer(folder):
    """Return a function that writes the page of what `make` returns, and gives its address; once for each `make`."""

    @functools.cache
    def write(make):
        made = make()
        page = made if isinstance(made, Page) else Page(assemble(pack(made)))
        path = folder / f"{len(list(folder.iterdir()))}.html"
        page.save(path)
        return path.as_uri()

    return write


def token(page, index, side="text"):
    return page.locator(f'[aria-label="Tokens of the {side}"] button').nth(index)


def rows_of(page, table):
    """Cells of a table's rows, as texts."""
    return [row.locator("td").all_inner_texts() for row in page.locator(f"{table} tbody tr").all()]


def assert_top_weights(page, expected):
    """The table of the largest weights has those of `expected`, to 0.004."""
    found = {int(index): float(weight) for index, _, weight in rows_of(page, "#top")}
    assert len(found) == min(8, np.count_nonzero(expected > 2e-6)) or all(expected[list(found)] >= 0)
    for index, weight in found.items():
        assert abs(weight - expected[index]) <= 0.004 + 0.0005
    assert min(found.values()) >= np.sort(expected)[::-1][len(found) - 1] - 0.009


def assert_probabilities(page, expected):
    """The bars have the largest of `expected`, to 0.002; the row of what really came is left out."""
    rows = page.locator("#bars tbody tr:not(.real):not(.others) td.number").all_inner_texts()
    np.testing.assert_allclose([float(text) for text in rows], np.sort(expected)[::-1][: len(rows)], atol=0.0025)
    assert rows
