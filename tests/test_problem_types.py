"""Problem type of a classification head, from config.json to its answers: softmax, sigmoids, or numbers."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import transformer_jax as tj

FIXTURES = Path(__file__).parent / "fixtures"
SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"


def head(folder, num_labels, **config):
    """A copy of the classifier of tests/fixtures with its first labels only, and other fields in its config.json."""
    shutil.copytree(FIXTURES / "bert_classifier", folder)
    values = json.loads((folder / "config.json").read_text())
    names = [f"LABEL_{i}" for i in range(num_labels)] if num_labels == 1 else ["sad", "neutral", "happy"][:num_labels]
    values |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} | config
    (folder / "config.json").write_text(json.dumps(values))
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[name][:num_labels] for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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
    run = tj.from_pretrained(head(tmp_path / "folder", num_labels, **config))
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
        tj.from_pretrained(head(tmp_path / "folder", num_labels, **config))
