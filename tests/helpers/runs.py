"""Small runs with random parameters and a trained tokenizer, for tests of generation."""

import functools

from helpers.arrays import random_like
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.run import Run
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import train_tokenizer

CONTEXT = 97
TEXT = "the cat sät on a mat, 狐 and €5 😀 dogs ran over green hills.\n" * 3


@functools.cache
def make_run(kind, vocab_size=283):
    """A run with random parameters: its texts contain all bytes, invalid UTF-8 too."""
    tokenizer = train_tokenizer(kind, 540 if kind == "wordpiece" else vocab_size, TEXT)
    model = GPT(
        TransformerConfig(vocab_size=tokenizer.vocab_size, max_len=CONTEXT, num_layers=1, d_model=10, num_heads=2)
    )
    params = random_like(parameter_shapes(model), 0)
    return Run(
        model, params, tokenizer, model.config, generation_defaults=GenerationDefaults((tokenizer.eos_id,), 0, 1)
    )
