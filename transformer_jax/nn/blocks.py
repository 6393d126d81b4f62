"""A block, and a stack of blocks: what every model of the family is built from."""

from typing import Any

import flax.linen as nn
import jax

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import kv_cache as kv
from transformer_jax.nn.attention import Attention
from transformer_jax.nn.compatibility import refusal
from transformer_jax.nn.dropout import Dropout
from transformer_jax.nn.layers import FeedForward, make_norm
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS


def _pre(x, norm, part):
    """Xiong et al. 2020: trains without a delicate warmup; GPT-2, Llama, T5."""
    return x + part(norm(x))


def _post(x, norm, part):
    """Vaswani et al. 2017, section 3.1: the first paper; BERT, BART, Marian."""
    return norm(x + part(x))


NORM_PLACEMENTS = {"pre": _pre, "post": _post, "parallel": None}


class Block(nn.Module):
    """Attention, then (where the block has a source) attention to the source, then the feed-forward part.

    Each is added to the residual stream; `norm_placement` says where its norm stands. In parallel (Wang & Komatsuzaki 2021,
    GPT-J) all parts read one norm and are added at once.
    """

    config: TransformerConfig
    has_source: bool = False

    def setup(self):
        config = self.config
        self.place = choose(NORM_PLACEMENTS, config.norm_placement, "model.norm_placement")
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm = make_norm(config)
        if self.has_source:
            self.cross = Attention(config, is_cross=True)
        if self.place:
            self.feed_forward_norm = make_norm(config)
            if self.has_source:
                self.cross_norm = make_norm(config)
        self.drop = Dropout(config.dropout_rate)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        mask: Mask,
        bias: Any = None,
        cache: Any = None,
        source: kv.KVCache | None = None,
        source_mask: Mask | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Any]:
        """Returns [B, T, D] and the layer's cache, if one came in."""

        def attend(x):
            nonlocal cache
            out, cache = self.attention(x, mask, bias, cache, deterministic)
            return self.drop(out, deterministic=deterministic)

        def attend_to_source(x):
            out, _ = self.cross(x, source_mask, None, source, deterministic)
            return self.drop(out, deterministic=deterministic)

        def feed_forward(x):
            return self.drop(self.feed_forward(x), deterministic=deterministic)

        if self.place is None:
            y = self.attention_norm(x)
            x = x + attend(y) + feed_forward(y)
            return (x + attend_to_source(y) if self.has_source else x), cache
        x = self.place(x, self.attention_norm, attend)
        if self.has_source:
            x = self.place(x, self.cross_norm, attend_to_source)
        return self.place(x, self.feed_forward_norm, feed_forward), cache

    def source_keys_values(self, encoded: jax.Array) -> kv.KVCache:
        """What cross-attention needs of a source [B, S, D], once for all that is decoded."""
        return kv.KVCache.of(*self.cross.keys_values(encoded))


class Stack(nn.Module):
    """L blocks, and a last norm unless every block ends in one."""

    config: TransformerConfig
    has_source: bool = False

    def setup(self):
        config = self.config
        extras = {"window": config.window, "softcap": config.attention_softcap}
        extras = tuple(name for name, is_asked in extras.items() if is_asked)
        if why_not := refusal(config.positions, config.backend, config.attention == "linear", extras):
            raise UserError(why_not)
        make_bias = choose(POSITIONS, config.positions, "model.positions").bias
        self.position_bias = make_bias(config) if make_bias else None
        self.blocks = [Block(config, self.has_source, name=f"block_{i}") for i in range(config.num_layers)]
        self.norm = None if config.norm_placement == "post" else make_norm(config)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        mask: Mask,
        layers: tuple[Any, ...] | None = None,
        source: kv.Source | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, tuple[Any, ...] | None]:
        """Returns [B, T, D] and the layers' caches, if they came in."""
        mask = mask.replace(window=self.config.window)
        bias = self.position_bias(mask.is_causal) if self.position_bias else None
        source_mask = Mask(is_key=source.is_token) if source else None
        new_layers = []
        for i, block in enumerate(self.blocks):
            x, layer = block(
                x,
                mask,
                bias,
                layers[i] if layers else None,
                source.layers[i] if source else None,
                source_mask,
                deterministic,
            )
            new_layers.append(layer)
        return self.norm(x) if self.norm else x, tuple(new_layers) if layers else None

    def source(self, encoded: jax.Array, is_token: jax.Array) -> kv.Source:
        """All layers' keys and values of an encoded source [B, S, D]."""
        return kv.Source(tuple(block.source_keys_values(encoded) for block in self.blocks), is_token)
