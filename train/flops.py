"""Cost of a model: parameters, floating-point operations (FLOPs) and bytes of memory, from shapes alone."""

import math
from typing import Any

import jax

from transformer_jax.config import TransformerConfig
from transformer_jax.inference.memory import si
from transformer_jax.models import Params, Seq2SeqConfig, merge_params, path_names

MATRICES = ("kernel", "lora_in", "lora_out")  # names of the weights of matrix products
TABLES = (("tokens", "embedding"), ("shared", "embedding"))  # of tokens: ends of the names


def count_params(params: Params) -> int:
    """Count the numbers in parameters, arrays or shapes. The scales of int8 parameters are none of them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key != "scales")


def num_bytes(tree: Any) -> int:
    """Count the bytes of a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flops_per_token(trained: Params, config: TransformerConfig | Seq2SeqConfig, frozen: Params | None = None) -> int:
    """Floating-point operations to train on one token: 6 for each weight of a matrix product, 12 L N H T for attention.

    A product costs 2 for each weight and token in the forward pass, 2 for the gradient of its input, and 2 for that of
    the weight: so a frozen weight costs 4, and 2 below all that is trained, which is not looked for. Attention is
    counted over the whole context, as in Chowdhery et al. 2022, appendix B. Looking up an embedding costs nothing,
    multiplying with it does. For a Seq2Seq, a token is one token of each side; cross-attention is not counted.
    """
    decoder = config.decoder
    sides = (config.encoder, decoder) if isinstance(config, Seq2SeqConfig) else (config,)
    source = "encoder" if len(sides) > 1 else ""  # its table is no output projection
    total = 0
    for tree, cost in ((trained, 6), (frozen or {}, 4)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            names = path_names(path)
            names = names[:-1] if names[-1] == "numbers" else names  # of an int8 kernel or table
            is_unembedding = decoder.tie_embeddings and names[-2:] in TABLES and names[0] != source
            if names[-1] in MATRICES or is_unembedding:
                total += cost * math.prod(leaf.shape)
    return total + sum(12 * c.num_layers * c.num_heads * c.head_dim * c.max_len for c in sides)


def describe(
    trained: Params, frozen: Params, opt_state: Any, config: TransformerConfig | Seq2SeqConfig, tokens_per_step: int
) -> str:
    """Describe the cost of a model in two lines for people: parameters and operations; bytes."""
    params = merge_params(trained, frozen)
    flops = flops_per_token(trained, config, frozen)
    share = f", {count_params(trained):,} of them trained" if frozen else ""
    return (
        f"model: {count_params(params):,} parameters{share}, {si(flops)}FLOP per token, "
        f"{si(flops * tokens_per_step)}FLOP per step of {tokens_per_step:,} tokens\n"
        f"memory: {si(num_bytes(params))}B for parameters, {si(num_bytes(opt_state))}B for the optimizer"
    )
