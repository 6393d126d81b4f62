"""Metadata of a checkpoint: every field is typed and travels, and JSON of another form or version is refused."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from helpers.checkpoints import MODEL, meta_of

import transformer_jax as tj
from train.config import Config
from train.resume import last_checkpoint, trained_config
from transformer_jax.checkpoints.meta import FORMAT, BestScore, CheckpointMeta, HuggingFaceConfig, TrainingMeta
from transformer_jax.checkpoints.seal import seal_of
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints
from transformer_jax.models import SequenceClassifier
from transformer_jax.models.adapters import AdapterSpec
from transformer_jax.tokenizers import train_tokenizer

FULL = CheckpointMeta(
    step=5,
    model=SequenceClassifier(MODEL.config, 3, "mean"),
    tokenizer=train_tokenizer("char", 0, "abc"),
    labels=("no", "yes", "a b"),
    lowercase=True,
    separator="",
    problem_type="multi_label_classification",
    hf_config=HuggingFaceConfig({"id2label": {"0": "no"}, "n": [1, None]}, {"eos_token_id": 7}),
    adapter=AdapterSpec("lora", 3, ("encoder/stack/block_0/attention/out",)),
    param_dtypes={"['out']['kernel']": "bfloat16"},
    val_score=-1.5,
    training=TrainingMeta(dataclasses.asdict(Config()), BestScore("loss", -1.5, 5), {"text": "ab12", "tokens": 31}),
)


def rewrite(run_dir, change):
    """Replace the sealed metadata of step 5 by `change` of them."""
    file = run_dir / "checkpoints" / "5" / "meta" / "metadata"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    seal = run_dir / "checkpoints" / "5" / "sha256.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "meta/metadata": digest}))


@pytest.fixture
def run_dir(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save({"kernel": np.ones((3, 5))}, FULL, frozen={"bias": np.ones(3)})
    checkpoints.wait()
    return tmp_path / "run"


def test_all_metadata_come_back_as_they_were_written(run_dir):
    checkpoints = Checkpoints(run_dir)
    full = dataclasses.replace(FULL, frozen=seal_of(run_dir / "checkpoints" / "frozen"))
    assert checkpoints.find("best") == 5 and checkpoints.meta(5) == full == tj.read_meta(run_dir)
    assert CheckpointMeta.from_dict(json.loads(json.dumps(meta_of(3).to_dict()))) == meta_of(3)
    assert trained_config(FULL, run_dir) == Config() and {"python", "jax"} <= FULL.versions.keys()
    for field in dataclasses.fields(CheckpointMeta):
        assert field.default is dataclasses.MISSING or getattr(full, field.name) != field.default, field.name


@pytest.mark.parametrize(
    ("number", "found", "writer"),
    [(None, 1, "an earlier"), (4, 4, "an earlier"), (6, 6, "another"), ([], [], "another")],
)
def test_another_format_is_refused_in_one_line_at_load_and_at_resume(run_dir, capsys, number, found, writer):
    assert FORMAT == 5
    rewrite(run_dir, lambda meta: {"step": 5, "val_score": -1.5} | ({} if number is None else {"format": number}))
    ways = {
        "load": lambda: tj.load(run_dir),
        "load best": lambda: tj.load(run_dir, "best"),
        "read_meta": lambda: tj.read_meta(run_dir),
        "resume": lambda: last_checkpoint(Checkpoints(run_dir)),
    }
    for way, refuse in ways.items():
        with pytest.raises(CheckpointError) as error:
            refuse()
        assert str(error.value) == (
            f"{run_dir}/checkpoints/5/meta: was written by {writer} version of transformer_jax (checkpoint format "
            f"{found}, this version reads 5). Train again, or use that version."
        ), way
    assert capsys.readouterr().err == ""  # the checkpoint is undamaged: no warning, and no other one is tried


VALUES = (None, True, -1, 7.5, "x", [], [1], {}, {"x": 1}, {"kind": []}, {"kind": "gpt", "config": 3})
OF_OTHERS = ("hf_config.config", "hf_config.generation", "training.config")  # only their type is checked here
ANY_NAMES = ("param_dtypes", "versions", "training.fingerprint")
OPTIONAL = ("adapter", "adapter.num_tokens", "tokenizer", "hf_config", "training", "val_score", "training.best.score")
OF_ANOTHER_TYPE = {*((name, None) for name in OPTIONAL), ("val_score", -1), ("training.best.score", -1)}  # allowed


def changed_fields(values, path=""):
    """(name of the field, its new value or None if it is left out, the changed metadata) for every field and part."""
    for name, old in values.items():
        at = f"{path}{name}"
        yield at, None, {key: value for key, value in values.items() if key != name}
        for new in VALUES:
            if type(new) is not type(old):
                yield at, new, values | {name: new}
        if isinstance(old, dict) and at not in OF_OTHERS:
            yield from ((*change, values | {name: part}) for *change, part in changed_fields(old, f"{at}."))


def test_metadata_with_a_wrong_field_are_refused_in_one_line_that_names_it():
    values = json.loads(json.dumps(FULL.to_dict()))
    accepted, offenders = set(), []
    for name, new, changed in changed_fields(values):
        try:
            CheckpointMeta.from_dict(changed)
        except tj.UserError as error:
            if "\n" in str(error) or not str(error).startswith(
                (name.split(".")[0], "saved tokenizer", "was written by")
            ):
                offenders.append(str(error))
        else:
            if not name.startswith(("model.", *ANY_NAMES)):
                accepted.add((name, new))
    assert not offenders
    assert accepted == OF_ANOTHER_TYPE


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda meta: [meta], "was written by another version"),
        (lambda meta: meta | {"label": []}, "label: no such field. Did you mean labels?"),
        (lambda meta: {name: value for name, value in meta.items() if name != "labels"}, "labels: is missing."),
        (lambda meta: meta | {"labels": ["x", 1]}, "labels=1: must be of type str, not int."),
        (
            lambda meta: meta | {"param_dtypes": {"a": "float33"}},
            "param_dtypes.a='float33': unknown. Choose one of: float32, bfloat16, float16, int8.",
        ),
        (lambda meta: meta | {"problem_type": "no"}, "problem_type='no': unknown. Choose one of: single_label_clas"),
        (lambda meta: meta | {"problem_type": ""}, "problem_type='': unknown. Choose one of: single_label_clas"),
        (lambda meta: meta | {"adapter": {"kind": "no", "rank": 3, "layers": []}}, "adapter.kind='no': unknown. Cho"),
        (lambda meta: meta | {"model": {"kind": "classifier"}}, "model.num_classes: is missing, and a Seq"),
        (lambda meta: meta | {"model": {"kind": "seq2seq"}}, "model.encoder: is missing."),
        (lambda meta: meta | {"model": {"kind": "gpt", "config": {"d_modle": 3}}}, "Did you mean model.d_model?"),
    ],
)
def test_malformed_metadata_name_their_file_and_the_fix(run_dir, change, message):
    rewrite(run_dir, change)
    with pytest.raises(CheckpointError) as error:
        tj.load(run_dir)
    assert str(error.value).startswith(f"{run_dir}/checkpoints/5/meta: ") and message in str(error.value)


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, score in ((2, float("nan")), (4, -3.0), (6, float("nan"))):
        checkpoints.save({"kernel": np.ones(3)}, meta_of(step, score))
        checkpoints.wait()
    assert checkpoints.find("best") == 4 and np.isnan(checkpoints.meta(6).val_score)


def test_a_run_that_was_saved_has_no_task_and_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="was not trained by transformer_jax, so it has no task. Give a training"):
        trained_config(meta_of(3), tmp_path)
    config = dataclasses.asdict(Config())
    config["train"]["no_such"] = 3
    newer = dataclasses.replace(FULL, training=dataclasses.replace(FULL.training, config=config))
    with pytest.raises(CheckpointError, match="has settings of another version. train.no_such: no such field"):
        trained_config(newer, tmp_path)
