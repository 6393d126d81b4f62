"""Training goes on from a model that was trained before: Hugging Face's folders, and runs of one's own."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax as tj
from configs import finetune_bert, finetune_gpt2
from train.config import OptimizerConfig
from train.loop import run as train
from train.optimizer import make_optimizer
from train.tasks.supervised import encode_pair

FIXTURES = Path(__file__).parent / "fixtures"
SENTENCE = "The cat sat on the mat, and the dog walked in the garden. "
WORDS = {"good": ["like", "walking", "garden"], "bad": ["end", "three", "spaces"]}


def names_of(params):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def gpt2_config(tmp_path, **changes):
    text = tmp_path / "my.txt"
    text.write_text(SENTENCE * 60)
    config = finetune_gpt2.get_config()
    config.data.path = str(text)
    config.train.init_from = str(FIXTURES / "gpt2")
    return shorten(config, **changes)


def bert_config(tmp_path, **changes):
    random = np.random.default_rng(0)
    lines = []
    for i in range(80):
        label = ("good", "bad")[i % 2]
        words = list(random.choice(WORDS[label], 2)) + list(random.choice(["the", "cat", "on", "two"], 3))
        lines.append(f"{' '.join(random.permutation(words))}\t{label}\n")
    (tmp_path / "train.tsv").write_text("".join(lines))
    config = finetune_bert.get_config()
    config.data.path = str(tmp_path / "train.tsv")
    config.train.init_from = str(FIXTURES / "bert")
    return shorten(config, **changes)


def shorten(config, **changes):
    settings = dict(
        train__num_steps=6,
        train__eval_every=6,
        train__log_every=3,
        train__batch_size=5,
        train__num_buckets=1,
        train__tensorboard=False,
        optimizer__warmup_steps=1,
        checkpoint__save_every=6,
    )
    for name, value in (settings | changes).items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def events(workdir, split):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if event["split"] == split]


def test_a_gpt2_goes_on_from_its_weights_and_learns_a_text(tmp_path, capfd):
    before = tj.from_pretrained(FIXTURES / "gpt2")
    still = train(gpt2_config(tmp_path, optimizer__peak_lr=1e-12, train__num_steps=1), tmp_path / "still")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), tj.load(still).params, before.params)
    assert "nothing is new" in capfd.readouterr().out
    learned = train(gpt2_config(tmp_path, optimizer__peak_lr=1e-2, train__num_steps=40), tmp_path / "learned")
    assert events(learned, "val")[-1]["loss"] < events(still, "val")[0]["loss"] - 1
    run = tj.load(learned)
    assert tj.generate(run, "The cat", max_new_tokens=4, method="greedy").startswith("The cat")
    tj.save_pretrained(run, tmp_path / "folder")
    tokens = [[1, 2, 3, 5]]
    np.testing.assert_array_equal(tj.logits(tj.from_pretrained(tmp_path / "folder"), tokens), tj.logits(run, tokens))


def test_a_bert_gets_a_new_head_and_learns_labels(tmp_path, capfd):
    workdir = train(
        bert_config(tmp_path, optimizer__peak_lr=5e-3, train__num_steps=60, train__eval_every=20, train__batch_size=8),
        tmp_path / "run",
    )
    said = capfd.readouterr().out
    assert "new, with random values: dense/bias, dense/kernel, out/bias, out/kernel" in said
    assert "not used: bias, norm/bias, norm/scale, transform/bias, transform/kernel" in said
    assert "72 texts to train on, 8 to validate on, " in said
    assert events(workdir, "val")[-1]["accuracy"] == 1.0
    run = tj.load(workdir)
    assert run.labels == ("bad", "good")
    tokens = run.tokenizer.encode_whole("the garden like")[None]
    assert int(np.argmax(tj.logits(run, tokens)[0])) == 1


def test_a_run_of_ones_own_is_a_start_too_and_a_classifier_keeps_its_head(tmp_path, capfd):
    first = train(bert_config(tmp_path, train__num_steps=2), tmp_path / "first")
    capfd.readouterr()
    config = bert_config(tmp_path, train__init_from=str(first), optimizer__peak_lr=1e-12, train__num_steps=1)
    second = train(config, tmp_path / "second")
    assert "nothing is new" in capfd.readouterr().out
    after, before = tj.load(second).params, tj.load(first).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), after, before)


@pytest.mark.parametrize("folder", ["t5", "marian", "bart"])
def test_a_translator_goes_on_from_its_weights_and_is_saved_as_what_it_was(folder, tmp_path):
    (tmp_path / "pairs.tsv").write_text("the cat sat\ta dog\nthis text\tthe end of it\nthe mat\tit walks\n" * 3)
    changes = dict(
        train__task="seq2seq",
        data__source="parallel",
        data__path=str(tmp_path / "pairs.tsv"),
        data__val_path=str(tmp_path / "pairs.tsv"),
        train__init_from=str(FIXTURES / folder),
        train__num_steps=1,
        optimizer__peak_lr=1e-12,
        optimizer__warmup_steps=0,
    )
    before = tj.from_pretrained(FIXTURES / folder)
    after = tj.load(train(gpt2_config(tmp_path, **changes), tmp_path / "run"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), after.params, before.params)
    assert after.generation_defaults == before.generation_defaults and after.generation_defaults.start_id >= 0
    source, target = encode_pair(before.tokenizer, before.generation_defaults.start_id, "the cat sat", "the end")
    assert (
        target[0] == before.generation_defaults.start_id
        and target[-1] in before.generation_defaults.eos_ids
        and source[-1] == target[-1]
    )
    tj.save_pretrained(after, tmp_path / "folder")
    again = tj.from_pretrained(tmp_path / "folder")
    np.testing.assert_array_equal(
        tj.logits(again, source[None], None, target[None]), tj.logits(after, source[None], None, target[None])
    )
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model_type"] == folder


def test_it_goes_on_after_a_stop_without_the_folder_that_it_started_from(tmp_path):
    shutil.copytree(FIXTURES / "gpt2", tmp_path / "folder")
    changes = dict(train__init_from=str(tmp_path / "folder"), optimizer__schedule="constant")
    train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    whole = train(gpt2_config(tmp_path, **changes, train__num_steps=9), tmp_path / "whole")
    shutil.rmtree(tmp_path / "folder")
    resumed = train(gpt2_config(tmp_path, **changes, train__num_steps=9), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, tj.load(resumed).params, tj.load(whole).params)


def test_frozen_parameters_stay_to_the_bit_and_all_others_change(tmp_path):
    workdir = train(gpt2_config(tmp_path, optimizer__freeze="^embed/,block_0/,stack/norm"), tmp_path / "run")
    before, after = names_of(tj.from_pretrained(FIXTURES / "gpt2").params), names_of(tj.load(workdir).params)
    for name, leaf in before.items():
        is_frozen = name.startswith("embed/") or "block_0/" in name or "stack/norm" in name
        assert np.array_equal(leaf, after[name]) == is_frozen, name


def test_the_learning_rate_falls_from_layer_to_layer():
    params = tj.from_pretrained(FIXTURES / "gpt2").params
    grads = jax.tree.map(lambda x: 0.3 * x + 0.1, params)
    updates = []
    for decay in (1.0, 0.5):
        config = OptimizerConfig(layer_decay=decay, schedule="constant", warmup_steps=0)
        optimizer = make_optimizer(config, 10)
        updates.append(names_of(optimizer.update(grads, optimizer.init(params), params)[0]))
    for name, plain in updates[0].items():
        share = 0.5**3 if "embed/" in name else 0.5**2 if "block_0" in name else 0.5 if "block_1" in name else 1.0
        np.testing.assert_allclose(updates[1][name], share * plain, rtol=1e-6)


def test_vocabulary_and_positions_are_resized_when_asked_for_and_keep_what_both_have(tmp_path):
    changes = dict(model__vocab_size=113, model__max_len=29, optimizer__peak_lr=1e-12, train__num_steps=1)
    with pytest.raises(tj.UserError, match=r"model.vocab_size=113.*has 101.*train.resize_vocab=True"):
        train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    changes["train__resize_vocab"] = True
    with pytest.raises(tj.UserError, match=r"model.max_len=29.*has 41.*train.resize_positions=True"):
        train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    changes["train__resize_positions"] = True
    after = names_of(tj.load(train(gpt2_config(tmp_path, **changes), tmp_path / "run")).params)
    before = names_of(tj.from_pretrained(FIXTURES / "gpt2").params)
    assert after["embed/tokens/embedding"].shape == (113, 20) and after["embed/positions/embedding"].shape == (29, 20)
    np.testing.assert_allclose(after["embed/tokens/embedding"][:101], before["embed/tokens/embedding"], atol=1e-9)
    np.testing.assert_allclose(after["embed/positions/embedding"], before["embed/positions/embedding"][:29], atol=1e-9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__d_model": 24}, "model.d_model=24: the model of train.init_from has 20"),
        ({"train__init_from": "/nowhere/at all"}, "no such folder"),
        ({"train__init_from": str(FIXTURES / "bert")}, "holds a MaskedLM, and this train.task trains a GPT"),
        ({"train__init_from": str(FIXTURES / "t5")}, "holds a Seq2Seq"),
        ({"train__task": "seq2seq", "data__source": "reverse"}, "holds a GPT, and this task trains a Seq2Seq"),
        ({"train__task": "sing"}, "train.task='sing'.*causal_lm, .*classify"),
        ({"optimizer__freeze": "nowhere"}, "no parameter has 'nowhere'"),
        ({"optimizer__freeze": "."}, "leaves no parameter to train"),
        ({"optimizer__freeze": "("}, "'\\(' is not a regular expression"),
        ({"optimizer__layer_decay": 0.0}, "optimizer.layer_decay=0.0"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(changes, message, tmp_path):
    with pytest.raises(tj.UserError, match=message) as error:
        train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.tsv", "good\tx\nbad\n", r"a.tsv, line 2: has 1 columns"),
        ("a.tsv", "a\tx\n \ty\n", r"a.tsv, line 2: the text is empty"),
        ("a.csv", 'text,label\n"a, b",x\n', "too few examples"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"a.jsonl, line 2.*KeyError"),
        ("a.jsonl", "[1]\n", r"a.jsonl, line 1"),
        ("a.tsv", "", "is empty"),
        ("a.txt", "good\tx\n", "must end in .tsv, .csv or .jsonl"),
    ],
)
def test_malformed_examples_are_named_by_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    fields = {"data__text_field": "text", "data__label_field": "label"} if name != "a.tsv" else {}
    with pytest.raises(tj.UserError, match=message):
        train(bert_config(tmp_path, data__path=str(tmp_path / name), **fields), tmp_path / "run")


def test_a_label_that_training_does_not_have_is_told_with_its_line(tmp_path):
    config = bert_config(tmp_path, data__val_path=str(tmp_path / "val.tsv"))
    (tmp_path / "val.tsv").write_text("the cat\tgood\nthe mat\tsplendid\n")
    with pytest.raises(
        tj.UserError, match=r"val.tsv, line 2: label 'splendid' does not occur in training \(bad, good\)"
    ):
        train(config, tmp_path / "run")


def test_weight_decay_does_not_move_what_is_frozen():
    params = tj.from_pretrained(FIXTURES / "gpt2").params
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5, freeze="embed/tokens"), 10)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not np.any(updates["embed"]["tokens"]["embedding"])
