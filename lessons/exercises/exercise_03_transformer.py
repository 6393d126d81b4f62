"""Exercise 03: a Transformer from its parts.

About 60 minutes; difficulty: 3 of 5. Read lessons 00 to 06 first.

First put twelve parts of a GPT in order. Then write the five classes of a GPT in Flax. The grader gives each class its
parameters, so the names of the layers must be those of the docstrings; the numbers must be those of the formulas.
A layer is made with its settings and its name, and then called: `nn.Dense(8, use_bias=False, name="query")(x)`.

    python -m lessons check 03        python -m lessons hint 03        python -m lessons solution 03

Letters: B texts, T tokens, D width of the model, N heads, H width of a head, V words.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Part 1: the order of the parts.
#
# Below are the parts of a pre-norm GPT with one block. A token id comes in, logits go out. In which order are they
# computed? Replace None by the twelve numbers, from the first to the last: ORDER = [8, 3, ...]

PARTS = {
    1: "add the result of attention to the residual stream",
    2: "mask the future",
    3: "activation, then the second linear layer of the feed-forward part",
    4: "look up the token's vector in the embedding table",
    5: "last norm, then the product with the embedding table: logits",
    6: "softmax over the keys",
    7: "norm, then project to queries, keys and values",
    8: "add the result of the feed-forward part to the residual stream",
    9: "mean of the values with the weights; join the heads; project",
    10: "add the vector of the position",
    11: "norm, then the first linear layer of the feed-forward part",
    12: "products of queries and keys, divided by sqrt(H)",
}

ORDER = None


# Part 2: the five classes.


class SelfAttention(nn.Module):
    """Causal self-attention with one head: softmax(q k^T / sqrt(H)) v, each token seeing itself and the past.

    Layers: nn.Dense without bias, of width H, with the names "query", "key", "value". There is no output projection.
    x [B, T, D] -> [B, T, H]. Example: a text of one token can attend to itself only, so the result is its value.
    """

    head_dim: int  # H

    @nn.compact
    def __call__(self, x):
        raise NotImplementedError  # your answer


class MultiHeadAttention(nn.Module):
    """Causal self-attention with N heads of width H = D / N. x [B, T, D] -> [B, T, D].

    Layers: nn.Dense without bias, of width D, with the names "query", "key", "value", "out". The first H numbers of a
    projection belong to head 0, the next H to head 1, and so on; the results of the heads are joined in this order and
    go through "out". Example: with T = 1 the result is out(value(x)).
    """

    num_heads: int  # N

    @nn.compact
    def __call__(self, x):
        raise NotImplementedError  # your answer


class FeedForward(nn.Module):
    """Feed-forward layer: down(GELU(up(x))). x [B, T, D] -> [B, T, D].

    Layers: nn.Dense with bias, "up" of width `hidden_dim`, "down" of width D. GELU is nn.gelu as it comes.
    Example: if "up" gives 0 for a token, then GELU(0) = 0, and the result is the bias of "down".
    """

    hidden_dim: int  # F

    @nn.compact
    def __call__(self, x):
        raise NotImplementedError  # your answer


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm_1(x)), then x + feed_forward(norm_2(x)). x [B, T, D] -> [B, T, D].

    Layers: nn.LayerNorm as it comes, "norm_1" and "norm_2"; MultiHeadAttention "attention"; FeedForward "feed_forward"
    with a hidden width of 4 D. Example: if "out" and "down" are 0, the block returns x.
    """

    num_heads: int  # N

    @nn.compact
    def __call__(self, x):
        raise NotImplementedError  # your answer


class GPT(nn.Module):
    """GPT: ids [B, T] int -> logits [B, T, V], with T at most `max_len`.

    Layers: nn.Embed "tokens" (V vectors) and "positions" (max_len vectors, counted from 0), which are added;
    TransformerBlocks "block_0", "block_1", ...; nn.LayerNorm "norm" after the last one. The logits are the products
    with the vectors of "tokens": nn.Embed has a method `attend` for that. Logits, no probabilities.
    """

    vocab_size: int  # V
    max_len: int
    num_layers: int
    d_model: int  # D
    num_heads: int  # N

    @nn.compact
    def __call__(self, tokens):
        raise NotImplementedError  # your answer
