"""Page of the attention explorer: hostile texts, accessibility, keys, addresses, files that it saves, notebooks."""

import csv
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.browser import chromium, opened, violations
from helpers.explorer_pages import HOSTILE, TOKENS, assert_top_weights, made_views, page_writer, token

from transformer_jax.explorer.pack import pack
from transformer_jax.explorer.page import Page, assemble


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return page_writer(tmp_path_factory.mktemp("pages"))


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


def test_a_map_is_saved_as_numbers_and_as_drawings(browser, address, tmp_path):
    views = made_views()
    with opened(browser, address(lambda: views)) as page:
        page.locator("#heads button[data-layer='1'][data-head='2']").click()
        for ending in ("csv", "svg", "png"):
            for view in ("matrix", "lines"):
                page.get_by_label(view).check()
                with page.expect_download() as download:
                    page.get_by_role("button", name=ending.upper()).click()
                assert download.value.suggested_filename == f"self_layer_1_head_2.{ending}"
                download.value.save_as(tmp_path / f"{view}.{ending}")
    header, *rows = csv.reader((tmp_path / "matrix.csv").read_text(encoding="utf-8-sig").splitlines())
    assert [row[0] for row in rows] == header[1:] and header[4] == f"3 {HOSTILE.replace(' ', '␣')}"
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), views.maps[0].weights[1, 2], atol=0.0041)
    assert (tmp_path / "matrix.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for view, element in (("matrix", "rect"), ("lines", "path")):
        drawing = ElementTree.parse(tmp_path / f"{view}.svg")
        names = [each.tag.rpartition("}")[2] for each in drawing.iter()]
        assert names.count(element) > len(TOKENS) and names.count("text") == 2 * len(TOKENS) and "img" not in names
