"""Hugging Face folders written by the reference library (tests/fixtures): loading, logits, greedy tokens, saving."""

import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.arrays import random_like
from helpers.commands import command
from safetensors.numpy import load_file, save_file

import transformer_jax as tj
from transformer_jax.huggingface import save
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.inference.forward import step_function
from transformer_jax.models import GPT, Encoder, MaskedLM, TokenTagger, parameter_shapes
from transformer_jax.nn.kv_cache_kinds import make_cache
from transformer_jax.sampling import DecodeSpec, Prompts, SamplingParams, generate

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = "gpt2 llama llama3 llama_sharded_bf16 bert bert_classifier roberta t5 t5_v1_1 bart marian".split()
OLD = ["gpt2_old", "bert_old"]
WITH_DECODER = ["gpt2", "llama", "llama3", "t5", "t5_v1_1", "bart", "marian"]


@functools.cache
def run_of(folder):
    return tj.from_pretrained(FIXTURES / folder)


@functools.cache
def expected(folder):
    return dict(np.load(FIXTURES / folder / "expected.npz"))


def logits_of(run, given):
    """The logits, and a mask of the real tokens among them."""
    if "source" in given:
        out = tj.logits(
            run, given["source"], given["source_is_token"], given["target"], target_is_token=given["target_is_token"]
        )
        return out, given["target_is_token"]
    out = tj.logits(run, given["tokens"], given["is_token"], token_types=given.get("token_types"))
    return out, given["is_token"]


def assert_equals_reference(out, is_token, reference):
    is_token = is_token if out.ndim == 3 else np.ones(len(out), bool)
    difference = np.abs(np.asarray(out) - reference)[is_token].max()
    assert difference <= 1e-5 * max(1, np.abs(reference[is_token]).max())


def tensors_of(folder):
    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def copy(folder, tmp_path):
    return Path(shutil.copytree(FIXTURES / folder, tmp_path / "folder"))


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("folder", FOLDERS + OLD)
def test_logits_equal_those_of_the_reference_library(folder):
    given = expected(folder)
    assert_equals_reference(*logits_of(run_of(folder), given), given["logits"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_loaded_and_saved_every_tensor_is_the_same_to_the_byte(folder, tmp_path):
    tj.save_pretrained(run_of(folder), tmp_path / "back")
    before, after = tensors_of(FIXTURES / folder), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].tobytes() == tensor.tobytes()
    configs = [json.loads((path / "config.json").read_text()) for path in (FIXTURES / folder, tmp_path / "back")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("folder", ["gpt2", "llama_sharded_bf16", "bert_classifier", "marian"])
def test_a_run_directory_in_between_changes_nothing(folder, tmp_path):
    run = run_of(folder)
    given = expected(folder)
    tj.save(run, tmp_path / "run")
    loaded = tj.load(tmp_path / "run")
    np.testing.assert_array_equal(logits_of(loaded, given)[0], logits_of(run, given)[0])
    assert jax.tree.map(lambda x: x.dtype, loaded.params) == jax.tree.map(lambda x: x.dtype, run.params)
    assert loaded.generation_defaults == run.generation_defaults
    tj.save_pretrained(loaded, tmp_path / "back")
    before, after = tensors_of(FIXTURES / folder), tensors_of(tmp_path / "back")
    assert {name: tensor.tobytes() for name, tensor in before.items()} == {
        name: tensor.tobytes() for name, tensor in after.items()
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_tokenizers_encode_and_decode_as_the_reference_library(folder):
    texts = FIXTURES / folder / "texts.json"
    if not texts.exists():
        pytest.skip("has no tokenizer")
    tokenizer = run_of(folder).tokenizer
    for entry in json.loads(texts.read_text()):
        assert tokenizer.encode(entry["text"], allow_special=True).tolist() == entry["ids"], entry
        assert tokenizer.decode(entry["ids"]) == entry["decoded"]


@pytest.mark.parametrize("folder", WITH_DECODER)
def test_greedy_tokens_equal_those_of_the_reference_library(folder):
    run = run_of(folder)
    given = expected(folder)
    num_new = given["greedy"].shape[1]
    if "source" in given:
        start = jax.jit(
            lambda p, *args: run.model.apply({"params": p}, *args, capacity=num_new, method="encode_source")
        )
        cache = start(run.params, given["source"], given["source_is_token"])
        tokens = np.full((len(given["source"]), 1), run.generation_defaults.start_id, np.int32)
        is_token = np.ones_like(tokens, bool)
    else:
        tokens, is_token = given["tokens"], given["is_token"]
        cache = make_cache(run.config, len(tokens), tokens.shape[1] + num_new)
    new = generate(
        step_function(run),
        cache,
        Prompts(tokens, is_token),
        SamplingParams(jax.random.split(jax.random.key(0), len(tokens)), run.generation_defaults.processors),
        DecodeSpec(num_new, run.generation_defaults.eos_ids, run.generation_defaults.pad_id, "greedy"),
    )
    np.testing.assert_array_equal(new.tokens, given["greedy"])


def test_texts_are_generated_from_texts():
    gpt2 = run_of("gpt2")
    texts = tj.generate(gpt2, ["the cat", "a"], max_new_tokens=5, method="greedy")
    assert [text.startswith(prompt) for text, prompt in zip(texts, ("the cat", "a"), strict=True)] == [True, True]
    assert tj.generate(gpt2, ["a", "the cat"], max_new_tokens=5, method="greedy") == texts[::-1]
    for folder in ("t5", "marian"):
        generate_texts = functools.partial(tj.generate, run_of(folder), max_new_tokens=7, method="greedy")
        first, second = generate_texts(["The cat sat.", "this text"])
        assert isinstance(first, str)
        assert generate_texts(["this text", "The cat sat."]) == [second, first]
        assert folder != "t5" or generate_texts("this text") == second
    with pytest.raises(tj.UserError, match="MaskedLM generates no text"):
        tj.generate(run_of("bert"), "the cat")


# Malformed folders and other mistakes of a user


def test_one_error_names_every_tensor_that_does_not_fit(tmp_path):
    folder = copy("gpt2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.ln_2.bias"], tensors["transformer.wpe.weight"]
    tensors["transformer.h.7.ln_2.bias"] = np.zeros(3, np.float32)
    tensors["transformer.ln_f.weight"] = np.zeros(19, np.float32)
    tensors["transformer.ln_f.bias"] = np.zeros(20, np.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(PretrainedError) as error:
        tj.from_pretrained(folder)
    for problem in (
        "transformer.h.1.ln_2.bias is missing",
        "transformer.wpe.weight is missing",
        "transformer.h.7.ln_2.bias is unknown",
        "transformer.ln_f.weight has shape [19] and not [20]",
        "transformer.ln_f.bias is of type I32",
    ):
        assert problem in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model_type": "mamba"}, "model_type='mamba'.*gpt2, llama, bert, roberta, t5, bart, marian"),
        ({"model_type": None}, "model_type=None"),
        ({"architectures": ["GPT2ForTokenClassification"]}, "architectures.*GPT2LMHeadModel"),
        ({"architectures": [7]}, "architectures"),
        ({"n_layer": "two"}, "n_layer='two' must be a int"),
        ({"n_layer": -1}, "n_layer=-1"),
        ({"n_layer": 10**9}, "1000000000 layers"),
        ({"n_layer": True}, "n_layer=True"),
        ({"n_head": 3}, "model.d_model=20"),
        ({"n_embd": 10**30}, "n_embd"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan"),
        ({"activation_function": "mish"}, "activation_function='mish'.*gelu_new"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"vocab_size": 102}, r"transformer.wte.weight has shape \[101, 20\] and not \[102, 20\]"),
    ],
)
def test_an_unsupported_config_is_refused_in_one_line(values, message, tmp_path):
    folder = copy("gpt2", tmp_path)
    change(folder, **values)
    with pytest.raises(tj.UserError, match=message) as error:
        tj.from_pretrained(folder)
    assert len(str(error.value).splitlines()) == 1


def test_the_error_for_pickled_weights_shows_how_to_convert_them(tmp_path):
    folder = copy("gpt2", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match="pytorch_model.bin, a pickle.*save_pretrained"):
        tj.from_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(PretrainedError, match="neither model.safetensors nor"):
        tj.from_pretrained(folder)
    with pytest.raises(PretrainedError, match="no such folder"):
        tj.from_pretrained(tmp_path / "nowhere")


def test_nothing_is_overwritten(tmp_path):
    run = run_of("gpt2")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PretrainedError, match="exists already"):
        tj.save_pretrained(run, tmp_path)
    tj.save(run, tmp_path / "run")
    with pytest.raises(tj.UserError, match="there is a run already"):
        tj.save(run, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "run"]


# Models of our own, other ways to store a model


def own_run(config, model=GPT):
    model = model(config)
    return tj.Run(model, random_like(parameter_shapes(model)), None, config)


LLAMA = dict(norm="rmsnorm", positions="rotary", feed_forward="swiglu", mlp_bias=False, num_kv_heads=1, d_ff=37)
LLAMA3_ROPE = dict(rope_scaling="llama3", rope_factor=4.0, rope_original_max_len=16)


@pytest.mark.parametrize("changes", [{"feed_forward": "gelu_tanh"}, LLAMA | LLAMA3_ROPE, {"tie_embeddings": False}])
def test_a_model_of_our_own_is_saved_as_the_family_that_has_it(changes, tmp_path):
    run = own_run(
        tj.TransformerConfig(**dict(vocab_size=23, max_len=19, num_layers=2, d_model=20, num_heads=2) | changes)
    )
    tj.save_pretrained(run, tmp_path / "folder")
    loaded = tj.from_pretrained(tmp_path / "folder")
    tokens = np.random.default_rng(0).integers(0, 23, (3, 7))
    np.testing.assert_array_equal(tj.logits(loaded, tokens), tj.logits(run, tokens))


def test_the_error_for_a_model_that_no_family_has_tells_the_differences(tmp_path):
    run = own_run(tj.TransformerConfig(vocab_size=23, num_layers=1, window=5, positions="alibi"))
    with pytest.raises(PretrainedError, match=r"gpt2 has 'learned' only.*llama has 'rmsnorm' only"):
        tj.save_pretrained(run, tmp_path / "folder")
    run = own_run(tj.TransformerConfig(vocab_size=23, num_layers=1, window=5))
    with pytest.raises(PretrainedError, match="gpt2 has no window=5"):
        tj.save_pretrained(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_name_is_looked_up_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    model = tmp_path / "hub" / "models--me--tiny"
    snapshot = model / "snapshots" / "0123abcd"
    for part in (snapshot, model / "blobs", model / "refs"):
        part.mkdir(parents=True)
    (model / "refs" / "main").write_text("0123abcd")
    for file in (FIXTURES / "gpt2").glob("*"):  # as huggingface_hub keeps them: links to files named by their content
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, model / "blobs" / f"blob-{file.name}")
            (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tj.logits(tj.from_pretrained("me/tiny"), [[1, 2]]).shape == (1, 2, 101)
    with pytest.raises(PretrainedError, match="^me/other: no such folder, and the hub did not provide it") as error:
        tj.from_pretrained("me/other")
    assert len(str(error.value).splitlines()) == 1


def test_a_name_without_huggingface_hub_installed_is_refused_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(tj.UserError, match=r'^huggingface_hub: .*pip install "transformer_jax\[hub\]"') as error:
        tj.from_pretrained("me/tiny")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("folder, model", [("bert", MaskedLM), ("gpt2", GPT)])
def test_shards_hold_the_same_tensors_as_one_file(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 5000)
    run = run_of(folder)
    tj.save_pretrained(run, tmp_path / "folder")
    assert len(list((tmp_path / "folder").glob("model-*-of-*.safetensors"))) > 3
    loaded = tj.from_pretrained(tmp_path / "folder")
    assert isinstance(loaded.model, model)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, run.params)


def test_a_folder_without_a_head_is_loaded_as_an_encoder(tmp_path):
    folder = copy("bert", tmp_path)
    body = {
        name.removeprefix("bert."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith("bert.")
    }
    save_file(body, folder / "model.safetensors")
    change(folder, architectures=["BertModel"])
    run, given = tj.from_pretrained(folder), expected("bert")
    assert isinstance(run.model, Encoder)
    hidden = tj.logits(run, given["tokens"], given["is_token"], token_types=given["token_types"])
    assert_equals_reference(hidden, given["is_token"], given["hidden"])


def test_a_tagger_has_one_tag_per_label_name_in_the_config(tmp_path):
    folder = copy("bert_classifier", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors")
    change(folder, architectures=["BertForTokenClassification"])
    run = tj.from_pretrained(folder)
    assert isinstance(run.model, TokenTagger) and run.model.num_tags == 3
    assert tj.logits(run, [[1, 2, 5, 7, 3]]).shape == (1, 5, 3)


def test_the_convert_command_converts_a_folder_to_a_run_directory_and_back(tmp_path):
    done = command("convert", f"--from={FIXTURES / 'gpt2'}", f"--to={tmp_path / 'run'}")
    assert done.returncode == 0 and "a GPT, written to" in done.stdout, done.stderr
    sample = command("sample", f"--run_dir={tmp_path / 'run'}", "--prompt=the cat", "--max_new_tokens=3")
    assert sample.returncode == 0 and sample.stdout.startswith("the cat"), sample.stderr
    back = command("convert", f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'folder'}")
    assert back.returncode == 0, back.stderr
    before = tensors_of(FIXTURES / "gpt2")
    after = tensors_of(tmp_path / "folder")
    assert all(tensor.tobytes() == after[name].tobytes() for name, tensor in before.items())
    assert (tmp_path / "folder" / "tokenizer.json").read_bytes() == (FIXTURES / "gpt2" / "tokenizer.json").read_bytes()
    refused = command("convert", f"--from={FIXTURES / 'gpt2'}", f"--to={tmp_path / 'folder'}")
    assert refused.returncode == 2 and "exists already" in refused.stderr
