"""Limits: numbers that nothing can hold are refused in one line, before anything large is allocated or traced."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import rewrite_meta
from helpers.commands import assert_is_one_error, command
from helpers.runs import make_run
from safetensors.numpy import load_file, save_file

import transformer_jax as tj
from train.config import Config
from train.loop import run as train
from transformer_jax.checkpoints.store import CheckpointError
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.inference import memory
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, SequenceClassifier, init_params, parameter_shapes

FIXTURES = Path(__file__).parent / "fixtures"
HUGE = 99999999999999999999


# Metadata of a checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    tj.save(make_run("char"), folder)
    return folder


@pytest.fixture
def run_dir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


EDITS = [
    ("kind", ["gpt"]),
    ("config.num_layers", 10**6),
    ("config.num_layers", 9_999),
    ("config.num_layers", 2),
    ("config.vocab_size", 10**12),
    ("config.vocab_size", 2**31 - 1),
    ("config.d_model", 2**31 - 2),
    ("config.max_len", 2**31 - 1),
    ("config.num_heads", 2**31 - 1),
    ("config.d_ff", 2**31 - 1),
    ("config.head_dim", 2**31 - 2),
    ("config.num_token_types", 2**31 - 1),
    ("config.position_offset", 2**31 - 1),
    ("config.layer_pattern", "local," * 10**5 + "global"),
    ("config.norm_epsilon", float("nan")),
    ("config.rope_theta", 1e300),
    ("config.qkv_bias", False),
]


@pytest.mark.parametrize("field, value", EDITS, ids=lambda x: f"{x!r:.30}")
def test_edited_metadata_are_refused_before_a_model_is_made(field, value, run_dir, capfd, monkeypatch):
    def edit(meta):
        section, name = meta["model"], field
        if "." in field:
            section, name = section["config"], field.split(".")[1]
        section[name] = value
        return meta

    rewrite_meta(run_dir, edit)
    monkeypatch.setattr("orbax.checkpoint.Checkpointer", None)  # nothing is loaded
    with pytest.raises(CheckpointError) as error:
        tj.load(run_dir)
    assert str(error.value).startswith(str(run_dir)) and len(str(error.value)) < 600
    assert field.split(".")[-1] in str(error.value) or "its arrays do not fit" in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("labels", [5, [5], ["a", "b"]], ids=repr)
def test_labels_are_strings_as_many_as_the_classes(labels, tmp_path):
    run = make_run("char")
    model = SequenceClassifier(run.config, 3)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), parameter_shapes(model))
    tj.save(dataclasses.replace(run, model=model, params=params, labels=("a", "b", "c")), tmp_path / "run")
    assert tj.load(tmp_path / "run").labels == ("a", "b", "c")
    rewrite_meta(tmp_path / "run", lambda meta: meta | {"labels": labels})
    with pytest.raises(CheckpointError, match="labels"):
        tj.load(tmp_path / "run")


SIZES = {"vocab_size": 11, "max_len": 7, "d_model": 6, "num_heads": 2, "num_layers": 5}
PATTERN = {"layer_pattern": "local,global", "local_window": 3, "positions": "rotary", "head_dim": 4}
SHAPES = {
    "alike": GPT(TransformerConfig(**SIZES)),
    "a pattern": GPT(TransformerConfig(**SIZES, **PATTERN)),
    "relative positions": GPT(TransformerConfig(**SIZES, positions="t5")),
    "vectors of distances": GPT(TransformerConfig(**SIZES, positions="shaw")),
    "a head": SequenceClassifier(TransformerConfig(**SIZES), 3),
    "two sides": Seq2Seq(
        Seq2SeqConfig(TransformerConfig(**SIZES), TransformerConfig(**SIZES | {"num_layers": 3}, positions="t5"))
    ),
}


@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)
def test_the_shapes_of_all_layers_follow_from_one_of_each_kind(model):
    traced = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    assert parameter_shapes(model) == traced


# NaN and infinity in weights


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_parameter_that_is_not_finite_is_named_when_a_run_is_loaded(number, dtype, tmp_path):
    run = make_run("char")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), run.params)
    scale = params["stack"]["norm"]["scale"]
    params["stack"]["norm"]["scale"] = scale.at[7].set(number)
    tj.save(dataclasses.replace(run, params=params), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"checkpoints/0: stack/norm/scale has NaN or infinity in it"):
        tj.load(tmp_path / "run")


def test_a_tensor_that_is_not_finite_is_named_when_a_folder_is_loaded(tmp_path):
    folder = shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = np.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(PretrainedError, match=f"safetensors: {name} has NaN or infinity in it"):
        tj.from_pretrained(folder)


# Memory


def settings(tmp_path, **changes):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 50)
    sections = {
        "data": {"source": "text", "path": str(text)},
        "model": {"num_layers": 2, "d_model": 6, "num_heads": 2, "max_len": 5},
        "train": {"num_steps": 3, "batch_size": 7, "tensorboard": False},
    }
    for name, value in changes.items():
        section, field = name.split("__")
        sections.setdefault(section, {})[field] = value
    return sections


@pytest.mark.parametrize(
    "field, value",
    [
        ("model__d_model", 2_000_000),
        ("model__d_ff", 2**31 - 1),
        ("model__head_dim", 10**9),
        ("model__vocab_size", 2**31 - 1),
    ],
)
def test_a_model_beyond_the_memory_is_refused_with_the_bytes_that_it_needs(field, value, tmp_path):
    with pytest.raises(
        UserError, match=r"parameters: .* need at least [\d.]+ [GTP]B of memory, and there are [\d.]+ .B"
    ):
        train(settings(tmp_path, **{field: value}), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_model_is_counted_with_gradients_and_optimizer_and_a_batch_by_its_tokens(tmp_path, monkeypatch):
    config = Config.from_dict(settings(tmp_path, train__ema_decay=0.5))
    num = 2 * (4 * 6 * 6 + 4 * 6 + 2 * 24 * 6 + 24 + 6 + 4 * 6) + 2 * 6 + 5 * 6  # layers, last norm, positions
    monkeypatch.setattr(memory, "device_bytes", lambda: 1000)
    with pytest.raises(UserError, match="parameters: ") as error:
        train(config, tmp_path / "run")
    num_characters = len(set((tmp_path / "text.txt").read_text())) + 3
    assert f"model: {num + 6 * num_characters:,} parameters" in str(error.value)
    needed = 4 * 5 * (num + 6 * num_characters)  # gradients, two moments and an average beside them
    monkeypatch.setattr(memory, "device_bytes", lambda: needed + 1000)
    with pytest.raises(UserError, match=r"train: 35 tokens in a micro-batch: .* Take a smaller train.batch_size"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("field", ["batch_size", "batch_tokens"])
def test_a_batch_of_labelled_texts_beyond_the_memory_is_refused(field, tmp_path):
    (tmp_path / "data.tsv").write_text("the cat\ta\na mat\tb\n" * 30)
    sections = settings(tmp_path, data__source="labelled", data__path=str(tmp_path / "data.tsv"), model__d_model=600)
    sections["train"] = {"task": "classify", field: 2**31 - 2}
    with pytest.raises(UserError, match=r"train: [\d,]{13} tokens in a micro-batch: .* need at least"):
        train(sections, tmp_path / "run")


def test_texts_beyond_the_memory_are_refused_before_the_first_token(monkeypatch):
    run = make_run("char")
    row = 2 * 10 * 4 * (3 + 11) + 4 * run.config.vocab_size + 8 * 11  # keys and values, logits, results
    tokens = [[5, 6, 7]] * 2
    monkeypatch.setattr(memory, "device_bytes", lambda: 13 * row - 1)
    with pytest.raises(UserError, match=r"num_samples=13: 13 texts together, of 11 new tokens, need at least"):
        tj.generate_tokens(run, tokens, num_samples=13, max_new_tokens=11, batch_size=13)
    with pytest.raises(UserError, match=r"num_beams=2000: 2,000 texts together"):
        tj.generate_tokens(run, tokens[:1], num_beams=2000, method="beam", max_new_tokens=11)
    monkeypatch.setattr(memory, "device_bytes", lambda: 13 * row)
    assert len(tj.generate_tokens(run, tokens, num_samples=6, max_new_tokens=11, batch_size=12)) == 12


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < memory.device_bytes() < 2**60


# Numbers


@pytest.mark.parametrize(
    "values",
    [
        {"num_samples": 10**9},
        {"num_beams": 100_000, "method": "beam"},
        {"max_new_tokens": 2**40},
        {"num_draft": 10**9, "prompt_lookup": 2},
        {"prompt_lookup": 2**31},
        {"no_repeat_ngram_size": 10**6},
        {"batch_size": 2**31},
        {"num_groups": 2**31, "method": "beam"},
        {"logit_bias": {3: 10**400}},
        *({name: number} for name in ("num_samples", "max_new_tokens", "seed", "top_k") for number in (HUGE, 10**5000)),
        {"temperature": 10**5000},
    ],
    ids=lambda values: f"{next(iter(values))}",
)
def test_generation_refuses_numbers_that_are_too_large(values):
    with pytest.raises(UserError, match=next(iter(values))) as error:
        tj.generate(make_run("char"), "the cat", **{"max_new_tokens": 5, "on_overflow": "re-prefill"} | values)
    assert len(str(error.value)) < 400


INTEGERS = [
    name
    for name, value in Config().train.__dict__.items()
    if type(value) is int and name not in ("seed", "steps_per_call")
]


@pytest.mark.parametrize("number, rule", [(HUGE, "must be a signed number of 64 bits"), (2**31, "must")])
def test_training_refuses_integers_that_no_array_holds(number, rule):
    sections = {
        "train": [*INTEGERS, "steps_per_call"],
        "checkpoint": ["keep", "save_every"],
        "optimizer": ["warmup_steps", "muon_steps"],
        "tokenizer": ["vocab_size"],
        "model": ["num_layers", "max_len", "window"],
    }
    for section, names in sections.items():
        for name in names:
            with pytest.raises(UserError, match=rf"{section}\.{name}={number}: {rule}"):
                Config.from_dict({section: {name: number}})
    with pytest.raises(UserError, match="train.seed"):
        Config.from_dict({"train": {"seed": HUGE}})


def test_a_command_refuses_a_large_number_with_exit_code_2(saved):
    for flag in ("--num_samples=1000000000", f"--max_new_tokens={HUGE}", f"--seed={HUGE}"):
        assert_is_one_error(command("sample", f"--run_dir={saved}", "--prompt=the", flag), flag[2:].split("=")[0])
