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

# answer: ORDER = None
ORDER = [4, 10, 7, 12, 2, 6, 9, 1, 11, 3, 8, 5]
# end


# Part 2: the five classes.


class SelfAttention(nn.Module):
    """Causal self-attention with one head: softmax(q k^T / sqrt(H)) v, each token seeing itself and the past.

    Layers: nn.Dense without bias, of width H, with the names "query", "key", "value". There is no output projection.
    x [B, T, D] -> [B, T, H]. Example: a text of one token can attend to itself only, so the result is its value.
    """

    head_dim: int  # H

    @nn.compact
    def __call__(self, x):
        # answer
        q, k, v = (nn.Dense(self.head_dim, use_bias=False, name=name)(x) for name in ("query", "key", "value"))
        scores = q @ k.swapaxes(1, 2) / jnp.sqrt(self.head_dim)  # [B, T, T]
        past = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        return jax.nn.softmax(jnp.where(past, scores, -1e30), axis=-1) @ v
        # end


class MultiHeadAttention(nn.Module):
    """Causal self-attention with N heads of width H = D / N. x [B, T, D] -> [B, T, D].

    Layers: nn.Dense without bias, of width D, with the names "query", "key", "value", "out". The first H numbers of a
    projection belong to head 0, the next H to head 1, and so on; the results of the heads are joined in this order and
    go through "out". Example: with T = 1 the result is out(value(x)).
    """

    num_heads: int  # N

    @nn.compact
    def __call__(self, x):
        # answer
        B, T, D = x.shape

        def heads(name):
            y = nn.Dense(D, use_bias=False, name=name)(x)
            return y.reshape(B, T, self.num_heads, -1).swapaxes(1, 2)  # [B, N, T, H]

        q, k, v = heads("query"), heads("key"), heads("value")
        scores = q @ k.swapaxes(2, 3) / jnp.sqrt(q.shape[-1])  # [B, N, T, T]
        past = jnp.tril(jnp.ones((T, T), bool))
        out = jax.nn.softmax(jnp.where(past, scores, -1e30), axis=-1) @ v
        return nn.Dense(D, use_bias=False, name="out")(out.swapaxes(1, 2).reshape(B, T, D))
        # end


class FeedForward(nn.Module):
    """Feed-forward layer: down(GELU(up(x))). x [B, T, D] -> [B, T, D].

    Layers: nn.Dense with bias, "up" of width `hidden_dim`, "down" of width D. GELU is nn.gelu as it comes.
    Example: if "up" gives 0 for a token, then GELU(0) = 0, and the result is the bias of "down".
    """

    hidden_dim: int  # F

    @nn.compact
    def __call__(self, x):
        # answer
        hidden = nn.gelu(nn.Dense(self.hidden_dim, name="up")(x))
        return nn.Dense(x.shape[-1], name="down")(hidden)
        # end


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm_1(x)), then x + feed_forward(norm_2(x)). x [B, T, D] -> [B, T, D].

    Layers: nn.LayerNorm as it comes, "norm_1" and "norm_2"; MultiHeadAttention "attention"; FeedForward "feed_forward"
    with a hidden width of 4 D. Example: if "out" and "down" are 0, the block returns x.
    """

    num_heads: int  # N

    @nn.compact
    def __call__(self, x):
        # answer
        x = x + MultiHeadAttention(self.num_heads, name="attention")(nn.LayerNorm(name="norm_1")(x))
        return x + FeedForward(4 * x.shape[-1], name="feed_forward")(nn.LayerNorm(name="norm_2")(x))
        # end


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
        # answer
        table = nn.Embed(self.vocab_size, self.d_model, name="tokens")
        x = table(tokens)  # [B, T, D]
        x = x + nn.Embed(self.max_len, self.d_model, name="positions")(jnp.arange(tokens.shape[1]))
        for i in range(self.num_layers):
            x = TransformerBlock(self.num_heads, name=f"block_{i}")(x)
        return table.attend(nn.LayerNorm(name="norm")(x))
        # end
