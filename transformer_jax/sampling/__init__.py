"""Decoding from logits. Nothing here knows a model."""

from transformer_jax.sampling.beam import LENGTH_PENALTIES, Beams, beam_search
from transformer_jax.sampling.generate import METHODS, Rules, Sampler, generate

__all__ = ["LENGTH_PENALTIES", "METHODS", "Beams", "Rules", "Sampler", "beam_search", "generate"]
