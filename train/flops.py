"""Cost of a model: parameters, floating-point operations (FLOPs) and bytes of memory, from shapes alone."""

import math
from typing import Any

import jax

from transformer_jax.config import TransformerConfig
from transformer_jax.inference.memory import si
from transformer_jax.models import Params, Seq2SeqConfig, merge_params, path_names

MATRICES = ("kernel", "lora_in", "lora_out")  # names of the weights of matrix products


def count_params(params: Params) -> int:
    """Count the numbers in parameters, arrays or shapes. The scales of int8 parameters are none of them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key != "scales")


def num_bytes(tree: Any) -> int:
    """Count the bytes of a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flops_per_token(params: Params, config: TransformerConfig | Seq2SeqConfig) -> int:
    """Floating-point operations to train on one token: 6 for each weight of a matrix product, 12 L N H T for attention.

    A product costs 2 for each weight and token in the forward pass and twice that in the backward pass; attention is
    counted over the whole context, as in Chowdhery et al. 2022, appendix B. Looking up an embedding costs nothing,
    multiplying with it does. For a Seq2Seq, a token is one token of each side; cross-attention is not counted.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = sum(math.prod(leaf.shape) for path, leaf in leaves if _is_matrix(path_names(path)))
    decoder = config.decoder
    if decoder.tie_embeddings:
        weights += decoder.vocab_size * decoder.d_model
    sides = (config.encoder, decoder) if isinstance(config, Seq2SeqConfig) else (config,)
    return 6 * weights + sum(12 * c.num_layers * c.num_heads * c.head_dim * c.max_len for c in sides)


def _is_matrix(path: tuple[str, ...]) -> bool:
    """Return whether a parameter is the weights of a matrix product; "kernel/numbers" is an int8 kernel."""
    return path[-2 if path[-1] == "numbers" else -1] in MATRICES


def describe(
    trained: Params, frozen: Params, opt_state: Any, config: TransformerConfig | Seq2SeqConfig, tokens_per_step: int
) -> str:
    """Describe the cost of a model in two lines for people: parameters and operations; bytes."""
    params = merge_params(trained, frozen)
    flops = flops_per_token(params, config)
    share = f", {count_params(trained):,} of them trained" if frozen else ""
    return (
        f"model: {count_params(params):,} parameters{share}, {si(flops)}FLOP per token, "
        f"{si(flops * tokens_per_step)}FLOP per step of {tokens_per_step:,} tokens\n"
        f"memory: {si(num_bytes(params))}B for parameters, {si(num_bytes(opt_state))}B for the optimizer"
    )
