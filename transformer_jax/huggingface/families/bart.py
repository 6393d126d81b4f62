"""BART (Lewis et al. 2020) and Marian (Junczys-Dowmunt et al. 2018) family tables.

Both are the Transformer of 2017 with the same tensor names.
"""

from transformer_jax.huggingface.family import (
    ACTIVATIONS,
    BIASES,
    Architecture,
    Family,
    Field,
    SameAs,
    TensorNames,
    TensorPart,
)


def _both(name: str) -> tuple[str, str]:
    return f"encoder.{name}", f"decoder.{name}"


def _attention(side: str, module: str, hf_module: str) -> dict[str, str]:
    hf_path = f"model.{side}.layers.{{i}}.{hf_module}"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return {f"{side}/stack/block_{{i}}/{module}_norm": f"{hf_path}_layer_norm"} | {
        f"{side}/stack/block_{{i}}/{module}/{name}": f"{hf_path}.{hf_name}" for name, hf_name in names.items()
    }


def _side(side: str) -> dict[str, str]:
    return _attention(side, "attention", "self_attn") | {
        f"{side}/embed/tokens": f"model.{side}.embed_tokens",
        f"{side}/embed/positions": f"model.{side}.embed_positions",
        f"{side}/embed/norm": f"model.{side}.layernorm_embedding",
        f"{side}/stack/block_{{i}}/feed_forward/up": f"model.{side}.layers.{{i}}.fc1",
        f"{side}/stack/block_{{i}}/feed_forward/down": f"model.{side}.layers.{{i}}.fc2",
        f"{side}/stack/block_{{i}}/feed_forward_norm": f"model.{side}.layers.{{i}}.final_layer_norm",
    }


_NAMES: TensorNames = (
    _side("encoder")
    | _side("decoder")
    | _attention("decoder", "cross", "encoder_attn")
    | {
        "shared": "model.shared",
        "decoder/embed/unembed": "lm_head",
        "decoder/embed/logit_bias": TensorPart("final_logits_bias", "row"),
    }
)
_FIELDS = (
    Field("max_position_embeddings", _both("max_len"), 1024),
    Field("d_model", _both("d_model"), 1024),
    Field("encoder_layers", "encoder.num_layers", 12),
    Field("decoder_layers", "decoder.num_layers", 12),
    Field("encoder_attention_heads", "encoder.num_heads", 16),
    Field("decoder_attention_heads", "decoder.num_heads", 16),
    Field("encoder_ffn_dim", "encoder.d_ff", 4096),
    Field("decoder_ffn_dim", "decoder.d_ff", 4096),
    Field("activation_function", _both("feed_forward"), "gelu", ACTIVATIONS),
    Field("scale_embedding", _both("scale_embeddings"), False),
    Field("dropout", _both("dropout_rate"), 0.1),
    Field("tie_word_embeddings", "decoder.tie_embeddings", True),
)


def _fixed(**values) -> dict:
    values |= {"norm": "layernorm", "norm_epsilon": 1e-5, "norm_placement": "post"} | BIASES
    return {f"{side}.{name}": value for side in ("encoder", "decoder") for name, value in values.items()} | {
        "decoder.logit_bias": True
    }


_ALIASES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
_REQUIRED: dict[str, object] = {
    "is_encoder_decoder": True,
    # options of early versions
    "normalize_before": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
}
_IGNORED_FIELDS = (
    "attention_dropout",
    "is_decoder",  # set for each side
    "extra_pos_embeddings",  # always 2 in BART, unused in Marian
    "force_bos_token_to_be_generated",  # today forced_bos_token_id
)
_IGNORED = (
    r"^model\.(encoder|decoder)\.(embed_tokens\.weight|version)$",
    r"^model\.shared\.weight$",
    r"^lm_head\.weight$",
    r"^(classification_head|qa_outputs)\.",  # heads of other models
)
_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_SAME = (("model.shared.weight", *_TABLES, "lm_head.weight"),)
_RENAMED = ((r"^(encoder|decoder|shared)\.", r"model.\1."),)

BART = Family(
    model_type="bart",
    architectures={"BartForConditionalGeneration": Architecture("seq2seq"), "BartModel": Architecture("seq2seq")},
    fields=(
        Field("vocab_size", _both("vocab_size"), 50265),
        Field("share_embeddings", "share_embeddings", True),
        *_FIELDS,
    ),
    fixed=_fixed(positions="learned", position_offset=2, embed_norm=True),
    required=_REQUIRED | {"normalize_embedding": True, "static_position_embeddings": False},
    aliases=_ALIASES,
    ignored_fields=_IGNORED_FIELDS,
    token_ids={"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    | {"forced_eos_token_id": 2},
    tensor_names=_NAMES,
    output_projection=("lm_head.weight", "model.shared.weight"),
    renamed=_RENAMED,
    ignored=_IGNORED,
    optional=("final_logits_bias",),
    copies=(("model.shared.weight", "model.encoder.embed_tokens.weight"),),
    same_storage=_SAME,
    embedding_tables=_TABLES,
)

MARIAN = Family(
    model_type="marian",
    architectures={"MarianMTModel": Architecture("seq2seq"), "MarianModel": Architecture("seq2seq")},
    fields=(
        Field("vocab_size", "encoder.vocab_size", 58101),
        Field("decoder_vocab_size", "decoder.vocab_size", SameAs("vocab_size", 58101)),
        Field("share_encoder_decoder_embeddings", "share_embeddings", True),
        *_FIELDS,
    ),
    fixed=_fixed(positions="sinusoidal", sinusoid_layout="halves", embed_norm=False),
    required=_REQUIRED | {"normalize_embedding": False, "static_position_embeddings": True},
    aliases=_ALIASES,
    ignored_fields=_IGNORED_FIELDS,
    token_ids={"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100, "forced_eos_token_id": 0},
    tensor_names=_NAMES,
    output_projection=("lm_head.weight", "model.shared.weight", "model.decoder.embed_tokens.weight"),
    renamed=_RENAMED,
    ignored=(*_IGNORED, r"^model\.(encoder|decoder)\.embed_positions\.weight$"),
    optional=("final_logits_bias",),
    same_storage=_SAME,
    embedding_tables=_TABLES,
)
