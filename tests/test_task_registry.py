"""Registry of tasks: each row is complete and true, and one row with one file adds a task."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from helpers.commands import assert_is_one_error, command, process

import transformer_jax as tj
from train.config import Config
from train.loop import run as train
from train.tasks.registry import TASKS, TaskRow
from transformer_jax.__main__ import COMMANDS
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, MaskedLM, Seq2Seq, Seq2SeqConfig, SequenceClassifier, TokenTagger
from transformer_jax.tokenizers import train_tokenizer

ROOT = Path(__file__).parents[1]
CONFIG = TransformerConfig(vocab_size=259, max_len=11, num_layers=1, d_model=6, num_heads=2)
MODEL_OF_TASK = {
    "causal_lm": GPT(CONFIG),
    "masked_lm": MaskedLM(CONFIG),
    "spans": Seq2Seq(Seq2SeqConfig(CONFIG, CONFIG)),
    "classify": SequenceClassifier(CONFIG, 3),
    "regress": SequenceClassifier(CONFIG, 1),
    "tag": TokenTagger(CONFIG, 3),
    "chat": GPT(CONFIG),
    "seq2seq": Seq2Seq(Seq2SeqConfig(CONFIG, CONFIG)),
}


def test_builder_and_scorer_of_every_task_can_be_imported():
    assert [
        name for name, row in TASKS.items() if not (callable(row.load_builder()) and callable(row.load_scorer()))
    ] == []
    assert all(row.next_command.split()[0] in COMMANDS and set(row.commands) <= set(COMMANDS) for row in TASKS.values())


def test_a_task_answers_to_the_commands_of_its_row_and_to_no_others():
    def refuses(use):
        try:
            use()
        except tj.UserError as error:
            return type(model).__name__ in str(error)
        return False

    for task, model in MODEL_OF_TASK.items():
        run = tj.Run(model, None, train_tokenizer("byte", 0, ""), model.config)
        targets = [] if isinstance(model, Seq2Seq) else None
        uses = {
            "sample": lambda run=run: tj.generate(run, ""),
            "translate": lambda run=run: tj.translate(run, []),
            "classify": lambda run=run: tj.classify(run, []),
            "tag": lambda run=run: tj.tag(run, []),
            "score": lambda run=run, targets=targets: tj.score(run, [], targets),
        }
        assert {name for name, use in uses.items() if not refuses(use)} == set(TASKS[task].commands) - {"chat"}, task
    assert MODEL_OF_TASK.keys() == TASKS.keys()


def test_the_table_of_the_docs_has_the_sources_of_every_task():
    table = [line for line in (ROOT / "docs" / "tasks.md").read_text().splitlines() if line.startswith("| `")]
    for task, row in TASKS.items():
        _, names, sources, *_ = next(line for line in table if f"`{task}`" in line.split("|")[1]).split("|")
        assert set(re.findall(r"`(\w+)`", sources)) == set(row.sources), names


def test_a_row_without_a_scorer_cannot_be_written():
    fields = {field.name: getattr(TASKS["tag"], field.name) for field in dataclasses.fields(TaskRow)}
    for name in fields:
        with pytest.raises(TypeError, match=name):
            TaskRow(**{other: value for other, value in fields.items() if other != name})


def test_settings_of_training_are_checked_without_loading_jax():
    done = process("-c", "import sys, train.config; train.config.Config(); print('jax' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


EIGHTH_TASK = '''
import dataclasses

from train.tasks.language_modeling import causal_lm
from train.tasks.scoring import Score, validation_metrics


def backwards(config, init_from):
    """Language modeling from right to left: every window of tokens is reversed."""
    task = causal_lm(config, init_from)

    def reverse(batch):
        return batch | {"tokens": batch["tokens"][:, ::-1]}

    return dataclasses.replace(
        task,
        train_batch=lambda step: reverse(task.train_batch(step)),
        eval_batches=lambda: map(reverse, task.eval_batches()),
        description=f"{task.description}, backwards",
    )


def score(run, config, split, options):
    return Score(validation_metrics(run, config, split, options).values | {"direction": -1})
'''


@pytest.fixture
def eighth_task(tmp_path, monkeypatch):
    """A task that is one file and one row."""
    (tmp_path / "backwards_task.py").write_text(EIGHTH_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    row = TaskRow(
        builder="backwards_task:backwards",
        scorer="backwards_task:score",
        sources=("text",),
        best_by=("bits_per_byte", "loss"),
        reads=("train.steps_per_call", "model.tie_embeddings"),
        commands=("sample",),
        next_command="sample --run_dir={run_dir} --prompt=x",
    )
    monkeypatch.setitem(TASKS, "backwards", row)
    yield
    sys.modules.pop("backwards_task", None)


def test_one_file_and_one_row_make_a_task_that_trains_and_is_scored(eighth_task, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    sections = {
        "data": {"source": "text", "path": str(tmp_path / "a.txt")},
        "model": {"num_layers": 1, "d_model": 6, "num_heads": 2, "max_len": 11, "tie_embeddings": False},
        "train": {"task": "backwards", "num_steps": 3, "batch_size": 3, "tensorboard": False, "steps_per_call": 1},
    }
    workdir = train(sections, tmp_path / "run")
    out = capsys.readouterr().out
    assert ", backwards;" in out and f"Sample: python -m transformer_jax sample --run_dir={workdir} --prompt=x\n" in out
    assert "Other commands for this run: evaluate, attention." in out
    assert tj.read_meta(workdir).training.best.metric == "bits_per_byte"
    done = command("evaluate", f"--run_dir={workdir}")
    assert done.returncode == 0 and json.loads(done.stdout)["direction"] == -1, done.stderr
    assert_is_one_error(command("evaluate", f"--run_dir={workdir}", "--split=test"), "--split=val")

    def refusal(section, **changes):
        with pytest.raises(tj.UserError) as error:
            train(sections | {section: sections[section] | changes}, tmp_path / "another")
        return str(error.value)

    assert refusal("train", label_smoothing=0.25) == (
        "train.label_smoothing=0.25: is read only with train.task=seq2seq, not with train.task='backwards'. Take 0.0."
    )
    assert "train.task=causal_lm, not with train.task='backwards'" in refusal("data", documents="files")
    assert refusal("data", source="hmm", path="") == "data.source='hmm': unknown. Choose one of: text."
    assert "Take one of: loss, perplexity, bits_per_byte." in refusal("train", best_by="accuracy")
    assert Config.from_dict(sections).model.tie_embeddings is False
