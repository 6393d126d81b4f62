"""What a model costs, before anything is allocated for it."""

import math
from typing import Any

import jax

from transformer_jax.config import TransformerConfig
from transformer_jax.models import Seq2SeqConfig


def count(tree: Any) -> int:
    """Numbers in a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flops_per_token(params: Any, config: TransformerConfig | Seq2SeqConfig) -> int:
    """Floating-point operations to train on one token: 6 for each weight of a matrix product, 12 L N H T for attention.

    A product costs 2 for each weight and token forward and twice that backward; attention is counted over the whole
    context, as in Chowdhery et al. 2022, appendix B. Looking up an embedding costs nothing, multiplying with it does.
    Of a Seq2Seq a token is one of each side; attention to the source is left out.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key == "kernel")
    output = config.decoder
    if output.tie_embeddings:
        weights += output.vocab_size * output.d_model
    sides = (config.encoder, config.decoder) if output is not config else (config,)
    return 6 * weights + sum(12 * c.num_layers * c.num_heads * c.head_dim * c.max_len for c in sides)


def describe(params: Any, opt_state: Any, config: TransformerConfig | Seq2SeqConfig, tokens_per_step: int) -> str:
    """A line or two for people: parameters, operations, bytes."""
    flops = flops_per_token(params, config)
    return (
        f"model: {count(params):,} parameters, {_si(flops)}FLOP per token, {_si(flops * tokens_per_step)}FLOP per step "
        f"of {tokens_per_step:,} tokens\n"
        f"memory: {_si(num_bytes(params))}B for parameters, {_si(num_bytes(opt_state))}B for the optimizer"
    )


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000 or unit == "P":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError
