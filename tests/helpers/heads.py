"""Folders of classifiers with other heads than that of tests/fixtures: fewer labels, another problem type."""

import json
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"
HEADS = {  # name: number of labels, changes of config.json
    "single": (3, {"problem_type": SINGLE}),
    "multi": (3, {"problem_type": MULTI}),
    "regression": (1, {"problem_type": "regression"}),
    "regression of two": (2, {"problem_type": "regression"}),
    "score": (1, {}),  # a cross-encoder as sentence-transformers saves it
    "one of multi": (1, {"problem_type": MULTI}),
}


def head(folder, num_labels, config):
    """A copy of the classifier of tests/fixtures with its first labels only, and other fields in its config.json."""
    shutil.copytree(FIXTURES / "bert_classifier", folder)
    values = json.loads((folder / "config.json").read_text())
    names = ["LABEL_0"] if num_labels == 1 else ["sad", "neutral", "happy"][:num_labels]
    values |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} | config
    (folder / "config.json").write_text(json.dumps(values))
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: tensors[name][:num_labels] for name in ("classifier.weight", "classifier.bias")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
