"""T5 family table (Raffel et al. 2020); v1.1 has a gated feed-forward part and an untied output projection."""

from transformer_jax.config import NO_LIMIT
from transformer_jax.huggingface.family import ACTIVATIONS, GATED_ACTIVATIONS, Architecture, Family, Field, SameAs

_FEED_FORWARDS = ACTIVATIONS | {f"gated-{name}": ours for name, ours in GATED_ACTIVATIONS.items()}
_FEED_FORWARDS |= {"gated-gelu": "geglu_tanh"}  # an early name of gelu_new


def _activation(hf_config: dict) -> str:
    name = hf_config.get("feed_forward_proj") or "relu"
    return "gelu_new" if name == "gated-gelu" else str(name).rsplit("-", 1)[-1]


def _is_gated(hf_config: dict) -> bool:
    return str(hf_config.get("feed_forward_proj") or "").startswith("gated-")


def _both(name: str) -> tuple[str, str]:
    return f"encoder.{name}", f"decoder.{name}"


def _attention(side: str, module: str, hf_module: str, layer: int) -> dict[str, str]:
    hf_layer = f"{side}.block.{{i}}.layer.{layer}"
    return {f"{side}/stack/block_{{i}}/{module}_norm": f"{hf_layer}.layer_norm"} | {
        f"{side}/stack/block_{{i}}/{module}/{name}": f"{hf_layer}.{hf_module}.{name[0]}"
        for name in ("query", "key", "value", "out")
    }


def _side(side: str, feed_forward: int) -> dict[str, str]:
    module = f"{side}.block.{{i}}.layer.{feed_forward}"
    return _attention(side, "attention", "SelfAttention", 0) | {
        f"{side}/stack/position_bias/embedding": (
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        f"{side}/stack/block_{{i}}/feed_forward_norm": f"{module}.layer_norm",
        f"{side}/stack/block_{{i}}/feed_forward/up": f"{module}.DenseReluDense.wi",
        f"{side}/stack/block_{{i}}/feed_forward/down": f"{module}.DenseReluDense.wo",
        f"{side}/stack/norm": f"{side}.final_layer_norm",
    }


def _gated(side: str, feed_forward: int) -> dict[str, str]:
    module = f"{side}.block.{{i}}.layer.{feed_forward}.DenseReluDense"
    return {
        f"{side}/stack/block_{{i}}/feed_forward/gate": f"{module}.wi_0",
        f"{side}/stack/block_{{i}}/feed_forward/up": f"{module}.wi_1",
    }


T5 = Family(
    model_type="t5",
    architectures={"T5ForConditionalGeneration": Architecture("seq2seq"), "T5Model": Architecture("seq2seq")},
    fields=(
        Field("vocab_size", _both("vocab_size"), 32128),
        Field((), _both("max_len"), NO_LIMIT),  # relative positions go on
        Field("d_model", _both("d_model"), 512),
        Field("num_layers", "encoder.num_layers", 6),
        Field("num_decoder_layers", "decoder.num_layers", SameAs("num_layers", 6)),
        Field("num_heads", _both("num_heads"), 8),
        Field("d_kv", _both("head_dim"), 64),
        Field("d_ff", _both("d_ff"), 2048),
        Field("feed_forward_proj", _both("feed_forward"), "relu", _FEED_FORWARDS),
        Field("relative_attention_num_buckets", _both("relative_buckets"), 32),
        Field("relative_attention_max_distance", _both("relative_max_distance"), 128),
        Field("layer_norm_epsilon", _both("norm_epsilon"), 1e-6),
        Field("dropout_rate", _both("dropout_rate"), 0.1),
        Field("tie_word_embeddings", "decoder.tie_embeddings", True),
        # Before transformers 5 one field set both: logits are scaled if the embeddings are tied.
        Field(("scale_decoder_outputs", "tie_word_embeddings"), "decoder.scale_logits", True),
    ),
    fixed={
        f"{side}.{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "norm": "rmsnorm",
            "positions": "t5",
            "norm_placement": "pre",
            "qkv_bias": False,
            "out_bias": False,
            "mlp_bias": False,
            "attention_scale": 1.0,
        }.items()
    }
    | {"share_embeddings": True},
    required={"is_encoder_decoder": True, "dense_act_fn": _activation, "is_gated_act": _is_gated},
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    ignored_fields=(
        "n_positions",  # of the training
        "max_position_embeddings",
        "is_decoder",  # set for each side
    ),
    token_ids={"pad_token_id": 0, "eos_token_id": 1},
    tensor_names=_side("encoder", 1)
    | _side("decoder", 2)
    | _attention("decoder", "cross", "EncDecAttention", 1)
    | {"shared": "shared", "decoder/embed/unembed": "lm_head"},
    gated_names=_gated("encoder", 1) | _gated("decoder", 2),
    output_projection=("lm_head.weight", "shared.weight"),
    ignored=(
        r"^(encoder|decoder)\.embed_tokens\.weight$",
        r"^lm_head\.weight$",
        r"EncDecAttention\.relative_attention_bias\.weight$",
        r"^(classification_head|classifier|qa_outputs)\.",  # heads of other models
    ),
    same_storage=(("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),),
)
