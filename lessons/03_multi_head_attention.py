# %% [markdown]
# # 03 Multi-head attention
#
# For readers of [lesson 02](02_self_attention.md). About two hours.
#
# After this lesson you can
#
# - say why one attention head cannot look at two words for two reasons,
# - split vectors into heads, attend in all of them at once, and join them again,
# - find which head does what, by taking it away,
# - say what grouped heads share, and why large models use them.
#
# Paper: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.2.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## One head has one budget
#
# In lesson 02 each word asked one question (its query) and got one answer: a weighted mean of the values. The
# weights come from one softmax, so they add up to 1. They are a budget.
#
# Often a word needs two answers. In *the cat that the dog chased slept*, the word *slept* wants to know
# **who** slept (the cat), and also **how the sentence goes on** (it has just left an insertion about a dog).
# With one head it can look at both words, but each gets only a part of the budget, and what comes back is a
# blend.
#
# Here is the blend. Two words have the values `[1, 0]` and `[0, 1]`, another pair has `[0.5, 0.5]` twice:

# %%
half = np.array([0.5, 0.5])  # the budget, spent on two words
print("two different words:", half @ np.array([[1.0, 0.0], [0.0, 1.0]]))
print("two equal words:    ", half @ np.array([[0.5, 0.5], [0.5, 0.5]]))

# %% [markdown]
# The same answer. From the blend nobody can tell what was in it. Two heads with a budget each would return
# two vectors, side by side, and nothing would be lost.
#
# ## Split
#
# We do not need larger vectors for this. We cut those that we have. A vector of width D = 6 becomes N = 2
# vectors of width H = D / N = 3. To see where each number goes, let `t2d4` be number 4 of token 2:

# %%
T, D, N = 4, 6, 2
H = D // N
names = np.array([[f"t{t}d{d}" for d in range(D)] for t in range(T)])  # [T, D]
print(names)


# %%
def split(x, N):  # [T, D] -> [N, T, H]
    T, D = x.shape
    return x.reshape(T, N, D // N).swapaxes(0, 1)


for n, head in enumerate(split(names, N)):
    print(f"head {n}: every token, {H} of its numbers\n{head}")

# %% [markdown]
# Two steps. `reshape` cuts each row into N pieces. `swapaxes` brings the heads to the front, so that head 0
# is one array with a row for each token.
#
# The classic mistake is to reshape to `[N, T, H]` at once. The shape is right, and nothing fails:

# %%
wrong = names.reshape(N, T, H)
print(wrong[0])

# %%
colors = np.arange(N)
figure, axes = plt.subplots(1, 2, figsize=(6, 2.2))
owner = np.repeat(colors, T * H).reshape(T, D)  # which head gets each number, without the swap
for axis, grid, title in zip(
    axes, (np.tile(np.repeat(colors, H), (T, 1)), owner), ("reshape, then swap", "reshape alone: wrong"), strict=True
):
    axis.imshow(grid, vmin=-1, vmax=2)
    axis.set(title=title, xlabel="number d of the vector", ylabel="token t", yticks=range(T))
    for t, d in np.ndindex(T, D):
        axis.text(d, t, f"h{grid[t, d]}", ha="center", va="center", color="white" if grid[t, d] else "black")
plt.tight_layout()
picture("Tokens by numbers, twice. Left: each head owns half of the columns. Right: each head owns half of the tokens.")

# %% [markdown]
# On the right, head 0 owns the first half of the text and head 1 the second. Each head has four rows, but
# they are the halves of two tokens. The head can no longer see the other tokens.
#
# How much of a split is wrong without the swap? Some numbers end up in their right place by luck.

# %%
predict(
    "8 tokens of width 64 are split into 8 heads by reshape alone. What share of the numbers is in its right place?",
    low=0.12,
    high=0.13,
)

# %%
numbers = np.arange(8 * 64).reshape(8, 64)
outcome((numbers.reshape(8, 8, 8) == split(numbers, 8)).mean())

# %% [markdown]
# ## Attend in all heads at once
#
# Each head is the attention of lesson 01, on its own narrow vectors:
#
# $$ \mathrm{head}_n = \mathrm{softmax}\left(\frac{Q_n K_n^\top}{\sqrt{H}}\right) V_n $$
#
# There is no loop. `@` multiplies the last two axes and repeats it over the axes before, so the heads come
# along for free. Note the root of H, the width of *a head*: a product of two vectors adds up H numbers, no
# longer D.


# %%
def softmax(x):
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def attend_in_heads(q, k, v):  # [N, T, H] each
    weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))  # [N, T, T]
    return weights @ v, weights  # [N, T, H]


# %% [markdown]
# ## Join
#
# The answers of the heads lie side by side again, and one last matrix mixes them:
#
# $$ \mathrm{MultiHead}(Q, K, V) = \mathrm{Concat}(\mathrm{head}_1, \ldots, \mathrm{head}_N)\, W^O $$
#
# `join` undoes `split`, in the opposite order: swap, then reshape.


# %%
def join(heads):  # [N, T, H] -> [T, D]
    N, T, H = heads.shape
    return heads.swapaxes(0, 1).reshape(T, N * H)


def multi_head(x, W_q, W_k, W_v, W_o, N):  # x [T, D], matrices [D, D]
    q, k, v = (split(x @ W, N) for W in (W_q, W_k, W_v))
    heads, weights = attend_in_heads(q, k, v)
    return join(heads) @ W_o, weights


assert (join(split(names, N)) == names).all()

# %%
words = "the cat that the dog chased slept".split()
random = np.random.default_rng(seed())
D, N = 32, 4
x = random.normal(size=(len(words), D))
W_q, W_k, W_v, W_o = random.normal(size=(4, D, D)) / np.sqrt(D)
out, weights = multi_head(x, W_q, W_k, W_v, W_o, N)
print(out.shape, weights.shape)

# %%
figure, axes = plt.subplots(1, N, figsize=(8, 2.4), sharey=True)
for n, axis in enumerate(axes):
    axis.imshow(weights[n], vmin=0, vmax=1)
    axis.set(title=f"head {n}", xlabel="key")
    axis.set_xticks(range(len(words)), words, rotation=90)
axes[0].set_yticks(range(len(words)), words)
axes[0].set_ylabel("query")
picture("Four attention matrices of the same sentence, side by side: each head looks at other words.")

# %% [markdown]
# Four heads, four matrices, one sentence. (The matrices are random, so there is nothing to understand in them
# yet.)
#
# ### Joining is adding
#
# Cut W_O into N blocks of H rows. Then the product with the joined heads is a sum over heads:
#
# $$ \mathrm{MultiHead} = \sum_n \mathrm{head}_n\, W^O_n $$
#
# So each head writes its own contribution into the result, and nothing of it depends on the other heads. We
# use this below to take a head away.

# %%
q, k, v = (split(x @ W, N) for W in (W_q, W_k, W_v))
heads, _ = attend_in_heads(q, k, v)
blocks = W_o.reshape(N, D // N, D)  # the rows of W_O that belong to each head
assert np.allclose(sum(heads[n] @ blocks[n] for n in range(N)), out)

# %% [markdown]
# ## What does it cost?
#
# Eight heads sound like eight times the work. The computer has to multiply: four projections, then the
# scores, then the weighted means.

# %%
predict("How many times as many multiplications do 8 heads of 64 need as one head of 512?", low=1, high=1)


# %%
def multiplications(T, D, N):
    H = D // N
    projections = 4 * T * D * D
    scores = N * T * T * H
    means = N * T * T * H
    return projections + scores + means


outcome(multiplications(128, 512, 8) / multiplications(128, 512, 1))

# %% [markdown]
# Not one more. The heads are narrower by the factor by which there are more of them. The parameters are the
# same four matrices, too. What does grow is the number of weights to keep, N T² in place of T².
#
# And since no head waits for another, all of them run at the same time: on a GPU, heads are simply one more
# axis of a batch.
#
# ## The library's version
#
# In the library the split is part of the matrix: its kernel has the shape [D, N, H], so the result of the
# projection [B, T, N, H] is already cut. The join is `num_in=2`: the last projection takes both axes, N and
# H. The lines after `out` are for variants; lessons 11 and 13 come to them.

# %%
from transformer_jax.nn.attention import Attention

show(Attention.setup)

# %%
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.nn.masks import Mask

config = TransformerConfig(d_model=D, num_heads=N, num_layers=1, positions="none", init_std=0.2)
layer = Attention(config)
params = layer.init(jax.random.key(seed()), x[None], Mask())
kernels = {name: np.asarray(params["params"][name]["kernel"]) for name in ("query", "key", "value", "out")}
print({name: kernel.shape for name, kernel in kernels.items()})

# %%
theirs, _ = layer.apply(params, x[None], Mask())  # [B, T, D]
ours, _ = multi_head(x, *(kernel.reshape(D, D) for kernel in kernels.values()), N)
assert np.allclose(theirs[0], ours, atol=1e-5)
print("largest difference:", np.abs(theirs[0] - ours).max())

# %% [markdown]
# ## Why several heads: an experiment
#
# Now a task that needs two answers. Each token is 8 random numbers. The target at position t is
#
# $$ y_t = A\, x_{t-1} + B\, x_{t-3} $$
#
# with two fixed random rotations A and B. The layer has to fetch the token before and the token three before,
# and must treat them differently. Each part has variance 1, so a model that learns nothing has a loss of 2,
# and one that gets exactly one of the two parts right has a loss of 1.
#
# So that the layer knows who is where, each token also carries its position: twelve more numbers, a 1 in
# place t and zeros elsewhere. (Better ways are the subject of lesson 04.)

# %%
from course.fit import fit, mean_loss

T, WIDTH = 12, 8
random = np.random.default_rng(seed())
A, B = (np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2))  # two rotations


def draw(num_batches, seed):
    tokens = np.random.default_rng(seed).normal(size=(num_batches, 64, T, WIDTH))
    targets = np.zeros_like(tokens)
    targets[:, :, 3:] = tokens[:, :, 2:-1] @ A.T + tokens[:, :, :-3] @ B.T
    positions = np.broadcast_to(np.eye(T), (num_batches, 64, T, T))
    return np.concatenate([tokens, positions], axis=-1).astype(np.float32), targets.astype(np.float32)


def squared_error(apply, batch):
    x, targets = batch
    out, _ = apply(x, Mask())
    return jnp.mean(jnp.square(out[..., 3:, :WIDTH] - targets[..., 3:, :]))


batches = draw(steps(600), seed=seed() + 1)
test = tuple(part[0] for part in draw(1, seed=seed() + 1000))


def train(num_heads, head_dim, num_kv_heads=0):
    config = TransformerConfig(
        d_model=WIDTH + T,
        num_heads=num_heads,
        head_dim=head_dim,
        num_kv_heads=num_kv_heads,
        num_layers=1,
        positions="none",
        init_std=0.1,
    )
    layer = Attention(config)
    params, _ = fit(layer, batches, loss=squared_error, peak_lr=1e-2, seed=seed())
    return layer, params


# %% [markdown]
# First one head. It is wide: 32 numbers for tokens that have 8.

# %%
predict("Loss of one head of width 32? (2: nothing learned, 1: one part right, 0: all right)", low=0.65, high=1.05)

# %%
one_head = train(1, 32)
outcome(mean_loss(*one_head, test, squared_error))

# %% [markdown]
# One head gets about one of two parts. Is it too narrow? We can ask linear algebra. Let the head put the
# weight w on the near token and 1 - w on the far one, and let M be the best matrix that could follow. The
# result is M (w x + (1 - w) x'), where M cannot be both A and B:

# %%
shares = np.linspace(0, 1, 101)
losses = []
for w in shares:
    M = (w * A + (1 - w) * B) / (w**2 + (1 - w) ** 2)  # least squares
    losses.append((np.square(A - w * M).sum() + np.square(B - (1 - w) * M).sum()) / WIDTH)
plt.plot(shares, losses)
plt.gca().set(
    xlabel="weight w on the near token", ylabel="loss", title="the best that one fixed mix can do", ylim=(0, 2)
)
picture("Loss of the best matrix against the weight on the near token: a nearly flat curve around 1.")
print("best fixed mix:", min(losses))

# %% [markdown]
# No mix gets far below 1, and the width of the head does not occur in the formula. (A trained head can be a
# little better than the best *fixed* mix, since its weights may depend on the tokens: it can look at
# whichever of the two is longer.)

# %%
predict("And with one head twice as wide, 64?", low=0.65, high=1.05)

# %%
outcome(mean_loss(*train(1, 64), test, squared_error))

# %% [markdown]
# Width does not help. Now two heads of 16. Together they are as wide as the first model, one head of 32, and
# they have exactly as many parameters.

# %%
predict("Loss of two heads of width 16?", low=0.0, high=0.02)

# %%
two_heads = train(2, 16)
outcome(mean_loss(*two_heads, test, squared_error))


# %%
def weights_of(params, x):  # x [T, D] -> [N, T, T]
    project = {name: params["params"][name] for name in ("query", "key")}
    q, k = (np.einsum("td,dnh->nth", x, p["kernel"]) + np.asarray(p["bias"])[:, None] for p in project.values())
    return attend_in_heads(q, k, k)[1]


tokens = [str(t) for t in range(T)]
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), sharey=True)
maps = [weights_of(one_head[1], test[0][0])[0], *weights_of(two_heads[1], test[0][0])]
for axis, weights, title in zip(axes, maps, ("the only head", "head 0 of two", "head 1 of two"), strict=True):
    axis.imshow(weights, vmin=0, vmax=1)
    axis.set(title=title, xlabel="key", xticks=range(0, T, 2), yticks=range(0, T, 2))
axes[0].set_ylabel("query")
picture("Three attention matrices: an only head looks at t - 1; of two heads one looks at t - 1, the other at t - 3.")

# %% [markdown]
# The rows 0 to 2 do not count: they have no token three before them. Below, the only head had to choose. It
# fetches one of the two tokens and gives up the other. (From other first random numbers it blends both, which
# is no better.) Of two heads, each has one diagonal almost to itself. The pale second diagonals do no harm,
# since W_O can subtract what one head saw from what the other saw. This is the whole idea of multi-head
# attention: not more width, but more *budgets*.
#
# ## Take a head away
#
# Joining is adding, so we can remove a head: set its rows of W_O to zero. What remains is what the other head
# knows.

# %%
predict("Set head 0 of the two to zero. The loss becomes?", low=0.85, high=1.3)


# %%
def without(params, n):
    kernel = params["params"]["out"]["kernel"]  # [N, H, D]
    out = {**params["params"]["out"], "kernel": kernel.at[n].set(0.0)}
    return {"params": {**params["params"], "out": out}}


layer, params = two_heads
ablated = [mean_loss(layer, without(params, n), test, squared_error) for n in range(2)]
print("without head 0:", ablated[0], " without head 1:", ablated[1])
outcome(ablated[0])

# %% [markdown]
# About one part of the target is lost. This test, called *ablation*, says what a head is needed for. A
# picture of its weights only says where it looks.
#
# ## Who decides which head does what?
#
# Tutorials draw four heads with name tags: *syntax*, *meaning*, *far away*, *nearby*. Nobody hands out such
# tags. To see that, we train eight copies of the two heads. They see the same batches; only their first
# random numbers differ.

# %%
predict("In how many of 8 copies does head 0 take the near token, t - 1?", low=1, high=7)

# %%
import flax.linen as nn

Copies = nn.vmap(  # eight copies of the layer, with parameters of their own, in one call
    Attention, in_axes=(None, None), axis_size=8, variable_axes={"params": 0}, split_rngs={"params": True}
)
copies_params, _ = fit(Copies(layer.config), batches, loss=squared_error, peak_lr=1e-2, seed=seed())
near, far = np.arange(2, T - 1), np.arange(T - 3)  # the keys t - 1 and t - 3 of the queries t = 3, 4, ...
queries = np.arange(3, T)
count = 0
for copy in range(8):
    weights = weights_of(jax.tree.map(lambda a, copy=copy: a[copy], copies_params), test[0][0])
    on_near, on_far = weights[:, queries, near].mean(axis=1), weights[:, queries, far].mean(axis=1)
    count += on_near[0] > on_near[1]
    shares = [f"head {n}: near {on_near[n]:.2f} far {on_far[n]:.2f}" for n in range(2)]
    print(f"copy {copy}   {'   '.join(shares)}")
outcome(count)

# %% [markdown]
# The work divides in every copy, since that is what lowers the loss. But which head takes which part is
# chance. Nothing in the model says "head 0 is for the near token", and in a large model most heads have no
# job that a person could name.
#
# An analogy: the heads are a panel of experts, each asked the same question, and a secretary (W_O) writes one
# report from all their answers. Where it fails: nobody hired these experts for their subjects, they never
# talk to each other, they do not vote, and two of them may have learned the same thing.
#
# ## Grouped heads
#
# A model that writes text keeps the keys and values of all earlier tokens: the KV cache (lesson 08). Its size
# is proportional to the number of key-value heads, K. *Grouped-query attention* lets groups of G = N / K
# query heads share one of them (Ainslie et al. 2023). Query heads 0 to G - 1 use key-value head 0, the next G
# use head 1, and so on:

# %%
N, K = 6, 2
G = N // K
print("key-value head of each query head:", [n // G for n in range(N)])
shared = random.normal(size=(K, 5, 3))  # [K, T, H]
repeated = np.repeat(shared, G, axis=0)  # [N, T, H]: AAABBB. np.tile would give ABABAB
assert all((repeated[n] == shared[n // G]).all() for n in range(N))

# %% [markdown]
# In our experiment, let the two query heads share one key-value head. They then have the same keys and the
# same values. Each still has a query, a budget, and rows of W_O of its own. Is that enough for two different
# answers?

# %%
predict("Loss of two query heads that share one key-value head?", low=0.0, high=0.05)

# %%
outcome(mean_loss(*train(2, 16, num_kv_heads=1), test, squared_error))

# %% [markdown]
# It is enough here: what matters is two softmaxes. The values of a head are wide enough (16) for the 8
# numbers of a token, and W_O can turn the same value by A for one head and by B for the other. How much
# smaller does the cache become in a real model?

# %%
predict(
    "Llama 2 with 70 billion parameters has N = 64 and K = 8. By which factor is its KV cache smaller than with K = N?",
    low=8,
    high=8,
)

# %%
large = TransformerConfig(d_model=8192, num_heads=64, num_kv_heads=8, num_layers=80)
per_token = {
    K: 2 * large.num_layers * K * large.head_dim * 2 for K in (large.num_heads, large.num_kv_heads)
}  # bytes: keys and values, and 2 bytes a number (16 bits)
for K, num_bytes in per_token.items():
    print(f"K = {K}: {num_bytes / 2**20:.2f} MiB for each token, {num_bytes * 4096 / 2**30:.2f} GiB for 4,096 tokens")
outcome(per_token[64] / per_token[8])

# %% [markdown]
# ## Change it
#
# 1. Train four heads of width 8 (`train(4, 8)`) and take them away one by one. Does each have a job, or are
#    some idle?
# 2. Add a third part, C x(t-5), to the target. Which loss do you expect of two heads, and of three? Look at
#    the diagonals.
# 3. Make the heads narrower: `train(2, 4)`. A head of width 4 cannot carry 8 numbers. Predict the loss from
#    that alone.
#
# ## Check yourself
#
# <details><summary>Why are several heads better than one wide head?</summary>
#
# A head has one softmax, so one budget of attention for each query. It returns one blend. Several heads
# return several answers, which stay apart until W_O mixes them. Width does not give a second budget.
#
# </details>
#
# <details><summary>Explain multi-head attention to a friend in three sentences. (A model answer.)</summary>
#
# Every token's vector is projected to queries, keys and values, and these are cut into N narrow pieces. In
# each piece every token looks at the others with weights of its own, all pieces at the same time. The N
# answers of a token are put side by side and one matrix mixes them into the result.
#
# </details>
#
# <details><summary>By which number are the scores of 8 heads in a model of width 512 divided?</summary>
#
# By the root of H = 512 / 8 = 64, which is 8.
#
# </details>
#
# <details><summary>A program runs <code>x.reshape(B, N, T, H)</code> on [B, T, D]. What does head 0 see?</summary>
#
# The first T / N tokens only, cut into pieces. It needs `x.reshape(B, T, N, H).swapaxes(1, 2)`.
#
# </details>
#
# ## Exercise
#
# [exercise_04_multi_head.py](exercises/exercise_04_multi_head.py): split, attend, join and grouped heads.
# Check it with `python -m lessons check 04`. The same in NumPy with 8 heads:
# [example_03_multi_head.py](examples/example_03_multi_head.py).
#
# ## Where it lives
#
# - [transformer_jax/nn/attention.py](../transformer_jax/nn/attention.py): `Attention`, and the pure function
#   `attend`
# - [transformer_jax/nn/layers.py](../transformer_jax/nn/layers.py): `Dense`, whose kernels have the shape [D,
#   N, H]
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.2
# - Michel, Levy & Neubig 2019, [Are Sixteen Heads Really Better than One?](https://arxiv.org/abs/1905.10650):
#   many heads can be removed after training
# - Voita et al. 2019, [Analyzing Multi-Head Self-Attention](https://arxiv.org/abs/1905.09418): which heads
#   matter, and the few whose job can be named
# - Shazeer 2019, [Fast Transformer Decoding](https://arxiv.org/abs/1911.02150): one key-value head; Ainslie
#   et al. 2023, [GQA](https://arxiv.org/abs/2305.13245): grouped heads
#
# Next: [04 Positional encoding](04_positional_encoding.md).
