"""Adapters that PEFT wrote (tests/fixtures/adapters): loading, logits kept and merged, malformed folders."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.adapter_cases import CASES, CONFIG, FIXTURES, WEIGHTS, base_of, config_of, run_of
from safetensors.numpy import load_file, save_file

import transformer_jax as tj

pytestmark = pytest.mark.usefixtures("compilation_cache")
PREFIXES = [case for case in CASES if "prefix" in case or "prompt" in case or "p_tuning" in case]


@functools.cache
def expected(case):
    values = dict(np.load(FIXTURES / "adapters" / case / "expected.npz"))
    if "tokens" in values and values["logits"].ndim == 3:  # the reference has logits of soft prompts, too
        values["logits"] = values["logits"][:, -values["tokens"].shape[1] :]
    return values


def logits_of(run, case):
    given = expected(case)
    if "source" in given:
        masks = given["source_is_token"], given["target_is_token"]
        out = tj.logits(run, given["source"], masks[0], given["target"], target_is_token=masks[1])
        return np.asarray(out) * masks[1][..., None]
    out = np.asarray(tj.logits(run, given["tokens"], given["is_token"], token_types=given.get("token_types")))
    return out if out.ndim == 2 else out * given["is_token"][..., None]


def assert_close(out, reference):
    assert np.abs(out - reference).max() <= 1e-5 * np.abs(reference).max()


def neutral(layers):
    """The adapter before its first step: it changes nothing."""
    start = {"lora_out": 0.0, "magnitude": 1.0, "ia3_in": 1.0, "ia3_out": 1.0}

    def reset(path, leaf):
        return jnp.full_like(leaf, start[path[-1].key]) if path[-1].key in start else leaf

    return jax.tree_util.tree_map_with_path(reset, layers)


def with_adapter(run, layers):
    return run.__class__(**{**vars(run), "adapter": layers})


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_beside_the_parameters_gives_the_logits_of_peft(case):
    assert_close(logits_of(run_of(case), case), expected(case)["logits"])


@pytest.mark.parametrize("case", sorted(set(CASES) - set(PREFIXES)))
def test_a_merged_adapter_gives_the_same_logits_from_a_saved_folder(case, tmp_path):
    merged = tj.merge_adapter(run_of(case))
    assert not merged.adapter
    assert_close(logits_of(merged, case), expected(case)["logits"])
    tj.save_pretrained(run_of(case), tmp_path / "folder")
    assert_close(logits_of(tj.from_pretrained(tmp_path / "folder"), case), expected(case)["logits"])


@pytest.mark.parametrize("case", ["gpt2_dora", "gpt2_ia3", "llama_all_linear", "t5_default", "bert_mlm_all"])
def test_an_adapter_before_its_first_step_changes_no_bit(case):
    run = run_of(case)
    plain = with_adapter(run, {})
    np.testing.assert_array_equal(logits_of(with_adapter(run, neutral(run.adapter)), case), logits_of(plain, case))


def test_an_adapter_changes_what_a_model_writes_and_merging_it_does_not():
    run = run_of("gpt2_dora")
    texts = [tj.generate(r, "The cat", max_new_tokens=13, method="greedy") for r in (run, tj.merge_adapter(run))]
    assert texts[0] == texts[1] != tj.generate(base_of("gpt2_dora"), "The cat", max_new_tokens=13, method="greedy")


def test_an_adapter_on_int8_weights_is_near_that_on_float_weights():
    case = "gpt2_all_linear"
    quantized = tj.quantize(run_of(case))
    difference = np.abs(logits_of(quantized, case) - expected(case)["logits"]).max()
    without = np.abs(logits_of(base_of(case), case) - expected(case)["logits"]).max()
    assert difference < without / 5
    with pytest.raises(tj.UserError, match="cannot be merged into int8"):
        tj.merge_adapter(quantized)


def test_from_pretrained_takes_an_adapter_and_names_the_base_of_an_adapters_folder():
    folder = FIXTURES / "adapters" / "gpt2_default"
    run = tj.from_pretrained(FIXTURES / "gpt2", adapter=folder)
    assert_close(logits_of(run, "gpt2_default"), expected("gpt2_default")["logits"])
    with pytest.raises(tj.UserError, match=r"holds an adapter.*tests/fixtures/gpt2.*adapter="):
        tj.from_pretrained(folder)
    with pytest.raises(tj.UserError, match="has one already"):
        tj.load_adapter(run, folder)


def changed(tmp_path, case, config=None, tensors=None):
    """A copy of an adapter's folder with other settings, or other tensors."""
    folder = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "adapters" / case, folder)
    (folder / CONFIG).write_text(json.dumps(config_of(FIXTURES / "adapters" / case) | (config or {})))
    if tensors:
        save_file(tensors(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    "config, tensors, message",
    [
        ({"peft_type": "LOHA"}, None, "peft_type='LOHA': unknown. Choose one of: LORA, IA3"),
        ({"peft_type": None}, None, "peft_type='None'"),
        ({"use_qalora": True}, None, "use_qalora=True is not supported"),
        ({"layer_replication": [[0, 2]]}, None, "layer_replication"),
        ({"r": 5}, None, "r=5, but transformer.h.0.attn.c_attn has rank 4"),
        ({"r": "4"}, None, "r='4'"),
        ({"lora_alpha": None}, None, "lora_alpha=None must be a number"),
        ({"rank_pattern": {"(": 3}}, None, "is no regular expression"),
        ({"alpha_pattern": [3]}, None, "alpha_pattern=.* must be an object"),
        ({}, lambda t: t | {"base_model.model.nowhere.lora_A.weight": t[FIRST]}, "nowhere has only one of"),
        ({}, lambda t: {n: a for n, a in t.items() if n != FIRST}, "has only one of lora_A and lora_B"),
        ({}, lambda t: t | {FIRST: t[FIRST][:, 1:].copy()}, "has shape"),
        ({}, lambda t: t | {FIRST: np.full_like(t[FIRST], np.nan)}, "NaN or infinity"),
        ({}, lambda t: t | {"evil\nname": t[FIRST]}, "is no tensor of a LoRA or IA3 adapter"),
        ({}, lambda t: {"base_model.model.nowhere.weight": t[FIRST]}, "changes nowhere.weight, which the model"),
        ({}, lambda t: {"base_model.model.transformer.ln_f.ia3_l": t[FIRST]}, "no linear layer and no embedding"),
    ],
)
def test_a_malformed_adapter_is_refused_in_one_line(tmp_path, config, tensors, message):
    folder = changed(tmp_path, "gpt2_default", config, tensors)
    with pytest.raises(tj.UserError, match=message) as error:
        tj.load_adapter(base_of("gpt2_default"), folder)
    assert len(str(error.value).splitlines()) == 1


PROMPT = "prompt_embeddings"


@pytest.mark.parametrize(
    "case, config, tensors, message",
    [
        ("gpt2_prefix", {"num_virtual_tokens": 4}, None, r"has shape \[5, 80\] and not \[4, 80\]"),
        ("gpt2_prefix", {"num_virtual_tokens": "5"}, None, "num_virtual_tokens='5' must be 1 or more"),
        ("gpt2_prefix", {"peft_type": "PROMPT_TUNING"}, None, r"and not \[5, 20\]"),
        ("gpt2_prefix", {"peft_type": "LORA"}, None, "prompt_embeddings is no tensor of a LoRA or IA3 adapter"),
        ("gpt2_prefix", {}, lambda t: {}, "has no prompt_embeddings"),
        ("gpt2_prefix", {}, lambda t: t | {FIRST: t[PROMPT]}, "lora_A.weight is no tensor of a soft prompt"),
        ("gpt2_prompt", {}, lambda t: {PROMPT: t[PROMPT] * np.nan}, "NaN or infinity"),
        ("gpt2_prompt", {}, lambda t: {PROMPT: t[PROMPT][0]}, r"has shape \[20\]"),
        ("gpt2_prompt", {"num_virtual_tokens": 64}, lambda t: {PROMPT: np.ones((64, 20), "f")}, "no room for a text"),
        ("t5_prompt", {"num_virtual_tokens": 3}, None, r"and not \[3 or 6, 20\]"),
        ("bert_prompt", {}, lambda t: {PROMPT: t[PROMPT], "base_model.wrong.bias": t[PROMPT][0]}, "wrong.bias, which"),
    ],
)
def test_a_malformed_soft_prompt_is_refused_in_one_line(tmp_path, case, config, tensors, message):
    folder = changed(tmp_path, case, config, tensors)
    with pytest.raises(tj.UserError, match=message) as error:
        tj.load_adapter(base_of(case), folder)
    assert len(str(error.value).splitlines()) == 1


def test_an_adapter_of_another_model_is_refused():
    with pytest.raises(tj.UserError, match="which the model does not have"):
        tj.load_adapter(base_of("gpt2_default"), FIXTURES / "adapters" / "t5_default")
    with pytest.raises(tj.UserError, match="no such folder|not provide"):
        tj.load_adapter(base_of("gpt2_default"), FIXTURES / "nowhere")
    with pytest.raises(tj.UserError, match="has no adapter_config.json"):
        tj.load_adapter(base_of("gpt2_default"), FIXTURES / "gpt2")
