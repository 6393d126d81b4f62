"""T5 family table (Raffel et al. 2020); v1.1 has a gated feed-forward part and an untied output projection."""

from transformer_jax.huggingface.family import Architecture, Family, Field, SameAs


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
        Field("n_positions", _both("max_len"), 512),  # of the training; the model has no such limit
        Field("d_model", _both("d_model"), 512),
        Field("num_layers", "encoder.num_layers", 6),
        Field("num_decoder_layers", "decoder.num_layers", SameAs("num_layers", 6)),
        Field("num_heads", _both("num_heads"), 8),
        Field("d_kv", _both("head_dim"), 64),
        Field("d_ff", _both("d_ff"), 2048),
        Field(
            "feed_forward_proj",
            _both("feed_forward"),
            "relu",
            {
                "relu": "relu",
                "gelu": "gelu",
                "gated-gelu": "geglu_tanh",
                "gated-gelu_new": "geglu_tanh",
                "gated-silu": "swiglu",
                "silu": "silu",
            },
        ),
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
    required={},
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
    ),
)
