"""Attention explorer: numbers of the page are the library's; its size, the command, mistakes."""

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import chromium, opened
from helpers.commands import assert_is_one_error, command
from helpers.explorer_pages import (
    TOKENS,
    assert_probabilities,
    assert_top_weights,
    made_views,
    page_writer,
    rows_of,
    softmax,
    token,
)
from helpers.saved_runs import BART, BERT, COLOURS, LLAMA, SIZES, TAGS, classifier, own_run, tagger

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.explorer.pack import pack
from transformer_jax.explorer.page import assemble
from transformer_jax.models import MaskedLM, Seq2Seq

FIXTURES = Path(__file__).parent / "fixtures"
MULTI = "multi_label_classification"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return page_writer(tmp_path_factory.mktemp("pages"))


# Numbers are the library's


def outputs(run, logits):
    """Probabilities of logits as the head of a run means them."""
    several = run.problem_type == MULTI
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64))) if several else softmax(logits)


def assert_lens(page, run, text, position):
    """The table of the logit lens has the library's values after every layer."""
    by_layer = np.asarray(tj.logit_lens(run, text)[:, 0])
    expected = outputs(run, by_layer.reshape(len(by_layer), -1, by_layer.shape[-1])[:, position])
    rows = rows_of(page, "#lens-table")
    assert len(rows) == len(expected)
    for cells, values in zip(rows, expected, strict=True):
        shown = [float(cell.split()[-1]) for cell in cells[: min(5, len(values))]]
        np.testing.assert_allclose(shown, np.sort(values)[::-1][: len(shown)], atol=0.0051)


def assert_tree(page, run, ids):
    """The leaves of the tree are the continuations, each with its log-probability."""
    leaves = ", ".join(page.locator("#branches small").all_inner_texts())
    assert [leaves.count(name) for name in ("greedy", "beam", "sample")] == [1, 4, 6]
    (greedy,) = tj.generate_tokens(run, [ids], method="greedy", max_new_tokens=3)
    assert float(leaves.split("greedy (log-probability ")[1].split(")")[0]) == pytest.approx(greedy.log_prob, abs=0.006)
    starts = page.locator("#branches > li > .token").all_inner_texts()
    assert len({text[0] for text in starts}) > 1 and len(starts) <= 11


def assert_effect(page, without, logits, ids):
    """The effect of a head is the loss that its absence adds, or the change of a classifier's predictions."""
    shown = float(page.locator("#ablation-hint").inner_text().split(" by ")[1].split()[0])
    new, old = (np.log(softmax(np.atleast_2d(each))) for each in (without, logits))
    if len(new) > 1:
        losses = [(old - new)[t, ids[t + 1]] for t in range(len(ids) - 1)]
        np.testing.assert_allclose(shown, abs(np.mean(losses)), atol=1e-3)
        assert ("rises" if np.mean(losses) > 0 else "falls") in page.locator("#ablation-hint").inner_text()
    elif len(logits) == len(COLOURS):
        np.testing.assert_allclose(shown, np.sum(np.exp(old) * (old - new)), atol=1e-3)
    else:
        new, old = (1 / (1 + np.exp(-np.asarray(each))) for each in (without, logits))
        np.testing.assert_allclose(shown, np.abs(new - old).mean(), atol=1e-3)


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
    with_ablation = kind not in ("masked_lm", "tagger")  # which take longest to compile
    with opened(
        browser,
        address(lambda: tj.explore(run, text, ablation=with_ablation, max_new_tokens=3 if kind == "gpt" else 0)),
    ) as page:
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
        assert_lens(page, run, text, 0 if logits.ndim == 1 else 4)
        assert page.locator("#ablation").is_visible() == with_ablation
        if with_ablation:
            assert_effect(page, tj.ablate(run, text, [(1, 1)])[0], logits, ids)
        if kind == "gpt":
            assert_tree(page, run, ids)
            assert "key-value head 0" in page.locator("#head-title").inner_text()
            assert page.locator("#bars tr.real").inner_text().split(" really came, rank ")[1].startswith(
                f"{1 + np.sum(logits[4] > logits[4][ids[5]])}"
            )  # fmt: skip


def test_a_seq2seq_has_maps_of_both_sides_and_between_them(browser, address):
    run = own_run("bpe", BART, Seq2Seq)
    maps = tj.attention_maps(run, "the cat", "a mat on a dog")
    with opened(browser, address(lambda: tj.explore(run, "the cat", "a mat on a dog", max_new_tokens=0))) as page:
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


# Size


@pytest.mark.parametrize("is_causal, most", [(True, 1.8e6), (False, 3.0e6)], ids=["decoder", "encoder"])
def test_a_page_of_144_heads_and_128_tokens_is_small(is_causal, most):
    views = made_views(L=12, N=12, tokens=[f" {i}" for i in range(128)], V=5000, is_causal=is_causal)
    assert len(assemble(pack(views))) <= most


# The command, and mistakes


def test_the_command_writes_the_page_of_explore(tmp_path):
    path = tmp_path / "new" / "page.html"
    folder = FIXTURES / "gpt2"
    fast = ("--noablation", "--max_new_tokens=0")
    done = command("explore", f"--run_dir={folder}", "--text=the cat", *fast, f"--output={path}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    assert (
        path.read_text(encoding="utf-8")
        == tj.explore(tj.open_run(str(folder)), "the cat", ablation=False, max_new_tokens=0).html
    )
    assert_is_one_error(
        command("explore", f"--run_dir={folder}", "--text=the cat", f"--output={tmp_path}"), "is a folder"
    )
    assert_is_one_error(command("explore", f"--run_dir={folder}"), "--text: is missing")
    help_text = command("explore", "--help").stdout
    for flag in ("run_dir", "checkpoint", "adapter", "text", "target", "ablation", "max_new_tokens", "output"):
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
