# %% [markdown]
# # 05 Feed-forward networks, norms and residual connections
#
# For readers of [lesson 04](04_positional_encoding.md). About an hour and a half.
#
# After this lesson you can
#
# - write the feed-forward layer, and say why it needs a bend in its middle,
# - write layer norm, and say which numbers it averages,
# - say what a residual connection does to the gradient of a deep network,
# - say where most parameters of a model are.
#
# Papers: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), sections 3.1 and
# 3.3; Ba et al. 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450); He et al. 2015, [Deep Residual
# Learning](https://arxiv.org/abs/1512.03385).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## After the meeting, everyone thinks alone
#
# Attention moves information between words. But it only *averages* values; it computes nothing new from them.
# That is the job of the second half of a block, the feed-forward layer (FFN):
#
# $$ \mathrm{FFN}(x) = \max(0,\; x W_1 + b_1)\, W_2 + b_2 $$
#
# Some tutorials say: attention is a meeting, and then each word goes home to think for itself. The picture is
# good for one thing: the layer treats each word alone, with the same matrices. It fails elsewhere: nothing
# like a thought happens, the "thinking" is one product, one bend and one more product, and all words do
# exactly the same with what they have.
#
# The inner width F is usually 4 D.


# %%
def relu(x):
    return np.maximum(x, 0)


def feed_forward(x, W_1, b_1, W_2, b_2, activation=relu):  # x [T, D], W_1 [D, F], W_2 [F, D]
    hidden = activation(x @ W_1 + b_1)  # [T, F]
    return hidden @ W_2 + b_2  # [T, D]


D, F, T = 16, 64, 5
random = np.random.default_rng(seed())
x = random.normal(size=(T, D))
W_1, W_2 = random.normal(size=(D, F)) / D**0.5, random.normal(size=(F, D)) / F**0.5
b_1, b_2 = random.normal(size=F), random.normal(size=D)

# %%
predict("Replace word 0 of five by another one. How many rows of the output of the FFN change?", low=1, high=1)

# %%
other = x.copy()
other[0] = random.normal(size=D)
before, after = (feed_forward(words, W_1, b_1, W_2, b_2) for words in (x, other))
outcome((before != after).any(axis=1).sum())

# %% [markdown]
# Each row depends on its own word. Between words there is only attention.
#
# ## Why the bend?
#
# The bend, `max(0, ...)`, is called *ReLU*; any function in its place is an *activation*. Leave it out, and two
# matrices in a row are one matrix: $(x W_1) W_2 = x (W_1 W_2)$. The inner width would be wasted. Test it with a
# task that no matrix can do: the product of two numbers.

# %%
W_12 = W_1 @ W_2
assert np.allclose(feed_forward(x, W_1, 0, W_2, 0, activation=lambda x: x), x @ W_12)

inputs = random.normal(size=(2000, 2))
target = inputs[:, 0] * inputs[:, 1]  # variance 1


def error_of(activation):
    """Random first matrix, best second matrix: the share of the target's variance that is left."""
    hidden = activation(
        inputs @ np.random.default_rng(1).normal(size=(2, 64)) + np.random.default_rng(2).normal(size=64)
    )
    hidden = np.concatenate([hidden, np.ones((len(inputs), 1))], axis=1)  # the bias b_2
    best = np.linalg.lstsq(hidden[:1000], target[:1000], rcond=None)[0]
    return np.mean((hidden[1000:] @ best - target[1000:]) ** 2) / np.var(target[1000:])


# %%
predict(
    "The product of two numbers, with 64 inner numbers and no bend: what share of the variance is left unexplained?",
    low=0.95,
    high=1.1,
)

# %%
outcome(error_of(lambda x: x))

# %%
predict("And with ReLU?", low=0, high=0.1)

# %%
outcome(error_of(relu))

# %% [markdown]
# And only the second matrix was fitted; the first was random. The bend is what lets a network compute.
#
# ## ReLU and GELU
#
# ReLU is 0 for everything below 0, and so is its slope: there it learns nothing. GELU, used by BERT and
# GPT-2, bends softly. It multiplies x by the probability that a standard normal number is below x (Hendrycks
# & Gimpel 2016):
#
# $$ \mathrm{GELU}(x) = x\, P(X \le x) = \frac{x}{2} \left(1 + \mathrm{erf}\frac{x}{\sqrt 2}\right) $$
#
# (erf is a function of the standard library that gives such probabilities.)

# %%
predict("What is the smallest value of GELU?", low=-0.1701, high=-0.1699)

# %%
from math import erf


def gelu(x):
    return x / 2 * (1 + np.vectorize(erf)(x / 2**0.5))


line = np.linspace(-4, 3, 701)
plt.plot(line, relu(line), label="ReLU")
plt.plot(line, gelu(line), label="GELU")
plt.gca().set(xlabel="x", ylabel="f(x)")
plt.legend()
picture("ReLU, with a corner at 0, and GELU, which dips a little below 0 on the left of 0 and then follows ReLU.")
print("at x =", line[gelu(line).argmin()].round(2))
outcome(gelu(line).min())

# %% [markdown]
# It is not monotone: a little below zero it dips. Its slope is exactly 0 at one point only, so no unit (inner number)
# stops learning for good.
#
# ## Layer norm
#
# Sums grow from layer to layer. A norm brings each vector back to one scale: its numbers get mean 0 and
# variance 1. Then a learned scale $g$ and bias $b$ follow.
#
# $$ \mathrm{LN}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, g + b $$
#
# $\mu$ and $\sigma^2$ are the mean and variance of the D numbers **of one word**. No other word and no other
# text takes part.


# %%
def layer_norm(x, scale=1.0, bias=0.0, epsilon=1e-5):  # [..., D]
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centered**2, axis=-1, keepdims=True)
    return centered / np.sqrt(variance + epsilon) * scale + bias


# %%
predict(
    "A vector is multiplied by 1,000. By how much, at most, do the numbers of its layer norm change?", low=0, high=0.001
)

# %%
outcome(np.abs(layer_norm(1000 * x) - layer_norm(x)).max())

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 2.5))
words = random.normal(size=(5, D)) * np.array([[0.2], [1], [3], [0.5], [2]]) + np.array([[0], [2], [-4], [1], [0]])
for axis, numbers, title in zip(axes, (words, layer_norm(words)), ("before the norm", "after it"), strict=True):
    axis.plot(numbers.T, np.tile(np.arange(D), (5, 1)).T, ".")
    axis.set(title=title, xlabel="value", ylabel="number of the vector")
plt.tight_layout()
picture(
    "Left: the numbers of five words, each with a spread and a center of its own. Right: after the norm all are alike."
)

# %% [markdown]
# Only the direction of a vector gets through, not its length. That has a consequence for learning: if x is
# ten times as long, a change of x changes the result only a tenth as much. The gradient is *divided* by the
# length. Remember this for the next section.
#
# ## The library's versions

# %%
from transformer_jax.nn.layers import FeedForward, LayerNorm

show(LayerNorm)

# %% [markdown]
# `normalize` divides by the root of the mean square. Computing in float32 matters when the rest of a model
# runs in 16 bits.

# %%
show(FeedForward)

# %% [markdown]
# `up` is our W_1, `down` our W_2. A *gated* variant has a third matrix; lesson 13 compares them.

# %%
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig

config = TransformerConfig(d_model=D, d_ff=F, num_layers=1, num_heads=1, feed_forward="relu", init_std=0.3)
layer = FeedForward(config)
params = layer.init(jax.random.key(seed()), x)
up, down = (jax.tree.map(np.asarray, params["params"][name]) for name in ("up", "down"))
assert np.allclose(
    layer.apply(params, x), feed_forward(x, up["kernel"], up["bias"], down["kernel"], down["bias"]), atol=1e-4
)
norm = LayerNorm(epsilon=1e-5)
theirs = norm.apply(norm.init(jax.random.key(0), np.float32(x)), np.float32(x))
assert np.allclose(theirs, layer_norm(x), atol=1e-5)

# %% [markdown]
# ## Residual connections
#
# Each half of a block does not replace its input; it adds to it:
#
# $$ x \leftarrow x + f(x) $$
#
# The sum that runs through all layers is called the *residual stream*. Often it is compared to a highway,
# with each layer an exit and an entry. (Where this fails: cars leave a highway. Here nothing leaves; a layer
# can only add, and to remove something it must add the opposite.)
#
# Why is it there? To find out, we stack 100 layers, each a norm, a random matrix and a ReLU, once with the
# plus and once without. Then we ask how strongly the output depends on the input: the length of the gradient
# at the bottom, for a gradient of length 1 at the top. Tutorials say that without residual connections
# gradients *vanish*.

# %%
WIDTH, DEPTH = 64, 100


def jax_norm(x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def gradient_lengths(has_residual, has_norm=True):
    """Length of the gradient with respect to the input of each layer, [DEPTH + 1], from the input to the output."""
    keys = jax.random.split(jax.random.key(seed()), 3)
    matrices = jax.random.normal(keys[0], (DEPTH, WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5
    x, d_out = jax.random.normal(keys[1], (2, 64, WIDTH))

    def layer(x, matrix):
        y = jax.nn.relu((jax_norm(x) if has_norm else x) @ matrix)
        return x + y if has_residual else y

    def up(x, matrix):
        return layer(x, matrix), x

    def back(d_x, matrix_and_x):
        matrix, x = matrix_and_x
        d_x = jax.vjp(lambda x: layer(x, matrix), x)[1](d_x)[0]
        return d_x, jnp.linalg.norm(d_x)

    _, inputs = jax.lax.scan(up, x, matrices)
    d_out = d_out / jnp.linalg.norm(d_out)
    _, lengths = jax.lax.scan(back, d_out, (matrices, inputs), reverse=True)
    return np.append(np.asarray(lengths), 1.0)


# %%
predict(
    "100 layers of norm, matrix and ReLU, without residual: length of the gradient at the input?", low=3e7, high=3e9
)

# %%
without = gradient_lengths(has_residual=False)
outcome(without[0])

# %%
predict("The same with residual connections?", low=12, high=40)

# %%
with_residual = gradient_lengths(has_residual=True)
for name, lengths in (("without residual", without), ("with residual", with_residual)):
    plt.semilogy(lengths, label=name)
plt.gca().set(xlabel="layer (0: the input)", ylabel="length of the gradient", title="backward, from layer 100 to 0")
plt.legend()
picture("Length of the gradient by layer, logarithmic: without residual a straight line far up; with it, flat.")
outcome(with_residual[0])

# %% [markdown]
# It does not vanish. With norms it **explodes**. Each layer multiplies the gradient by about the same factor,
# a little above 1, and a hundred such factors are a very large number. (Where does the factor come from? ReLU
# throws away half of the slopes, but the norm then divides by a spread that has shrunk even more.) Without
# norms, and with smaller first matrices, it would vanish instead. Either way it is a product of a hundred
# factors. With the plus, each factor is 1 + something small, and the later layers add ever less in proportion
# to the stream.
#
# ## Does it matter for learning?
#
# A gradient that is far too large at the bottom could be rescaled: the rule by which we train, Adam
# ([lesson 10](10_transformer_training.md)), divides by its size anyway. So train it: 24 layers of FFN, and a
# target that needs products: $(x_0 x_1 + x_2 x_3) / \sqrt 2$. It has variance 1.

# %%
from course.fit import fit


class Deep:
    """Residual or plain layers, as an object with init and apply, as `fit` wants it."""

    def __init__(self, has_residual):
        self.has_residual = has_residual

    def init(self, key, x, depth=24, width=32):
        keys = jax.random.split(key, 4)
        shapes = {
            "first": (8, width),
            "up": (depth, width, 2 * width),
            "down": (depth, 2 * width, width),
            "last": (width, 1),
        }
        return {
            name: jax.random.normal(k, shape) / shape[-2] ** 0.5
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(self, params, x):
        def layer(x, matrices):
            up, down = matrices
            y = jax.nn.gelu(jax_norm(x) @ up) @ down
            return (x + y if self.has_residual else y), None

        x, _ = jax.lax.scan(layer, x @ params["first"], (params["up"], params["down"]))
        return jax_norm(x) @ params["last"]


def squared_error(apply, batch):
    inputs, target = batch
    return jnp.mean((apply(inputs)[..., 0] - target) ** 2)


inputs = np.random.default_rng(seed() + 1).normal(size=(steps(400), 128, 8)).astype(np.float32)
batches = inputs, (inputs[..., 0] * inputs[..., 1] + inputs[..., 2] * inputs[..., 3]) / 2**0.5

# %%
predict(
    "24 layers without residual connections, 400 steps: the loss at the end? (1: nothing learned)", low=0.6, high=1.1
)

# %%
_, plain = fit(Deep(has_residual=False), batches, loss=squared_error, seed=seed())
outcome(plain[-20:].mean())

# %%
predict("And with them?", low=0, high=0.05)

# %%
_, residual = fit(Deep(has_residual=True), batches, loss=squared_error, seed=seed())
plt.plot(plain, label="without residual")
plt.plot(residual, label="with residual")
plt.gca().set(xlabel="training step", ylabel="loss", ylim=(0, 2))
plt.legend()
picture("Loss during training: without residual it stays near 1, with residual it falls to nearly 0.")
outcome(residual[-20:].mean())

# %% [markdown]
# The same layers, the same norms, the same data: one plus sign. (With two matrices and a soft bend in each
# layer, as here, the gradient of the plain network does not even explode at the start. Its length is not the
# whole story: without the plus, each layer must pass on all that later layers need, through bends that cannot
# be undone.) Residual connections and norms together are what makes depth trainable. (Where the norm stands,
# before the layer or after the sum, is the question of lesson 06.)
#
# ## Where are the parameters?
#
# One often reads that most parameters of a Transformer are in its feed-forward layers. Count: attention has
# four matrices of D × D, the FFN has two of D × 4 D.

# %%
predict("Which share of the parameters of a block's matrices is in the FFN?", low=0.66, high=0.67)

# %%
outcome(2 * 4 / (4 + 2 * 4))

# %% [markdown]
# Of the *blocks*. The whole model has embeddings, too. We ask JAX for the shapes of all parameters of three
# models, without making any (`eval_shape`), and count.

# %%
predict("GPT-2 (124 million parameters): which share of the whole model is in the FFNs?", low=0.45, high=0.46)

# %%
from transformer_jax.models import GPT

models = {
    "a small one": TransformerConfig(vocab_size=4096, max_len=256, d_model=128, num_layers=4, num_heads=4),
    "GPT-2": TransformerConfig(vocab_size=50257, max_len=1024, d_model=768, num_layers=12, num_heads=12),
    "GPT-3": TransformerConfig(vocab_size=50257, max_len=2048, d_model=12288, num_layers=96, num_heads=96),
}
shares = {}
for name, config in models.items():
    shapes = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((1, 8), int))
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    count = {"embeddings": 0, "attention": 0, "feed-forward": 0}
    for path, leaf in paths:
        path = jax.tree_util.keystr(path)
        part = "feed-forward" if "feed_forward" in path else "attention" if "attention" in path else "embeddings"
        count[part] += leaf.size
    total = sum(count.values())
    shares[name] = {part: number / total for part, number in count.items()}
    print(
        f"{name:12} {total:16,} parameters; " + ", ".join(f"{part} {share:.0%}" for part, share in shares[name].items())
    )
left = np.zeros(3)
for part in ("embeddings", "attention", "feed-forward"):
    width = np.array([share[part] for share in shares.values()])
    plt.barh(list(shares), width, left=left, label=part)
    left += width
plt.xlabel("share of the parameters")
plt.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)
picture("Shares of embeddings, attention and feed-forward layers in three models: embeddings shrink as models grow.")
outcome(shares["GPT-2"]["feed-forward"])

# %% [markdown]
# So the sentence is true of blocks, and of very large models. In a small one the embeddings take the largest
# part.
#
# ## Change it
#
# 1. In `gradient_lengths`, set `has_norm=False`. What happens with and without residual? Then change the 2 in
#    `(2 / WIDTH)` to 1.
# 2. Give `Deep` 6 layers in place of 24. Does the plain network learn now?
# 3. In `error_of`, take 8 inner numbers in place of 64, and GELU in place of ReLU.
#
# ## Check yourself
#
# <details><summary>What does the feed-forward layer do that attention cannot?</summary>
#
# It computes new numbers from those of one word, with a bend. Attention only takes weighted means of
# (projected) vectors.
#
# </details>
#
# <details><summary>Over which numbers does layer norm take the mean?</summary>
#
# Over the D numbers of one word. Not over words, not over the batch. So it works the same for one word alone,
# as in generation.
#
# </details>
#
# <details><summary>Do gradients vanish without residual connections?</summary>
#
# They are a product of as many factors as there are layers. With norms the factors are above 1 here, and the
# gradient explodes; with other first values it vanishes. The plus keeps the factors near 1.
#
# </details>
#
# ## Exercise
#
# [exercise_06_norm_feed_forward.py](exercises/exercise_06_norm_feed_forward.py): layer norm, GELU, the
# feed-forward layer, a residual half-block, and the gradient of layer norm. Check it with `python -m lessons
# check 06`.
#
# ## Where it lives
#
# - [transformer_jax/nn/layers.py](../transformer_jax/nn/layers.py): `FeedForward`, `LayerNorm`, `RMSNorm`,
#   and their dicts
# - [transformer_jax/nn/blocks.py](../transformer_jax/nn/blocks.py): `Block`, where both halves are added to
#   the stream
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), sections 3.1 and 3.3
# - Ba et al. 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450)
# - He et al. 2015, [Deep Residual Learning](https://arxiv.org/abs/1512.03385)
# - Hendrycks & Gimpel 2016, [Gaussian Error Linear Units](https://arxiv.org/abs/1606.08415)
# - Yang et al. 2019, [A Mean Field Theory of Batch Normalization](https://arxiv.org/abs/1902.08129): norms
#   without residual connections make gradients explode
#
# Next: [06 Transformer architecture](06_transformer_architecture.md).
