"""Decoding from logits. Nothing here knows a model."""

from transformer_jax.sampling.generate import METHODS, Sampler, generate

__all__ = ["METHODS", "Sampler", "generate"]
