"""Check of the answers of classification heads, and of the texts that they are asked about."""

import importlib
import types

import numpy as np


def answers():
    """Softmax, sigmoids above one half, or numbers, each under its own label; one string is one text."""
    predict, texts = (importlib.import_module(f"transformer_jax.inference.{name}") for name in ("predict", "texts"))
    logits = np.array([-1.0, 2.0, 0.5], np.float32)
    found = {}
    for kind, activation in predict.ACTIVATIONS.items():
        run = types.SimpleNamespace(problem_type=kind, labels=("a", "b", "c"))
        found[kind] = predict._answer(run, np.asarray(activation(logits[None]))[0])
    single, multi, numbers = found.values()
    e = np.exp(logits)
    assert single.label == "b" and np.allclose(single.probabilities, e / e.sum())
    assert list(multi.labels) == ["b", "c"] and np.allclose(multi.probabilities, e / (1 + e))
    assert np.allclose(list(multi.labels.values()), multi.probabilities[1:]) and numbers == logits.tolist()
    score = predict._answer(types.SimpleNamespace(problem_type="multi_label_classification", labels=()), logits[:1])
    assert score == -1.0
    assert texts.text_list("texts", "ab") == ["ab"] and texts.sentence_list("sentences", ["ab"]) == ["ab"]
