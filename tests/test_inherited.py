"""Meaning of the data that a run takes from the run it starts from: lower case, separator, pooling, order of tags."""

import contextlib
import io
import string

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import random_like
from helpers.train_steps import step_without_update

import transformer_jax as tj
from train.config import Config
from train.loop import run as train
from train.tasks.scoring import Options, score
from transformer_jax.config import TransformerConfig
from transformer_jax.models import Seq2Seq, Seq2SeqConfig, SequenceClassifier, TokenTagger, parameter_shapes
from transformer_jax.tokenizers import train_tokenizer

pytestmark = pytest.mark.usefixtures("compilation_cache")
CONTENTS = {
    "classify": ("tsv", "".join(f"Good Film {i % 3}\t{'ab'[i % 2]}\n" for i in range(10))),
    "regress": ("tsv", "".join(f"Good Film {i % 3}\t{i / 7}\n" for i in range(10))),
    "tag": ("conll", "A B-x\nb O\n\nC O\n"),
    "seq2seq": ("tsv", "A Cat\tEin Kalb\nA dog\tein Hund\n"),
}
MODEL = {"num_layers": 1, "d_model": 10, "num_heads": 2, "max_len": 29}


def settings(task, folder, **changes):
    """A run of one step on the data of a task."""
    ending, content = CONTENTS[task]
    (folder / f"{task}.{ending}").write_text(content)
    path = str(folder / f"{task}.{ending}")
    source = {"tag": "tagged", "seq2seq": "parallel"}.get(task, "labelled")
    short = {"num_steps": 1, "eval_every": 1, "batch_size": 2, "num_buckets": 1, "tensorboard": False}
    config = {
        "data": {"source": source, "path": path, "val_path": path, "test_path": path},
        "tokenizer": {"kind": "char"},
        "train": {"task": task, **short},
    }
    for name, value in changes.items():
        section, field = name.split("__")
        config.setdefault(section, {})[field] = value
    return config


def saved(task, folder, lowercase=False, separator=" ", pooling="first"):
    """The directory of a run with random parameters and a tokenizer that has small letters only, if `lowercase`."""
    letters = string.ascii_lowercase if lowercase else string.ascii_letters
    tokenizer = train_tokenizer("char", 0, f"{letters} 012")
    config = TransformerConfig(**MODEL, vocab_size=tokenizer.vocab_size)
    model = {
        "classify": SequenceClassifier(config, 2, pooling),
        "regress": SequenceClassifier(config, 1, pooling),
        "tag": TokenTagger(config, 2),
        "seq2seq": Seq2Seq(Seq2SeqConfig(config, config)),
    }[task]
    labels = {"classify": ("b", "a"), "tag": ("O", "B-x")}.get(task, ())
    params = random_like(parameter_shapes(model))
    run = tj.Run(model, params, tokenizer, model.config, labels=labels, lowercase=lowercase, separator=separator)
    tj.save(run, folder / f"first_{task}")
    return str(folder / f"first_{task}")


def trained(config, workdir, monkeypatch):
    """A run that took a step without an update, and the output of its training."""
    monkeypatch.setattr("train.loop.train_step", step_without_update)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train(config, workdir)
    return tj.load(workdir), out.getvalue()


@pytest.mark.parametrize("task", ["classify", "tag", "seq2seq"])
def test_lower_case_is_inherited_kept_when_resumed_and_used_by_every_function(task, tmp_path, monkeypatch):
    config = settings(task, tmp_path, train__init_from=saved(task, tmp_path, lowercase=True))
    run, out = trained(config, tmp_path / "run", monkeypatch)  # the vocabulary has no capital letter
    assert run.lowercase and ", lower-cased" in out
    config["train"]["num_steps"] = 2
    run, _ = trained(config, tmp_path / "run", monkeypatch)
    assert run.step == 2 and run.lowercase
    values = score(run, Config.from_dict(config), "test", Options(num_beams=1)).values
    assert all(np.isfinite(value) for value in values.values() if isinstance(value, float))
    if task == "tag":
        assert tj.tag(run, ["A b C"]) == tj.tag(run, ["a B c"]) and run.labels == ("O", "B-x")
    elif task == "seq2seq":
        assert tj.translate(run, ["A CAT"], num_beams=1) == tj.translate(run, ["a cat"], num_beams=1)
    else:
        small, large = tj.classify(run, ["good", "GOOD"])
        assert run.labels == ("b", "a") and np.array_equal(small.probabilities, large.probabilities)


def test_a_task_or_a_tokenizer_that_cannot_follow_lower_case_is_refused(tmp_path):
    first = saved("seq2seq", tmp_path, lowercase=True)
    (tmp_path / "a.txt").write_text("A text. " * 40)
    text = {"source": "text", "path": str(tmp_path / "a.txt")}
    changes = {"train": {"task": "spans", "init_from": first}, "data": text}
    with pytest.raises(
        tj.UserError, match="train.init_from: its model has learned lower-cased texts, .*'spans' cannot"
    ):
        train(Config.from_dict(changes), tmp_path / "run")
    config = settings("classify", tmp_path, tokenizer__path=first, model__d_model=8, model__num_heads=2)
    config["tokenizer"].pop("kind")
    with pytest.raises(tj.UserError, match="tokenizer.path=.* has learned lower-cased texts. Set data.lowercase=True"):
        train(config, tmp_path / "run")
    changes = {"train": {"task": "causal_lm"}, "data": text, "tokenizer": {"path": first}}
    with pytest.raises(tj.UserError, match="has learned lower-cased texts. Take another tokenizer"):
        train(Config.from_dict(changes), tmp_path / "run")


def test_the_separator_of_a_tagger_is_inherited_or_refused(tmp_path, monkeypatch):
    first = saved("tag", tmp_path, separator="")
    config = settings("tag", tmp_path, train__init_from=first)
    run, _ = trained(config, tmp_path / "run", monkeypatch)
    assert run.separator == "" and len(tj.tag(run, ["A b"])[0]) == 3
    (tmp_path / "tag.conll").write_text("A B-x\nbad O\n\nC O\n")
    with pytest.raises(tj.UserError, match="train.init_from: its model tags characters, .* has longer words"):
        train(config, tmp_path / "other")
    (tmp_path / "words").mkdir()
    words = saved("tag", tmp_path / "words")
    changes = {"train": {"task": "tag", "init_from": words}, "data": {"source": "python_tokens"}}
    monkeypatch.setattr("train.data.python_tokens.SIZES", {"train": 5, "val": 3, "test": 3})
    with pytest.raises(
        tj.UserError, match="train.init_from: its model tags words, and this data.source has characters"
    ):
        train(Config.from_dict(changes), tmp_path / "other")


def test_the_pooling_of_a_trained_head_is_inherited_unless_another_is_set(tmp_path, monkeypatch):
    task = "regress"  # its head is that of a classifier
    first = saved(task, tmp_path, pooling="mean")
    before = tj.load(first)
    run, out = trained(settings(task, tmp_path, train__init_from=first), tmp_path / "run", monkeypatch)
    assert run.model.pooling == "mean" and "pooling=mean" in out
    tokens = jnp.array([[3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(tj.logits(run, tokens), tj.logits(before, tokens))
    config = settings(task, tmp_path, train__init_from=first, train__num_steps=2)
    assert trained(config, tmp_path / "run", monkeypatch)[0].model.pooling == "mean"
    config = settings(task, tmp_path, train__init_from=first, train__pooling="max")
    assert trained(config, tmp_path / "max", monkeypatch)[0].model.pooling == "max"
