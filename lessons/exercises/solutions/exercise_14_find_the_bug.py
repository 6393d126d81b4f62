"""Exercise 14: find the bug.

About 60 minutes; difficulty: 4 of 5. Read lessons 00 to 08 first; 11 for numbers 9 and 12.

Below are twelve functions. All run, none raises an error, and each has exactly one wrong line. Bugs of this kind live
long: a model with one of them still trains, only worse. Lines are numbered by the comments at their ends. Write the
number of the wrong line of each function at the end of this file, in place of None: BUG_1 = 4, and so on.

Reading alone is hard. Run this file: it tries the laws of `transformer_jax.testing` on each function, and prints the
law that is broken. Then find the line that breaks it.

    python lessons/exercises/exercise_14_find_the_bug.py
    python -m lessons check 14        python -m lessons hint 14        python -m lessons solution 14

Letters: B texts, T queries, S keys, N heads, K key-value heads, H width of a head, D width, V words.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

# Attention: q [B, T, N, H], k and v [B, S, K, H], may_attend [B, T, S] bool -> [B, T, N, H]; K = N but in number 4.
# A query that may attend to nothing gets 0.


def attention_1(q, k, v, may_attend):  # 1
    scores = jnp.einsum("btnh,bsnh->bnts", q, k)  # 2
    scores = scores / jnp.sqrt(k.shape[1])  # 3
    scores = jnp.where(may_attend[:, None], scores, -1e30)  # 4
    weights = jax.nn.softmax(scores, axis=-1)  # 5
    weights = jnp.where(may_attend[:, None], weights, 0)  # 6
    return jnp.einsum("bnts,bsnh->btnh", weights, v)  # 7


def attention_2(q, k, v, may_attend):  # 1
    scores = jnp.einsum("btnh,bsnh->bnts", q, k)  # 2
    scores = scores / jnp.sqrt(q.shape[-1])  # 3
    scores = jnp.where(may_attend[:, None], scores, -1e30)  # 4
    weights = jax.nn.softmax(scores, axis=-2)  # 5
    weights = jnp.where(may_attend[:, None], weights, 0)  # 6
    return jnp.einsum("bnts,bsnh->btnh", weights, v)  # 7


def attention_3(q, k, v, may_attend):  # 1
    scores = jnp.einsum("btnh,bsnh->bnts", q, k)  # 2
    scores = scores / jnp.sqrt(q.shape[-1])  # 3
    scores = jnp.where(may_attend[:, None], scores, 0.0)  # 4
    weights = jax.nn.softmax(scores, axis=-1)  # 5
    weights = jnp.where(may_attend[:, None], weights, 0)  # 6
    return jnp.einsum("bnts,bsnh->btnh", weights, v)  # 7


def attention_4(q, k, v, may_attend):  # 1  grouped: query heads 0 and 1 of 4 use key-value head 0 of 2
    group = q.shape[2] // k.shape[2]  # 2
    k = jnp.repeat(k, group, axis=2)  # 3
    v = jnp.tile(v, (1, 1, group, 1))  # 4
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(q.shape[-1])  # 5
    weights = jax.nn.softmax(jnp.where(may_attend[:, None], scores, -1e30), axis=-1)  # 6
    return jnp.einsum("bnts,bsnh->btnh", jnp.where(may_attend[:, None], weights, 0), v)  # 7


def attention_5(q, k, v, may_attend):  # 1  with a softmax by hand
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / jnp.sqrt(q.shape[-1])  # 2
    scores = jnp.where(may_attend[:, None], scores, -1e30)  # 3
    exps = jnp.exp(scores)  # 4
    exps = jnp.where(may_attend[:, None], exps, 0)  # 5
    total = jnp.sum(exps, axis=-1, keepdims=True)  # 6
    return jnp.einsum("bnts,bsnh->btnh", exps / jnp.maximum(total, 1e-30), v)  # 7


# Parts of a small causal language model: x [B, T, D], is_token [B, T] bool (False: padding) -> [B, T, D].


def mixer_6(x, is_token):  # 1  causal attention with two heads; queries, keys and values are x itself
    B, T, D = x.shape  # 2
    heads = x.reshape(B, 2, T, D // 2)  # 3
    scores = heads @ heads.swapaxes(2, 3) / jnp.sqrt(D // 2)  # 4
    may_attend = jnp.tril(jnp.ones((T, T), bool)) & is_token[:, None, None]  # 5
    weights = jax.nn.softmax(jnp.where(may_attend, scores, -1e30), axis=-1)  # 6
    return (weights @ heads).swapaxes(1, 2).reshape(B, T, D)  # 7


def mixer_7(x, is_token):  # 1  causal attention with one head
    T = x.shape[1]  # 2
    scores = x @ x.swapaxes(1, 2) / jnp.sqrt(x.shape[-1])  # 3
    past = jnp.tril(jnp.ones((T, T), bool), 1)  # 4
    may_attend = past & is_token[:, None]  # 5
    weights = jax.nn.softmax(jnp.where(may_attend, scores, -1e30), axis=-1)  # 6
    return weights @ x  # 7


def mixer_8(x, is_token):  # 1  LayerNorm
    mean = jnp.mean(x, axis=-1, keepdims=True)  # 2
    centered = x - mean  # 3
    variance = jnp.mean(centered**2, axis=1, keepdims=True)  # 4
    return centered / jnp.sqrt(variance + 1e-5)  # 5


def positions_9(is_token):  # 1  is_token [B, T], padding on either side -> positions [B, T]: 0, 1, 2 ... of the tokens
    ones = is_token.astype(jnp.int32)  # 2
    positions = jnp.cumsum(ones, axis=0) - 1  # 3
    return jnp.maximum(positions, 0)  # 4


def rotary_10(x, positions):  # 1  x [B, T, N, H], positions [B, T]: each pair of numbers is turned by an angle
    half = x.shape[-1] // 2  # 2
    speed = 10000.0 ** (-jnp.arange(half) / half)  # 3
    angle = positions[:, :, None, None] * speed  # 4
    first, second = x[..., :half], x[..., half:]  # 5
    turned = first * jnp.cos(angle) - second * jnp.sin(angle)  # 6
    other = second * jnp.cos(angle) + turned * jnp.sin(angle)  # 7
    return jnp.concatenate([turned, other], axis=-1)  # 8


def dropout_11(x, key, rate=0.4):  # 1  drops the share `rate` of the numbers; the mean over keys is x
    if key is None:  # 2
        return x  # 3
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)  # 4
    return jnp.where(keep, x / rate, 0)  # 5


def bias_12(num_heads, q_positions, k_positions):  # 1  ALiBi, [B, N, T, S]: a penalty for each step of distance
    slopes = 2.0 ** (-8 * jnp.arange(1, num_heads + 1) / num_heads)  # 2
    distance = jnp.abs(q_positions[:, :, None] + k_positions[:, None])  # 3
    return -slopes[None, :, None, None] * distance[:, None]  # 4


# The laws, for each function. There is no bug from here on.


def language_model(mix=lambda x, is_token: x, positions=None):
    """A causal language model, (tokens, is_token) -> logits, with `mix` or `positions` inside it."""
    random = np.random.default_rng(0)
    table, places, kernel = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((9, 8), (16, 8), (8, 9)))

    def apply(tokens, is_token):
        is_token = jnp.asarray(is_token)
        x = table[tokens]
        x = x if positions is None else x + places[positions(is_token)]
        return jnp.tanh(x + mix(x, is_token)) @ kernel

    return jax.jit(apply)


def scores_with(rotate=lambda x, positions: x, bias=lambda *_: 0.0):
    """Attention scores with rotated queries and keys, or with a bias."""

    def scores(q, k, q_positions, k_positions):
        q, k = rotate(q, q_positions), rotate(k, k_positions)
        return jnp.einsum("btnh,bsnh->bnts", q, k) + bias(q.shape[2], q_positions, k_positions)

    return scores


def laws():
    """(name, a call that tries its laws) of each function."""
    from transformer_jax import testing

    def attention(function, is_grouped=False):
        return lambda: testing.check_attention(jax.jit(function), is_grouped=is_grouped)

    def model(**parts):
        return lambda: testing.check_causal_lm(language_model(**parts), vocab_size=9)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(9, 11)), jnp.float32)
    return {
        "attention_1": attention(attention_1),
        "attention_2": attention(attention_2),
        "attention_3": attention(attention_3),
        "attention_4": attention(attention_4, is_grouped=True),
        "attention_5": attention(attention_5),
        "mixer_6": model(mix=mixer_6),
        "mixer_7": model(mix=mixer_7),
        "mixer_8": model(mix=mixer_8),
        "positions_9": model(positions=positions_9),
        "rotary_10": lambda: testing.check_positions(scores_with(rotate=rotary_10)),
        "dropout_11": lambda: testing.check_dropout(lambda key: dropout_11(x, key)),
        "bias_12": lambda: testing.check_positions(scores_with(bias=bias_12)),
    }


if __name__ == "__main__":
    root = next(folder for folder in Path(__file__).resolve().parents if (folder / "transformer_jax").is_dir())
    sys.path.insert(0, str(root))
    for name, law in laws().items():
        try:
            law()
            print(f"{name}: no law is broken")
        except AssertionError as error:
            print(f"{name}: {error}")


# Your answers: the number of the wrong line of each function.

# answer: BUG_1 = None
BUG_1 = 3  # the root of H, not of the number of keys
# end
# answer: BUG_2 = None
BUG_2 = 5  # over the keys, the last axis
# end
# answer: BUG_3 = None
BUG_3 = 4  # exp(0) is 1: a hidden key still takes weight from the others
# end
# answer: BUG_4 = None
BUG_4 = 4  # keys are repeated, so values must be as well: heads 0, 0, 1, 1; tile gives 0, 1, 0, 1
# end
# answer: BUG_5 = None
BUG_5 = 4  # exp of a large score is infinite: subtract the maximum first
# end
# answer: BUG_6 = None
BUG_6 = 3  # the numbers of several tokens end up in one row: reshape to [B, T, 2, D / 2], then swap
# end
# answer: BUG_7 = None
BUG_7 = 4  # the next token is seen
# end
# answer: BUG_8 = None
BUG_8 = 4  # axis 1 are the tokens, later ones included; the norm of a token is over its own numbers, axis -1
# end
# answer: BUG_9 = None
BUG_9 = 3  # the sum runs over the texts of the batch; positions count along the text, axis 1
# end
# answer: BUG_10 = None
BUG_10 = 7  # `turned` is no longer the first number of the pair: second cos + first sin
# end
# answer: BUG_11 = None
BUG_11 = 5  # what is kept is divided by the share that is kept, 1 - rate
# end
# answer: BUG_12 = None
BUG_12 = 3  # a distance is a difference
# end
