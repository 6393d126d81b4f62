"""Transformer block, and a stack of blocks: the body of every model of the family."""

from typing import NamedTuple

import flax.linen as nn
import jax

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn import kv_cache as kv
from transformer_jax.nn.attention import Attention
from transformer_jax.nn.compatibility import incompatibility
from transformer_jax.nn.dropout import Dropout
from transformer_jax.nn.layers import FeedForward, make_norm
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.positions import POSITIONS, ScoreBias


class NormPlacement(NamedTuple):
    """Norm placement of a block: before each part, or after its output is added to the residual stream."""

    is_before: bool
    is_after: bool
    is_parallel: bool = False  # all parts share the input of one norm and are added together


NORM_PLACEMENTS = {
    "pre": NormPlacement(True, False),  # Xiong et al. 2020: trains without a delicate warmup; GPT-2, Llama, T5
    "post": NormPlacement(False, True),  # Vaswani et al. 2017, section 3.1: the first paper; BERT, BART, Marian
    "parallel": NormPlacement(True, False, is_parallel=True),  # Wang & Komatsuzaki 2021: GPT-J
}


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention (if it has a source) and a feed-forward layer.

    Each part is added to the residual stream; `norm_placement` names a row of NORM_PLACEMENTS.
    """

    config: TransformerConfig
    has_source: bool = False
    layer: int = 0  # its index, for the KV cache

    def setup(self):
        config = self.config
        self.placement = choose(NORM_PLACEMENTS, config.norm_placement, "model.norm_placement")
        self.attention = Attention(config, layer=self.layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = make_norm(config)
        if self.has_source:
            self.cross = Attention(config, is_cross=True)
        if not self.placement.is_parallel:
            self.feed_forward_norm = make_norm(config)
            if self.has_source:
                self.cross_norm = make_norm(config)
        self.drop = Dropout(config.dropout_rate)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        mask: Mask,
        bias: ScoreBias | None = None,
        cache: kv.KVCache | None = None,
        source: kv.KeysValues | None = None,
        source_mask: Mask | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, kv.KVCache | None]:
        """Return [B, T, D] and, if a KV cache came in, the cache with the block's new keys and values."""
        placement = self.placement
        if placement.is_parallel:
            return self._parallel(x, mask, bias, cache, source, source_mask, deterministic)

        y = self.attention_norm(x) if placement.is_before else x
        out, cache = self.attention(y, mask, bias, cache, deterministic=deterministic)
        x = x + self.drop(out, deterministic)
        x = self.attention_norm(x) if placement.is_after else x

        if self.has_source:
            y = self.cross_norm(x) if placement.is_before else x
            out, _ = self.cross(y, source_mask, source=source, deterministic=deterministic)
            x = x + self.drop(out, deterministic)
            x = self.cross_norm(x) if placement.is_after else x

        y = self.feed_forward_norm(x) if placement.is_before else x
        x = x + self.drop(self.feed_forward(y), deterministic)
        return self.feed_forward_norm(x) if placement.is_after else x, cache

    def _parallel(self, x, mask, bias, cache, source, source_mask, deterministic):
        y = self.attention_norm(x)
        out, cache = self.attention(y, mask, bias, cache, deterministic=deterministic)
        x = x + self.drop(out, deterministic)
        x = x + self.drop(self.feed_forward(y), deterministic)
        if self.has_source:
            out, _ = self.cross(y, source_mask, source=source, deterministic=deterministic)
            x = x + self.drop(out, deterministic)
        return x, cache

    def source_keys_values(self, encoded: jax.Array) -> kv.KeysValues:
        """Project an encoded source [B, S, D] to keys and values of cross-attention, once for all decode steps."""
        return kv.KeysValues.from_projections(*self.cross.keys_values(encoded))


class Stack(nn.Module):
    """Stack of L blocks, and a final norm unless every block ends in one."""

    config: TransformerConfig
    has_source: bool = False

    def setup(self):
        config = self.config
        options = {"window": config.window, "softcap": config.attention_softcap}
        extras = tuple(name for name, value in options.items() if value)
        if error := incompatibility(config.positions, config.backend, config.attention == "linear", extras):
            raise UserError(error)
        make_bias = choose(POSITIONS, config.positions, "model.positions").bias
        self.position_bias = make_bias(config) if make_bias else None
        self.blocks = [Block(config, self.has_source, i, name=f"block_{i}") for i in range(config.num_layers)]
        self.norm = None if config.norm_placement == "post" else make_norm(config)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        mask: Mask,
        cache: kv.KVCache | None = None,
        source: kv.EncodedSource | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, kv.KVCache | None]:
        """Return [B, T, D] and, if a KV cache came in, the cache with the new keys and values of all layers."""
        mask = mask.replace(window=self.config.window)
        bias = self.position_bias(mask.is_causal) if self.position_bias else None
        source_mask = Mask(is_key=source.is_token) if source else None
        for i, block in enumerate(self.blocks):
            keys_values = source.layers[i] if source else None
            x, cache = block(x, mask, bias, cache, keys_values, source_mask, deterministic)
        return self.norm(x) if self.norm else x, cache

    def source_keys_values(self, encoded: jax.Array, is_token: jax.Array) -> kv.EncodedSource:
        """Project an encoded source [B, S, D] to keys and values of all layers' cross-attention."""
        return kv.EncodedSource(tuple(block.source_keys_values(encoded) for block in self.blocks), is_token)
