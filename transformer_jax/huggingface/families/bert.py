"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019) family tables: one body, heads with different names."""

from transformer_jax.huggingface.family import ACTIVATIONS, BIASES, Architecture, Family, Field

_LAYER = "encoder.layer.{i}"
_BODY = {
    "embed/tokens": "embeddings.word_embeddings",
    "embed/positions": "embeddings.position_embeddings",
    "embed/types": "embeddings.token_type_embeddings",
    "embed/norm": "embeddings.LayerNorm",
    "stack/block_{i}/attention/query": f"{_LAYER}.attention.self.query",
    "stack/block_{i}/attention/key": f"{_LAYER}.attention.self.key",
    "stack/block_{i}/attention/value": f"{_LAYER}.attention.self.value",
    "stack/block_{i}/attention/out": f"{_LAYER}.attention.output.dense",
    "stack/block_{i}/attention_norm": f"{_LAYER}.attention.output.LayerNorm",
    "stack/block_{i}/feed_forward/up": f"{_LAYER}.intermediate.dense",
    "stack/block_{i}/feed_forward/down": f"{_LAYER}.output.dense",
    "stack/block_{i}/feed_forward_norm": f"{_LAYER}.output.LayerNorm",
}
_FIELDS = (
    Field("hidden_size", "d_model", 768),
    Field("num_hidden_layers", "num_layers", 12),
    Field("num_attention_heads", "num_heads", 12),
    Field("intermediate_size", "d_ff", 3072),
    Field("layer_norm_eps", "norm_epsilon", 1e-12),
    Field("type_vocab_size", "num_token_types", 2),
    Field("hidden_dropout_prob", "dropout_rate", 0.1),
    Field("tie_word_embeddings", "tie_embeddings", True),
)
_FIXED = {"norm": "layernorm", "positions": "learned", "norm_placement": "post", "embed_norm": True} | BIASES
_REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}
_IGNORED_FIELDS = (
    "attention_probs_dropout_prob",
    # of the pooler in the first published files
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)


def _body(prefix: str) -> dict[str, str]:
    """The names of the body, with "encoder/" in models that have a head on it, and without in the encoder itself."""
    names = {path: f"{prefix}.{module}" for path, module in _BODY.items()}
    return names | {f"encoder/{path}": module for path, module in names.items()}


_MASKED_LM = Architecture(
    "masked_lm",
    {
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
        "encoder/embed/unembed": "cls.predictions.decoder",
    },
    untied_names={"bias": "cls.predictions.decoder.bias"},
)

BERT = Family(
    model_type="bert",
    architectures={
        "BertForMaskedLM": _MASKED_LM,
        "BertForPreTraining": _MASKED_LM,
        "BertForSequenceClassification": Architecture(
            "classifier", {"dense": "bert.pooler.dense", "out": "classifier"}, "num_classes"
        ),
        "BertForTokenClassification": Architecture("tagger", {"out": "classifier"}, "num_tags"),
        "BertModel": Architecture("encoder"),
    },
    fields=(
        Field("vocab_size", "vocab_size", 30522),
        Field("max_position_embeddings", "max_len", 512),
        Field("hidden_act", "feed_forward", "gelu", ACTIVATIONS),
        *_FIELDS,
    ),
    fixed=_FIXED | {"position_offset": 0},
    required=_REQUIRED,
    ignored_fields=_IGNORED_FIELDS,
    token_ids={"pad_token_id": 0},
    tensor_names=_body("bert"),
    output_projection=("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    renamed=(
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
        (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
    ),
    ignored=(
        r"^bert\.embeddings\.position_ids$",
        r"^bert\.pooler\.",
        r"^(cls|classifier|qa_outputs)\.",  # heads of other models, and copies
    ),
    same_storage=(
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ),
    copies=(("cls.predictions.bias", "cls.predictions.decoder.bias"),),
)

ROBERTA = Family(
    model_type="roberta",
    architectures={
        "RobertaForMaskedLM": Architecture(
            "masked_lm",
            {
                "transform": "lm_head.dense",
                "norm": "lm_head.layer_norm",
                "bias": "lm_head.bias",
                "encoder/embed/unembed": "lm_head.decoder",
            },
            untied_names={"bias": "lm_head.decoder.bias"},
        ),
        "RobertaForSequenceClassification": Architecture(
            "classifier", {"dense": "classifier.dense", "out": "classifier.out_proj"}, "num_classes"
        ),
        "RobertaForTokenClassification": Architecture("tagger", {"out": "classifier"}, "num_tags"),
        "RobertaModel": Architecture("encoder"),
    },
    fields=(
        Field("vocab_size", "vocab_size", 50265),
        Field("max_position_embeddings", "max_len", 514, offset=-2),  # two rows precede the first position
        Field("hidden_act", "feed_forward", "gelu", {"gelu": "gelu", "gelu_python": "gelu"}),  # as its output head has
        *_FIELDS,
    ),
    fixed=_FIXED | {"position_offset": 2},
    required=_REQUIRED | {"pad_token_id": 1},  # positions start after the padding id
    ignored_fields=_IGNORED_FIELDS,
    token_ids={"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    tensor_names=_body("roberta"),
    output_projection=("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    renamed=((r"^(embeddings|encoder|pooler)\.", r"roberta.\1."),),
    ignored=(
        r"^roberta\.embeddings\.position_ids$",
        r"^roberta\.pooler\.",
        r"^(lm_head|classifier|qa_outputs)\.",  # heads of other models, and copies
    ),
    same_storage=(
        ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
        ("lm_head.bias", "lm_head.decoder.bias"),
    ),
    copies=(("lm_head.bias", "lm_head.decoder.bias"),),
)
