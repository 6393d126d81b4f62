"""Metadata of checkpoints whose arrays are not those of a model."""

from transformer_jax.checkpoint_meta import CheckpointMeta
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT

MODEL = GPT(TransformerConfig(vocab_size=11, max_len=7, num_layers=1, d_model=6, num_heads=2))


def meta_of(step, val_score=None):
    return CheckpointMeta(step, MODEL, None, val_score=val_score)
