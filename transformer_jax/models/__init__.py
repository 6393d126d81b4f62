"""The models, by what they read and write."""

from transformer_jax.models.gpt import GPT

__all__ = ["GPT"]
