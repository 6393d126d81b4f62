"""Fields of config.json that mean the same in every family: ignored by name, read elsewhere, or with one value only."""

_BOOKKEEPING = (
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "transformers_version",
    "adapter_transformers_version",
    "auto_map",  # code of the folder, which is never executed
    "custom_pipelines",
    "tokenizer_class",
    "prefix",
    "task_specific_params",
    "finetuning_task",
    "label2id",  # the inverse of id2label, which is read
)
_NUMERICS = (  # dtypes and implementations; parameters have the dtypes of the files
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "chunk_size_feed_forward",  # the same numbers, computed in pieces
    "gradient_checkpointing",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "pretraining_tp",  # the same products, computed in pieces
)
_OUTPUTS = (  # what the reference library returns besides logits
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "return_dict",
    "use_return_dict",
)
_TRAINING = (  # initial values, and dropout besides that of the residual stream
    "initializer_range",
    "initializer_factor",
    "init_std",
    "classifier_dropout",
    "classif_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "activation_dropout",
)
_GENERATION = (  # the choice of a token is up to the caller; generation_defaults.py reads the rest
    "max_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "diversity_penalty",
    "length_penalty",
    "temperature",
    "top_k",
    "top_p",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "output_scores",
    "return_dict_in_generate",
    "remove_invalid_values",  # NaN is refused when the tensors are read
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
)
IGNORED = (*_BOOKKEEPING, *_NUMERICS, *_OUTPUTS, *_TRAINING, *_GENERATION)

READ_ELSEWHERE = (
    "model_type",
    "architectures",
    "id2label",
    "num_labels",
    "problem_type",
    "sentence_transformers",  # the activation of a cross-encoder
    "sbert_ce_default_activation_function",
    # generation_defaults.py, if there is no generation_config.json
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "renormalize_logits",
)

REQUIRED: dict[str, object] = {  # None: must be absent, or empty
    "quantization_config": None,  # the files hold codes of weights
    "compression_config": None,
    "pruned_heads": None,
    "per_layer_config": None,
    "layer_types": None,  # a window in some layers
    "sliding_window": None,
    "attention_chunk_size": None,
    "tie_encoder_decoder": None,
    "cross_attention_hidden_size": None,
    "is_causal": True,  # of a decoder
    "encoder_no_repeat_ngram_size": None,
    "encoder_repetition_penalty": 1.0,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "tie_last_hidden_states": None,
}
