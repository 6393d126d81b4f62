"""First values of a prefix that is trained: those that the model computes for random tokens of its vocabulary."""

import jax
import jax.numpy as jnp

from transformer_jax.models import Model, Params
from transformer_jax.models.adapters import AdapterSpec
from transformer_jax.models.embed import token_embedding
from transformer_jax.nn.attention import Attention


def first_prefix(model: Model, spec: AdapterSpec, params: Params, key: jax.Array) -> jax.Array:
    """First values of a trained prefix, for `models.prefix.trained_prefix`.

    Those of a prompt are the embeddings of random tokens (Lester et al. 2021, section 3.2); those of a prefix, the keys
    and values of random tokens, before any rotation (Li & Liang 2021, section 7.4).
    """
    side = model.config.encoder if spec.kind == "prompt" else model.config.decoder
    tokens = jax.random.randint(key, (1, spec.num_tokens), 0, side.vocab_size)
    if spec.kind == "prompt":
        table = params["shared"] if "shared" in params else params.get("encoder", params)["embed"]["tokens"]
        vectors = token_embedding(side).apply({"params": table}, tokens)
        assert isinstance(vectors, jax.Array)
        return jnp.float32(vectors[0] * (side.d_model**0.5 if side.scale_embeddings else 1.0))
    inputs = (tokens, tokens) if model.reads_source else (tokens,)
    _, recorded = model.apply({"params": params}, *inputs, capture_intermediates=_projects_keys_and_values)
    tree = recorded["intermediates"]
    blocks = tree.get("decoder", tree.get("encoder", tree))["stack"]
    layers = [blocks[f"block_{i}"]["attention"]["keys_values"][0] for i in range(side.num_layers)]
    return jnp.stack([jnp.float32(numbers[0]) for layer in layers for numbers in layer], axis=1)


def _projects_keys_and_values(module: object, method: str) -> bool:
    return isinstance(module, Attention) and not module.is_cross and method == "keys_values"
