"""Problem type of a classification head, as config.json names or implies it."""

from transformer_jax.errors import choose
from transformer_jax.models import Model, SequenceClassifier, check_problem_type, default_problem_type

_ACTIVATIONS = {"Sigmoid": "multi_label_classification", "Identity": "regression"}  # of a head with one output


def read_problem_type(config: dict, model: Model) -> str:
    """Problem type of a config.json, for a model with a classification head.

    Without one, a head of one output is a cross-encoder of sentence-transformers, or what transformers' pipeline takes
    like one: its answer is the sigmoid, unless the config names the identity as activation.

    Raises:
      UserError: an unknown problem type or activation, or a problem type that contradicts the number of labels.
    """
    if not isinstance(model, SequenceClassifier):
        return ""
    value = config.get("problem_type")
    if value is not None:
        check_problem_type(model, value, "config.json: problem_type")
        return str(value)
    if model.num_classes > 1:
        return default_problem_type(model)
    nested = config.get("sentence_transformers")
    new = nested.get("activation_fn") if isinstance(nested, dict) else None
    activation = new or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    return choose(_ACTIVATIONS, str(activation).rsplit(".", 1)[-1], "config.json: sentence_transformers.activation_fn")
