"""Masked tokens, corrupted spans, tagged words, and every recipe for twenty steps."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import transformer_jax as tj
from train.config import Config, DataConfig
from train.data import dates, languages, python_tokens
from train.data.corruption import corrupt_spans, mask_tokens, num_masked
from train.data.tagged import encode_sentence, read_tagged
from train.loop import run as train
from train.tasks.scoring import Options, score
from transformer_jax.tokenizers import train_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
RECIPES = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("[a-z]*.py")
    if path.stem not in ("default", "chat_sft", "scaling_char")  # tests/test_chat_training.py, tests/test_scaling.py
)


def seeded(seed=0):
    return np.random.default_rng(seed)


# Masked tokens and corrupted spans


def test_of_the_chosen_tokens_eight_in_ten_are_masked_one_is_random_and_one_stays():
    tokens = seeded(1).integers(3, 50, (97, 211))
    masked, is_chosen = mask_tokens(tokens, seeded(2), 0.15, mask_id=50, vocab_size=50)
    assert abs(is_chosen.mean() - 0.15) < 0.01
    assert np.array_equal(masked[~is_chosen], tokens[~is_chosen])
    is_mask = masked[is_chosen] == 50
    is_same = masked[is_chosen] == tokens[is_chosen]
    assert abs(is_mask.mean() - 0.8) < 0.02 and abs(is_same.mean() - 0.1 - 0.1 / 50) < 0.02
    with_another_seed, _ = mask_tokens(tokens, seeded(3), 0.15, 50, 50)
    assert np.any(with_another_seed != masked)


@pytest.mark.parametrize("length, fraction, mean_span", [(31, 0.15, 3.0), (7, 0.5, 1.0), (5, 0.15, 3.0), (2, 0.9, 9.0)])
def test_target_spans_put_into_the_source_give_the_text(length, fraction, mean_span):
    tokens = seeded(1).integers(3, 50, (17, length))
    source, target = corrupt_spans(tokens, seeded(2), fraction, mean_span, 50, (1, 2))
    num_tokens, num_spans = num_masked(length, fraction, mean_span)
    assert source.shape == (17, length - num_tokens + num_spans + 1)
    assert target.shape == (17, num_tokens + num_spans + 2)
    for source_row, target_row, expected in zip(source, target, tokens, strict=True):
        assert source_row[-1] == target_row[-1] == 2 and target_row[0] == 1
        spans: dict[int, list] = {}
        for token in target_row[1:-1]:
            if token >= 50:
                spans[int(token)] = span = []
            else:
                span.append(token)
        assert list(spans) == list(range(50, 50 + num_spans)) and all(spans.values())
        text = [piece for token in source_row[:-1] for piece in (spans[int(token)] if token >= 50 else [token])]
        np.testing.assert_array_equal(text, expected)


# Tags

CONLLU = """# text = The dogs don't run
1\tThe\tthe\tDET\tDT\t_\t2\tdet\t_\t_
2\tdogs\tdog\tNOUN\tNNS\t_\t4\tnsubj\t_\t_
3-4\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
3\tdo\tdo\tAUX\tVBP\t_\t5\taux\t_\t_
4\tn't\tnot\tPART\tRB\t_\t5\tadvmod\t_\t_
4.1\tmaybe\t_\tX\t_\t_\t_\t_\t_\t_
5\trun\trun\tVERB\tVB\t_\t0\troot\t_\t_

1\tStop\tstop\tVERB\tVB\t_\t0\troot\t_\t_
"""
CONLL = "-DOCSTART- O\n\nAnna B-person\nlives O\nin O\nNew B-place\nYork I-place\n\n\nBob\tB-person\n"


def test_words_and_tags_are_read_from_both_formats(tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU)
    (tmp_path / "a.conll").write_text(CONLL)
    first, second = read_tagged(str(tmp_path / "a.conllu"), DataConfig())
    assert first.words == ["The", "dogs", "do", "n't", "run"] and first.tags == ["DET", "NOUN", "AUX", "PART", "VERB"]
    assert second.words == ["Stop"] and second.where.endswith("a.conllu, line 10")
    xpos = read_tagged(str(tmp_path / "a.conllu"), DataConfig(label_field="xpos"))
    assert xpos[0].tags == ["DT", "NNS", "VBP", "RB", "VB"]
    sentences = read_tagged(str(tmp_path / "a.conll"), DataConfig())
    assert [s.words for s in sentences] == [["Anna", "lives", "in", "New", "York"], ["Bob"]]
    assert sentences[0].tags == ["B-person", "O", "O", "B-place", "I-place"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.conllu", "1\tThe\tthe\n", "a.conllu, line 1: has 3 columns, and needs 10"),
        ("a.conll", "Anna B-person\nlives\n", "a.conll, line 2: has 1 columns, and needs 2"),
        ("a.conll", "\n\n", "there is no sentence"),
    ],
)
def test_a_line_with_too_few_columns_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(tj.UserError, match=message):
        read_tagged(str(tmp_path / name), DataConfig())


def test_the_tag_of_a_word_is_at_its_first_token(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    sentence = read_tagged(str(tmp_path / "a.conll"), DataConfig())[0]
    index = {"O": 0, "B-person": 1, "B-place": 2, "I-place": 3}
    for tokenizer in (train_tokenizer("byte", 0, ""), tj.from_pretrained(FIXTURES / "bert").tokenizer):
        tokens, tag, is_tagged = encode_sentence(tokenizer, sentence, index)
        assert tag[is_tagged].tolist() == [1, 0, 0, 2, 3]
        first, last = tokenizer.ends
        assert tokens[: len(first)].tolist() == first.tolist() and tokens[-len(last) :].tolist() == last.tolist()
        starts = np.flatnonzero(is_tagged)
        pieces = np.split(tokens[: len(tokens) - len(last)], starts)[1:]
        assert [tokenizer.decode(piece).strip().lower() for piece in pieces] == [
            tokenizer.decode(tokenizer.encode_piece(f" {word}")).strip().lower() for word in sentence.words
        ]


# Recipes


def tiny(recipe, tmp_path):
    """A recipe on tiny data: twenty steps of a narrow model; all other fields as in the recipe."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.train.num_steps = config.train.eval_every = config.checkpoint.save_every = 20
    config.train.log_every = 10
    config.train.tensorboard = False
    if config.train.batch_tokens:
        config.train.batch_tokens = 128
    else:
        config.train.batch_size = 4
    if not config.train.init_from:
        config.model.num_layers, config.model.d_model, config.model.num_heads, config.model.d_ff = 1, 16, 2, 24
        config.model.max_len = min(config.model.max_len, 48)
    task = config.train.task
    if task in ("classify", "tag", "seq2seq"):
        config.train.num_buckets = 1  # each is compiled; test_translate.py trains with more
    words = "the quick brown fox jumps over a lazy dog while old cats sleep".split()
    random = seeded(4)
    lines = [" ".join(random.choice(words, 5)) for _ in range(60)]
    if task in ("causal_lm", "masked_lm", "spans"):
        if config.data.source in ("text", "python_docs", "python_source"):
            config.data.source = "text"
            write(tmp_path / "a.txt", "\n".join(lines * 20))
            config.data.path = str(tmp_path / "a.txt")
            config.data.documents = config.data.documents and "lines"
    elif task == "classify" and config.data.source != "languages":
        write(tmp_path / "a.tsv", "".join(f"{line}\t{i % 2}\n" for i, line in enumerate(lines)))
        config.data.path = str(tmp_path / "a.tsv")
        config.data.val_path = ""
    elif task == "tag" and config.data.source != "python_tokens":
        write(
            tmp_path / "a.conll",
            "\n\n".join("\n".join(f"{w} {'B-x' if w > 'k' else 'O'}" for w in line.split()) for line in lines),
        )
        config.data.path = config.data.val_path = str(tmp_path / "a.conll")
        config.data.label_field = ""
    elif config.data.source in ("parallel", "tfds"):
        config.data.source = "parallel"
        for side in ("path", "val_path", "target_path", "val_target_path"):
            write(tmp_path / side, "".join(f"{line}\n" for line in lines))
            config.data[side] = str(tmp_path / side)
    if config.tokenizer.kind == "bpe":
        config.tokenizer.vocab_size = 300
    if config.train.init_from:
        config.train.init_from = str(FIXTURES / ("bert" if task == "classify" else "gpt2"))
    return config


# One recipe for each way to score: of each task, and of running text with and without an entropy floor or documents.
SCORED = {
    "shakespeare_char": "causal_lm",
    "markov_floor": "causal_lm",
    "gpt_bpe_python_source": "causal_lm",
    "bert_mlm_python_docs": "masked_lm",
    "t5_spans": "spans",
    "sst2": "classify",
    "wnut17_ner": "tag",
    "dates_en_de": "seq2seq",
}


def test_a_recipe_of_every_task_is_scored():
    tasks = {recipe: importlib.import_module(f"configs.{recipe}").get_config().train.task for recipe in RECIPES}
    assert {recipe: tasks[recipe] for recipe in SCORED} == SCORED
    assert set(SCORED.values()) == set(tasks.values())


def write(path, text):
    path.write_text(text)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_twenty_steps_with_finite_losses(recipe, tmp_path, monkeypatch):
    few, names = {"train": 200, "val": 40, "test": 40}, languages._names()[:400]
    monkeypatch.setattr(dates, "SIZES", few)
    monkeypatch.setattr(python_tokens, "SIZES", few)
    monkeypatch.setattr(languages, "_names", lambda: names)
    config = tiny(recipe, tmp_path)
    workdir = train(config, tmp_path / "run")
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["split"] == "train"] == [10, 20]
    losses = {event["split"]: event["loss"] for event in events}
    assert losses.keys() == {"train", "val"} and all(np.isfinite(loss) for loss in losses.values())
    if recipe not in SCORED:
        return
    run = tj.load(workdir)
    values = score(run, Config.from_dict(config), "val", Options(num_beams=1)).values
    if "loss" in values:
        np.testing.assert_allclose(values["loss"], losses["val"], rtol=1e-5)
    assert all(np.isfinite(value) for value in values.values() if isinstance(value, float))
