"""Testing laws that hold for any attention and any Transformer, as checks for your own functions.

    from transformer_jax import testing
    testing.check_attention(my_attention)         # (q, k, v, may_attend) -> out
    testing.check_causal_lm(my_model, vocab_size=100)   # (tokens, is_token) -> logits

A check returns None, or raises LawBroken, whose message names the law, the index and the difference.
"""

from transformer_jax.testing.attention import check_attention, check_dropout, check_positions
from transformer_jax.testing.laws import LawBroken, check_twins
from transformer_jax.testing.models import check_cache, check_causal_lm, check_encoder, check_packing

__all__ = [
    "LawBroken",
    "check_attention",
    "check_cache",
    "check_causal_lm",
    "check_dropout",
    "check_encoder",
    "check_packing",
    "check_positions",
    "check_twins",
]
