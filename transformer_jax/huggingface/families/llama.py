"""Llama family table (Touvron et al. 2023, Llama Team 2024).

Grouped-query attention, rotary position embeddings in halves, gated feed-forward.
"""

from transformer_jax.huggingface.family import GATED_ACTIVATIONS, Architecture, Family, Field
from transformer_jax.huggingface.rope import ROPE

_LAYER = "model.layers.{i}"


LLAMA = Family(
    model_type="llama",
    architectures={"LlamaForCausalLM": Architecture("gpt"), "LlamaModel": Architecture("gpt")},
    fields=(
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "max_len", 2048),
        Field("hidden_size", "d_model", 4096),
        Field("num_hidden_layers", "num_layers", 32),
        Field("num_attention_heads", "num_heads", 32),
        Field("num_key_value_heads", "num_kv_heads", 0),
        Field("head_dim", "head_dim", 0),
        Field("intermediate_size", "d_ff", 11008),
        Field("hidden_act", "feed_forward", "swiglu", GATED_ACTIVATIONS),
        Field("rms_norm_eps", "norm_epsilon", 1e-6),
        Field("tie_word_embeddings", "tie_embeddings", False),
        Field("attention_bias", ("qkv_bias", "out_bias"), False),
        Field("mlp_bias", "mlp_bias", False),
        Field("attention_dropout", "dropout_rate", 0.0),
    ),
    fixed={"norm": "rmsnorm", "positions": "rotary", "rope_layout": "halves", "norm_placement": "pre"},
    required={"is_encoder_decoder": False},
    sections=(ROPE,),
    ignored_fields=("is_decoder", "add_cross_attention"),  # never read: the model is a decoder
    token_ids={"bos_token_id": 1, "eos_token_id": 2},
    tensor_names={
        "embed/tokens": "model.embed_tokens",
        "embed/unembed": "lm_head",
        "stack/norm": "model.norm",
        "stack/block_{i}/attention_norm": f"{_LAYER}.input_layernorm",
        "stack/block_{i}/attention/query": f"{_LAYER}.self_attn.q_proj",
        "stack/block_{i}/attention/key": f"{_LAYER}.self_attn.k_proj",
        "stack/block_{i}/attention/value": f"{_LAYER}.self_attn.v_proj",
        "stack/block_{i}/attention/out": f"{_LAYER}.self_attn.o_proj",
        "stack/block_{i}/feed_forward_norm": f"{_LAYER}.post_attention_layernorm",
        "stack/block_{i}/feed_forward/gate": f"{_LAYER}.mlp.gate_proj",
        "stack/block_{i}/feed_forward/up": f"{_LAYER}.mlp.up_proj",
        "stack/block_{i}/feed_forward/down": f"{_LAYER}.mlp.down_proj",
    },
    output_projection=("lm_head.weight", "model.embed_tokens.weight"),
    renamed=((r"^(embed_tokens|layers|norm)\.", r"model.\1."),),
    ignored=(
        r"rotary_emb\.inv_freq$",
        r"^lm_head\.weight$",
        r"^(score|qa_outputs)\.",
    ),  # the last: heads of other models
    same_storage=(("model.embed_tokens.weight", "lm_head.weight"),),
)
