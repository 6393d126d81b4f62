"""The Transformer family in JAX and Flax linen.

    import transformer_jax as tj
    run = tj.load("runs/a")
    print(tj.generate(run, "The for statement", max_new_tokens=100))
"""

from transformer_jax.config import RunError, TransformerConfig, UserError
from transformer_jax.run import Run, generate, load, logits

__all__ = ["Run", "RunError", "TransformerConfig", "UserError", "generate", "load", "logits"]
