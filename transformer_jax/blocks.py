"""A block, and a stack of blocks: what every model of the family is built from."""

import flax.linen as nn
import jax

from transformer_jax import cache as kv
from transformer_jax.attention import Attention
from transformer_jax.config import TransformerConfig
from transformer_jax.layers import FeedForward, make_norm
from transformer_jax.masks import Mask


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm.

    The first paper normalised after the sum; normalising before it trains without a delicate warmup
    (Xiong et al. 2020) and is what GPT-2 and Llama do.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        positions: jax.Array,  # [B, T]
        mask: Mask,
        layer_cache: kv.KVCache | None = None,
        slot: jax.Array | int = 0,
        deterministic: bool = True,
    ) -> tuple[jax.Array, kv.KVCache | None]:
        """Returns [B, T, D] and the layer's cache, if one came in."""
        drop = nn.Dropout(self.config.dropout_rate, deterministic=deterministic)
        attended, layer_cache = Attention(self.config, name="attention")(
            make_norm(self.config, "attention_norm")(x), positions, mask, layer_cache, slot, deterministic
        )
        x = x + drop(attended)
        x = x + drop(FeedForward(self.config, name="feed_forward")(make_norm(self.config, "feed_forward_norm")(x)))
        return x, layer_cache


class Stack(nn.Module):
    """L blocks and a last norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        positions: jax.Array,  # [B, T]
        mask: Mask,
        layers: tuple[kv.KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[kv.KVCache, ...] | None]:
        """Returns [B, T, D] and the layers' caches, if they came in."""
        new_layers = []
        for i in range(self.config.num_layers):
            layer_cache = None if layers is None else layers[i]
            block = Block(self.config, name=f"block_{i}")
            x, layer_cache = block(x, positions, mask, layer_cache, slot, deterministic)
            new_layers.append(layer_cache)
        return make_norm(self.config, "norm")(x), None if layers is None else tuple(new_layers)
