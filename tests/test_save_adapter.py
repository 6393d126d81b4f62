"""Adapters written for PEFT: read back with the same logits, fused layers, and what PEFT cannot express."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.adapter_cases import CASES as ALL_CASES
from helpers.adapter_cases import FIXTURES, WEIGHTS, base_of, config_of, run_of
from safetensors.numpy import load_file

import transformer_jax as tj
from transformer_jax.models.prefix import trained_prefix

pytestmark = pytest.mark.usefixtures("compilation_cache")
FOLDERS = [FIXTURES / "adapters" / case for case in ALL_CASES]
CASES = [folder.name for folder in FOLDERS if config_of(folder)["peft_type"] in ("LORA", "IA3")]  # others: refused
TOKENS = np.random.default_rng(3).integers(3, 60, (3, 7))


def logits_of(run):
    return np.asarray(tj.logits(run, TOKENS, target=TOKENS[:, 2:] if run.model.reads_source else None))


def with_layers(case, change):
    """The run of a case with changed arrays in its adapter: `change(path, array)`."""
    run = run_of(case)
    layers = jax.tree_util.tree_map_with_path(lambda p, a: change([key.key for key in p], a), run.adapter)
    return dataclasses.replace(run, adapter=layers)


def round_trip(run, case, folder):
    """The adapter of a run after it was written and read; logits must not change."""
    tj.save_adapter(run, folder)
    again = tj.load_adapter(base_of(case), folder)
    before = logits_of(run)
    assert np.abs(logits_of(again) - before).max() <= 2e-6 * np.abs(before).max()
    assert np.abs(logits_of(base_of(case)) - before).max() > 1e-3 * np.abs(before).max()
    return again


@pytest.mark.parametrize("case", CASES)
def test_a_saved_adapter_has_the_tensors_and_logits_of_the_one_that_was_loaded(case, tmp_path):
    original, folder = FIXTURES / "adapters" / case, tmp_path / "adapter"
    round_trip(run_of(case), case, folder)
    tensors, expected = load_file(folder / WEIGHTS), load_file(original / WEIGHTS)
    if case in ("gpt2_embed_saved", "llama3_tied_head", "gpt2_tokens"):  # in full: the other side, a table
        assert expected.keys() <= tensors.keys()
        return
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-6, err_msg=name)
    saved = config_of(folder)
    assert saved["base_model_name_or_path"].endswith(config_of(original)["base_model_name_or_path"])
    assert saved["bias" if "bias" in saved else "peft_type"] == config_of(original).get("bias", "IA3")


def test_independent_adapters_of_a_fused_layer_become_one_pair(tmp_path):
    number = {"query": 1.0, "key": 2.0, "value": 3.0}

    def change(path, array):
        if path[-1] == "scale":
            return array / number[path[-2]]
        return array + 0.1 * number[path[-2]] if path[-1] == "lora_in" else array

    run = with_layers("gpt2_default", change)
    round_trip(run, "gpt2_default", tmp_path / "adapter")
    tensor = load_file(tmp_path / "adapter" / WEIGHTS)["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"]
    assert tensor.shape == (12, 20)  # three of rank 4
    assert (config_of(tmp_path / "adapter")["r"], config_of(tmp_path / "adapter")["lora_alpha"]) == (12, 24.0)
    attention = run.adapter["stack"]["block_0"]["attention"]
    without_key = dataclasses.replace(
        run, adapter={"stack": {"block_0": {"attention": {name: attention[name] for name in ("query", "value")}}}}
    )
    round_trip(without_key, "gpt2_default", tmp_path / "two")


def test_ranks_and_scales_of_single_layers_are_patterns_in_the_settings(tmp_path):
    run = run_of("llama_all_linear")
    layers = jax.tree.map(lambda array: array, run.adapter)
    down = layers["stack"]["block_0"]["feed_forward"]["down"]
    down |= {"lora_in": down["lora_in"][:, :2], "lora_out": down["lora_out"][:2], "scale": 3 * down["scale"]}
    round_trip(dataclasses.replace(run, adapter=layers), "llama_all_linear", tmp_path / "adapter")
    config = config_of(tmp_path / "adapter")
    assert config["rank_pattern"] == {"model.layers.0.mlp.down_proj": 2}
    assert config["alpha_pattern"] == {"model.layers.0.mlp.down_proj": 12.0}
    assert (config["r"], config["lora_alpha"]) == (3, 6.0)


def refused(run, folder, message):
    with pytest.raises(tj.UserError, match=message) as error:
        tj.save_adapter(run, folder)
    assert len(str(error.value).splitlines()) == 1
    assert not folder.exists() or any(folder.iterdir())


def test_an_adapter_that_peft_cannot_express_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    run, ia3 = run_of("gpt2_dora"), run_of("gpt2_ia3")
    refused(base_of("gpt2_dora"), folder, "no LoRA, DoRA or IA3")
    both = dataclasses.replace(
        run, adapter={"stack": {**run.adapter["stack"], "block_0": ia3.adapter["stack"]["block_0"]}}
    )
    refused(both, folder, "LoRA and IA3 together")
    plain = run_of("gpt2_default").adapter["stack"]["block_0"]
    some = dataclasses.replace(run, adapter={"stack": {**run.adapter["stack"], "block_0": plain}})
    refused(some, folder, "DoRA in some layers only")
    inputs = {"ia3_in": jnp.ones(20) * 2}
    query = dataclasses.replace(run, adapter={"stack": {"block_0": {"attention": {"query": inputs}}}})
    refused(query, folder, "scales all inputs of transformer.h.0.attn.c_attn in one way")
    refused(tj.quantize(run), folder, "values of stack/block_0/attention/query/kernel, which are int8")
    named = tj.load_adapter(base_of("gpt2_dora"), FIXTURES / "adapters" / "gpt2_dora", name="one")
    refused(named, folder, "by name: 'one'")
    round_trip(tj.choose_adapter(named, "one"), "gpt2_dora", folder)
    refused(run, folder, "exists already")
    quantized = tj.quantize(run_of("gpt2_default"))
    tj.save_adapter(quantized, tmp_path / "int8")  # plain LoRA needs no parameters
    with pytest.raises(tj.UserError, match="has int8 weights. Load it first, then tj.quantize"):
        tj.load_adapter(tj.quantize(base_of("gpt2_default")), tmp_path / "int8")
    with pytest.raises(tj.UserError, match="no LoRA, DoRA or IA3"):
        tj.save_adapter(tj.merge_adapter(run), tmp_path / "merged")


PROMPTS = [folder.name for folder in FOLDERS if "num_virtual_tokens" in config_of(folder)]


def test_a_saved_prefix_is_the_one_that_was_loaded(tmp_path):
    assert len(PROMPTS) >= 8
    for case in PROMPTS:
        run = run_of(case)
        tj.save_adapter(run, tmp_path / case)
        again = tj.load_adapter(base_of(case), tmp_path / case)
        np.testing.assert_array_equal(again.prefix.trained, run.prefix.trained)
        jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
        saved, original = (config_of(folder / case) for folder in (tmp_path, FIXTURES / "adapters"))
        if "P_TUNING" != original["peft_type"]:  # computed already, so it is prompt tuning
            names = ("peft_type", "task_type", "token_dim", "num_attention_heads", "num_transformer_submodules")
            assert [saved[name] for name in names] == [original[name] for name in names], case


def test_a_prefix_that_peft_cannot_express_is_refused(tmp_path):
    run = base_of("marian_qv")
    config = run.config.decoder
    numbers = np.random.default_rng(0).normal(size=(3, 2 * config.num_layers, config.num_kv_heads, config.head_dim))
    prefix = trained_prefix(run.model, run.variables, jnp.asarray(numbers, jnp.float32))
    differing = dataclasses.replace(run, prefix=prefix)
    refused(differing, tmp_path / "adapter", "PEFT gives some of the 2 layers of a decoder the same keys and values")
    refused(tj.with_prefix(run_of("gpt2_prompt"), [5, 6]), tmp_path / "adapter", "has a prefix, which is not saved")
