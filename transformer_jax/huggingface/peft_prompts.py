"""Soft prompts of PEFT: prefix tuning, prompt tuning and P-tuning, as one tensor, `prompt_embeddings`.

What computed it in training, such as the projection of a prefix or the network of P-tuning, is applied already.
"""

import numpy as np

from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.models import Model, Seq2Seq

TENSOR = "prompt_embeddings"
PROMPT_TYPES = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


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
