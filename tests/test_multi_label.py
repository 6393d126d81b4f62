"""Texts with any number of labels: read from lists and separated cells, learned, scored, answered, trained further."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.commands import command
from helpers.heads import FIXTURES

import transformer_jax as tj
from train import losses
from train.config import Config
from train.early_stopping import IS_LARGER_BETTER
from train.evaluation import evaluate
from train.initialization import InitFrom, load_init_from
from train.loop import run as train
from train.tasks.base import load_task
from train.tasks.scoring import Options, multi_label_scores, score
from transformer_jax.checkpoints.meta import CheckpointMeta
from transformer_jax.models import parameter_shapes, path_names

TEXTS = {  # text: its labels
    "a funny film": ["fun"],
    "a sad film": ["sad"],
    "funny and sad": ["sad", "fun"],
    "a film": [],
    "it rains": ["rain"],
    "a funny rain": ["fun", "rain"],
    "sad": ["sad"],
}
LABELS = ("fun", "rain", "sad")


def jsonl(path, examples=TEXTS, times=3):
    lines = [json.dumps({"text": text, "label": label}) for text, label in examples.items()]
    path.write_text("\n".join(lines * times) + "\n")
    return path


def settings(path, **changes):
    """Settings of a short training run; `changes` by section."""
    values = {
        "data": {"source": "labelled", "path": str(path), "val_path": str(path)},
        "tokenizer": {"kind": "byte"},
        "model": {"num_layers": 1, "d_model": 12, "num_heads": 2, "max_len": 19},
        "optimizer": {"peak_lr": 0.02, "warmup_steps": 2},
        "train": {"task": "classify", "batch_size": 7, "num_steps": 150, "eval_every": 50, "tensorboard": False},
        "checkpoint": {"save_every": 50},
    }
    values["train"]["num_buckets"] = 1
    if "init_from" in changes.get("train", {}):  # whose model has a shape and a tokenizer
        values |= {"model": {}, "tokenizer": {}}
    return {section: values.get(section, {}) | changes.get(section, {}) for section in values}


def task_of(path, **changes):
    return load_task(Config.from_dict(settings(path, **changes)), InitFrom())


def labels_of(task):
    """Labels of each validation text, by their names."""
    rows = np.concatenate([batch["label"][batch["is_example"]] for batch in task.eval_batches()])
    return sorted(sorted(task.labels[i] for i in np.flatnonzero(row)) for row in rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has learned the labels of TEXTS, and its data."""
    folder = tmp_path_factory.mktemp("multi")
    path = jsonl(folder / "texts.jsonl")
    train(settings(path), folder / "run")
    return folder / "run", path


def test_a_run_learns_several_labels_a_text_and_answers_with_those_above_one_half(trained):
    run = tj.load(trained[0])
    assert run.problem_type == "multi_label_classification" and run.labels == LABELS
    assert tj.read_meta(trained[0]).training.best.metric == "micro_f1"
    answers = tj.classify(run, list(TEXTS), batch_size=4)
    right = 0
    for (text, labels), answer in zip(TEXTS.items(), answers, strict=True):
        alone = tj.classify(run, text)
        logits = tj.logits(run, run.tokenizer.encode_whole(text)[None])[0]
        np.testing.assert_allclose(answer.probabilities, jax.nn.sigmoid(logits), rtol=1e-4)
        np.testing.assert_allclose(answer.probabilities, alone.probabilities, rtol=1e-4)
        names = [name for name, p in zip(LABELS, answer.probabilities, strict=True) if p > 0.5]
        assert list(answer.labels) == names == list(alone.labels)
        right += set(names) == set(labels)
    assert right >= 6


def test_the_commands_print_labels_and_scores(trained):
    run_dir, path = trained
    expected = tj.classify(tj.load(run_dir, "best"), list(TEXTS))
    done = command("classify", f"--run_dir={run_dir}", stdin="\n".join(TEXTS) + "\n")
    assert done.returncode == 0, done.stderr
    cells = ["\t".join(f"{name}\t{p:.4f}" for name, p in answer.labels.items()) for answer in expected]
    assert done.stdout.split("\n")[:-1] == cells
    done = command("evaluate", f"--run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    folder = run_dir / "evaluation" / "val"
    values = json.loads((folder / "scores.json").read_text())
    assert values["micro_f1"] > 0.8 and values.keys() >= {"macro_f1", "exact_match"}
    references = (folder / "references.txt").read_text().split("\n")[:-1]
    assert [line.split("\t") for line in references[:4]] == [["fun"], ["sad"], ["fun", "sad"], [""]]
    assert not (folder / "confusion.png").exists()


def test_scores_of_training_equal_those_of_the_command(trained):
    run = tj.load(trained[0], "best")
    config = Config.from_dict(settings(trained[1]))
    best = max(
        (json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()),
        key=lambda event: event["micro_f1"] if event["split"] == "val" else -1,
    )
    for name, value in score(run, config, "val", Options()).values.items():
        assert best[name] == pytest.approx(value, rel=1e-6) and IS_LARGER_BETTER[name]


def test_loss_and_scores_equal_plain_definitions_and_leave_out_rows_of_padding():
    random = np.random.default_rng(3)
    logits = random.normal(size=(5, 4)).astype(np.float32) * 3
    label = random.random((5, 4)) < 0.4
    is_example = np.array([True, True, False, True, True])
    batch = {"tokens": None, "is_token": None, "label": label, "is_example": is_example}
    loss_sum, weight, counts = losses.multi_label(lambda *_, **__: logits, batch)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nats = -np.where(label, np.log(p), np.log(1 - p)).mean(1)  # as BCEWithLogitsLoss
    assert weight == 4 and loss_sum == pytest.approx(nats[is_example].sum(), rel=1e-5)
    names = ("a", "b", "c", "d")
    sets = [[{names[i] for i in np.flatnonzero(row)} for row in rows[is_example]] for rows in (label, p > 0.5)]
    found = evaluate(lambda params, batch: (loss_sum, weight, counts), None, [batch])
    assert found.keys() == {"loss", "micro_f1", "macro_f1", "exact_match"}
    for name, value in multi_label_scores(names, *sets).items():
        assert found[name] == pytest.approx(value, rel=1e-6)


def test_scores_of_a_case_by_hand():
    references, guesses = [{"a", "b"}, set(), {"b"}], [{"a"}, set(), {"a", "b"}]
    values = multi_label_scores(("a", "b", "c"), references, guesses)
    assert values["micro_f1"] == pytest.approx(2 * 2 / 6) and values["exact_match"] == pytest.approx(1 / 3)
    assert values["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_a_separator_gives_the_labels_of_lists(tmp_path, suffix):
    lists = task_of(jsonl(tmp_path / "lists.jsonl"))
    path = tmp_path / f"cells.{suffix}"
    if suffix == "jsonl":
        jsonl(path, {text: "; ".join(labels) for text, labels in TEXTS.items()})
    else:
        separator = {"tsv": "\t", "csv": ","}[suffix]
        path.write_text("".join(f"{text}{separator}{'; '.join(labels)}\n" for text, labels in TEXTS.items()) * 3)
    cells = task_of(path, data={"label_separator": ";"})
    assert cells.fingerprint == lists.fingerprint and cells.labels == LABELS
    assert labels_of(cells) == labels_of(lists) == sorted(sorted(sorted(labels) for labels in TEXTS.values()) * 3)


@pytest.mark.parametrize(
    "examples, changes, message",
    [
        ({"a": ["x"], "b": ["x", None]}, {}, "line 2: 'label'=null: is no label"),
        ({"a": ["x"], "b": ["x", ""]}, {}, "line 2: 'label'=\"\": is no label"),
        ({"a": ["x"], "b": [["x"]]}, {}, "line 2: 'label'=.* must be a string"),
        ({"a": ["x"], "b": "x"}, {}, "line 2: 'label'=\"x\": must be a list of labels in every line"),
        ({"a": "x", "b": ["x"]}, {}, r"line 2: 'label'=\[\"x\"\]: .* and is a string in line 1"),
        ({"a": [], "b": []}, {}, "none of the 2 texts to train on has a label"),
        ({"a": "x;;y", "b": "x"}, {"data": {"label_separator": ";"}}, "line 1: 'x;;y' has an empty label beside ';'"),
        ({"a": ["\ud83d"], "b": ["x"]}, {}, "line 1: .*surrogate"),
        ({"a": ["1"], "b": ["2"]}, {"train": {"task": "regress"}}, "line 1: has a list of labels, and must have one"),
        ({"a": ["x"]}, {"train": {"label_smoothing": 0.1}}, "train.label_smoothing=0.1: is read only with"),
        ({"a": ["x"]}, {"train": {"best_by": "accuracy"}}, "Take one of: loss, micro_f1, macro_f1, exact_match"),
        (
            {"a": "1"},
            {"train": {"task": "regress"}, "data": {"label_separator": ";"}},
            "data.label_separator=';': is r",
        ),
    ],
)
def test_lists_that_cannot_be_learned_are_refused_in_one_line(tmp_path, examples, changes, message):
    with pytest.raises(tj.UserError, match=message):
        task_of(jsonl(tmp_path / "texts.jsonl", examples, times=1), **changes)


def test_a_label_that_training_lacks_is_refused(tmp_path):
    path, other = jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl", {"a": ["fun", "new"]})
    with pytest.raises(tj.UserError, match="line 1: label 'new' does not occur in training"):
        task_of(path, data={"val_path": str(other)})


def test_further_training_keeps_the_problem_type_and_the_order_of_labels(trained, tmp_path):
    single = jsonl(tmp_path / "single.jsonl", {text: labels[-1] for text, labels in TEXTS.items() if labels})
    run_dir = trained[0]
    plain = task_of(single)
    assert plain.problem_type == "single_label_classification" and "accuracy" in plain.metrics
    config = Config.from_dict(settings(single, train={"init_from": str(run_dir)}))
    init_from = load_init_from(config.train, None)
    reordered = dataclasses.replace(init_from, run=dataclasses.replace(init_from.run, labels=("sad", "fun", "rain")))
    task = load_task(config, reordered)
    assert task.problem_type == "multi_label_classification" and task.labels == ("sad", "fun", "rain")
    assert labels_of(task) == sorted([[labels[-1]] for labels in TEXTS.values() if labels] * 3)
    meta = CheckpointMeta(3, task.model, task.tokenizer, task.labels, problem_type=task.problem_type)
    resumed = load_task(config, load_init_from(config.train, meta))  # reads no train.init_from
    assert resumed.problem_type == task.problem_type and resumed.fingerprint == task.fingerprint


def test_a_regressor_starts_from_the_encoder_of_a_classifier(tmp_path):
    path = jsonl(tmp_path / "numbers.jsonl", {text: len(text) / 7 for text in TEXTS})
    config = Config.from_dict(settings(path, train={"task": "regress", "init_from": str(FIXTURES / "bert_classifier")}))
    init_from = load_init_from(config.train, None)
    task = load_task(config, init_from)
    assert task.problem_type == "regression" and task.labels == ()
    names, of_folder = (
        {(path_names(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (parameter_shapes(task.model), init_from.run.params)
    )
    assert {name for name, _ in names - of_folder} == {("out", "kernel"), ("out", "bias")}


def test_a_folder_with_one_label_a_text_is_trained_to_several(trained, tmp_path):
    config = Config.from_dict(settings(trained[1], train={"init_from": str(FIXTURES / "bert_classifier")}))
    task = load_task(config, load_init_from(config.train, None))
    assert task.problem_type == "multi_label_classification" and task.labels == LABELS and task.best_by == "micro_f1"
