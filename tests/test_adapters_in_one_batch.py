"""Several adapters by name: each text of a call has its own, in batches of any order, equal to each alone."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

import transformer_jax as tj
from transformer_jax.models import TokenTagger

pytestmark = pytest.mark.usefixtures("compilation_cache")
FIXTURES = Path(__file__).parent / "fixtures"
CASES = {  # base: adapters of different kinds, ranks and layers
    "gpt2": ("gpt2_default", "gpt2_dora", "gpt2_ia3", "gpt2_all_linear"),
    "t5": ("t5_default", "t5_ia3"),
    "marian": ("marian_qv",),
}
PROMPTS = ["The cat", "A", "Once upon a time there was", "No", "One more", "Some words here"]
NAMES = ["gpt2_dora", "gpt2_ia3", "", "gpt2_default", None, "gpt2_all_linear"]


@functools.cache
def base_of(base):
    return tj.from_pretrained(FIXTURES / base)


@functools.cache
def run_of(base):
    run = base_of(base)
    for name in CASES[base]:
        run = tj.load_adapter(run, FIXTURES / "adapters" / name, name=name)
    return run


@functools.cache
def alone(base, name):
    return tj.load_adapter(base_of(base), FIXTURES / "adapters" / name) if name else base_of(base)


def same_for_all(call, run, texts, names, **settings):
    """The result of each text where all texts of the call have its adapter: compiled programs serve every name."""
    results = {name: call(run, texts, adapter_names=name or "", **settings) for name in set(names)}
    num = len(results[names[0]]) // len(texts)  # samples of each text
    return [results[name][i * num + k] for i, name in enumerate(names) for k in range(num)]


def logits_of(run, names=None, num_rows=5):
    tokens = np.random.default_rng(3).integers(3, 60, (num_rows, 7))
    target = tokens[:, 2:] if run.model.reads_source else None
    return np.asarray(tj.logits(run, tokens, target=target, adapter_names=names))


@pytest.mark.parametrize("base", ["gpt2", "t5"])
def test_rows_of_a_mixed_batch_are_those_of_a_batch_of_one_adapter_to_the_bit(base):
    run = run_of(base)
    names = [*CASES[base], "", *CASES[base]][:5]
    mixed = logits_of(run, names)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(mixed[i], logits_of(run, name)[i])
        expected = logits_of(alone(base, name))[i]
        assert np.abs(mixed[i] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len({mixed[i, 0, 0] for i in range(len(CASES[base]) + 1)}) == len(CASES[base]) + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "greedy"},
        {"method": "greedy", "batch_size": 4},  # continuous: an ended row makes room for the next prompt
        {"method": "greedy", "batch_size": 4, "max_new_tokens": 70, "on_overflow": "re-prefill"},
        {"method": "beam", "num_beams": 3, "num_samples": 2, "batch_size": 4},
        {"seed": 5, "num_samples": 3, "batch_size": 7},
        {"method": "greedy", "prompt_lookup": 2},
    ],
    ids=["batch", "continuous", "re-prefill", "beams", "samples", "drafts"],
)
def test_each_prompt_of_a_batch_is_continued_by_its_own_adapter(settings):
    settings = {"max_new_tokens": 11} | settings
    run, num = run_of("gpt2"), settings.get("num_samples", 1)
    mixed = tj.generate(run, PROMPTS, adapter_names=NAMES, **settings)
    assert mixed == same_for_all(tj.generate, run, PROMPTS, NAMES, **settings)
    is_plain = settings == {"max_new_tokens": 11, "method": "greedy"}
    for name in ("gpt2_dora", "gpt2_ia3") if is_plain else ("gpt2_dora",):  # each is compiled
        rows = slice(NAMES.index(name) * num, (NAMES.index(name) + 1) * num)
        assert mixed[rows] == tj.generate(alone("gpt2", name), PROMPTS, **settings)[rows], name


def test_each_text_that_is_scored_has_its_own_adapter():
    run, texts, names = run_of("gpt2"), [*PROMPTS, "A long text " * 40], [*NAMES, "gpt2_dora"]
    found = tj.score(run, texts, batch_size=2, adapter_names=names)
    assert found == same_for_all(tj.score, run, texts, names, batch_size=2)
    for i in (0, 6):
        expected = tj.score(alone("gpt2", "gpt2_dora"), texts[i]).log_probability
        assert found[i].log_probability == pytest.approx(expected, rel=1e-5)


TEXTS = ["one two", "a", "two", "on"]  # of several lengths in one bucket, which is compiled once


@pytest.mark.parametrize("settings", [{}, {"num_beams": 1}], ids=str)
def test_each_text_that_is_translated_has_its_own_adapter(settings):
    run, chosen = run_of("marian"), ["", "marian_qv", "", "marian_qv"]
    mixed = tj.translate(run, TEXTS, batch_size=2, adapter_names=chosen, **settings)
    assert mixed == same_for_all(tj.translate, run, TEXTS, chosen, batch_size=2, **settings)
    assert mixed[1] == tj.translate(alone("marian", "marian_qv"), TEXTS, batch_size=2, **settings)[1]


def test_each_text_that_is_classified_or_tagged_has_its_own_adapter():
    whole = tj.load_adapter(tj.from_pretrained(FIXTURES / "bert_classifier"), FIXTURES / "adapters" / "bert_ia3")
    run = dataclasses.replace(whole, adapter={}, adapters={"ia3": whole.adapter})
    chosen = ["", "ia3", "", "ia3"]
    mixed = tj.classify(run, TEXTS, batch_size=2, adapter_names=chosen)
    for text, name, found in zip(TEXTS, chosen, mixed, strict=True):
        expected = tj.classify(tj.choose_adapter(run, name), text)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    params = {name: run.params[name] for name in ("encoder", "out")}
    tagger = dataclasses.replace(run, model=TokenTagger(run.config, num_tags=3), params=params, problem_type="")
    mixed = tj.tag(tagger, TEXTS, batch_size=2, adapter_names=chosen)
    for text, name, found in zip(TEXTS, chosen, mixed, strict=True):
        assert found == tj.tag(tj.choose_adapter(tagger, name), text)


def test_completions_of_several_adapters_are_those_of_the_chosen_one():
    config = tj.GenerationConfig(max_new_tokens=11, method="greedy")  # as above: the same compiled programs
    run = run_of("gpt2")
    found = tj.complete(run, PROMPTS, config, adapter_names=NAMES)
    for name in ("gpt2_dora", ""):
        i, chosen = NAMES.index(name), tj.complete(tj.choose_adapter(run, name), PROMPTS, config)
        assert found[i].tokens == chosen[i].tokens
    assert tj.generate_tokens(run, [[5, 6], [7]], adapter_names="gpt2_ia3", max_new_tokens=3)


@pytest.mark.parametrize(
    "names, message",
    [
        ("gpt2_dorra", r"'gpt2_dorra' is unknown. The run has: 'gpt2_default', 'gpt2_dora'"),
        (["gpt2_dora", "", "", "", "x\ny"], "is unknown"),
        (["gpt2_dora"], "1 of them, and 5 texts"),
        ([], "0 of them"),
        (3, "not of type int"),
        (b"gpt2_dora", "not of type bytes"),
        (["", "", "", "", 3], "must be strings, not of type int"),
        (None, "Give the name of each row"),
    ],
)
def test_names_of_adapters_that_do_not_fit_are_refused_in_one_line(names, message):
    with pytest.raises(tj.UserError, match=message) as error:
        logits_of(run_of("gpt2"), names)
    assert len(str(error.value).splitlines()) == 1


def test_a_run_with_adapters_by_name_does_nothing_before_one_is_chosen(tmp_path):
    run = run_of("gpt2")
    actions = (
        lambda: tj.generate(run, "The"),
        lambda: tj.stream(run, "The", max_new_tokens=3),
        lambda: tj.attention_maps(run, "The"),
        lambda: tj.score(run, "The cat"),
        lambda: tj.merge_adapter(run),
        lambda: tj.save_pretrained(run, tmp_path / "folder"),
        lambda: tj.load_adapter(run, FIXTURES / "adapters" / "gpt2_ia3"),
    )
    for action in actions:
        with pytest.raises(tj.UserError, match="choose one for all by tj.choose_adapter|name of its own"):
            action()
    tj.save_pretrained(tj.choose_adapter(run, "gpt2_dora"), tmp_path / "folder")
    saved = logits_of(tj.from_pretrained(tmp_path / "folder"))
    np.testing.assert_allclose(saved, logits_of(alone("gpt2", "gpt2_dora")), atol=1e-5)


def test_adapters_that_cannot_be_one_of_several_are_refused_with_the_reason():
    folder = FIXTURES / "adapters"
    run = run_of("gpt2")
    with pytest.raises(tj.UserError, match="has an adapter of this name"):
        tj.load_adapter(run, folder / "gpt2_ia3", name="gpt2_dora")
    for case, whole in (
        ("gpt2_bias_all", "block_0/.*bias"),
        ("gpt2_tokens", "embedding"),
        ("gpt2_head_saved", "kernel"),
    ):
        with pytest.raises(tj.UserError, match=f"replaces whole parameters .*{whole}.*Load it alone"):
            tj.load_adapter(run, folder / case, name="whole")
    with pytest.raises(tj.UserError, match="one adapter, without a name"):
        logits_of(alone("gpt2", "gpt2_dora"), "")
    with pytest.raises(tj.UserError, match="The run has: none; tj.load_adapter"):
        logits_of(base_of("gpt2"), "gpt2_dora")


def test_adapters_by_name_work_on_int8_weights():
    quantized = tj.quantize(run_of("gpt2"))
    names = ["gpt2_default", "", "gpt2_dora", "gpt2_ia3", "gpt2_all_linear"]
    mixed = logits_of(quantized, names)
    for i, name in enumerate(names):
        expected = logits_of(tj.quantize(alone("gpt2", name)))[i]
        assert np.abs(mixed[i] - expected).max() <= 1e-5 * np.abs(expected).max()
