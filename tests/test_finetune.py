"""Fine-tuning: training starts from a Hugging Face folder or from a run of our own."""

import contextlib
import functools
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import by_name
from helpers.train_steps import step_without_update

import transformer_jax as tj
from configs import finetune_bert, finetune_gpt2
from train.config import OptimizerConfig
from train.initialization import InitFrom, load_pretrained_params
from train.loop import run as train
from train.optimizer import make_optimizer
from train.tasks.supervised import encode_pair
from transformer_jax.models import SequenceClassifier, init_params, parameter_shapes

pytestmark = pytest.mark.usefixtures("compilation_cache")
FIXTURES = Path(__file__).parent / "fixtures"
SENTENCE = "The cat sat on the mat, and the dog walked in the garden. "
WORDS = {"good": ["like", "walking", "garden"], "bad": ["end", "three", "spaces"]}


@functools.cache
def run_of(folder):
    return tj.from_pretrained(FIXTURES / folder)


def assert_equal(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def train_without_updates(config, workdir):
    """A run whose checkpoint holds the parameters that it started from; those that no folder gives are all 7."""

    def sevens(model, key):
        return jax.tree.map(lambda x: jnp.full(x.shape, 7, x.dtype), parameter_shapes(model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop.init_params", sevens)
        patch.setattr("train.loop.train_step", step_without_update)
        return train(config, workdir)


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
    return shorten(config, **dict(train__num_buckets=1) | changes)


def shorten(config, **changes):
    settings = dict(
        train__num_steps=6,
        train__eval_every=6,
        train__log_every=3,
        train__batch_size=5,
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


def test_a_gpt2_starts_from_its_weights_and_learns_a_text(tmp_path, capfd):
    before = run_of("gpt2")
    unchanged = train_without_updates(gpt2_config(tmp_path, train__num_steps=1), tmp_path / "unchanged")
    assert_equal(tj.load(unchanged).params, before.params)
    assert "no new parameters" in capfd.readouterr().out
    learned = train(gpt2_config(tmp_path, optimizer__peak_lr=1e-2, train__num_steps=40), tmp_path / "learned")
    assert events(learned, "val")[-1]["loss"] < events(unchanged, "val")[0]["loss"] - 1
    run = tj.load(learned)
    assert tj.generate(run, "The cat", max_new_tokens=4, method="greedy").startswith("The cat")
    tj.save_pretrained(run, tmp_path / "folder")
    tokens = [[1, 2, 3, 5]]
    np.testing.assert_array_equal(tj.logits(tj.from_pretrained(tmp_path / "folder"), tokens), tj.logits(run, tokens))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT that has learned two labels, and the output of its training."""
    folder = tmp_path_factory.mktemp("classifier")
    changes = dict(optimizer__peak_lr=5e-3, train__num_steps=60, train__eval_every=20, train__batch_size=8)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        workdir = train(bert_config(folder, **changes), folder / "run")
    return workdir, out.getvalue()


def test_a_bert_gets_a_new_head_and_learns_labels(classifier):
    workdir, out = classifier
    assert "new, with random values: dense/bias, dense/kernel, out/bias, out/kernel" in out
    assert "not used: bias, norm/bias, norm/scale, transform/bias, transform/kernel" in out
    assert "72 texts to train on, 8 to validate on, " in out
    assert events(workdir, "val")[-1]["accuracy"] == 1.0
    run = tj.load(workdir)
    assert run.labels == ("bad", "good")
    tokens = run.tokenizer.encode_whole("the garden like")[None]
    assert int(np.argmax(tj.logits(run, tokens)[0])) == 1


def test_a_classifier_that_starts_from_a_run_of_our_own_keeps_its_head(classifier, tmp_path, capfd):
    first, _ = classifier
    config = bert_config(tmp_path, train__init_from=str(first), train__num_steps=1)
    second = train_without_updates(config, tmp_path / "second")
    assert "no new parameters" in capfd.readouterr().out
    assert_equal(tj.load(second).params, tj.load(first).params)


def test_random_values_are_created_for_new_parameters_only():
    run, key = run_of("bert"), jax.random.key(3)
    num_traced = []

    def load(model):
        def create(key):
            num_traced.append(1)
            return init_params(model, key)

        num_traced.clear()
        params, note = load_pretrained_params(InitFrom(run=run), create, key)
        return by_name(params), note, len(num_traced)  # once for the shapes, and again if values are needed

    params, note, times = load(run.model)
    assert_equal(params, by_name(run.params))
    assert "no new parameters" in note and times == 1
    classifier = SequenceClassifier(run.config, 3)
    params, note, times = load(classifier)
    random = by_name(jax.jit(functools.partial(init_params, classifier))(key))
    new = {"dense/bias", "dense/kernel", "out/bias", "out/kernel"}
    assert times == 2 and params.keys() == random.keys()
    assert_equal(params, {name: (random if name in new else by_name(run.params))[name] for name in params})


@pytest.mark.parametrize("folder", ["t5", "marian", "bart"])
def test_a_translator_starts_from_its_weights_and_is_saved_as_its_family(folder, tmp_path):
    (tmp_path / "pairs.tsv").write_text("the cat sat\ta dog\nthis text\tthe end of it\nthe mat\tit walks\n" * 3)
    changes = dict(
        train__task="seq2seq",
        data__source="parallel",
        data__path=str(tmp_path / "pairs.tsv"),
        data__val_path=str(tmp_path / "pairs.tsv"),
        train__init_from=str(FIXTURES / folder),
        train__num_buckets=1,
        train__num_steps=1,
        optimizer__peak_lr=1e-12,
        optimizer__warmup_steps=0,
    )
    before = run_of(folder)
    # One family takes a real step. Its learning rate is so small that the parameters stay within rounding.
    train_one_step = train if folder == "t5" else train_without_updates
    after = tj.load(train_one_step(gpt2_config(tmp_path, **changes), tmp_path / "run"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-9), after.params, before.params)
    assert after.config.encoder.max_len == (512 if folder == "t5" else before.config.encoder.max_len)
    assert after.generation_defaults == before.generation_defaults and after.generation_defaults.start_id >= 0
    source, target = encode_pair(before.tokenizer, before.generation_defaults.start_id, "the cat sat", "the end")
    assert target[0] == before.generation_defaults.start_id
    assert target[-1] in before.generation_defaults.eos_ids and source[-1] == target[-1]
    tj.save_pretrained(after, tmp_path / "folder")
    loaded = tj.from_pretrained(tmp_path / "folder")
    np.testing.assert_array_equal(
        tj.logits(loaded, source[None], None, target[None]), tj.logits(after, source[None], None, target[None])
    )
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model_type"] == folder


def test_a_run_resumes_without_the_folder_that_it_started_from(tmp_path):
    shutil.copytree(FIXTURES / "gpt2", tmp_path / "folder")
    changes = dict(
        train__init_from=str(tmp_path / "folder"), optimizer__schedule="constant", optimizer__final_lr_fraction=0.1
    )
    train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    uninterrupted = train(gpt2_config(tmp_path, **changes, train__num_steps=9), tmp_path / "uninterrupted")
    shutil.rmtree(tmp_path / "folder")
    resumed = train(gpt2_config(tmp_path, **changes, train__num_steps=9), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, tj.load(resumed).params, tj.load(uninterrupted).params)


def test_layer_decay_lowers_the_learning_rate_from_the_top_layer_down():
    params = run_of("gpt2").params
    grads = jax.tree.map(lambda x: 0.3 * x + 0.1, params)
    updates = []
    for decay in (1.0, 0.5):
        config = OptimizerConfig(layer_decay=decay, schedule="constant", warmup_steps=0)
        optimizer = make_optimizer(config, 10)
        update = jax.jit(lambda grads, params, o=optimizer: o.update(grads, o.init(params), params)[0])
        updates.append(by_name(update(grads, params)))
    for name, plain in updates[0].items():
        share = 0.5**3 if "embed/" in name else 0.5**2 if "block_0" in name else 0.5 if "block_1" in name else 1.0
        np.testing.assert_allclose(updates[1][name], share * plain, rtol=1e-6)


def test_resized_vocabulary_and_positions_keep_the_rows_that_both_have(tmp_path):
    changes = dict(model__vocab_size=113, model__max_len=29, train__num_steps=1)
    with pytest.raises(tj.UserError, match=r"model.vocab_size=113.*has 101.*train.resize_vocab=True"):
        train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    changes["train__resize_vocab"] = True
    with pytest.raises(tj.UserError, match=r"model.max_len=29.*has 41.*train.resize_positions=True"):
        train(gpt2_config(tmp_path, **changes), tmp_path / "run")
    changes["train__resize_positions"] = True
    after = by_name(tj.load(train_without_updates(gpt2_config(tmp_path, **changes), tmp_path / "run")).params)
    before = by_name(run_of("gpt2").params)
    assert after["embed/tokens/embedding"].shape == (113, 20) and after["embed/positions/embedding"].shape == (29, 20)
    np.testing.assert_array_equal(after["embed/tokens/embedding"][:101], before["embed/tokens/embedding"])
    np.testing.assert_array_equal(after["embed/positions/embedding"], before["embed/positions/embedding"][:29])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__d_model": 24}, "model.d_model=24: the model of train.init_from has 20"),
        ({"train__init_from": "/nowhere/at all"}, "no such folder"),
        ({"train__init_from": str(FIXTURES / "bert")}, "holds a MaskedLM, and this train.task trains a GPT"),
        ({"train__init_from": str(FIXTURES / "t5")}, "holds a Seq2Seq"),
        (
            {"train__task": "seq2seq", "data__source": "reverse", "data__path": ""},
            "holds a GPT, and this task trains a Seq2Seq",
        ),
        ({"train__task": "sing"}, "train.task='sing'.*causal_lm, .*classify"),
        ({"optimizer__freeze": "nowhere"}, "no parameter has 'nowhere'"),
        ({"optimizer__freeze": "."}, "leaves no parameter to train"),
        ({"optimizer__freeze": "("}, "'\\(' is not a regular expression"),
        ({"optimizer__layer_decay": 0.0}, "optimizer.layer_decay=0.0"),
    ],
)
def test_an_impossible_start_is_refused_in_one_line(changes, message, tmp_path):
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
def test_the_error_for_malformed_examples_names_file_and_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    fields = {"data__text_field": "text", "data__label_field": "label"} if name != "a.tsv" else {}
    with pytest.raises(tj.UserError, match=message):
        train(bert_config(tmp_path, data__path=str(tmp_path / name), **fields), tmp_path / "run")


def test_the_error_for_a_label_unknown_in_training_names_its_line(tmp_path):
    config = bert_config(tmp_path, data__val_path=str(tmp_path / "val.tsv"))
    (tmp_path / "val.tsv").write_text("the cat\tgood\nthe mat\tsplendid\n")
    with pytest.raises(
        tj.UserError, match=r"val.tsv, line 2: label 'splendid' does not occur in training \(bad, good\)"
    ):
        train(config, tmp_path / "run")
