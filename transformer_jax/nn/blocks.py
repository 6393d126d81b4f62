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
    """Positions of the norms in a block: of each part's input, of its output, of the residual stream after the sum."""

    of_input: bool = False
    of_output: bool = False  # before it is added to the residual stream
    of_sum: bool = False
    is_parallel: bool = False  # all parts read the input of the block, and are added together
    is_shared: bool = False  # parallel parts share one norm of their input


NORM_PLACEMENTS = {
    "pre": NormPlacement(of_input=True),  # Xiong et al. 2020: trains without a delicate warmup; GPT-2, Llama, T5
    "post": NormPlacement(of_sum=True),  # Vaswani et al. 2017, section 3.1: the first paper; BERT, BART, Marian
    "sandwich": NormPlacement(of_input=True, of_output=True),  # Ding et al. 2021, section 3.1; Gemma 2 and 3
    "output": NormPlacement(of_output=True),  # OLMo Team 2024, section 3.1: OLMo 2
    "parallel": NormPlacement(of_input=True, is_parallel=True, is_shared=True),  # Wang & Komatsuzaki 2021: GPT-J
    "parallel_two": NormPlacement(of_input=True, is_parallel=True),  # Black et al. 2022, section 2.1: GPT-NeoX, Pythia
}


class Block(nn.Module):
    """Transformer block: self-attention, cross-attention (if it has a source) and a feed-forward layer.

    Each part is added to the residual stream; `norm_placement` names a row of NORM_PLACEMENTS.
    """

    config: TransformerConfig
    has_source: bool = False
    layer: int = 0  # its index: for the KV cache, and for the settings that differ by layer
    remat_attention: bool = False

    def setup(self):
        config = self.config
        self.placement = choose(NORM_PLACEMENTS, config.norm_placement, "model.norm_placement")
        placement = self.placement

        def norm(is_there: bool) -> nn.Module | None:
            return make_norm(config) if is_there else None

        self.attention = Attention(config, layer=self.layer, remat=self.remat_attention)
        self.attention_norm = norm(placement.of_input or placement.of_sum)
        self.attention_out_norm = norm(placement.of_output)
        has_own = (placement.of_input or placement.of_sum) and not placement.is_shared
        if self.has_source:
            self.cross = Attention(config, is_cross=True, layer=self.layer, remat=self.remat_attention)
            self.cross_norm = norm(has_own)
            self.cross_out_norm = norm(placement.of_output)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = norm(has_own)
        self.feed_forward_out_norm = norm(placement.of_output)
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
        parallel = None  # input of all parts after the first in a parallel block
        y = self._before(self.attention_norm, x)
        if self.placement.is_parallel:
            parallel = y if self.placement.is_shared else x
        out, cache = self.attention(y, mask, bias, cache, deterministic=deterministic)
        x = self._add(x, out, self.attention_out_norm, self.attention_norm, deterministic)

        if self.has_source:
            y = self._before(self.cross_norm, x if parallel is None else parallel)
            out, _ = self.cross(y, source_mask, source=source, deterministic=deterministic)
            x = self._add(x, out, self.cross_out_norm, self.cross_norm, deterministic)

        y = self._before(self.feed_forward_norm, x if parallel is None else parallel)
        out = self.feed_forward(y)
        return self._add(x, out, self.feed_forward_out_norm, self.feed_forward_norm, deterministic), cache

    def _before(self, norm: nn.Module | None, x: jax.Array) -> jax.Array:
        return norm(x) if self.placement.of_input and norm is not None else x

    def _add(self, x, out, out_norm, sum_norm, deterministic):
        """Add a part's output to the residual stream."""
        out = out if out_norm is None else out_norm(out)
        x = x + self.drop(out, deterministic)
        return sum_norm(x) if self.placement.of_sum else x

    def source_keys_values(self, encoded: jax.Array) -> kv.KeysValues:
        """Project an encoded source [B, S, D] to keys and values of cross-attention, once for all decode steps."""
        return kv.KeysValues.from_projections(*self.cross.keys_values(encoded))


REMATS = ("none", "block", "attention")


class Stack(nn.Module):
    """Stack of L blocks, and a final norm unless every block ends in one.

    With `remat` (rematerialization, gradient checkpointing; Chen et al. 2016, section 3) a gradient keeps less from
    the forward pass and computes it again: "block", all inside a block, of which only the input is kept; "attention",
    scores and weights. Parameters, random numbers and results are the same.
    """

    config: TransformerConfig
    has_source: bool = False
    remat: str = "none"

    def setup(self):
        config = self.config
        options = {"window": config.window or config.local_window, "softcap": config.attention_softcap}
        extras = tuple(name for name, value in options.items() if value)
        if error := incompatibility(config.positions, config.backend, config.attention == "linear", extras):
            raise UserError(error)
        make_bias = choose(POSITIONS, config.positions, "model.positions").bias
        self.position_bias = make_bias(config) if make_bias else None
        remat = choose(dict(zip(REMATS, REMATS, strict=True)), self.remat, "remat")
        self.blocks = [
            Block(config, self.has_source, i, remat == "attention", name=f"block_{i}") for i in range(config.num_layers)
        ]
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
        bias = self.position_bias(mask.is_causal) if self.position_bias else None
        source_mask = Mask(is_key=source.is_token) if source else None
        for i, block in enumerate(self.blocks):
            kind = self.config.layer(i)
            layer_mask = mask.replace(window=kind.window)
            layer_bias = bias if kind.has_positions else None
            keys_values = source.layers[i] if source else None
            x, cache = self._run(block, x, layer_mask, layer_bias, cache, keys_values, source_mask, deterministic)
        return self.norm(x) if self.norm else x, cache

    def _run(self, block: Block, x: jax.Array, *args):
        if self.remat != "block":
            return block(x, *args)
        # `args` are not arguments of the function: as such, the mask's static numbers would become arrays.
        return nn.remat(lambda block, x: block(x, *args))(block, x)

    def source_keys_values(self, encoded: jax.Array, is_token: jax.Array) -> kv.EncodedSource:
        """Project an encoded source [B, S, D] to keys and values of all layers' cross-attention."""
        return kv.EncodedSource(tuple(block.source_keys_values(encoded) for block in self.blocks), is_token)
