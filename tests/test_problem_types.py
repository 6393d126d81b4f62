"""Problem type of a classification head, from config.json to its answers: softmax, sigmoids, or numbers."""

import json

import numpy as np
import pytest
from helpers.commands import command
from helpers.heads import FIXTURES, HEADS, IDENTITY, MULTI, SIGMOID, SINGLE, head

import transformer_jax as tj

REFERENCE = json.loads((FIXTURES / "heads.json").read_text())


@pytest.mark.parametrize(
    "num_labels, config, problem_type",
    [
        (3, {}, SINGLE),
        (3, {"problem_type": None}, SINGLE),
        (3, {"problem_type": MULTI}, MULTI),
        (2, {"problem_type": "regression"}, "regression"),
        (1, {"problem_type": "regression"}, "regression"),
        (1, {"problem_type": "regression", "sentence_transformers": {"activation_fn": SIGMOID}}, "regression"),
        (1, {"problem_type": MULTI}, MULTI),
        (1, {}, MULTI),  # as in the pipeline of transformers, and in a cross-encoder
        (1, {"sentence_transformers": {"activation_fn": SIGMOID, "version": "5.1.0"}}, MULTI),
        (1, {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.1.0"}}, "regression"),
        (1, {"sbert_ce_default_activation_function": IDENTITY}, "regression"),
    ],
)
def test_the_problem_type_of_config_json_is_read_and_travels_with_the_run(tmp_path, num_labels, config, problem_type):
    run = tj.from_pretrained(head(tmp_path / "folder", num_labels, config))
    assert run.problem_type == problem_type
    tj.save(run, tmp_path / "run")
    assert tj.load(tmp_path / "run").problem_type == problem_type == tj.read_meta(tmp_path / "run").problem_type


def test_only_a_classification_head_has_a_problem_type():
    assert (
        tj.from_pretrained(FIXTURES / "bert").problem_type == tj.from_pretrained(FIXTURES / "gpt2").problem_type == ""
    )
    run = tj.from_pretrained(FIXTURES / "gpt2")
    with pytest.raises(tj.UserError, match="problem_type='regression': a GPT has none. Remove it."):
        tj.Run(run.model, run.params, run.tokenizer, run.config, problem_type="regression")


@pytest.mark.parametrize(
    "num_labels, config, message",
    [
        (
            3,
            {"problem_type": "multi_label"},
            r"config.json: problem_type='multi_label': unknown. Choose one of: single",
        ),
        (3, {"problem_type": ["regression"]}, r"config.json: problem_type=\['regression'\]: unknown. Choose one of"),
        (3, {"problem_type": ""}, r"config.json: problem_type='': unknown"),
        (1, {"problem_type": SINGLE}, r"config.json: problem_type='single_label_classification': needs two labels"),
        (1, {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, r"activation_fn='Tanh': unknown. Choose"),
    ],
)
def test_a_problem_type_that_is_unknown_or_contradicts_the_labels_is_refused(tmp_path, num_labels, config, message):
    with pytest.raises(tj.UserError, match=message):
        tj.from_pretrained(head(tmp_path / "folder", num_labels, config))


def scores_of(answer):
    """Scores of all labels of an answer, in their order."""
    return getattr(answer, "probabilities", answer)


@pytest.mark.parametrize("name", HEADS)
def test_answers_have_the_scores_that_transformers_gives(tmp_path, name):
    run = tj.from_pretrained(head(tmp_path / "folder", *HEADS[name]))
    texts, expected = REFERENCE["texts"], np.array(REFERENCE["scores"][name])
    answers = tj.classify(run, texts, batch_size=3)
    found = np.array([np.atleast_1d(scores_of(answer)) for answer in answers])
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    tj.save(run, tmp_path / "run")
    again = tj.classify(tj.load(tmp_path / "run"), texts, batch_size=3)
    assert list(map(str, again)) == list(map(str, answers))
    if expected.shape[1] == 1:  # a number or a probability, without a name
        assert all(isinstance(answer, float) for answer in answers)
    elif run.problem_type == "regression":
        assert all(isinstance(answer, list) for answer in answers)


def test_a_text_has_every_label_above_one_half(tmp_path):
    run = tj.from_pretrained(head(tmp_path / "folder", *HEADS["multi"]))
    answers = tj.classify(run, REFERENCE["texts"])
    for answer, scores in zip(answers, REFERENCE["scores"]["multi"], strict=True):
        expected = {name: p for name, p in zip(run.labels, scores, strict=True) if p > 0.5}
        assert list(answer.labels) == list(expected) and answer.labels == pytest.approx(expected, abs=1e-5)
    assert list(answers[3].labels) == ["neutral", "happy"]


@pytest.mark.parametrize("name", ["multi", "score", "regression of two"])
def test_the_command_prints_the_answer_of_each_head(tmp_path, name):
    folder = head(tmp_path / "folder", *HEADS[name])
    done = command("classify", f"--run_dir={folder}", stdin="\n".join(REFERENCE["texts"]) + "\n\n")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.split("\n")[:-1]
    assert last == "" and len(lines) == len(REFERENCE["texts"])
    for line, scores in zip(lines, REFERENCE["scores"][name], strict=True):
        if name == "multi":
            pairs = zip(["sad", "neutral", "happy"], scores, strict=True)
            assert line == "\t".join(f"{label}\t{p:.4f}" for label, p in pairs if p > 0.5)
        else:
            np.testing.assert_allclose([float(number) for number in line.split("\t")], scores, atol=2e-5)
