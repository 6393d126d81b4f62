"""Attention explorer: numbers of the page are the library's; it needs no network, no mouse and no colours."""

import base64
import functools
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.browser import chromium, opened, violations
from helpers.commands import assert_is_one_error, command
from helpers.saved_runs import BART, BERT, COLOURS, LLAMA, SIZES, TAGS, classifier, own_run, tagger

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.explorer.pack import pack
from transformer_jax.explorer.page import Page, assemble
from transformer_jax.explorer.views import Map, Predictions, Views
from transformer_jax.models import MaskedLM, Seq2Seq

FIXTURES = Path(__file__).parent / "fixtures"
HOSTILE = "</script><img src=x onerror=alert(1)>"
TOKENS = ["the", " cat", "\n", HOSTILE, "<!--", "中", "\ud800", "", "&amp;", "%SCRIPT%", "\u202e"]
MULTI = "multi_label_classification"


def softmax(logits, axis=-1):
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float64), axis))


def made_views(*, L=2, N=3, tokens=TOKENS, V=1500, is_causal=True, seed=0):
    """Views of no model: random weights and logits."""
    random = np.random.default_rng(seed)
    T = len(tokens)
    scores = random.normal(scale=2, size=(L, N, T, T))
    weights = softmax(np.where(np.tril(np.ones((T, T), bool)) | (not is_causal), scores, -1e30)).astype(np.float32)
    maps = [Map("self", "self-attention", "text", "text", is_causal, N, weights)]
    logits = random.normal(scale=3, size=(T, V)).astype(np.float32)
    truth = [*random.integers(V, size=T - 1).tolist(), None]
    names = {i: f"{HOSTILE}{i}" for i in range(V)}
    return Views(
        "GPT", f"runs/{HOSTILE}", {"text": tokens}, maps, Predictions("next", "text", "softmax", logits, truth), names
    )


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Writes a page, and returns its address; the same one for the same views."""
    folder = tmp_path_factory.mktemp("pages")

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


# Numbers are the library's

GROUPED = LLAMA | {"d_model": 24, "num_heads": 4, "num_kv_heads": 2}
RUNS = {
    "gpt": lambda: own_run("bpe", GROUPED),
    "masked_lm": lambda: own_run("char", BERT, MaskedLM),
    "tagger": lambda: own_run("bpe", BERT, tagger(5), labels=TAGS),
    "classifier": lambda: own_run("byte", BERT, classifier(3), labels=COLOURS),
    "several_labels": lambda: own_run("byte", BERT, classifier(5), labels=TAGS, problem_type=MULTI),
}


@pytest.mark.parametrize("kind", RUNS)
def test_numbers_on_the_page_are_those_of_the_library(kind, browser, address):
    run = RUNS[kind]()
    text = "the cat ran over a mat"
    maps = tj.attention_maps(run, text)
    ids = run.tokenizer.encode(text) if kind == "gpt" else run.tokenizer.encode_whole(text)
    logits = np.asarray(tj.logits(run, ids[None])[0])
    with opened(browser, address(lambda: tj.explore(run, text))) as page:
        assert len(page.locator(".tokens button").all()) == len(maps.tokens)
        page.locator("#heads button[data-layer='1'][data-head='1']").click()
        token(page, 4).click()
        assert_top_weights(page, maps.weights[1, 1, 4])
        page.get_by_label("is attended by").check()
        assert_top_weights(page, maps.weights[1, 1, :, 4])
        if kind == "several_labels":
            assert_probabilities(page, 1 / (1 + np.exp(-logits)))
        else:
            assert_probabilities(page, softmax(logits if kind == "classifier" else logits[4]))
        names = {"classifier": COLOURS, "tagger": TAGS}.get(kind)
        assert names is None or page.locator("#bars tbody td .token").first.inner_text() == names[
            np.argmax(logits if kind == "classifier" else logits[4])
        ]  # fmt: skip
        if kind == "gpt":
            assert "key-value head 0" in page.locator("#head-title").inner_text()
            assert page.locator("#bars tr.real").inner_text().split(" really came: rank ")[1].startswith(
                f"{1 + np.sum(logits[4] > logits[4][ids[5]])},"
            )  # fmt: skip


def test_a_seq2seq_has_maps_of_both_sides_and_between_them(browser, address):
    run = own_run("bpe", BART, Seq2Seq)
    maps = tj.attention_maps(run, "the cat", "a mat on a dog")
    with opened(browser, address(lambda: tj.explore(run, "the cat", "a mat on a dog"))) as page:
        page.locator("#heads button[data-layer='1'][data-head='0']").click()
        token(page, 3, "target").click()
        assert_top_weights(page, maps.cross[1, 0, 3])
        token(page, 1, "source").click()
        assert_top_weights(page, maps.cross[1, 0, :, 1])
        for name, side, weights in (("encoder", "source", maps.encoder), ("decoder", "target", maps.decoder)):
            page.locator("#kind").select_option(label=f"self-attention of the {name}")
            token(page, 2, side).click()
            assert_top_weights(page, weights[1, 0, 2])


def test_means_and_rollout_are_those_of_the_weights(browser, address):
    views = made_views(V=7)
    weights = views.maps[0].weights.astype(np.float64)
    mixed = (weights.mean(1) + np.eye(len(TOKENS))) / 2
    with opened(browser, address(lambda: views)) as page:
        token(page, 5).click()
        page.keyboard.press("]")
        for name, expected in (
            ("mean of the layer's heads", weights[1].mean(0)),
            ("mean of all heads", weights.mean((0, 1))),
            ("rollout to this layer", mixed[1] @ mixed[0]),
        ):
            page.get_by_label("Show").select_option(name)
            assert_top_weights(page, expected[5])
        page.get_by_label("Show").select_option("this head")
        token(page, 7).click(modifiers=["Shift"])
        token(page, 9).click(modifiers=["Shift"])
        token(page, 9).click(modifiers=["Shift"])
        assert_top_weights(page, weights[1, 0, 5] + weights[1, 0, 7])


SLIDERS = [(1, 0, 1), (0.2, 0, 1), (2.5, 0, 1), (1.3, 7, 1), (0.8, 0, 0.6), (2, 50, 0.9)]


@pytest.mark.parametrize("V", [101, 5000], ids=["every_logit_is_stored", "the_largest_and_a_histogram_are_stored"])
def test_sliders_change_probabilities_as_the_logits_processors_do(V, browser, address):
    views = made_views(V=V)
    with opened(browser, address(lambda: views)) as page:
        token(page, 6).click()
        for temperature, top_k, top_p in SLIDERS:
            logits = views.predictions.logits[6:7]
            processors = [sampling.Temperature(temperature), sampling.TopK(top_k or V), sampling.TopP(top_p)]
            for processor in processors:
                logits, _ = processor(logits, None, None, ())
            for name, value in {"temperature": temperature, "top_k": top_k, "top_p": top_p}.items():
                page.locator(f"#{name}").fill(str(value))
            assert_probabilities(page, softmax(logits[0]))


def test_packed_weights_are_within_their_error_and_the_empty_half_is_omitted():
    for is_causal in (True, False):
        views = made_views(is_causal=is_causal)
        stored = np.frombuffer(zlib.decompress(base64.b64decode(pack(views)["weights_self"])), np.uint8)
        T = len(TOKENS)
        weights = views.maps[0].weights
        expected = weights[..., np.tril(np.ones((T, T), bool))] if is_causal else weights
        assert stored.size == expected.size
        np.testing.assert_allclose((stored / 255.0) ** 2, expected.ravel(), atol=0.004)
        assert "weights_self" in json.loads(zlib.decompress(base64.b64decode(pack(views)["data"])))["arrays"]


# Safe, and usable by everybody


def test_a_hostile_token_stays_text(browser, address):
    with opened(browser, address(made_views)) as page:
        assert page.locator("img").count() == 0
        assert token(page, 3).locator("span").inner_text() == HOSTILE.replace(" ", "␣")
        assert [len(text) > 0 for text in page.locator(".tokens button span").all_inner_texts()] == [True] * len(TOKENS)
        token(page, 3).click()
        page.get_by_label("lines").check()
        assert page.locator("#figure text").count() == 2 * len(TOKENS)
        assert HOSTILE.replace(" ", "␣") in page.locator("#bars").inner_text()
        assert page.locator("img").count() == 0 and HOSTILE in page.locator("#summary").inner_text()
        assert "default-src 'none'" in page.locator("meta[http-equiv]").get_attribute("content")


@pytest.mark.parametrize(
    "settings",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"forced_colors": "active", "reduced_motion": "reduce"},
        {"viewport": {"width": 320, "height": 640}},
    ],
    ids=["light", "dark", "forced", "narrow"],
)
def test_axe_finds_no_violation_and_nothing_is_wider_than_the_window(settings, browser, address):
    with opened(browser, address(made_views), **settings) as page:
        token(page, 9).click()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_label("lines").check()
        page.keyboard.press("?")
        assert violations(page) == []


def test_everything_is_done_by_keys_alone(browser, address):
    views = made_views()
    weights = views.maps[0].weights
    with opened(browser, address(lambda: views)) as page:
        keys = page.keyboard

        def tab_to(selector):
            for _ in range(40):
                keys.press("Tab")
                if page.locator(selector).evaluate_all("all => all.includes(document.activeElement)"):
                    return
            raise AssertionError(f"Tab never reaches {selector}")

        keys.press("?")
        assert page.locator("#help").is_visible()
        keys.press("Escape")
        assert not page.locator("#help").is_visible()
        tab_to("#kind")
        tab_to(".tokens button")
        keys.press("End")
        keys.press("ArrowLeft")
        keys.press("Enter")
        assert token(page, 9).get_attribute("aria-pressed") == "true"
        keys.press("ArrowLeft")
        assert_top_weights(page, weights[0, 0, 8])  # the focus shows, without a choice
        keys.press("Shift+Enter")
        assert_top_weights(page, weights[0, 0, 9] + weights[0, 0, 8])
        keys.press("Escape")
        assert page.locator('.tokens button[aria-pressed="true"]').count() == 0
        keys.press("]")
        keys.press(".")
        keys.press(".")
        keys.press(",")
        assert page.locator("#head-title").inner_text().startswith("Layer 1, head 1")
        tab_to("#heads button")
        keys.press("ArrowUp")
        keys.press("ArrowRight")
        keys.press("Enter")
        assert page.locator("#head-title").inner_text().startswith("Layer 0, head 2")
        tab_to("#figure canvas")
        keys.press("ArrowDown")
        keys.press("ArrowDown")
        assert_top_weights(page, weights[0, 2, 1])
        tab_to("#temperature")
        keys.press("ArrowRight")
        assert page.locator("#temperature + output").inner_text() == "1.1"
        address_now = page.url
    with opened(browser, address_now) as page:  # the address keeps the state
        assert page.locator("#head-title").inner_text().startswith("Layer 0, head 2")
        assert page.locator("#temperature + output").inner_text() == "1.1"
        assert_top_weights(page, weights[0, 2, 1])


def test_an_address_of_another_page_is_read_as_far_as_it_fits(browser, address):
    wrong = "#kind=7&layer=99&head=-1&show=x&side=nobody&tokens=1.x.900&temperature=NaN&top_k=1e9&view=lines"
    with opened(browser, address(made_views) + wrong) as page:
        assert page.locator("#head-title").inner_text().startswith("Layer 0, head 0")
        assert page.locator("#figure svg").count() == 1


def test_a_notebook_shows_the_page_in_a_frame(browser, tmp_path):
    (tmp_path / "notebook.html").write_text(
        "<!doctype html><html data-ready><title>notebook</title>" + Page(assemble(pack(made_views())))._repr_html_()
    )
    with opened(browser, (tmp_path / "notebook.html").as_uri()) as page:
        frame = page.frame_locator("iframe")
        frame.locator(".tokens button").nth(3).click()
        assert frame.locator("#top tbody tr").count() > 2


# Size


@pytest.mark.parametrize("is_causal, most", [(True, 1.8e6), (False, 3.0e6)], ids=["decoder", "encoder"])
def test_a_page_of_144_heads_and_128_tokens_is_small(is_causal, most):
    views = made_views(L=12, N=12, tokens=[f" {i}" for i in range(128)], V=5000, is_causal=is_causal)
    assert len(assemble(pack(views))) <= most


# The command, and mistakes


def test_the_command_writes_the_page_of_explore(tmp_path):
    path = tmp_path / "new" / "page.html"
    folder = FIXTURES / "gpt2"
    done = command("explore", f"--run_dir={folder}", "--text=the cat", f"--output={path}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    assert path.read_text(encoding="utf-8") == tj.explore(tj.open_run(str(folder)), "the cat").html
    assert_is_one_error(
        command("explore", f"--run_dir={folder}", "--text=the cat", f"--output={tmp_path}"), "is a folder"
    )
    assert_is_one_error(command("explore", f"--run_dir={folder}"), "--text: is missing")
    help_text = command("explore", "--help").stdout
    for flag in ("run_dir", "checkpoint", "adapter", "text", "target", "output"):
        assert f"  --{flag}" in help_text


@pytest.mark.parametrize(
    "make, args, message",
    [
        (lambda: own_run("char", SIZES | {"attention": "linear"}), ("the cat",), "linear.*no weights to see"),
        (lambda: own_run("char", SIZES), ("the cat", "a"), "target: a GPT has no decoder"),
        (lambda: own_run("char", SIZES), (7,), "text: must be a string"),
        (lambda: own_run("char", SIZES), ("",), "has no tokens"),
        (lambda: own_run("char", SIZES | {"max_len": 2000}), ("the " * 400,), "1600 tokens have .* about 1[0-9]{3} t"),
    ],
    ids=["linear", "target", "type", "empty", "long"],
)  # fmt: skip
def test_a_wrong_argument_is_an_error_of_one_line(make, args, message):
    with pytest.raises(tj.UserError, match=message) as error:
        tj.explore(make(), *args)
    assert len(str(error.value).splitlines()) == 1
