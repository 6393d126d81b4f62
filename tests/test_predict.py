"""Batched prediction with trained runs, as functions and as commands: classify, tag, score."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from helpers.arrays import random_like
from helpers.commands import command

import transformer_jax as tj
from train.config import Config, TokenizerConfig
from train.initialization import InitFrom
from train.loop import run as train
from train.tasks import supervised
from train.tasks.base import load_task
from train.tasks.scoring import Options, confusions, macro_f1, score
from transformer_jax.models import parameter_shapes

TEXTS = ["good film", "a bad one", "good", "what a bad bad film it was in all ways", "fine"]
SENTENCES = ["Anna lives in Rome", "Bob", "no name here"]

TRAINED = ("classify", "seq2seq")  # tests/test_tasks.py trains all tasks
SHORT = {"batch_size": 4, "num_steps": 3, "eval_every": 3, "tensorboard": False}


def settings(task, path):
    """Settings of a short training run; the fields that only some tasks read are set for those."""
    source = {"tag": "tagged", "causal_lm": "text", "seq2seq": "parallel"}.get(task, "labelled")
    has_own_part = task in ("tag", "seq2seq")  # else a part of the texts is split off for validation
    data = {"source": source, "path": str(path)}
    data |= {"val_path": str(path)} if has_own_part else {"val_fraction": 0.2}
    data |= {"lowercase": True} if task == "seq2seq" else {}
    return {
        "data": data,
        "tokenizer": {"kind": "byte", "separate": task == "seq2seq"},
        "model": {"num_layers": 1, "d_model": 12, "num_heads": 2, "max_len": 19},
        "train": {"task": task, **SHORT} | ({} if task == "causal_lm" else {"num_buckets": 1}),
        "checkpoint": {"save_every": 3},
    }


def untrained(config):
    """The run that training with `config` begins with, except that its parameters are larger."""
    task = load_task(config, InitFrom())
    params = random_like(parameter_shapes(task.model))
    return tj.Run(
        task.model, params, task.tokenizer, task.model.config, labels=tuple(task.labels), separator=task.separator
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run directory and its configuration for each task; the runs outside TRAINED are only saved."""
    folder = tmp_path_factory.mktemp("runs")
    tagged = [" ".join(f"{word}/{'B-x' if word[0].isupper() else 'O'}" for word in s.split()) for s in SENTENCES]
    files = {
        "classify": "".join(f"{text}\t{'good' in text}\n" for text in TEXTS * 4),
        "regress": "".join(f"{text}\t{len(text) / 7}\n" for text in TEXTS * 4),
        "tag": "\n\n".join(s.replace(" ", "\n").replace("/", "\t") for s in tagged),
        "causal_lm": "the quick brown fox. " * 40,
        "seq2seq": "".join(f"{text}\t{text.upper()}\n" for text in TEXTS * 3),
    }
    suffixes = {"tag": "conll", "causal_lm": "txt"}
    runs = {}
    for task, content in files.items():
        path = folder / f"{task}.{suffixes.get(task, 'tsv')}"
        path.write_text(content)
        config = settings(task, path)
        runs[task] = folder / task, Config.from_dict(config)
        if task in TRAINED:
            train(config, folder / task)
        else:
            tj.save(untrained(runs[task][1]), folder / task)
    return runs


def test_labels_do_not_depend_on_the_batch_and_keep_their_order(runs):
    run = tj.load(runs["classify"][0])
    together = tj.classify(run, TEXTS, batch_size=3)
    for text, answer in zip(TEXTS, together, strict=True):
        alone = tj.classify(run, [text])[0]
        assert answer.label == alone.label == run.labels[np.argmax(answer.probabilities)]
        np.testing.assert_allclose(answer.probabilities, alone.probabilities, rtol=1e-5)
        tokens = run.tokenizer.encode_whole(text)[None, :19]
        np.testing.assert_allclose(jax.nn.softmax(tj.logits(run, tokens))[0], answer.probabilities, rtol=1e-4)
    assert tj.classify(run, []) == []


def test_a_regressor_predicts_numbers_that_do_not_depend_on_the_batch(runs):
    workdir, config = runs["regress"]
    run = tj.load(workdir)
    numbers = tj.classify(run, TEXTS, batch_size=2)
    assert all(isinstance(number, float) for number in numbers)
    np.testing.assert_allclose(numbers, [tj.classify(run, [text])[0] for text in TEXTS], rtol=1e-4)
    values = score(run, config, "val", Options()).values
    assert values["root_mean_squared_error"] >= values["mean_absolute_error"] > 0


def test_each_word_gets_a_tag_even_beyond_the_context(runs):
    run = tj.load(runs["tag"][0])
    sentences = [*SENTENCES, "w " * 30, ["a list", "of words"]]
    together = tj.tag(run, sentences, batch_size=2)
    assert [len(tags) for tags in together] == [4, 1, 3, 30, 2]
    assert together == [tj.tag(run, [sentence])[0] for sentence in sentences]
    assert together[3][-1] == "O" and set(run.labels) == {"O", "B-x"}


def test_texts_longer_than_the_context_are_cut_and_counted_on_stderr(runs, capfd):
    long, short = "what a bad bad film it was in all ways, all of it", "good"
    calls = {
        "texts": [
            lambda task=task: tj.classify(tj.load(runs[task][0]), [long, short, long])
            for task in ("classify", "regress")
        ],
        "sentences": [lambda: tj.tag(tj.load(runs["tag"][0]), [long, short, long])],
        "sources": [
            lambda: tj.score(tj.load(runs["seq2seq"][0]), [long, short, long], [short] * 3),
            lambda: tj.translate(tj.load(runs["seq2seq"][0]), [long, short, long], num_beams=1),
        ],
        "targets": [lambda: tj.score(tj.load(runs["seq2seq"][0]), [short] * 3, [long, short, long])],
    }
    for what, functions in calls.items():
        for call in functions:
            call()
            assert f"warning: 2 of 3 {what} are cut to 19 tokens." in capfd.readouterr().err
    tj.classify(tj.load(runs["classify"][0]), [short])
    tj.score(tj.load(runs["causal_lm"][0]), [long])  # read in pieces
    assert capfd.readouterr().err == ""


def test_the_log_probability_of_a_text_is_the_sum_of_its_tokens(runs):
    run = tj.load(runs["causal_lm"][0])
    texts = ["the fox", "q", "", "the quick brown fox. the quick brown fox. the"]  # the last is longer than the context
    scores = tj.score(run, texts, batch_size=3)
    assert [score.num_tokens for score in scores] == [6, 0, 0, len(texts[3]) - 1]
    tokens = run.tokenizer.encode(texts[3])
    total = 0.0
    for first in range(0, len(tokens) - 1, 19):
        piece = tokens[first : first + 20]
        log_probs = jax.nn.log_softmax(tj.logits(run, piece[None, :-1]))[0]
        total += float(np.sum(np.take_along_axis(np.asarray(log_probs), piece[1:, None], axis=1)))
    assert scores[3].log_probability == pytest.approx(total, rel=1e-5)
    assert scores[3].perplexity == pytest.approx(np.exp(-total / (len(tokens) - 1)), rel=1e-5)


def test_a_target_is_scored_given_its_source_in_lower_case_as_in_training(runs):
    run = tj.load(runs["seq2seq"][0])
    assert run.lowercase
    scores = tj.score(run, TEXTS[:2], ["GOOD", "no"], batch_size=5)
    small = tj.score(run, [TEXTS[0].upper()], ["good"])[0]
    assert scores[0].num_tokens == 5 and small.log_probability == pytest.approx(scores[0].log_probability, rel=1e-5)
    assert tj.translate(run, ["GOOD FILM"]) == tj.translate(run, ["good film"])
    with pytest.raises(tj.UserError, match="targets: a Seq2Seq needs one for each text"):
        tj.score(run, ["a"])
    with pytest.raises(tj.UserError, match="is a Seq2Seq, and this needs a TokenTagger"):
        tj.tag(run, ["a"])


@pytest.mark.parametrize(
    "name, task, stdin, num_lines",
    [
        ("classify", "classify", "good film\n\na bad one\n", 3),
        ("classify", "regress", "good film\n", 1),
        ("tag", "tag", "Anna lives\nBob\n", 5),
        ("score", "causal_lm", "the fox\nq\n", 2),
        ("score", "seq2seq", "a\tb\n", 1),
    ],
)
def test_commands_print_results_line_by_line(runs, name, task, stdin, num_lines):
    flags = [] if task in TRAINED else ["--checkpoint=latest"]  # only a trained run has a best checkpoint
    done = command(name, f"--run_dir={runs[task][0]}", *flags, stdin=stdin)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == num_lines and "/" in done.stderr
    if task == "classify":
        assert lines[1] == "" and float(lines[0].split("\t")[1]) >= 0.5
    if name == "tag":
        assert [line.split("\t")[0] for line in lines] == ["Anna", "lives", "", "Bob", ""]


@pytest.mark.parametrize(
    "name, stdin, message",
    [("classify", "", "--run_dir: is missing"), ("score", "a b\n", "line 1: must be a source, a tab and a target")],
)
def test_a_wrong_command_is_an_error_of_one_line_and_exit_code_2(runs, name, stdin, message):
    done = command(name, *([f"--run_dir={runs['seq2seq'][0]}"] if stdin else []), stdin=stdin)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_evaluation_saves_lines_scores_and_a_confusion_matrix(runs):
    workdir, config = runs["classify"]
    done = command("evaluate", f"--run_dir={workdir}")
    assert done.returncode == 0, done.stderr
    folder = workdir / "evaluation" / "val"
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    guesses, references = ((folder / f"{n}.txt").read_text().splitlines() for n in ("hypotheses", "references"))
    assert len(guesses) == len(references) == 4
    counts = confusions(["x", "y", "z"], ["x", "x", "y"], ["x", "y", "y"])
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert macro_f1(counts) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_token_dropout_hides_new_tokens_in_each_training_step_but_never_the_first(runs):
    config = runs["classify"][1]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, token_dropout=0.4))
    task, plain = load_task(config, InitFrom()), load_task(runs["classify"][1], InitFrom())
    kept = []
    for step in range(30):
        batch, whole = task.train_batch(step), plain.train_batch(step)
        np.testing.assert_array_equal(batch["tokens"], whole["tokens"])
        assert not np.any(batch["is_token"] & ~whole["is_token"])
        np.testing.assert_array_equal(batch["is_token"][:, 0], whole["is_token"][:, 0])
        np.testing.assert_array_equal(batch["is_token"], task.train_batch(step)["is_token"])
        kept.append(batch["is_token"][:, 1:].sum() / whole["is_token"][:, 1:].sum())
    assert abs(np.mean(kept) - 0.6) < 0.05 and len(set(kept)) > 10
    for batch, whole in zip(task.eval_batches(), plain.eval_batches(), strict=True):
        np.testing.assert_array_equal(batch["is_token"], whole["is_token"])


@pytest.mark.parametrize("task", ["classify", "regress", "tag", "seq2seq"])
def test_bpe_dropout_makes_16_versions_of_each_example_with_the_same_text(runs, task):
    plain, dropping = (
        load_task(
            dataclasses.replace(
                runs[task][1],
                tokenizer=TokenizerConfig(kind="bpe", vocab_size=290, separate=task == "seq2seq", dropout=dropout),
                model=dataclasses.replace(runs[task][1].model, max_len=59),
            ),
            InitFrom(),
        )
        for dropout in (0.0, 0.4)
    )
    assert "(16 versions of each)" in dropping.description and "versions" not in plain.description
    tokenizer, side = dropping.tokenizer, "target" if task == "seq2seq" else "tokens"
    label = {"tag": "tag", "seq2seq": "source"}.get(task, "label")

    def epoch(task):
        """Each text of the training part, with what is to be learned of it, and its number of tokens."""
        found, num = [], int(task.description.split()[0])
        for step in range(-(-num // SHORT["batch_size"])):
            batch = task.train_batch(step)
            is_text = batch["target_is_token" if side == "target" else "is_token"]
            for row, kept, learned in zip(batch[side], is_text, batch[label], strict=True):
                if kept.any():
                    learned = tokenizer.source.decode(learned) if label == "source" else sorted(np.unique(learned))
                    found.append(((tokenizer.decode(row[kept]), str(learned)), int(kept.sum())))
        return found

    whole, versions = epoch(plain), epoch(dropping)
    assert Counter(text for text, _ in versions) == Counter(text for text, _ in whole * 16)
    lengths = [{n for other, n in versions if other == text} for text, _ in whole]
    assert max(map(len, lengths)) > 2
    for batch, same in zip(dropping.eval_batches(), plain.eval_batches(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, same)


def test_bpe_dropout_makes_fewer_versions_of_very_many_examples(runs, monkeypatch):
    monkeypatch.setattr(supervised, "MAX_EXAMPLES", 16 * 3)  # of 16 texts: 3 versions of each
    config = dataclasses.replace(
        runs["classify"][1],
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=290, dropout=0.5),
        train=dataclasses.replace(runs["classify"][1].train, batch_size=48),
        model=dataclasses.replace(runs["classify"][1].model, max_len=59),
    )
    task = load_task(config, InitFrom())
    assert task.description.startswith("48 texts to train on (3 versions of each)")
    batch = task.train_batch(0)
    cuts = {tuple(row[kept]) for row, kept in zip(batch["tokens"], batch["is_token"], strict=True)}
    texts = Counter(task.tokenizer.decode(cut) for cut in cuts)
    assert set(texts) <= set(TEXTS) and texts["a bad one"] > 3


@pytest.mark.parametrize("name", ["classify", "tag", "score", "translate"])
def test_help_lists_the_flags_that_commands_share(name):
    done = command(name, "--help", stdin="")
    assert done.returncode == 0, done.stderr
    assert all(f"--{flag}" in done.stdout for flag in ("run_dir", "checkpoint", "batch_size"))
