"""Folders as Hugging Face's library writes them (tests/fixtures, made by it), loaded, asked, saved and loaded again."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import transformer_jax as tj
from transformer_jax.interop.files import PretrainedError
from transformer_jax.models import GPT, Encoder, MaskedLM, TokenTagger

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = [
    "gpt2", "llama", "llama3", "llama_sharded_bf16", "bert", "bert_classifier", "roberta", "t5", "t5_v1_1", "bart",
    "marian",
]  # fmt: skip
OLD = ["gpt2_old", "bert_old"]
WRITERS = ["gpt2", "llama", "llama3", "t5", "t5_v1_1", "bart", "marian"]


def expected(folder):
    return dict(np.load(FIXTURES / folder / "expected.npz"))


def ask(run, given):
    """The logits, and which of them are of real tokens."""
    if "source" in given:
        out = tj.logits(run, given["source"], given["source_is_token"], given["target"],
                        target_is_token=given["target_is_token"])  # fmt: skip
        return out, given["target_is_token"]
    out = tj.logits(run, given["tokens"], given["is_token"], token_types=given.get("token_types"))
    return out, given["is_token"]


def assert_as_the_reference(out, is_real, reference):
    is_real = is_real if out.ndim == 3 else np.ones(len(out), bool)
    difference = np.abs(np.asarray(out) - reference)[is_real].max()
    assert difference <= 1e-5 * max(1, np.abs(reference[is_real]).max())


def tensors_of(folder):
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def copy(folder, tmp_path):
    return Path(shutil.copytree(FIXTURES / folder, tmp_path / "folder"))


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("folder", FOLDERS + OLD)
def test_logits_of_real_tokens_are_those_of_the_reference_library(folder):
    run, given = tj.from_pretrained(FIXTURES / folder), expected(folder)
    assert_as_the_reference(*ask(run, given), given["logits"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_saved_back_every_tensor_is_the_same_to_the_byte(folder, tmp_path):
    tj.save_pretrained(tj.from_pretrained(FIXTURES / folder), tmp_path / "back")
    before, after = tensors_of(FIXTURES / folder), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].tobytes() == tensor.tobytes()
    configs = [json.loads((path / "config.json").read_text()) for path in (FIXTURES / folder, tmp_path / "back")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("folder", ["gpt2", "llama_sharded_bf16", "bert_classifier", "marian"])
def test_through_a_run_directory_and_back_nothing_changes(folder, tmp_path):
    run, given = tj.from_pretrained(FIXTURES / folder), expected(folder)
    tj.save(run, tmp_path / "run")
    again = tj.load(tmp_path / "run")
    np.testing.assert_array_equal(ask(again, given)[0], ask(run, given)[0])
    assert jax.tree.map(lambda x: x.dtype, again.params) == jax.tree.map(lambda x: x.dtype, run.params)
    assert again.rules == run.rules
    tj.save_pretrained(again, tmp_path / "back")
    before, after = tensors_of(FIXTURES / folder), tensors_of(tmp_path / "back")
    assert {name: tensor.tobytes() for name, tensor in before.items()} == {
        name: tensor.tobytes() for name, tensor in after.items()
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_become_the_ids_and_ids_the_texts_of_the_reference_library(folder):
    texts = FIXTURES / folder / "texts.json"
    if not texts.exists():
        pytest.skip("has no tokenizer")
    tokenizer = tj.from_pretrained(FIXTURES / folder).tokenizer
    for entry in json.loads(texts.read_text()):
        assert tokenizer.encode(entry["text"], allow_special=True).tolist() == entry["ids"], entry
        assert tokenizer.decode(entry["ids"]) == entry["decoded"]
