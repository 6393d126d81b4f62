"""Every setting is read by something, and a setting that a run would ignore is refused before its first step."""

import contextlib
import dataclasses
import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import train.loop
import transformer_jax as tj
from train.config import Config
from train.data import dates, entropy, from_tfds, sources
from train.data.chats import chats_split
from train.data.labelled import LABELLED_SOURCES, labelled_split
from train.data.pairs import PAIR_SOURCES, load_split
from train.data.tagged import TAGGED_SOURCES, tagged_split
from train.early_stopping import IS_LARGER_BETTER
from train.ignored_settings import CONDITIONS, read_by
from train.initialization import load_init_from
from train.optimizer import make_optimizer, make_schedule
from train.resume import with_vocab_size
from train.step import eval_step, train_step
from train.tasks.base import Task, load_task
from train.tasks.registry import TASKS
from transformer_jax.inference.generate import complete
from transformer_jax.models import GPT, init_params
from transformer_jax.schema import config_fields
from transformer_jax.tokenizers import train_tokenizer

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
# Code that reads every field whatever the run does: checks of values, copies, comparisons.
NOT_READERS = ("train/config.py", "train/ignored_settings.py", "transformer_jax/config.py", "transformer_jax/schema.py")
NOT_READERS += ("transformer_jax/inference/generation_config.py",)
NOT_READING = ("__post_init__", "changed_fields", "_merge", "_check_tokenizer", "_inherit_lowercase")
# Functions of the loop that are called for every variant, so that their reads in the one whole run do not count.
OF_EACH_VARIANT = ("choose_steps_per_call", "build_parallel", "init_state")

OF_TEST = dict(seq2seq=load_split, tag=tagged_split, chat=chats_split, classify=labelled_split, regress=labelled_split)
LINES = [f"the quick brown fox {i} jumps over the lazy dog" for i in range(23)]


@contextlib.contextmanager
def recorded(*classes, only=(), without=()):
    """The set of (class, field) that code of the project reads; `only` in these files, `without` these functions."""
    reads = set()
    folders = tuple(f"{ROOT / name}/" for name in only or ("train", "transformer_jax"))
    excluded = tuple(str(ROOT / name) for name in NOT_READERS)

    def instrument(cls):
        names = {field.name for field in dataclasses.fields(cls)}

        def read(self, name):
            code = sys._getframe(1).f_code
            if name in names and code.co_filename.startswith(folders) and code.co_name not in (*NOT_READING, *without):
                if code.co_filename not in excluded or code.co_name == "layer":  # TransformerConfig.layer
                    reads.add((cls, name))
            return object.__getattribute__(self, name)

        cls.__getattribute__ = read

    for cls in classes:
        instrument(cls)
    try:
        yield reads
    finally:
        for cls in classes:
            del cls.__getattribute__


SECTIONS = {field.name: field.type for field in dataclasses.fields(Config)}
FIELDS = config_fields(Config)


def dotted(reads):
    return {f"{section}.{name}" for section, cls in SECTIONS.items() for owner, name in reads if owner is cls}


def write_files(folder):
    """Data files of all sources, by name."""
    word = "{}\t{}\t_\tNOUN\tNN\t_\t0\troot\t_\t_\n"
    contents = {
        "a.txt": "\n".join(LINES),
        "a.tsv": "".join(f"{line}\t{i % 2}\n" for i, line in enumerate(LINES)),
        "pairs.tsv": "".join(f"{line}\t{line}\n" for line in LINES),
        "a.jsonl": '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n' * 9,
        "a.jinja": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "a.conll": "\n\n".join("\n".join(f"{w} B-x" for w in line.split()) for line in LINES),
        "a.conllu": "\n".join("".join(word.format(i, w) for i, w in enumerate(line.split(), 1)) for line in LINES),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {name: str(folder / name) for name in contents}


def fake_tfds():
    """A stand-in for tensorflow_datasets: one dataset for all tasks, with the same examples in every split."""
    rows = [{"text": line, "sentence": line, "label": "ab"[i % 2]} for i, line in enumerate(LINES)]
    rows = [row | {"en": row["text"], "de": row["text"]} for row in rows]
    rows = [row | {"tokens": row["text"].split(), "ner": ["B-x"] * len(row["text"].split())} for row in rows]
    info = SimpleNamespace(features=dict.fromkeys(rows[0]))
    builder = SimpleNamespace(is_prepared=lambda: True, info=info, as_data_source=lambda split: rows)
    return SimpleNamespace(builder=lambda *args, **kwargs: builder)


def variants(files):
    """Settings that differ from the defaults, by the name of a variant; together they read every field."""
    text = {"data.source": "text", "data.path": files["a.txt"]}
    tsv = {"data.source": "labelled", "data.path": files["a.tsv"], "data.test_path": files["a.tsv"]}
    tfds = {"data.source": "tfds", "data.path": "toy"}
    three = dict.fromkeys(("data.path", "data.val_path", "data.test_path"))
    pairs = {"data.source": "parallel"} | {name: files["pairs.tsv"] for name in three}
    lines = {"data.target_path": files["a.txt"], "data.val_target_path": files["a.txt"]}
    lines |= {"data.test_target_path": files["a.txt"]} | {name: files["a.txt"] for name in three}
    chats = {"data.source": "chat", "data.path": files["a.jsonl"], "data.chat_template": files["a.jinja"]}
    chats |= {"data.test_path": files["a.jsonl"], "train.init_from": str(FIXTURES / "llama"), "adapter.kind": "lora"}
    rope = {"model.positions": "rotary", "model.rope_scaling": "llama3", "model.num_layers": 2}
    rope |= {"model.layer_pattern": "local,global", "model.local_window": 3}
    factors = {"model.rope_short_factors": "1.5,2,3", "model.rope_long_factors": "2,3,4"}
    longrope = {"model.positions": "rotary", "model.rope_scaling": "longrope"} | factors
    yarn = {"model.positions": "rotary", "model.rope_scaling": "yarn", "model.rope_factor": 2.0}
    return {
        "causal_lm": text,
        "causal_lm, muon": text | {"optimizer.name": "muon", "model.positions": "shaw"},
        "causal_lm, linear": text | {"model.attention": "linear", "model.positions": "sinusoidal"},
        "causal_lm, constant": text | {"optimizer.schedule": "constant", "tokenizer.path": str(FIXTURES / "gpt2")},
        "causal_lm, markov": {"data.source": "markov", "tokenizer.kind": "byte"} | rope,
        "causal_lm, documents": text | {"data.documents": "lines", "model.positions": "t5"},
        "causal_lm, documents of tfds": tfds | {"data.documents": "files"},
        "causal_lm, init_from": text | {"train.init_from": str(FIXTURES / "gpt2")},
        "causal_lm, lora": text | {"train.init_from": str(FIXTURES / "gpt2"), "adapter.kind": "lora"},
        "causal_lm, ia3": text | {"train.init_from": str(FIXTURES / "gpt2"), "adapter.kind": "ia3"},
        "causal_lm, prompt": text | {"train.init_from": str(FIXTURES / "gpt2"), "adapter.kind": "prompt"},
        "masked_lm": text | {"tokenizer.kind": "byte"} | longrope,
        "masked_lm, tfds": tfds,
        "spans": text | yarn,
        "classify": tsv,
        "classify, val_path": tsv | {"data.val_path": files["a.tsv"], "train.token_dropout": 0.3},
        "classify, tfds": tfds,
        "regress": tsv | {"train.batch_tokens": 300},
        "tag": {"data.source": "tagged"} | {name: files["a.conll"] for name in three},
        "tag, conllu": {"data.source": "tagged"} | {name: files["a.conllu"] for name in three},
        "tag, tfds": tfds,
        "chat": chats,
        "chat, val_path": chats | {"data.val_path": files["a.jsonl"], "data.max_chat_tokens": 29},
        "seq2seq": pairs | {"tokenizer.separate": True},
        "seq2seq, two files": pairs | lines | {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 270},
        "seq2seq, dates": {"data.source": "dates"},
        "seq2seq, tfds": tfds,
    }


def settings(name, changes):
    small = {"model.num_layers": 1, "model.d_model": 12, "model.num_heads": 2, "model.max_len": 67}
    small |= {"train.num_steps": 1, "train.tensorboard": False}
    if "train.init_from" in changes:
        small = {"train.batch_size": 2}
    if "train.batch_tokens" not in changes:
        small |= {"train.batch_size": 3}
    return {"train.task": name.split(",")[0]} | small | changes


def make_config(values):
    nested = {}
    for name, value in values.items():
        section, field = name.split(".")
        nested.setdefault(section, {})[field] = value
    return Config.from_dict(nested)


def trace(config):
    """What training does with a configuration before anything is compiled. Returns the task and its metrics."""
    init_from = load_init_from(config.train, None)
    task = load_task(config, init_from)
    with_vocab_size(config.model, task.tokenizer.vocab_size)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    make_schedule(config.optimizer, config.train.num_steps)
    train.loop.build_parallel(config, task.model, task.loss_fn, optimizer)
    state = jax.eval_shape(lambda: train.loop.init_state(config, task.model, optimizer, init_from)[0])
    train.loop.choose_steps_per_call(config, task, state.all_params)
    step = functools.partial(train_step, model=task.model, loss_fn=task.loss_fn, optimizer=optimizer)
    step = functools.partial(step, seed=0, accumulation=1, max_consecutive_skips=1, log_every=1)
    jax.eval_shape(step, state, task.train_batch(0))
    batch = next(iter(task.eval_batches()))
    evaluate = functools.partial(eval_step, model=task.model, loss_fn=task.loss_fn)
    sums = jax.eval_shape(evaluate, state.all_params, batch)
    if config.train.task in OF_TEST:
        OF_TEST[config.train.task](config.data, "test")
    return task, {"loss", *sums[2]}


def other_value(name):
    """A value of a field that is not its default."""
    default = FIELDS[name].default
    names = {"data.documents": "files", "tokenizer.kind": "byte", "train.pooling": "mean"}
    names |= {"model.rope_scaling": "linear", "model.sinusoid_layout": "halves", "model.rope_layout": "pairs"}
    if name in names:
        return names[name]
    if isinstance(default, bool):
        return not default
    return default + {int: 1, float: 0.25, str: "x"}[type(default)]


def refusal(values, name):
    """The message with which a run refuses a field, None if it starts."""
    try:
        config = make_config(values)
        if config.train.init_from:
            load_task(config, load_init_from(config.train, None))
    except tj.UserError as error:
        return str(error) if str(error).startswith(f"{name}=") else None
    return None


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced variant: its settings, the fields that were read, its task, and what its evaluation counts."""

    values: dict
    is_read: set
    task: Task
    counted: set


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dates, "SIZES", {"train": 40, "val": 10, "test": 10})
        patch.setattr(entropy, "NUM_CHARACTERS", 5000)
        patch.setattr(sources, "NUM_CHARACTERS", 5000)
        patch.setitem(sys.modules, "tensorflow_datasets", fake_tfds())
        patch.setattr(from_tfds, "_own_features_only", contextlib.nullcontext)  # the stand-in reads no features.json
        all_variants = variants(write_files(folder))
        with recorded(*SECTIONS.values(), without=OF_EACH_VARIANT) as reads:
            train.loop.run(make_config(settings("causal_lm", all_variants["causal_lm"])), folder / "run")
        # The loop reads the same fields for every task; data, model and optimizer are traced for each variant.
        of_loop = {name for name in dotted(reads) if name.split(".")[0] in ("train", "checkpoint")} - set(read_by())
        results = {}
        for variant, changes in all_variants.items():
            values = settings(variant, changes)
            with recorded(*SECTIONS.values()) as reads:
                task, counted = trace(make_config(values))
            results[variant] = Traced(values, dotted(reads) | of_loop, task, counted)
        yield results


def test_each_field_is_read_by_a_run_or_refused_by_it(traced):
    offenders = [
        f"{variant}: {name}"
        for variant, one in traced.items()
        for name in FIELDS
        if name not in one.is_read and (name in one.values or not refusal(one.values | {name: other_value(name)}, name))
    ]
    assert not offenders
    nothing_reads = set(FIELDS) - set.union(*(one.is_read for one in traced.values()))
    assert not nothing_reads


def test_each_task_measures_the_metrics_that_best_by_can_choose(traced):
    offenders = []
    for variant, one in traced.items():
        counted = one.counted - {"floor", "gap_squares", "windows"} | ({"gap"} & set(one.task.metrics))
        derived = {"perplexity", "bits_per_byte"}
        if counted != set(one.task.metrics) - derived or not {one.task.best_by, *one.task.metrics} <= set(
            IS_LARGER_BETTER
        ):
            offenders.append(f"{variant}: measures {counted}, declares {one.task.metrics}")
    assert not offenders
    assert "gap" in traced["causal_lm, markov"].task.metrics and "entity_f1" in traced["tag"].task.metrics
    assert "entity_f1" not in traced["tag, conllu"].task.metrics


def test_the_table_of_readers_names_the_fields_tasks_and_sources_that_exist():
    named = {field for alternatives in read_by().values() for alternative in alternatives for field in alternative}
    assert set(CONDITIONS) | set(read_by()) | named <= set(FIELDS)
    of_loaders = ({*sources.SOURCES, "tfds"}, {"chat"}, set(LABELLED_SOURCES), set(TAGGED_SOURCES), set(PAIR_SOURCES))
    assert {task: set(row.sources) for task, row in TASKS.items() if set(row.sources) not in of_loaders} == {}


def test_a_setting_that_a_run_ignores_is_refused_with_its_readers_and_default():
    cases = [
        (
            {"train.label_smoothing": 0.25},
            "train.label_smoothing=0.25: is read only with train.task=seq2seq, "
            "not with train.task='causal_lm'. Take 0.0.",
        ),
        (
            {"optimizer.muon_lr": 0.5},
            "optimizer.muon_lr=0.5: is read only with optimizer.name=muon, not with optimizer.name='adamw'. Take 0.02.",
        ),
        (
            {"train.resize_vocab": True},
            "train.resize_vocab=True: is read only with train.init_from set, not with train.init_from=''. Take False.",
        ),
        (
            {"model.rope_factor": 2.0, "model.positions": "rotary"},
            "model.rope_factor=2.0: is read only with model.positions=rotary and model.rope_scaling=linear | dynamic | "
            "llama3 | yarn | longrope, not with model.positions='rotary', model.rope_scaling='none'. Take 1.0.",
        ),
        (
            {"data.source": "tfds", "data.path": "x", "data.documents": "lines"},
            "data.documents='lines': each example of data.source='tfds' is a document. Take 'files'.",
        ),
    ]
    cases += [
        (
            {"data.source": "tagged", "train.task": "tag", "train.token_dropout": 0.3},
            "train.token_dropout=0.3: is read only with train.task=classify | regress, "
            "not with train.task='tag'. Take 0.0.",
        ),
        (
            {"tokenizer.kind": "bpe", "tokenizer.dropout": 0.1},
            "tokenizer.dropout=0.1: is read only with train.task=classify | regress | tag | seq2seq, "
            "not with train.task='causal_lm'. Take 0.0.",
        ),
    ]
    for values, message in cases:
        with pytest.raises(tj.UserError) as error:
            make_config(values)
        assert str(error.value) == message


# Settings of generation


def test_each_field_of_the_generation_config_is_read_by_a_way_of_generating(tmp_path):
    tokenizer = train_tokenizer("byte", 0, "")
    config = tj.TransformerConfig(vocab_size=tokenizer.vocab_size, max_len=31, num_layers=1, d_model=6, num_heads=2)
    model = GPT(config)
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    run = tj.Run(model, params, tokenizer, config)
    tj.save(run, tmp_path / "draft")
    ways = [
        {"method": "sample", "suppress": (5,), "logit_bias": ((7, 1.0),), "bad_words": ("b",), "min_new_tokens": 1},
        {"method": "greedy", "choices": ("ab", "ba")},
        {"method": "greedy", "prompt_lookup": 1},
        {"method": "greedy", "draft": str(tmp_path / "draft")},
        {"method": "beam", "num_beams": 2},
    ]
    with recorded(tj.GenerationConfig) as reads:
        for settings_of_way in ways:
            complete(run, ["ab"], tj.GenerationConfig(max_new_tokens=3, **settings_of_way))
    fields = {field.name for field in dataclasses.fields(tj.GenerationConfig)}
    nothing_reads = fields - {name for _, name in reads}
    assert not nothing_reads
