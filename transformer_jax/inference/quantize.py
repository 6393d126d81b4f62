"""Quantize a run to int8 weights: the kernels of linear layers and the embeddings, for decoding in less memory."""

import dataclasses

from transformer_jax.models.quantization import quantize_params
from transformer_jax.run import Run


def quantize(run: Run) -> Run:
    """Quantize kernels (one scale per output) and embeddings (one scale per row) of a run to int8.

    Norms, biases and other small parameters stay as they are. The result cannot be saved. To train an adapter on int8
    weights, train with `adapter.int8`.
    """
    return dataclasses.replace(run, params=quantize_params(run.params))
