"""Translation: reading pairs, length buckets, the seq2seq loss, training, translate and evaluate."""

import collections
import functools
import gzip
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.commands import command, process
from sacrebleu.metrics import BLEU

import transformer_jax as tj
from configs import default
from train.config import DataConfig
from train.data import dates
from train.data.batch_sampler import LengthBucketSampler
from train.data.pairs import load_split
from train.loop import run as train
from train.losses import cross_entropy, seq2seq
from transformer_jax.models import Seq2Seq, Seq2SeqConfig, parameter_shapes

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
LENGTHS = tuple(int(n) for n in RNG.integers(2, 31, 101))
pytestmark = pytest.mark.usefixtures("compilation_cache")  # one model is trained twice


def config_of(tmp_path, **changes):
    """Recipe: translate words to the same words in capitals, with a tiny model."""
    words = ["ab", "cd", "efg", "hi", "jkl", "mnop", "q", "rs"]
    random = np.random.default_rng(1)
    for split, number in (("train", 60), ("val", 11), ("test", 13)):
        lines = [" ".join(random.choice(words, random.integers(1, 5))) for _ in range(number)]
        (tmp_path / f"{split}.en").write_text("".join(line + "\n" for line in lines))
        (tmp_path / f"{split}.de").write_text("".join(line.upper() + "\n" for line in lines))
    config = default.get_config()
    settings = dict(
        data__source="parallel",
        data__path=str(tmp_path / "train.en"),
        data__target_path=str(tmp_path / "train.de"),
        data__val_path=str(tmp_path / "val.en"),
        data__val_target_path=str(tmp_path / "val.de"),
        data__test_path=str(tmp_path / "test.en"),
        data__test_target_path=str(tmp_path / "test.de"),
        model__max_len=24,
        model__num_layers=1,
        model__d_model=20,
        model__num_heads=2,
        optimizer__peak_lr=1e-2,
        optimizer__warmup_steps=1,
        optimizer__schedule="constant",
        train__task="seq2seq",
        train__batch_tokens=200,
        train__num_buckets=2,
        train__num_steps=6,
        train__eval_every=3,
        train__log_every=3,
        checkpoint__save_every=3,
        train__tensorboard=False,
        train__label_smoothing=0.1,
    )
    for name, value in (settings | changes).items():
        section, field = name.split("__")
        config[section][field] = value
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    return train(config_of(folder, model__dropout_rate=0.1), folder / "run"), folder


# Batches by length


@pytest.mark.parametrize("batch_tokens, num_devices", [(0, 1), (150, 1), (300, 4)])
def test_an_epoch_has_every_example_once_in_a_batch_that_is_long_enough(batch_tokens, num_devices):
    order = LengthBucketSampler(LENGTHS, 30, 7, 5, batch_tokens, num_devices)
    for epoch in range(3):
        seen, shapes = collections.Counter(), set()
        for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
            rows, length = order.batch(step)
            seen.update(rows.tolist())
            shapes.add((order.rows(length), length))
            assert len(rows) <= order.rows(length) and order.rows(length) % num_devices == 0
            assert max(LENGTHS[i] for i in rows) <= length <= 30
            assert not batch_tokens or order.rows(length) * length <= batch_tokens or order.rows(length) == num_devices
        assert seen == collections.Counter(range(len(LENGTHS)))
        assert len(shapes) <= 4


def test_batches_are_a_function_of_seed_and_step_and_differ_from_epoch_to_epoch():
    one, two, other = (LengthBucketSampler(LENGTHS, 30, 7, seed) for seed in (5, 5, 6))
    steps = one.steps_per_epoch
    for step in (3 * steps + 1, 2, 0, steps):
        np.testing.assert_array_equal(one.batch(step)[0], two.batch(step)[0])
    assert any(one.batch(s)[0].tolist() != one.batch(s + steps)[0].tolist() for s in range(steps))
    assert any(one.batch(s)[0].tolist() != other.batch(s)[0].tolist() for s in range(steps))


def test_more_buckets_need_less_padding():
    padding = [LengthBucketSampler(LENGTHS, 30, 7, 5, 210, num_buckets=n).padding for n in (1, 2, 6)]
    assert padding[0] > padding[1] > padding[2] > 0


# Reading


def test_pairs_come_from_two_files_or_one(tmp_path):
    (tmp_path / "a.en").write_text("One\nTwo\n")
    with gzip.open(tmp_path / "a.de.gz", "wt") as file:
        file.write("Eins\nZwei\n")
    (tmp_path / "a.tsv").write_text("One\tEins\nTwo\tZwei\n")
    (tmp_path / "a.jsonl").write_text('{"source": "One", "target": "Eins"}\n{"target": "Zwei", "source": "Two"}\n')
    expected = [("One", "Eins"), ("Two", "Zwei")]
    for files in (("a.en", "a.de.gz"), ("a.tsv", None), ("a.jsonl", None)):
        paths = [str(tmp_path / name) if name else "" for name in files]
        config = DataConfig(source="parallel", path=paths[0], target_path=paths[1])
        assert load_split(config, "train") == expected
    config = DataConfig(source="parallel", path=str(tmp_path / "a.tsv"), lowercase=True)
    assert load_split(config, "train") == [("one", "eins"), ("two", "zwei")]


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.en": "One\nTwo\n", "a.de": "Eins\n"}, "a.en has 2 lines and .*a.de has 1"),
        ({"a.en": "One\n \n", "a.de": "Eins\nZwei\n"}, "a.en, line 2: is empty"),
        ({"a.en": "One\nTwo\n", "a.de": b"Eins\nZw\xffi\n"}, "a.de.* is not UTF-8: byte 0xff"),
        ({"a.tsv": "One\tEins\nTwo\n"}, "a.tsv, line 2: must be two texts with a tab"),
        ({"a.tsv": "One\tEins\tUn\n"}, "a.tsv, line 1"),
        ({"a.jsonl": '{"source": "One"}\n'}, "a.jsonl, line 1: must be an object"),
        ({"a.en": "One\n"}, "needs a file of targets"),
    ],
)
def test_a_broken_file_of_pairs_is_reported_with_file_and_line(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    path, target_path = [str(tmp_path / name) for name in files] + [""] * (2 - len(files))
    with pytest.raises(tj.UserError, match=message) as error:
        load_split(DataConfig(source="parallel", path=path, target_path=target_path), "train")
    assert len(str(error.value).splitlines()) == 1


def test_generated_pairs_follow_their_rule_and_splits_share_no_pair():
    for source, rule in (("copy", str), ("reverse", lambda w: w[::-1]), ("sort", lambda w: "".join(sorted(w)))):
        splits = [load_split(DataConfig(source=source), split) for split in ("train", "val", "test")]
        assert all(rule(a) == b for split in splits for a, b in split)
        assert sum(map(len, splits)) == len({a for split in splits for a, _ in split}) == 21_000


def test_each_date_has_one_translation_and_stands_in_one_split_only(monkeypatch):
    splits = [load_split(DataConfig(source="dates"), split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [60_000, 1_000, 1_000]
    assert len({source for split in splits for source, _ in split}) == 62_000
    assert any("März" in target for _, target in splits[1])
    monkeypatch.setitem(dates.SIZES, "train", 0)  # validation pairs come first, and stay the same
    french = load_split(DataConfig(source="dates", target_language="fr"), "val")
    assert any("mars" in target for _, target in french)
    with pytest.raises(tj.UserError, match="data.target_language='xx'"):
        load_split(DataConfig(source="dates", target_language="xx"), "val")


# The loss


def test_the_smoothed_loss_is_the_cross_entropy_with_a_mixed_target():
    logits, targets = RNG.normal(size=(2, 5, 7)).astype(np.float32), RNG.integers(0, 7, (2, 5))
    mixed = 0.8 * np.eye(7)[targets] + 0.2 / 7
    expected = -np.sum(mixed * np.asarray(jax.nn.log_softmax(logits)), axis=-1)
    for max_logits in (0, 14):
        close(cross_entropy(lambda x: x, jnp.array(logits), jnp.array(targets), max_logits, smoothing=0.2), expected)


def test_padding_never_counts_and_only_the_training_loss_is_smoothed():
    config = tj.TransformerConfig(vocab_size=11, max_len=9, num_layers=1, d_model=10, num_heads=2)
    model = Seq2Seq(Seq2SeqConfig(config, config))
    params = {"params": random_like(parameter_shapes(model))}
    tokens = {"source": RNG.integers(3, 11, (3, 5)), "target": RNG.integers(3, 11, (3, 7))}
    lengths = {"source": [5, 2, 0], "target": [7, 3, 0]}
    masks = {f"{side}_is_token": np.arange(tokens[side].shape[1]) < np.array(lengths[side])[:, None] for side in tokens}

    def apply(*args, **kwargs):
        return model.apply(params, *args, **kwargs)

    @functools.partial(jax.jit, static_argnames=("deterministic", "label_smoothing"))
    def loss_of(batch, **options):
        return seq2seq(apply, batch, **options)

    loss, weight, _ = loss_of(tokens | masks)
    assert weight == 6 + 2 + 0
    noise = {side: np.where(masks[f"{side}_is_token"], x, (x + 1) % 11) for side, x in tokens.items()}
    np.testing.assert_allclose(loss_of(noise | masks)[0], loss, rtol=1e-6)
    np.testing.assert_allclose(loss_of(tokens | masks, label_smoothing=0.3)[0], loss, rtol=1e-6)
    smoothed = loss_of(tokens | masks, deterministic=False, label_smoothing=0.3)[0]
    assert abs(smoothed - loss) > 1e-3


# Training, translating, scoring


def test_a_resumed_run_has_the_same_bits(trained, tmp_path):
    workdir, folder = trained
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert tj.load(tmp_path / "run").step == 3
    again = train(config_of(folder, model__dropout_rate=0.1), tmp_path / "run")
    assert tj.load(again).step == 6
    jax.tree.map(np.testing.assert_array_equal, tj.load(again).params, tj.load(workdir).params)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_translations_keep_their_order_and_do_not_depend_on_the_batch(trained, num_beams):
    run = tj.load(trained[0])
    texts = ["ab cd efg hi", "q", "mnop", "rs rs ab", "cd q"]
    together = tj.translate(run, texts, num_beams=num_beams, batch_size=2, max_new_tokens=9)
    for text, translation in zip(texts, together, strict=True):
        assert tj.translate(run, [text], num_beams=num_beams, batch_size=2, max_new_tokens=9) == [translation]
    assert tj.translate(run, []) == []
    if num_beams == 1:
        assert together[1] == tj.generate(run, "q", max_new_tokens=9, method="greedy")


def test_averaging_checkpoints_averages_their_parameters(trained):
    mean = tj.load(trained[0], average=2)
    parts = [tj.load(trained[0], step).params for step in (3, 6)]
    jax.tree.map(lambda m, a, b: np.testing.assert_allclose(m, (a + b) / 2, rtol=1e-6), mean.params, *parts)
    with pytest.raises(tj.UserError, match="average=5: there are only 2 checkpoints"):
        tj.load(trained[0], average=5)


def test_evaluate_saves_scores_hypotheses_and_references(trained):
    done = command("evaluate", f"--run_dir={trained[0]}", "--split=test", "--num_beams=2")
    assert done.returncode == 0, done.stderr
    folder = trained[0] / "evaluation" / "test"
    said, saved = json.loads(done.stdout), json.loads((folder / "scores.json").read_text())
    assert said == saved and saved["num_beams"] == 2 and "tok:13a" in saved["bleu_signature"]
    hypotheses, references = ((folder / f"{n}.txt").read_text().splitlines() for n in ("hypotheses", "references"))
    assert len(hypotheses) == 13 and references == (trained[1] / "test.de").read_text().splitlines()
    assert abs(BLEU().corpus_score(hypotheses, [references]).score - saved["bleu"]) < 0.01
    helped = command("evaluate", "--help")
    assert helped.returncode == 0 and all(f"--{name}" in helped.stdout for name in ("run_dir", "split", "average"))
    missing = command("evaluate", f"--run_dir={trained[0]}", "--split=nothing")
    assert missing.returncode == 2 and len(missing.stderr.strip().splitlines()) == 1


def test_translate_keeps_lines_when_tuning_restarts_the_process(trained):
    words = ("-m", "transformer_jax", "translate", f"--run_dir={trained[0]}", "--num_beams=1")
    done = process(*words, stdin="ab cd\n\nq\n", TRANSFORMER_JAX_TUNING="on")
    assert done.returncode == 0, done.stderr
    expected = tj.translate(tj.load(trained[0], "best"), ["ab cd", "q"], num_beams=1)
    assert done.stdout == f"{expected[0]}\n\n{expected[1]}\n"


def test_a_decoder_only_model_does_not_translate():
    run = tj.from_pretrained(ROOT / "tests" / "fixtures" / "gpt2")
    with pytest.raises(tj.UserError, match="a GPT does not translate"):
        tj.translate(run, ["the cat"])
