"""The models, by what they read and write."""

from transformer_jax.models.encoder import (
    Encoder,
    MaskedLM,
    Regressor,
    SentenceEmbedder,
    SequenceClassifier,
    TokenTagger,
)
from transformer_jax.models.gpt import GPT
from transformer_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig

__all__ = [
    "GPT", "Encoder", "MaskedLM", "Regressor", "SentenceEmbedder", "Seq2Seq", "Seq2SeqConfig", "SequenceClassifier",
    "TokenTagger",
]  # fmt: skip
