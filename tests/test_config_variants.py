"""Fields of config.json that change the function: logits equal those of the reference library, or are refused.

The expected values are in fixtures/config_variants.*, written by fixtures/config_variants.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import transformer_jax as tj
from transformer_jax.huggingface.config_keys import READ_ELSEWHERE
from transformer_jax.huggingface.families import FAMILIES
from transformer_jax.huggingface.families.llama import LLAMA
from transformer_jax.huggingface.family import known_fields, read_config, write_config
from transformer_jax.huggingface.generation_defaults import read_generation_defaults
from transformer_jax.nn.kv_cache_kinds import make_rolling_cache

FIXTURES = Path(__file__).parent / "fixtures"
VARIANTS = json.loads((FIXTURES / "config_variants.json").read_text(encoding="utf-8"))
EXPECTED = load_file(FIXTURES / "config_variants.safetensors")
ROTARY = [name for name in VARIANTS if f"{name}/new_tokens" in EXPECTED]
LENGTHS = (11, 16, 17, 40)  # of the rotary variants, whose original context has 16 tokens
PROMPT = 13  # tokens, before a text that crosses it
FIELDS = json.loads((FIXTURES / "config_fields.json").read_text(encoding="utf-8"))
GENERATING = ["dynamic", "yarn, betas", "longrope, attention_factor"]


def expected(name, key):
    return EXPECTED[f"{name}/{key}"]


def close(logits, reference):
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def make_variant(folder, changes, path, shapes=()):
    """Copy a fixture with a changed config.json, and with new tensors of these shapes; None removes a field."""
    shutil.copytree(FIXTURES / folder, path)
    config = json.loads((path / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)
    new = {name: random.normal(size=shapes[name]).astype(np.float32) for name in sorted(shapes)}
    if new:
        save_file(load_file(path / "model.safetensors") | new, path / "model.safetensors")
    return path


def variant(name, path):
    values = VARIANTS[name]
    return make_variant(values["folder"], values["changes"], path, values["new_tensors"])


def rotary_logits(run, tokens):
    """Logits of the last token of the first 11, 16, 17 and 40 tokens of each row: {length: [B, V]}."""
    rows = np.concatenate([tokens] * len(LENGTHS))
    lengths = np.repeat(LENGTHS, len(tokens))
    logits = tj.logits(run, rows, np.arange(rows.shape[1]) < lengths[:, None])
    last = logits[np.arange(len(rows)), lengths - 1]
    return dict(zip(LENGTHS, np.split(last, len(LENGTHS)), strict=True))


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_settings_equal_the_reference_below_and_above_the_original_context(name, tmp_path):
    logits = rotary_logits(tj.from_pretrained(variant(name, tmp_path / "folder")), expected(name, "tokens"))
    for length in LENGTHS:
        close(logits[length], expected(name, f"logits_{length}"))


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - set(ROTARY)))
def test_changed_fields_of_every_family_equal_the_reference(name, tmp_path):
    run = tj.from_pretrained(variant(name, tmp_path / "folder"))
    target = (expected(name, "target"),) if f"{name}/target" in EXPECTED else ()
    if target:
        logits = tj.logits(run, expected(name, "tokens"), None, *target)
    else:
        logits = tj.logits(run, expected(name, "tokens"))
    close(logits[:, -1], expected(name, "logits"))


@pytest.mark.parametrize("name", GENERATING)
def test_decoding_across_the_original_context_does_what_the_reference_does(name, tmp_path):
    run = tj.from_pretrained(variant(name, tmp_path / "folder"))
    prompts = expected(name, "tokens")[:, :PROMPT]
    num_new = expected(name, "new_tokens").shape[1]
    done = tj.generate_tokens(run, prompts, max_new_tokens=num_new, min_new_tokens=num_new, method="greedy")
    np.testing.assert_array_equal([row.tokens for row in done], expected(name, "new_tokens"))


def test_what_a_length_dependent_scaling_cannot_do_is_refused(tmp_path):
    run = tj.from_pretrained(variant("dynamic", tmp_path / "folder"))
    with pytest.raises(
        tj.UserError, match="prompt_lookup=.*the model has rope_scaling=dynamic, whose rotations depend"
    ):
        tj.generate_tokens(run, [[5, 7, 5, 7]], max_new_tokens=3, prompt_lookup=2)
    config = dataclasses.replace(run.config, window=5)
    with pytest.raises(tj.UserError, match="model.rope_scaling='dynamic': rotates by the length of a text"):
        make_rolling_cache(config, 1, 3)


def test_a_prompt_of_a_length_dependent_scaling_is_read_in_one_piece(tmp_path, monkeypatch):
    run = tj.from_pretrained(variant("dynamic", tmp_path / "folder"))
    read_whole = tj.generate_tokens(run, expected("dynamic", "tokens")[:1], max_new_tokens=2, method="greedy")
    monkeypatch.setattr("transformer_jax.sampling.PREFILL_CHUNK", 11)
    again = tj.generate_tokens(run, expected("dynamic", "tokens")[:1], max_new_tokens=2, method="greedy")
    assert again[0].log_probs == read_whole[0].log_probs


def read(changes, family=LLAMA, folder="llama"):
    """Our fields of a fixture's config.json with changes."""
    config = json.loads((FIXTURES / folder / "config.json").read_text()) | changes
    return read_config(family, {name: value for name, value in config.items() if value is not None})


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_settings_written_to_a_new_folder_are_read_again(name):
    config = read(VARIANTS[name]["changes"])
    model = tj.TransformerConfig(**config)
    written = write_config(LLAMA, dataclasses.asdict(model), {})
    assert tj.TransformerConfig(**read_config(LLAMA, written) | {"max_len": model.max_len}) == model


def test_a_changed_theta_is_written_over_the_settings_that_were_read():
    changes = VARIANTS["yarn, betas"]["changes"]
    config = dataclasses.asdict(tj.TransformerConfig(**read(changes) | {"rope_theta": 300.0}))
    written = write_config(LLAMA, config, {"rope_parameters": {"rope_theta": 5.0}})
    assert read_config(LLAMA, written)["rope_theta"] == 300.0 and "rope_parameters" not in written


def scaling(**values):
    return {"rope_scaling": values}


LONG = {"rope_type": "longrope", "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "changes, message",
    [
        (scaling(rope_type="linear"), "rope_scaling.factor: is missing, and 'linear' needs it"),
        (scaling(rope_type="dynamic"), "rope_scaling.factor: is missing"),
        (scaling(rope_type="yarn", original_max_position_embeddings=16), "rope_scaling.factor: is missing"),
        (scaling(rope_type="llama3", factor=4.0, high_freq_factor=4.0), "low_freq_factor: is missing"),
        (scaling(rope_type="llama3", factor=4.0, low_freq_factor=4.0), "high_freq_factor: is missing"),
        (scaling(rope_type="linear", factor="2"), "rope_scaling.factor='2' must be a float"),
        (scaling(rope_type="linear", factor=True), "rope_scaling.factor=True must be"),
        (scaling(rope_type="linear", factor=0.0), "model.rope_factor=0.0: must be above 0"),
        (scaling(rope_type="yarn", factor=2.0, truncate=1), "rope_scaling.truncate=1 must be true or false"),
        (scaling(rope_type="yarn", factor=2.0, attention_factor=0.0), "attention_factor=0.0 must be above 0"),
        (scaling(rope_type="yarn", factor=2.0, beta_fast=1, beta_slow=2), "model.rope_high_freq_factor=1.0"),
        (scaling(rope_type="yarn", factor=2.0, rope_theta=1.0), "model.rope_theta=1.0: must be above 1"),
        (scaling(**LONG, short_factor=[1.0] * 5), "long_factor=None must be a list"),
        (scaling(**LONG, short_factor=[1.0] * 5, long_factor=[1.0] * 4), "must be 5 numbers above 0"),
        (scaling(**LONG, short_factor=[1.0] * 5, long_factor=[1.0] * 4 + [0]), "must be 5 numbers above 0"),
        (scaling(**LONG, short_factor=[1.0] * 5, long_factor=[1.0] * 4 + ["1"]), "long_factor='1' must be a float"),
        (scaling(rope_type="proportional", factor=2.0), "rope_type='proportional' is not supported. Known: default"),
        (scaling(type="su"), "rope_type='su' is not supported"),
        (scaling(rope_type=["yarn"]), "rope_type=.'yarn'. is not supported"),
        (scaling(full_attention={"rope_type": "default"}), "must be one section of numbers"),
        ({"rope_scaling": [2.0]}, "must be one section of numbers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        (scaling(rope_type="llama3") | {"original_max_position_embeddings": 0}, "must be at least 1"),
        ({"sliding_window": 16}, "sliding_window=16 is not supported. Only its absence is"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types=.* is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config=.* is not supported"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported. Only False is"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu' is not supported. Known: gelu"),
    ],
)
def test_settings_that_have_no_meaning_here_are_refused_by_name(changes, message):
    with pytest.raises(tj.UserError, match=message) as error:
        tj.TransformerConfig(**read({"rope_parameters": None} | changes))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "folder, changes, message",
    [
        ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn='gelu' is not supported. Only 'relu' is"),
        ("t5", {"is_gated_act": True}, "is_gated_act=True is not supported. Only False is"),
        ("roberta", {"hidden_act": "silu"}, "hidden_act='silu' is not supported. Known: gelu"),
        (
            "t5",
            {"feed_forward_proj": "gated-relu", "is_gated_act": True},
            "feed_forward_proj='gated-relu' is not supported",
        ),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id=0 is not supported. Only 1 is"),
        ("marian", {"static_position_embeddings": False}, "static_position_embeddings=False"),
        ("bart", {"static_position_embeddings": True}, "static_position_embeddings=True"),
        ("gpt2", {"scale_attn_weights": 0}, "scale_attn_weights=0 is not supported. Only True is"),
    ],
)
def test_a_field_that_contradicts_the_family_is_refused_by_name(folder, changes, message):
    with pytest.raises(tj.UserError, match=message):
        read(changes, FAMILIES[folder], folder)


# Fields by name


def test_every_field_that_the_reference_reads_is_read_required_or_ignored_by_name():
    for family, names in FIELDS.items():
        assert sorted(names.keys() - known_fields(FAMILIES[family]).keys()) == [], family


def test_a_field_that_is_read_changes_the_model_or_is_refused():
    for family, names in FIELDS.items():
        known = known_fields(FAMILIES[family])
        before = read_config(FAMILIES[family], {})
        tested_elsewhere = {*READ_ELSEWHERE, "original_max_position_embeddings"}  # the latter with some scalings
        for name in {field for field in names if known[field] != "ignored"} - tested_elsewhere:
            values = other_values(name, names[name])
            assert any(is_noticed(FAMILIES[family], name, value, before) for value in values), f"{family}: {name}"


def is_noticed(family, name, value, before):
    """True if a value of a field changes our fields, or is refused."""
    try:
        return read_config(family, {name: value}) != before
    except tj.UserError:
        return True


def other_values(name, default):
    """Values of a field of config.json that are not its default."""
    if name in ("rope_scaling", "rope_parameters"):
        return [{"rope_type": "linear", "factor": 3.0}]
    if default is None:
        return [True, False]
    if isinstance(default, str):
        return ["relu", "gelu_new"]
    return [not default] if isinstance(default, bool) else [default + 1]


def test_a_field_that_the_reference_does_not_know_is_named_in_one_line_and_changes_nothing(tmp_path, capsys):
    changes = {"adapters": {}, "my note": 1, "rope_parameters": {"rope_theta": 5000.0, "mrope_section": [1]}}
    folder = make_variant("llama", changes | {"task_specific_params": {}, "_name_or_path": "x"}, tmp_path / "folder")
    run = tj.from_pretrained(folder)
    names = "adapters, my note, rope_parameters.mrope_section"
    assert capsys.readouterr().err == f"warning: config.json: {names}: not read, for llama has no such fields.\n"
    tj.save_pretrained(run, tmp_path / "back")
    assert capsys.readouterr().err == ""


# Labels and special tokens


@pytest.mark.parametrize(
    "changes, labels",
    [
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}, "num_labels": 5}, ("a", "b", "c")),
    ],
)
def test_labels_are_those_of_id2label_or_as_many_as_num_labels(changes, labels, tmp_path):
    run = tj.from_pretrained(make_variant("bert_classifier", changes, tmp_path / "folder"))
    assert run.labels == labels and run.model.num_classes == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"id2label": ["a", "b", "c"]}, "id2label=.'a', 'b', 'c'. must map the numbers"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label=.* must map the numbers"),
        ({"id2label": {"a": 0, "b": 1, "c": 2}}, "id2label=.* must map the numbers"),
        ({"id2label": {"0": "a", "1": None, "2": "c"}}, "id2label=.* must map the numbers"),
        ({"id2label": {}}, "id2label={} must map the numbers"),
        ({"id2label": None, "num_labels": 0}, "num_labels=0 must be from 1"),
        ({"id2label": None, "num_labels": "3"}, "num_labels='3' must be a int"),
    ],
)
def test_labels_with_gaps_or_without_names_are_refused(changes, message, tmp_path):
    with pytest.raises(tj.UserError, match=message):
        tj.from_pretrained(make_variant("bert_classifier", changes, tmp_path / "folder"))


@pytest.mark.parametrize(
    "config, generation, start",
    [
        ({"model_type": "t5", "decoder_start_token_id": 7}, {}, 7),
        ({"model_type": "t5", "bos_token_id": 6}, {}, 6),
        ({"model_type": "t5"}, {}, 0),
        ({"model_type": "t5", "pad_token_id": 5}, {"eos_token_id": 1}, 5),
        ({"model_type": "bart"}, {}, 2),
        ({"model_type": "bart", "decoder_start_token_id": None}, {}, 0),
        ({"model_type": "bart", "decoder_start_token_id": 4}, {"bos_token_id": 3}, 3),
        ({"model_type": "marian", "pad_token_id": 8}, {}, 8),  # its start, 58100, is no token of this vocabulary
        ({"model_type": "llama", "bos_token_id": None}, {}, -1),
    ],
)
def test_a_target_starts_with_the_first_special_token_that_the_reference_takes(config, generation, start):
    assert read_generation_defaults(config, generation, 11).start_id == start


def test_a_seq2seq_without_a_token_to_start_with_is_refused():
    with pytest.raises(tj.UserError, match="config.json: decoder_start_token_id: is missing"):
        read_generation_defaults({"model_type": "t5", "pad_token_id": None}, {}, 11)


def test_special_tokens_that_config_json_does_not_name_are_those_of_the_family():
    assert read_generation_defaults({"model_type": "llama"}, {}, 11).eos_ids == (2,)
    assert read_generation_defaults({"model_type": "llama", "eos_token_id": None}, {}, 11).eos_ids == ()
    assert read_generation_defaults({"model_type": "llama"}, {"bos_token_id": 1}, 11).eos_ids == ()
