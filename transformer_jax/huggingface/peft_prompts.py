"""Soft prompts of PEFT, in and out: prefix tuning, prompt tuning and P-tuning, as one tensor, `prompt_embeddings`.

What computed it in training, such as the projection of a prefix or the network of P-tuning, is applied already.
"""

import numpy as np

from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.models import GPT, Model, Seq2Seq, SequenceClassifier, TokenTagger

TENSOR = "prompt_embeddings"
PROMPT_TYPES = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
TASK_TYPES = {  # by which PEFT chooses where a soft prompt goes
    GPT: "CAUSAL_LM",
    Seq2Seq: "SEQ_2_SEQ_LM",
    SequenceClassifier: "SEQ_CLS",
    TokenTagger: "TOKEN_CLS",
}


def read_prompt(config: dict, array: np.ndarray, model: Model, model_type: str) -> np.ndarray:
    """Check a soft prompt, and give it the shape that `models.prefix.trained_prefix` takes.

    Args:
      config: adapter_config.json, of a `peft_type` in PROMPT_TYPES. array: the tensor as it is in the file.
      model_type: of the base's config.json.
    Raises:
      PretrainedError: sizes that do not fit the config or the model, or leave no room for a text; vectors for Marian.
    """
    length = config.get("num_virtual_tokens")
    if type(length) is not int or length < 1:
        raise PretrainedError(f"adapter_config.json: num_virtual_tokens={length!r:.80} must be 1 or more.")
    is_seq2seq = isinstance(model, Seq2Seq)
    is_prefix = config["peft_type"] == "PREFIX_TUNING"
    side = model.config.decoder if is_prefix else model.config.encoder
    num_heads, head_dim = side.num_kv_heads, side.head_dim
    if not is_prefix and model_type == "marian" and side.scale_embeddings:
        rule = "PEFT embeds the text of a Marian model without its scale then, which is not computed here"
        raise PretrainedError(f"adapter_config.json: peft_type={config['peft_type']!r}: {rule}.")
    width = 2 * side.num_layers * num_heads * head_dim if is_prefix else side.d_model
    # In an encoder-decoder, prompts have a part for each side, and PEFT computes with the first.
    rows = (length, 2 * length) if is_seq2seq and not is_prefix else (length,)
    if array.ndim != 2 or array.shape[0] not in rows or array.shape[1] != width:
        expected = f"[{' or '.join(map(str, rows))}, {width}]"
        raise PretrainedError(f"adapter_model.safetensors: {TENSOR} has shape {list(array.shape)} and not {expected}.")
    if length >= side.max_len:
        raise PretrainedError(
            f"adapter_config.json: num_virtual_tokens={length} leaves no room for a text: the model's context is "
            f"{side.max_len}."
        )
    if not is_prefix:
        return array[:length]
    parts = array.reshape(length, side.num_layers, 2, num_heads, head_dim)
    if is_seq2seq:  # PEFT repeats the parts, for cross-attention, and then gives decoder layer l part 2 l
        parts = parts[:, [2 * layer % side.num_layers for layer in range(side.num_layers)]]
    return parts.reshape(length, 2 * side.num_layers, num_heads, head_dim)


def write_prompt(array: np.ndarray, model: Model, model_type: str) -> tuple[dict, np.ndarray]:
    """Settings and tensor of a trained prefix, for PEFT; the inverse of `read_prompt`.

    Raises:
      PretrainedError: PEFT would compute something else.
    """
    is_seq2seq, is_prefix = isinstance(model, Seq2Seq), array.ndim == 4
    side = model.config.decoder if is_prefix else model.config.encoder
    length, L = len(array), side.num_layers
    config = {
        "peft_type": "PREFIX_TUNING" if is_prefix else "PROMPT_TUNING",
        "task_type": TASK_TYPES.get(type(model), "FEATURE_EXTRACTION"),
        "num_virtual_tokens": length,
        "num_transformer_submodules": 2 if is_seq2seq else 1,
        "num_layers": L,
        "num_attention_heads": side.num_kv_heads if is_prefix else side.num_heads,
        "token_dim": side.num_kv_heads * side.head_dim if is_prefix else side.d_model,
    }
    if is_prefix:
        config |= {"prefix_projection": False, "encoder_hidden_size": config["token_dim"]}
        parts = array.reshape(length, L, -1)
        if is_seq2seq:
            order = {2 * layer % L: layer for layer in range(L)}
            parts = np.stack([parts[:, order.get(part, 0)] for part in range(L)], axis=1)
        tensor = parts.reshape(length, -1)
    else:
        tensor = np.concatenate([array, array]) if is_seq2seq else array
    if not np.array_equal(read_prompt(config, tensor, model, model_type), array):
        rule = f"PEFT gives some of the {L} layers of a decoder the same keys and values"
        raise PretrainedError(f"run: its prefix cannot be expressed, since {rule}. Keep the run directory.")
    return config, tensor
