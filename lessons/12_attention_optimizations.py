# %% [markdown]
# # 12 Attention optimizations
#
# About two hours. You know attention ([01](01_attention_mechanism.md)), causal masks and the cache
# ([08](08_transformer_decoder.md)). After this lesson you can
#
# - write a softmax that sees its numbers one by one, and attention that never holds the matrix of weights;
# - say what FlashAttention saves (memory) and what it does not (operations), and measure both;
# - write linear attention, and say what it cannot do;
# - compute the size of a KV cache, and what grouped heads and a sliding window make of it.
#
# Papers: Milakov and Gimelshein 2018 (section 3), Dao et al. 2022 (algorithm 1, appendix B), Katharopoulos et al. 2020
# (section 3.2), Ainslie et al. 2023, Beltagy et al. 2020 (section 3.1).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show

# %% [markdown]
# ## What is expensive?
#
# Attention of $T$ queries and $S$ keys has a matrix of $T \cdot S$ scores for each head. At 8,192 tokens that is 67
# million numbers a head, or 268 MB. The queries, keys and values themselves are small: $T \cdot H$ each. So the
# question of this lesson is: must that matrix exist?
#
# ## A softmax that reads its numbers once
#
# A safe softmax subtracts the largest score, so it seems to need all scores before it can begin. It does not. Keep two
# numbers while you read: the largest score so far, $m$, and the sum so far, $z$, of all $e^{x - m}$. When a new largest
# score arrives, the old sum was taken with the wrong $m$. One factor puts it right:
#
# $$
# m' = \max(m, x) \qquad z' = z\, e^{m - m'} + e^{x - m'}
# $$

# %%
random = np.random.default_rng(seed())
scores = random.normal(size=1000) * 30

m, z = -np.inf, 0.0
for x in scores:
    new_m = max(m, x)
    z = z * np.exp(m - new_m) + np.exp(x - new_m)
    m = new_m

assert np.isclose(m, scores.max()) and np.isclose(z, np.exp(scores - scores.max()).sum())
print(f"largest {m:.3f}, sum {z:.6f}")

# %% [markdown]
# Is the subtraction worth the trouble? Without it there is no factor, no running maximum, one line less. But numbers of
# 32 bits end at about $3.4 \cdot 10^{38}$.

# %%
predict("From which score on (a whole number) does exp overflow in float32?", low=89, high=89)

# %%
with np.errstate(over="ignore"):
    first = next(x for x in range(200) if np.isinf(np.exp(np.float32(x))))
outcome(first)

# %% [markdown]
# Scores of 100 do occur in trained models. So the maximum stays.
#
# ## Attention in blocks
#
# The same trick for whole attention. Read the keys and values block by block, and keep for each query $m$, $z$ and the
# sum of values so far, $o$. All three are put right by the same factor. At the end divide once:
#
# $$
# o' = o\, e^{m - m'} + \sum_{s \in \text{block}} e^{x_s - m'}\, v_s \qquad \text{result} = o / z
# $$


# %%
def attention_in_blocks(q, k, v, block):  # [T, H], [S, H], [S, H]
    T, H = q.shape
    m, z, o = np.full((T, 1), -np.inf), np.zeros((T, 1)), np.zeros((T, H))
    for first in range(0, len(k), block):
        x = q @ k[first : first + block].T / np.sqrt(H)  # [T, block]: the only scores that exist
        new_m = np.maximum(m, x.max(axis=-1, keepdims=True))
        shrink, weights = np.exp(m - new_m), np.exp(x - new_m)
        z = z * shrink + weights.sum(axis=-1, keepdims=True)
        o = o * shrink + weights @ v[first : first + block]
        m = new_m
    return o / z


T, S, H = 5, 1000, 16
q, k, v = random.normal(size=(T, H)), random.normal(size=(S, H)), random.normal(size=(S, H))
scores = q @ k.T / np.sqrt(H)  # [T, S]: the matrix that we want to do without
weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
plain = weights / weights.sum(axis=-1, keepdims=True) @ v

# %% [markdown]
# The name "FlashAttention" and the words "fast attention" sound like an approximation. How far off is it?

# %%
predict("Blocks of 64 keys: what is the largest difference from plain attention?", low=0, high=1e-10)

# %%
outcome(np.abs(attention_in_blocks(q, k, v, 64) - plain).max())

# %% [markdown]
# None: it is the same mathematics in another order. The library's version loops over blocks of queries as well. Here
# is its inner step. (The anchor is the new maximum, or 0 if a row may not attend any key yet.)

# %%
import inspect
import textwrap

from transformer_jax.nn import attention_blockwise

source = inspect.getsource(attention_blockwise._forward).splitlines()
first = next(i for i, line in enumerate(source) if "new_max_score =" in line)
print(textwrap.dedent("\n".join(source[first : first + 6])))

# %% [markdown]
# It also skips what a causal mask hides: which block of keys is the last that a block of queries needs?

# %%
show(attention_blockwise._end_of_key_blocks)

# %%

import jax
import jax.numpy as jnp

from transformer_jax.nn.attention import attend

one_head = [jnp.asarray(x, jnp.float32)[None, :, None] for x in (q, k, v)]  # [B, T, N, H] with B = N = 1
assert np.allclose(attend(*one_head, backend="blockwise")[0, :, 0], plain, atol=1e-5)

# %% [markdown]
# ## Memory, measured
#
# Times depend on the machine and on what else it does. Memory can be read off the compiled program before it runs.
# `reference` is the formula, with the whole matrix; `blockwise` is the loop. One head of 64 numbers, causal.

# %%
from transformer_jax.nn.masks import Mask


def megabytes(backend, T, has_gradient=False):
    x = jax.ShapeDtypeStruct((1, T, 1, 64), jnp.float32)  # a shape is enough to compile

    def run(q, k, v):
        return attend(q, k, v, Mask(is_causal=True), backend=backend)

    def gradient(q, k, v):
        return jax.grad(lambda *qkv: run(*qkv).sum(), argnums=(0, 1, 2))(q, k, v)

    compiled = jax.jit(gradient if has_gradient else run).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


lengths = [1024, 2048, 4096, 8192]

# %%
predict(
    "The formula: 4,096 tokens in place of 2,048. By what factor does its temporary memory grow?", low=3.9, high=4.1
)

# %%
formula = {T: megabytes("reference", T) for T in lengths}
print({T: f"{size:.0f} MB" for T, size in formula.items()})
outcome(formula[4096] / formula[2048])

# %%
predict("In blocks: 8,192 tokens. What share of the formula's temporary memory do they take?", low=0.002, high=0.03)

# %%
blocks = {T: megabytes("blockwise", T) for T in lengths}
print({T: f"{size:.1f} MB" for T, size in blocks.items()})
plt.loglog(lengths, formula.values(), marker="o", label="formula")
plt.loglog(lengths, blocks.values(), marker="o", label="blocks of 512")
plt.xticks(lengths, [f"{T:,}" for T in lengths])
plt.minorticks_off()
plt.xlabel("tokens")
plt.ylabel("temporary memory (MB)")
plt.legend()
picture("temporary memory against tokens: the formula's line rises with the square, the line of blocks is nearly level")
outcome(blocks[8192] / formula[8192])

# %% [markdown]
# And the number of operations? Every score is still computed. A block that a causal mask hides completely is skipped,
# which saves up to a half; nothing else is saved. FlashAttention is faster on a GPU because the matrix no longer
# travels to slow memory and back, not because there is less to compute.
#
# Training needs the weights again for the gradient. Instead of keeping them, the blocks compute them a second time,
# from $\log z + m$, one number for each query. Recomputing is cheaper than remembering.

# %%
with_gradient = {backend: megabytes(backend, 4096, has_gradient=True) for backend in ("reference", "blockwise")}
print({backend: f"{size:.0f} MB" for backend, size in with_gradient.items()})
assert with_gradient["blockwise"] < with_gradient["reference"] / 10

# %% [markdown]
# ## Linear attention: brackets in another place
#
# If there were no softmax, attention would be $(Q K^\top)\, V$, and matrix products may be bracketed as one likes:
# $Q\,(K^\top V)$. The first has a $T \times S$ matrix in the middle, the second an $H \times H$ one. Katharopoulos et
# al. replace $e^{q \cdot k}$ by $f(q) \cdot f(k)$ with $f(x) = \text{elu}(x) + 1$, which is above 0:
#
# $$
# \text{result}_t = \frac{f(q_t)^\top \sum_s f(k_s)\, v_s^\top}{f(q_t)^\top \sum_s f(k_s)}
# $$


# %%
def f(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))  # elu(x) + 1


def linear_attention(q, k, v):
    products = f(k).T @ v  # [H, H], whatever the number of keys
    return f(q) @ products / (f(q) @ f(k).sum(axis=0))[:, None]


similarity = f(q) @ f(k).T  # [T, S], to compare with
assert np.allclose(linear_attention(q, k, v), similarity / similarity.sum(axis=-1, keepdims=True) @ v)

# %%
from transformer_jax.nn import linear_attention as library

show(library.feature_map)
show(library.attend_linearly)

# %%
assert np.allclose(library.attend_linearly(*one_head)[0, :, 0], linear_attention(q, k, v), atol=1e-5)

# %% [markdown]
# Cost and memory now grow with $T$ alone, and a decoder needs no cache: the sums are its whole memory. Is that free?
# Take 64 random keys, and a query that points at one of them, three times as long. Softmax finds it. And $f$?

# %%
predict(
    "Linear attention: how much of the attention does the matching key get, of 64? (Softmax: almost all.)",
    low=0.015,
    high=0.06,
)

# %%
keys = random.normal(size=(64, 32))  # [S, H]
query = 3 * keys[10]
soft = np.exp(keys @ query / np.sqrt(32))
soft /= soft.sum()
linear = f(keys) @ f(query)
linear /= linear.sum()
plt.plot(soft, label="softmax")
plt.plot(linear, label="linear")
plt.xlabel("key")
plt.ylabel("attention weight")
plt.legend()
picture("weights of 64 keys: softmax has one spike at the matching key, linear attention is nearly flat")
print(f"softmax: {soft[10]:.3f}")
outcome(linear[10])

# %% [markdown]
# Hardly more than its share. $f(q) \cdot f(k)$ has no exponential that makes a large product larger still, and a state
# of $H \times H$ numbers cannot keep a thousand keys apart. So linear attention reads long texts cheaply, and is weak
# where one thing must be found among many. That is the price, and why later work changes $f$ or mixes both kinds of
# layers.
#
# ## The KV cache: what writing costs
#
# A decoder writes token after token. Without a cache, each new token computes keys and values of the whole text again.
# With one, only its own ([lesson 08](08_transformer_decoder.md)).

# %%
predict(
    "256 tokens are written one by one. How many times as many keys are projected without a cache as with it?",
    low=128,
    high=129,
)

# %%
without = sum(range(1, 256 + 1))  # step t projects t keys
outcome(without / 256)

# %% [markdown]
# The cache is paid with memory: keys and values, for each layer, each key-value head and each token.
#
# $$
# \text{bytes} = 2 \cdot L \cdot K \cdot H \cdot S \cdot \text{bytes of a number}
# $$
#
# Here is a model of the size of GPT-2 (12 layers, 12 heads of 64), for one text of 4,096 tokens. No parameter is
# needed: the library gives the shapes.

# %%
from transformer_jax.config import TransformerConfig
from transformer_jax.nn.kv_cache_kinds import make_cache, make_rolling_cache

gpt2 = dict(vocab_size=50257, max_len=4096, num_layers=12, d_model=768, num_heads=12, positions="rotary")


def cache_megabytes(make=make_cache, **changes):
    config = TransformerConfig(**(gpt2 | changes))
    cache = jax.eval_shape(lambda: make(config, 1, 4096))
    return sum(x.size * x.dtype.itemsize for layer in cache.layers for x in jax.tree.leaves(layer)) / 2**20


# %%
predict("How many MB is this cache, in float32?", low=288, high=288)

# %%
print("by the formula:", 2 * 12 * 12 * 64 * 4096 * 4 / 2**20, "MB")
outcome(cache_megabytes())

# %% [markdown]
# For one text. The parameters of that model take about 500 MB; two texts of this length have a larger cache than that.
# So servers spend their memory on caches, and three ideas make them smaller.
#
# **Grouped heads** (Ainslie et al. 2023): several query heads share one key-value head, $K < N$. With 12 query heads
# and $K = 3$ the cache is a quarter. With $K = 1$ ("multi-query") it is a twelfth.

# %%
for K in (12, 3, 1):
    print(f"K = {K:2d}: {cache_megabytes(num_kv_heads=K):6.1f} MB")

# %% [markdown]
# **A linear state** has no slot for tokens at all. And **a sliding window** lets a query see the last $W$ tokens only,
# so that older slots can be used again.

# %%
rolling = cache_megabytes(lambda config, B, _: make_rolling_cache(config, B, max_new=1), window=512)
print(f"window of 512: {rolling:.1f} MB, for a text of any length")
linear_state = cache_megabytes(attention="linear", positions="none")
print(f"linear attention: {linear_state:.1f} MB, for a text of any length")

# %% [markdown]
# ## A window sees farther than its width
#
# With a window of $W = 8$ a query may attend to itself and the 7 tokens before it. So a token 20 back is out of sight:
# in one layer. Each layer looks at vectors that have themselves looked back.

# %%
predict("Window of 8 and 3 layers: how many tokens back does the last output still depend on?", low=21, high=21)

# %%
from transformer_jax.models import GPT

windowed = GPT(
    TransformerConfig(vocab_size=11, max_len=64, num_layers=3, d_model=16, num_heads=2, window=8, init_std=0.3)
)
tokens = random.integers(0, 11, (1, 64))
params = jax.jit(windowed.init)(jax.random.key(seed()), tokens)
others = np.tile(tokens, (64, 1))  # row i: token i is another one
others[np.arange(64), np.arange(64)] = (others[np.arange(64), np.arange(64)] + 1) % 11
last = jax.jit(lambda tokens: windowed.apply(params, tokens)[:, -1])  # [B, V]
change = np.abs(last(others) - last(tokens)).max(axis=-1)[::-1]  # by distance back
plt.semilogy(np.arange(64), np.maximum(change, 1e-9))
plt.xlabel("how far back a token was changed")
plt.ylabel("change of the last logits")
picture("change of the last output against distance back: it falls, and from 22 tokens on there is none")
outcome(np.flatnonzero(change > 1e-6).max())

# %% [markdown]
# Three times seven. Like a rumour, news travels seven seats further in each round. (The picture fails where rumours do
# not: each layer passes on a mixture of what it saw, and what comes from far is faint. The curve shows it.)
#
# The mask, as the library draws it for $T = 6$ and a window of 3:

# %%
print(np.asarray(Mask(is_causal=True, window=3).block(0, 6, 0, 6)[0]).astype(int))

# %% [markdown]
# ## Which one when
#
# | idea | result | saves | costs |
# |---|---|---|---|
# | blocks (FlashAttention) | exact | memory: no $T \times S$ matrix | the gradient computes scores again |
# | KV cache | exact | operations when writing | memory, growing with the text |
# | grouped heads | another model | memory of the cache | a little quality |
# | sliding window | another model | both, from $W$ tokens on | no direct look beyond $W$ |
# | linear attention | another model | both, at any length | no sharp look at all |
#
# The first two lines are free of risk: the same numbers come out. The others are choices about the model, made before
# it is trained.
#
# ## Change it
#
# 1. In `attention_in_blocks`, leave out the multiplication of `o` by `shrink`. For which inputs is the result still
#    right? Try scores that fall from block to block.
# 2. Give the linear query more weight: `query = 30 * keys[10]`. Does its match get more? Then try
#    `f(x) = np.exp(x)`: what happens, and what is lost?
# 3. Set `num_layers=1` and then `6` in the windowed model, and look at where the curve ends. From which length on does
#    the text of 64 end first?
#
# ## Check yourself
#
# **Why is blockwise attention exact although the first block does not know the later maxima?**
#
# <details><summary>Answer</summary>
#
# Its sums are multiplied by $e^{m - m'}$ when a larger score comes. That is exactly the factor by which they would have
# been smaller, had the new maximum been known.
#
# </details>
#
# **Attention in blocks has the same number of multiplications. Why is it faster on a GPU?**
#
# <details><summary>Answer</summary>
#
# The matrix of scores would be written to the GPU's large, slow memory and read back. A block fits into the small, fast
# one and never leaves it.
#
# </details>
#
# **A model with 32 layers, 8 key-value heads of 128 in 16-bit numbers reads 32,768 tokens. How large is the cache?**
#
# <details><summary>Answer</summary>
#
# $2 \cdot 32 \cdot 8 \cdot 128 \cdot 32768 \cdot 2$ bytes are 4 GB, for each text.
#
# </details>
#
# **Why does linear attention need no cache, and softmax attention does?**
#
# <details><summary>Answer</summary>
#
# $f(q)$ can be taken out of the sum over keys, so the sum can be kept instead of the keys. $e^{q \cdot k}$ cannot be
# split into a factor of $q$ and a factor of $k$ of finite width, so each key must be kept.
#
# </details>
#
# ## Exercise
#
# [exercise_12_online_softmax.py](exercises/exercise_12_online_softmax.py): one score at a time, two blocks joined, and
# attention in blocks. Check it with `python -m lessons check 12`.
#
# ## Where it lives
#
# [nn/attention_blockwise.py](../transformer_jax/nn/attention_blockwise.py), with its gradient;
# [nn/linear_attention.py](../transformer_jax/nn/linear_attention.py);
# [nn/attention.py](../transformer_jax/nn/attention.py): the dict `BACKENDS`, and which one is chosen when;
# [nn/kv_cache.py](../transformer_jax/nn/kv_cache.py): one protocol for four caches, full, rolling, beam and linear.
# Measured speeds: [docs/accelerators.md](../docs/accelerators.md).
#
# ## Papers
#
# - Milakov, Gimelshein 2018, "Online Normalizer Calculation for Softmax", section 3.
# - Dao, Fu, Ermon, Rudra, Ré 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness".
# - Katharopoulos et al. 2020, "Transformers are RNNs", section 3.2.
# - Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need".
# - Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints".
# - Beltagy, Peters, Cohan 2020, "Longformer: The Long-Document Transformer", section 3.1.
#
# Next: [13 Modern blocks](13_modern_blocks.md)
