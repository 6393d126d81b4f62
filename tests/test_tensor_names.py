"""Tensors under other names and in other types: one storage saved once, wrappers, heads of other models, float64."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import transformer_jax as tj
from transformer_jax.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
SHARED, ENCODER, DECODER = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
BERT, ROBERTA = "bert.embeddings.word_embeddings.weight", "roberta.embeddings.word_embeddings.weight"
HEAD = "lm_head.weight"


def changed(name, tmp_path, change):
    """Copy of a fixture, whose tensors are what `change` returns of them."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    tensors = change(load_file(folder / "model.safetensors"))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_loads_as(name, folder):
    found, expected = tj.from_pretrained(folder), tj.from_pretrained(FIXTURES / name)
    assert found.model == expected.model
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def refusal(folder):
    with pytest.raises(UserError) as error:
        tj.from_pretrained(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name, tensor, others",
    [
        ("gpt2", "transformer.wte.weight", [HEAD]),
        ("t5", SHARED, [ENCODER]),
        ("t5", SHARED, [DECODER]),
        ("t5", SHARED, [HEAD]),
        ("t5", SHARED, [SHARED, ENCODER, DECODER, HEAD]),
        ("t5_v1_1", SHARED, [DECODER]),
        ("bart", f"model.{SHARED}", [f"model.{ENCODER}"]),
        ("bart", f"model.{SHARED}", [f"model.{DECODER}"]),
        ("bart", f"model.{SHARED}", [HEAD]),
        ("bart", f"model.{SHARED}", [f"model.{ENCODER}", f"model.{DECODER}"]),
        ("marian", f"model.{SHARED}", [f"model.{DECODER}"]),
        ("marian", f"model.{SHARED}", [HEAD]),
        ("bert", BERT, ["cls.predictions.decoder.weight"]),
        ("bert", "cls.predictions.bias", ["cls.predictions.decoder.bias"]),
        ("roberta", ROBERTA, ["lm_head.decoder.weight"]),
        ("roberta", "lm_head.bias", ["lm_head.decoder.bias"]),
    ],
)
def test_a_tensor_saved_once_may_have_any_of_its_names(name, tensor, others, tmp_path):
    def change(tensors):
        table = tensors.pop(tensor)
        return tensors | {other: table for other in others}

    assert_loads_as(name, changed(name, tmp_path, change))


@pytest.mark.parametrize(
    "name, tensor, others, message",
    [
        ("t5", SHARED, [SHARED, ENCODER], f"the tensors {SHARED} and {ENCODER} differ. 't5' has one for both."),
        ("t5_v1_1", SHARED, [ENCODER, DECODER], f"the tensors {ENCODER} and {DECODER} differ."),
        ("bart", f"model.{SHARED}", [f"model.{SHARED}", f"model.{ENCODER}", f"model.{DECODER}"], "no lm_head.weight"),
        ("bart", f"model.{SHARED}", [f"model.{SHARED}", f"model.{DECODER}"], "differ. 'bart' has one for both"),
        ("llama", "model.embed_tokens.weight", [], "model.embed_tokens.weight is missing"),
    ],
)
def test_names_of_one_tensor_with_different_values_are_refused(name, tensor, others, message, tmp_path):
    def change(tensors):
        table = tensors.pop(tensor)
        return tensors | {other: table + 0.125 * i for i, other in enumerate(others)}

    assert message in refusal(changed(name, tmp_path, change))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert_classifier", "roberta", "t5", "bart", "marian"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model."])
def test_the_prefixes_of_wrappers_are_omitted_where_every_tensor_has_them(name, prefix, tmp_path):
    folder = changed(name, tmp_path, lambda tensors: {prefix + key: tensor for key, tensor in tensors.items()})
    assert_loads_as(name, folder)


def test_a_prefix_that_only_some_tensors_have_is_named(tmp_path):
    folder = changed("gpt2", tmp_path, lambda t: {k.replace("transformer.h", "module.transformer.h"): t[k] for k in t})
    assert "module.transformer.h.0.ln_1.weight is unknown" in refusal(folder)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "bart"])
def test_float64_tensors_are_read_as_float32(name, tmp_path):
    folder = changed(name, tmp_path, lambda tensors: {key: t.astype(np.float64) for key, t in tensors.items()})
    assert_loads_as(name, folder)


def test_a_float64_value_beyond_float32_is_refused_with_its_tensor(tmp_path):
    def change(tensors):
        bias = tensors["transformer.ln_f.bias"].astype(np.float64)
        bias[3] = -1e300
        return tensors | {"transformer.ln_f.bias": bias}

    assert "transformer.ln_f.bias has 1e+300 in it, beyond float32" in refusal(changed("gpt2", tmp_path, change))


@pytest.mark.parametrize("dtype, name", [("int8", "I8"), ("uint8", "U8"), ("bool", "BOOL"), ("int64", "I64")])
def test_tensors_of_other_types_are_refused_in_one_line(dtype, name, tmp_path):
    folder = changed(
        "gpt2", tmp_path, lambda t: t | {"transformer.ln_f.bias": t["transformer.ln_f.bias"].astype(dtype)}
    )
    assert f"transformer.ln_f.bias is of type {name} and not F32, F16, BF16, F64" in refusal(folder)


@pytest.mark.parametrize(
    "name, heads",
    [
        ("gpt2", ["multiple_choice_head.summary.weight", "score.weight"]),
        ("llama", ["score.weight", "qa_outputs.weight"]),
        ("bert", ["classifier.weight", "qa_outputs.bias", "bert.pooler.dense.weight"]),
        (
            "bert_classifier",
            ["cls.predictions.transform.dense.weight", "cls.seq_relationship.bias", "qa_outputs.weight"],
        ),
        ("roberta", ["classifier.dense.weight", "classifier.out_proj.bias", "roberta.pooler.dense.bias"]),
        ("t5", ["classification_head.dense.weight", "qa_outputs.weight"]),
        ("bart", ["classification_head.out_proj.weight", "qa_outputs.weight"]),
    ],
)
def test_heads_of_other_models_are_ignored_by_name_and_nothing_else(name, heads, tmp_path):
    extra = {head: np.ones((3, 5), np.float32) for head in heads}
    assert_loads_as(name, changed(name, tmp_path / "heads", lambda tensors: tensors | extra))
    unknown = {"adapter.weight": np.ones((3, 5), np.float32)}
    assert "adapter.weight is unknown" in refusal(changed(name, tmp_path, lambda tensors: tensors | unknown))
