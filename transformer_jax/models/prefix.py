"""Prefix of a run: a KV cache of one row whose slots are written, before the first token of every text.

It comes from a text that is read once, from trained keys and values (prefix tuning, Li & Liang 2021), or from trained
vectors in place of embedded tokens (prompt tuning, Lester et al. 2021; P-tuning, Liu et al. 2021), read once, too.
Before an encoder they stay vectors: they attend to the text, which is another one each time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_jax.models import GPT, Encoder, Model, Params, Seq2Seq
from transformer_jax.models.adapters import ADAPTERS, PREFIX, variables_of
from transformer_jax.nn.kv_cache import KVCache
from transformer_jax.nn.kv_cache_kinds import make_cache


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
    """Prefix of `length` positions: a cache, or the vectors before an encoder's text. Every text begins after them."""

    length: int  # P
    cache: KVCache | None = None  # of one row, all P slots written: of the decoder, or of an encoder alone
    vectors: jax.Array | None = None  # [P, D]: in place of the first P embedded tokens of the encoder
    tokens: tuple[int, ...] = ()  # of a text, at the end of the prefix
    logits: jax.Array | None = None  # float32 [1, V] of the token after a text
    trained: jax.Array | None = None  # the numbers that it was made from, if no text follows: see `trained_prefix`

    @property
    def num_virtual(self) -> int:
        """Number of positions without a token of a text: of a trained prefix."""
        return self.length - len(self.tokens)


def prefix_variables(model: Model, prefix: Prefix) -> Params:
    """The collection "prefix", which GPT, Encoder and Embedder read: the cache, or the vectors, at their module."""
    is_vectors = prefix.cache is None
    tree: Params = {"embed": {"vectors": prefix.vectors}} if is_vectors else {"cache": prefix.cache}
    if isinstance(model, Seq2Seq):
        return {"encoder" if is_vectors else "decoder": tree}
    return tree if isinstance(model, GPT | Encoder) else {"encoder": tree}


def trained_prefix(model: Model, variables: Params, array: jax.Array) -> Prefix:
    """Prefix from trained numbers.

    Args:
      array: [P, 2 L, K, H], the keys (even) and the values (odd) of each layer, without rotation; of a decoder if there
        is one. Or [P, D], vectors in place of embedded tokens.
    """
    length = len(array)
    if array.ndim == 4:
        cache = make_cache(model.config.decoder, 1, length).append(jnp.ones((1, length), bool))
        for layer in range(array.shape[1] // 2):
            cache = cache.write(layer, array[None, :, 2 * layer], array[None, :, 2 * layer + 1])
        return Prefix(length, cache, trained=array)
    if not isinstance(model, GPT):
        return Prefix(length, vectors=array, trained=array)
    placeholders = jnp.zeros((1, length), jnp.int32)
    empty = make_cache(model.config, 1, length)
    read = variables | {"prefix": {"embed": {"vectors": array}}}
    read_cache = model.apply(read, placeholders, placeholders == 0, empty, last_only=True, method="extend")[1]
    assert isinstance(read_cache, KVCache)
    return Prefix(length, read_cache, trained=array)


def all_variables(model: Model, params: Params, dropout: float = 0.0) -> Params:
    """The variables of a model, for `apply`, from a tree that may hold an adapter, a trained prefix too.

    The prefix is computed once, for all rows of a batch; gradients of its numbers are right.

    Args:
      dropout: as for `variables_of`.
    """
    variables = variables_of(params, dropout)
    array = variables.get(ADAPTERS, {}).get(PREFIX)
    if array is None:
        return variables
    variables = {"params": variables["params"]}
    return variables | {"prefix": prefix_variables(model, trained_prefix(model, variables, array))}
