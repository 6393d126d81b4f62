"""GPT-2 family table (Radford et al. 2019). Its linear layers are "Conv1D", with kernels [in, out]."""

from transformer_jax.huggingface.family import ACTIVATIONS, BIASES, Architecture, Family, Field, TensorPart


def _conv(name: str, part: int = 0, num_parts: int = 1) -> TensorPart:
    return TensorPart(f"transformer.h.{{i}}.{name}", "in_out", part, num_parts)


GPT2 = Family(
    model_type="gpt2",
    architectures={"GPT2LMHeadModel": Architecture("gpt"), "GPT2Model": Architecture("gpt")},
    fields=(
        Field("vocab_size", "vocab_size", 50257),
        Field("n_positions", "max_len", 1024),
        Field("n_embd", "d_model", 768),
        Field("n_layer", "num_layers", 12),
        Field("n_head", "num_heads", 12),
        Field("n_inner", "d_ff", 0),
        Field("activation_function", "feed_forward", "gelu_tanh", ACTIVATIONS),
        Field("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Field("tie_word_embeddings", "tie_embeddings", True),
        Field("resid_pdrop", "dropout_rate", 0.1),
    ),
    fixed={"norm": "layernorm", "positions": "learned", "norm_placement": "pre"} | BIASES,
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored_fields=(
        "n_ctx",  # the size of a mask in early versions
        "is_decoder",  # never read: the model is a decoder
        "reorder_and_upcast_attn",  # rounding only
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout",
        # of heads that are not supported
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "summary_last_dropout",
    ),
    token_ids={"bos_token_id": 50256, "eos_token_id": 50256},
    tensor_names={
        "embed/tokens": "transformer.wte",
        "embed/positions": "transformer.wpe",
        "embed/unembed": "lm_head",
        "stack/norm": "transformer.ln_f",
        "stack/block_{i}/attention_norm": "transformer.h.{i}.ln_1",
        "stack/block_{i}/attention/query": _conv("attn.c_attn", 0, 3),
        "stack/block_{i}/attention/key": _conv("attn.c_attn", 1, 3),
        "stack/block_{i}/attention/value": _conv("attn.c_attn", 2, 3),
        "stack/block_{i}/attention/out": _conv("attn.c_proj"),
        "stack/block_{i}/feed_forward_norm": "transformer.h.{i}.ln_2",
        "stack/block_{i}/feed_forward/up": _conv("mlp.c_fc"),
        "stack/block_{i}/feed_forward/down": _conv("mlp.c_proj"),
    },
    output_projection=("lm_head.weight", "transformer.wte.weight"),
    renamed=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),  # the first published files have no prefix
    # Old files include the causal mask; the last ones are heads of other models on this body.
    ignored=(
        r"\.attn\.(bias|masked_bias)$",
        r"^lm_head\.weight$",
        r"^(multiple_choice_head|score|classifier|qa_outputs)\.",
    ),
    same_storage=(("transformer.wte.weight", "lm_head.weight"),),
)
