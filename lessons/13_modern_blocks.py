# %% [markdown]
# # 13 Modern blocks
#
# About an hour. For a reader of lessons [05](05_feedforward_networks.md), [06](06_transformer_architecture.md) and
# [10](10_transformer_training.md): you know the block, its norm, its feed-forward layer, and AdamW.
#
# A model of today is still the Transformer of 2017, with five or six parts exchanged. This lesson takes them one at a
# time: RMSNorm, SwiGLU, parallel blocks, normalized queries and keys, and Muon in place of AdamW. Then it asks the
# question that papers sometimes leave out: is the gain larger than what another seed would have given?
#
# After this lesson you can
# - write RMSNorm, SwiGLU and a parallel block in NumPy, and say what each saves;
# - bound attention scores by normalizing queries and keys;
# - say what Muon does to a gradient, by its singular values;
# - compare two models by several seeds, and refuse to call a winner when there is none.
#
# Papers: Zhang & Sennrich 2019 (RMSNorm, section 4), Shazeer 2020 (SwiGLU, section 2), Wang & Komatsuzaki 2021 (the
# parallel block of GPT-J), Dehghani et al. 2023 (normalized queries and keys, section 2), Jordan 2024 (Muon).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

random = np.random.default_rng(seed())

# %% [markdown]
# ## 1. RMSNorm: LayerNorm without the mean
#
# LayerNorm takes the mean away and divides by the standard deviation. RMSNorm only divides, by the root of the mean
# of the squares (**r**oot **m**ean **s**quare):
#
# $$\mathrm{RMSNorm}(x) = \frac{x}{\sqrt{\frac{1}{D} \sum_i x_i^2 + \epsilon}} \cdot \mathrm{scale}$$
#
# One subtraction less, and no bias: that is all. Does the mean matter? First see how much of a vector it is.

# %%
predict(
    "x has 64 random numbers. LayerNorm takes their mean away: which share of the sum of squares is it?",
    low=0.013,
    high=0.019,
)


# %%
def layer_norm(x, scale, bias, epsilon=1e-5):  # [..., D]
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon) * scale + bias


def rms_norm(x, scale, epsilon=1e-5):  # [..., D]
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


D = 64
x = random.normal(size=(4000, D))
centered = x - x.mean(axis=-1, keepdims=True)
outcome(1 - (centered**2).sum() / (x**2).sum())

# %% [markdown]
# One part in 64: the mean is one direction of 64, and there is nothing special about it. (In a trained model the mean
# need not be so small; but the layers before the norm can learn to keep it small, if that helps.)
#
# The library's RMSNorm is a module with one array, `scale`. Everything happens in `normalize`. Here is its forward
# pass:

# %%
from transformer_jax.nn import layers

show(layers._normalize_forward)

# %% [markdown]
# It keeps `inverse_rms` for the gradient. The module multiplies by the scale, which starts as ones:

# %%
import jax
import jax.numpy as jnp

scale = random.normal(size=D)
library = layers.RMSNorm(epsilon=1e-5).apply({"params": {"scale": jnp.asarray(scale)}}, jnp.asarray(x[:5]))
assert np.allclose(library, rms_norm(x[:5], scale), atol=1e-5)

# %% [markdown]
# ## 2. SwiGLU: a gate in the feed-forward layer
#
# The feed-forward layer of lesson 05 has two kernels. A gated one has three: two read the input, and what one of them
# computes opens or closes what the other computes, number by number.
#
# $$\mathrm{SwiGLU}(x) = \left(\mathrm{SiLU}(x W_\mathrm{gate}) \odot x W_\mathrm{up}\right) W_\mathrm{down},
# \qquad \mathrm{SiLU}(z) = \frac{z}{1 + e^{-z}}$$
#
# Three kernels of the same width would be half as many parameters again. So the width $F$ is made smaller, until the
# number of parameters is the old one. Without biases, two kernels have $2 D F$ numbers.

# %%
predict(
    "D = 32. Two kernels with F = 128 give way to three kernels. Which F keeps the number of parameters?",
    low=85,
    high=86,
)

# %%
two_kernels = 2 * 32 * 128
outcome(two_kernels / (3 * 32))

# %% [markdown]
# That is $\frac{8}{3} D$ in place of $4 D$, the strange number in the configurations of Llama. The library takes the
# next multiple of 8, since fast matrix products like round numbers.

# %%
from transformer_jax import TransformerConfig

config = TransformerConfig(vocab_size=10, d_model=32, num_heads=4, feed_forward="swiglu", mlp_bias=False)
print("F:", config.d_ff)


def silu(z):
    return z / (1 + np.exp(-z))


def swiglu(x, gate, up, down):  # [..., D], [D, F], [D, F], [F, D]
    return (silu(x @ gate) * (x @ up)) @ down


show(layers.FeedForward.__call__)

# %% [markdown]
# One `if` is the difference between the two kinds. Equal to ours?

# %%
kernels = {
    name: random.normal(size=shape)
    for name, shape in (("gate", (32, config.d_ff)), ("up", (32, config.d_ff)), ("down", (config.d_ff, 32)))
}
x = random.normal(size=(2, 5, 32))
params = {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
library = layers.FeedForward(config).apply({"params": params}, jnp.asarray(x, jnp.float32))
assert np.allclose(library, swiglu(x, **kernels), rtol=1e-3, atol=1e-3)

# %% [markdown]
# What can a gate do that GELU cannot? A product of two numbers that both come from the input. Draw one unit: the first
# input goes to the gate, the second to the other kernel.

# %%
line = np.linspace(-3, 3, 61)
first, second = np.meshgrid(line, line)
_, axes = plt.subplots(1, 2, figsize=(6.4, 2.9))
for axis, z, title in ((axes[0], silu(first + second), "SiLU(a + b)"), (axes[1], silu(first) * second, "SiLU(a) * b")):
    axis.contourf(line, line, z, levels=21, cmap="RdBu", vmin=-9, vmax=9)
    axis.set(title=title, xlabel="a", ylabel="b")
plt.tight_layout()
picture(
    "Two maps over inputs a and b. A unit without a gate changes along the diagonal only; a gated unit is flat where "
    "the gate a is negative, and rises with b where a is positive"
)

# %% [markdown]
# Left, a unit without a gate: it sees one direction, here the sum. Right, a gated unit: for negative `a` it is nearly
# closed, for positive `a` it passes `b` on, with its sign.
#
# An analogy: a gate is a tap that another pipe turns. It fails in one point: a tap is open or closed, at most. SiLU has
# no upper end, so this tap can also multiply.
#
# ## 3. Parallel blocks
#
# The block of lesson 06 is serial: attention first, then a feed-forward layer which reads what attention has written.
#
# $$y = x + \mathrm{Attention}(\mathrm{Norm}(x)), \qquad \mathrm{out} = y + \mathrm{FFN}(\mathrm{Norm}'(y))$$
#
# In a parallel block both read the same input, so that their matrix products can be computed as one:
#
# $$\mathrm{out} = x + \mathrm{Attention}(\mathrm{Norm}(x)) + \mathrm{FFN}(\mathrm{Norm}(x))$$
#
# In the library a block is a row of a table. These are all of them:

# %%
from transformer_jax.nn.blocks import NORM_PLACEMENTS

for name, placement in NORM_PLACEMENTS.items():
    print(f"{name:13s}", ", ".join(field for field, value in placement._asdict().items() if value))

# %% [markdown]
# To see that the library does what the equation says, we read the arrays inside a parallel block (`tj.capture` is
# the subject of [lesson 16](16_looking_inside.md)) and compute its feed-forward part from the input of the *block*.

# %%
import transformer_jax as tj
from transformer_jax.models import GPT
from transformer_jax.run import Run


def first_params(model, tokens, num=()):
    """Kernels and embeddings are normal numbers, scales ones, biases zeros; with num=(3,), three models in one."""

    def first(path, leaf):
        start = {"bias": np.zeros, "scale": np.ones}.get(path[-1].key, lambda shape: random.normal(0, 0.1, shape))
        return jnp.float32(start((*num, *leaf.shape)))

    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return jax.tree_util.tree_map_with_path(first, shapes)


config = TransformerConfig(
    vocab_size=10,
    num_layers=1,
    d_model=32,
    num_heads=4,
    norm_placement="parallel",
    norm="rmsnorm",
    feed_forward="relu",
    mlp_bias=False,
)
tokens = random.integers(0, 10, (1, 6))
params = first_params(GPT(config), tokens)
inside = tj.capture(Run(GPT(config), params, None, config), tokens, "block_0/*")
block = jax.tree.map(np.asarray, params["stack"]["block_0"])

before = np.asarray(inside["block_0/residual_before"])  # [B, T, D]
hidden = np.maximum(rms_norm(before, block["attention_norm"]["scale"]) @ block["feed_forward"]["up"]["kernel"], 0)
ffn = hidden @ block["feed_forward"]["down"]["kernel"]
assert np.allclose(ffn, inside["block_0/feed_forward/out"], atol=1e-5)
assert np.allclose(before + inside["block_0/attention/out"] + ffn, inside["block_0/residual_after"], atol=1e-5)

# %% [markdown]
# What is the price? The feed-forward layer of a parallel block cannot use what attention finds in the same block. It
# has to wait for the next one. With a hundred layers that is little. With one layer it is everything: remember this
# for the last section.
#
# ## 4. Normalized queries and keys
#
# A score is $q \cdot k / \sqrt{H}$. If training makes queries and keys ten times longer, scores become a hundred times
# larger, the softmax turns into a maximum, and its gradient vanishes. Large models have been lost that way. The cure:
# RMSNorm of each query and each key, head by head, before the product.

# %%
predict(
    "H = 16, and queries and keys are normalized (scale 1). What is the largest score that q and k can reach?",
    low=3.9,
    high=4.01,
)

# %%
H = 16
q = 100 * random.normal(size=(500, H))
k = 100 * random.normal(size=(500, H))
k[0] = 7 * q[0]  # the best key that a query can have
plain = q @ k.T / np.sqrt(H)
bounded = rms_norm(q, 1.0) @ rms_norm(k, 1.0).T / np.sqrt(H)
print(f"largest score without the norm: {np.abs(plain).max():,.0f}")
outcome(np.abs(bounded).max())

# %% [markdown]
# After the norm the length of a vector is $\sqrt{H}$, whatever it was. So the product is at most $H$, and the score at
# most $\sqrt{H}$. The learned `scale` can allow more, but it has to do so openly. What the softmax makes of it:

# %%
factors = np.logspace(-1, 2, 30)
q, k = random.normal(size=(200, H)), random.normal(size=(200, 12, H))


def largest_weight(q, k):  # mean over the queries
    scores = np.einsum("qh,qsh->qs", q, k) / np.sqrt(H)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights.max(axis=-1) / weights.sum(axis=-1)).mean()


plt.semilogx(factors, [largest_weight(f * q, f * k) for f in factors], label="scores as they are")
plt.semilogx(
    factors,
    [largest_weight(rms_norm(f * q, 1.0), rms_norm(f * k, 1.0)) for f in factors],
    label="queries and keys normalized",
)
plt.xlabel("factor of all queries and keys")
plt.ylabel("largest weight of 12 keys")
plt.legend()
picture("Largest attention weight over a factor of queries and keys: it rises to 1, and stays the same with a norm")

# %% [markdown]
# The library writes it with one small function; the identity is what you get without the norm:

# %%
show(layers.make_qk_norm)

# %% [markdown]
# ## 5. Muon: all directions of a gradient count
#
# AdamW looks at each number of a kernel alone. Muon looks at the kernel as a matrix $G$ (the gradient, with momentum),
# which by its singular values $\sigma$ is
#
# $$G = U \, \mathrm{diag}(\sigma) \, V^\top$$
#
# In practice a few $\sigma$ are large and most are tiny: a step along $G$ moves a few directions and forgets the rest.
# Muon steps along $U V^\top$, where all $\sigma$ are 1. It does not compute the decomposition. It repeats a polynomial
# of odd powers (a Newton-Schulz step), which changes the singular values and nothing else:
#
# $$X \leftarrow a X + (b A + c A^2) X, \quad A = X X^\top$$


# %%
def orthogonalize(gradient, num_steps=5):  # [rows, columns], rows <= columns
    X = gradient / np.linalg.norm(gradient)  # so that no singular value is above 1
    for _ in range(num_steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


u, _ = np.linalg.qr(random.normal(size=(32, 32)))
v, _ = np.linalg.qr(random.normal(size=(64, 32)))
sigma = np.logspace(0, -2, 32)  # the largest is 100 times the smallest
gradient = u * sigma @ v.T

# %%
predict(
    "The largest singular value is 100 times the smallest. After five steps, how many times is it?", low=1.3, high=6
)

# %%
after = np.linalg.svd(orthogonalize(gradient), compute_uv=False)
for number in (0, 1, 3, 5):
    plt.semilogy(
        np.linalg.svd(orthogonalize(gradient, number), compute_uv=False), "o-", markersize=3, label=f"{number} steps"
    )
plt.xlabel("singular value, from the largest")
plt.ylabel("its size")
plt.legend()
picture("Singular values of a gradient after 0, 1, 3 and 5 Newton-Schulz steps: the curve becomes flat, near 1")
outcome(after.max() / after.min())

# %% [markdown]
# Not exactly 1, and it need not be. Matrix products are all it takes, which is what accelerators are good at. The
# library takes Muon from optax. Equal to ours, with the same constants and start:

# %%
from optax.contrib._muon import orthogonalize_via_newton_schulz

coefficients = jnp.array([3.4445, -4.7750, 2.0315])
library = orthogonalize_via_newton_schulz(jnp.asarray(gradient), coefficients, ns_steps=5)
assert np.allclose(library, orthogonalize(gradient), atol=1e-3)

# %% [markdown]
# Muon is for matrices between activations only. The embedding, norms and biases stay with AdamW, beside it:

# %%
from train import optimizer

show(optimizer._muon)

# %% [markdown]
# ## 6. Does it help? Three seeds each
#
# Now all of them are trained on bracketed arithmetic, a text whose entropy is known, so that zero means "cannot be
# better" (lesson 10). One layer, 32 wide. Six models differ from the first in *one* thing each. Each is trained three
# times, with other parameters and another order of the batches. `vmap` trains the three side by side.

# %%
import optax

from course.fit import chain_text, next_token_loss, windows
from train.config import OptimizerConfig
from train.data.entropy import known_truth

T, num_steps = 32, steps(400)
text, characters = chain_text("grammar", "train", 200_000)
data = jnp.asarray(windows(text, num_steps, 16, T + 1, seed()))  # [steps, B, T + 1]
test = windows(chain_text("grammar", "val", 40_000)[0], 1, 256, T + 1, seed())[0]
floor = known_truth("grammar").nats(test).mean()
orders = np.stack([random.permutation(num_steps) for _ in range(3)])  # of the batches, for each of the three

# %% [markdown]
# The training loop is the one of lesson 10.


# %%
def gaps(optimizer_name="adamw", **changes):
    """Loss above the floor, in nats, of three trainings."""
    shape = {
        "vocab_size": len(characters),
        "max_len": T,
        "num_layers": 1,
        "d_model": 32,
        "num_heads": 4,
        "positions": "rotary",
    }
    model = GPT(TransformerConfig(**shape | changes))
    rates = {"peak_lr": 5e-3, "muon_lr": 0.02, "warmup_steps": num_steps // 10}
    method = optimizer.make_optimizer(
        OptimizerConfig(name=optimizer_name, b2=0.99, weight_decay=0.01, **rates), num_steps
    )
    params = first_params(model, data[0][:, :-1], (3,))

    def train(params, order):
        def loss(params, batch):
            return next_token_loss(lambda tokens: model.apply({"params": params}, tokens), batch)

        def step(state, i):
            params, memory = state
            updates, memory = method.update(jax.grad(loss)(params, data[i]), memory, params)
            return (optax.apply_updates(params, updates), memory), None

        (params, _), _ = jax.lax.scan(step, (params, method.init(params)), order)
        return loss(params, jnp.asarray(test)) - floor

    return np.asarray(jax.jit(jax.vmap(train))(params, orders))


base = gaps()
print(f"the base, three seeds: {np.round(base, 4)} nats above the floor of {floor:.3f}")

# %% [markdown]
# The three numbers differ although nothing but chance differs. That distance is our measure: a change must beat it.
# We say that a change **wins** if the worst of its three seeds is better than the best of the base's.

# %%
predict("RMSNorm, SwiGLU, the parallel block and normalized queries and keys: how many of the four win?", low=0, high=2)

# %%
found = {
    "base": base,
    "RMSNorm": gaps(norm="rmsnorm"),
    "SwiGLU": gaps(feed_forward="swiglu"),
    "parallel": gaps(norm_placement="parallel"),
    "qk-norm": gaps(qk_norm="head"),
}
for name, values in found.items():
    print(f"{name:10s}{values.min():.4f} to {values.max():.4f}   {'wins' if values.max() < base.min() else ''}")
outcome(sum(values.max() < base.min() for values in found.values()))

# %% [markdown]
# So much for a part that "improves the Transformer": in this small model nearly all of them are inside the spread of
# the seeds. That does not make them useless. RMSNorm and the parallel block are there to be *faster*, normalized
# queries and keys to keep large models from exploding, and a small gain of SwiGLU counts when a run costs a fortune.
#
# One of them is even a loss here. You were warned in section 3.

# %%
predict("The gap of the parallel block, as a multiple of the base's (means of three seeds)?", low=1.15, high=1.85)

# %%
outcome(found["parallel"].mean() / base.mean())

# %% [markdown]
# One layer, and its feed-forward part never sees what attention found. In large, deep models the loss vanishes
# (Chowdhery et al. 2022, section 2: a small loss at 8 billion parameters, none at 62 billion).
#
# The last candidate changes no part of the model, only how it is trained.

# %%
predict("Muon beside AdamW in place of AdamW alone: the gap as a multiple of the base's?", low=0.5, high=0.92)

# %%
found["Muon"] = gaps("muon")
for i, values in enumerate(found.values()):
    plt.plot(values, [i] * 3, "o", alpha=0.7)
plt.axvspan(base.min(), base.max(), color="gray", alpha=0.2)
plt.yticks(range(len(found)), found)
plt.gca().invert_yaxis()
plt.xlabel("nats above the floor, three seeds each (gray: spread of the base)")
picture(
    "Six rows of three dots: gaps of the base, RMSNorm, SwiGLU, the parallel block, qk-norm and Muon. Most overlap the "
    "gray band of the base; the parallel block is worse, Muon is better"
)
print(f"Muon: {found['Muon'].min():.4f} to {found['Muon'].max():.4f}")
outcome(found["Muon"].mean() / base.mean())

# %% [markdown]
# Muon is the one change that stands clear of the seeds here. It costs more time a step, and two learning rates.
#
# Be careful with this result, too. Three seeds are few; one text, one size, one number of steps, one learning rate
# each. A larger learning rate might have helped the base more than all the parts. The honest sentence is: "on this
# task, at this size, with these rates". On Tiny Shakespeare, with a larger model, this project found three ingredients
# that stand clear of the seeds: Muon, normalized queries and keys, and rotary positions
# ([BUILD_NOTES](../BUILD_NOTES.md)). So the sentence was needed: qk-norm did nothing for us, and much for that model.
#
# ## Change it
# - `num_layers` from 1 to 2 in `gaps`. Is the parallel block still worse? Divide its gap by the base's again.
# - `peak_lr` from 5e-3 to 2e-2, first for the base, then with `qk_norm="head"`. Which of the two suffers less?
# - `orders` with ten seeds in place of three. Does any verdict change?
#
# ## Check yourself
#
# 1. RMSNorm has no bias and takes no mean away. What does it keep that LayerNorm destroys?
#
# <details><summary>Answer</summary>
#
# The mean, relative to the rest: two vectors that differ by a constant in all D places are the same to LayerNorm
# (up to epsilon), and differ for RMSNorm. Both forget the length.
#
# </details>
#
# 2. Why is F = 8/3 D for SwiGLU?
#
# <details><summary>Answer</summary>
#
# Three kernels of D x F in place of two of D x 4D: 3 F = 8 D. A comparison with more parameters would be unfair.
#
# </details>
#
# 3. A paper reports a loss of 2.31 for the old block and 2.30 for the new one, one run each. What do you ask?
#
# <details><summary>Answer</summary>
#
# How far apart are two runs of the *old* block with different seeds? If that is 0.01 or more, the paper has shown
# nothing. And: was the learning rate chosen for each of the two, or only for the new one?
#
# </details>
#
# 4. Why does Muon leave embeddings to AdamW?
#
# <details><summary>Answer</summary>
#
# An embedding is a table: row v is read only where token v stands, so it is no matrix that activations pass through.
# To make all its directions equal would give rare tokens steps as large as frequent ones.
#
# </details>
#
# ## Where it lives
# - [transformer_jax/nn/layers.py](../transformer_jax/nn/layers.py): `RMSNorm`, `FeedForward`, `make_qk_norm`
# - [transformer_jax/nn/blocks.py](../transformer_jax/nn/blocks.py): `NORM_PLACEMENTS`, `Block`
# - [train/optimizer.py](../train/optimizer.py): `OPTIMIZERS`, AdamW and Muon
# - [docs/models.md](../docs/models.md), [docs/training.md](../docs/training.md): all settings
#
# ## Papers
# - Zhang & Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467)
# - Shazeer 2020, [GLU Variants Improve Transformer](https://arxiv.org/abs/2002.05202): ends with "we attribute their
#   success, as all else, to divine benevolence"
# - Dehghani et al. 2023, [Scaling Vision Transformers to 22 Billion Parameters](https://arxiv.org/abs/2302.05442)
# - Chowdhery et al. 2022, [PaLM](https://arxiv.org/abs/2204.02311)
# - Jordan 2024, [Muon: An optimizer for hidden layers in neural networks](https://kellerjordan.github.io/posts/muon/)
# - Narang et al. 2021, [Do Transformer Modifications Transfer Across Implementations and Applications?](https://arxiv.org/abs/2102.11972):
#   this lesson's question, asked at a large scale
#
# Next: [14 Scaling laws](14_scaling_laws.md)
