# %% [markdown]
# # 11 Relative positions
#
# About an hour and a half. You know attention and its scores ([lesson 01](01_attention_mechanism.md)), heads
# ([03](03_multi_head_attention.md)) and sines ([04](04_positional_encoding.md)). After this lesson you can
#
# - write four schemes that look at distances: rotary (RoPE), ALiBi, T5's buckets, Shaw's vectors, a line or two each;
# - say what each of them adds, where, and how many numbers it learns;
# - measure what happens when a model reads a longer text than it was trained on, and say who copes;
# - answer the claim that a Transformer has "unlimited context".
#
# Papers: Shaw et al. 2018 (section 3), Raffel et al. 2020 (section 2.1), Su et al. 2021 (section 3.4), Press et al.
# 2022 (section 3).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## Where you are, or how far apart?
#
# Lesson 04 added a vector to each embedding: "you are number 17". What a model mostly needs is another fact: "the word
# that I look at is 3 before me". A relative scheme puts the **distance** from query to key straight into the score, in
# every layer. Nothing is added to the embeddings.
#
# With queries at positions $t$ and keys at positions $s$, the distance is $s - t$: 0 for the own token, below 0 for
# tokens in the past. Here is the matrix of distances for five tokens.

# %%
T = 5
t = np.arange(T)[:, None]  # [T, 1], positions of the queries
s = np.arange(T)[None, :]  # [1, S], positions of the keys
distance = s - t  # [T, S]
print(distance)

# %% [markdown]
# Every diagonal has one number. So a scheme that is a function of this matrix treats "3 before me" alike everywhere in
# the text. That is the hope when a text gets longer: the diagonals near the middle stay as they were.
#
# ## ALiBi: farther is fainter
#
# The simplest scheme first. Press et al. subtract from each score the distance times a slope, which is fixed for each
# head and never learned:
#
# $$
# \text{score}_{ts} = \frac{q_t \cdot k_s}{\sqrt{H}} - m_n\,|s - t| \qquad m_n = 2^{-8n/N},\ n = 1 \dots N
# $$

# %%
N = 8  # heads
slopes = 2.0 ** (-8 * np.arange(1, N + 1) / N)  # [N]
alibi = -slopes[:, None, None] * np.abs(distance)  # [N, T, S], added to the scores
print("slopes:", slopes)
print("first head:\n" + str(alibi[0] + 0.0))

# %% [markdown]
# The library's slopes, and the bias that it makes of them:

# %%
from transformer_jax.nn import positions as library

show(library.alibi_slopes)
show(library._alibi_of_distance)

# %%
import jax.numpy as jnp

assert np.allclose(library.alibi_slopes(N), slopes)
assert np.allclose(library._alibi_of_distance(library.alibi_slopes(N), jnp.asarray(distance)[None])[0], alibi)

# %% [markdown]
# What does a slope do to attention? Suppose that all keys have the same content, so that only the bias speaks. The last
# of 256 tokens looks back.

# %%
predict("Of the 8 heads, how many put more than half of their attention on the last 8 of 256 tokens?", low=3, high=3)

# %%
back = np.arange(256)  # how far back a key is
weights = np.exp(-slopes[:, None] * back)  # [N, S]
weights /= weights.sum(axis=-1, keepdims=True)  # softmax
for n in (0, 2, 4, 7):
    plt.plot(back[:64], weights[n, :64], label=f"slope 1/{1 / slopes[n]:.0f}")
plt.xlabel("how far back the key is")
plt.ylabel("attention weight")
plt.legend()
picture("attention weight against distance: the steep heads fall to nothing within ten tokens, the flat ones are level")
outcome((weights[:, :8].sum(axis=-1) > 0.5).sum())

# %% [markdown]
# Three heads are short-sighted by construction, the flattest sees almost everything alike, and the others stand between
# them. Think of eight pairs of glasses, from reading glasses to none at all. (The picture fails in one point: content
# can still outvote the slope. A key far away with a high enough $q \cdot k$ is seen through any glasses.)
#
# ## T5: buckets of distances
#
# T5 learns the bias instead: one number for each head and each **bucket** of distances. Small distances have a bucket
# each. Larger ones share buckets that grow wider and wider, and all distances beyond 128 share the last one.
#
# For a decoder, which looks back only, with 32 buckets:
#
# $$
# \text{bucket}(d) = d \ \text{ if } d < 16, \qquad
# 16 + \left\lfloor 16\,\frac{\ln(d / 16)}{\ln(128 / 16)} \right\rfloor \ \text{ otherwise, at most } 31
# $$

# %%
d = np.arange(1000)  # distances back
wide = 16 + (16 * np.log(np.maximum(d, 1) / 16) / np.log(128 / 16)).astype(int)
bucket = np.where(d < 16, d, np.minimum(wide, 31))  # [1000]
print(bucket[:40], "...", bucket[-1])

# %%
show(library.t5_bucket)

# %%
assert np.array_equal(library.t5_bucket(jnp.asarray(-d), 32, 128, is_causal=True), bucket)

# %%
predict("Of the distances 0 to 999, how many share the last of the 32 buckets?", low=870, high=900)

# %%
plt.plot(d[:200], bucket[:200], drawstyle="steps-post")
plt.xlabel("distance back")
plt.ylabel("bucket")
picture("T5's bucket against distance: a straight line to 16, then steps that grow wider, flat from about 113 on")
outcome((bucket == 31).sum())

# %% [markdown]
# Almost all. Everything from the start of the last bucket on is simply "far away", and T5 cannot tell 150 from 900 by
# position. That is a choice: near, order matters; far away, it hardly does.
#
# ## Shaw: a vector for each distance
#
# The oldest of the four. A distance is not a number on the score but a learned vector $a_{s-t}$ that is added to the
# key, and another one that is added to the value:
#
# $$
# \text{score}_{ts} = \frac{q_t \cdot (k_s + a_{s-t})}{\sqrt{H}}
# $$
#
# So a query can **ask** for a distance: if $q_t$ points along $a_{-3}$, this head looks three back, and another query
# of the same head may look elsewhere. Distances beyond $m$ count as $m$: there are $2m + 1$ vectors.

# %%
random = np.random.default_rng(seed())
H, m = 4, 2
q, k = random.normal(size=(2, T, H))  # [T, H] each
a = random.normal(size=(2 * m + 1, H))  # [C, H], a vector for each distance from -2 to 2
index = np.clip(distance, -m, m) + m  # [T, S], from 0 to 2m
shaw = np.einsum("th,tsh->ts", q, k[None] + a[index]) / np.sqrt(H)  # [T, S]
print(index)

# %%
show(library.Relative.index)

# %%
from transformer_jax.nn.attention import AttentionOptions, attention_scores
from transformer_jax.nn.masks import Mask

options = AttentionOptions(scale=H**-0.5, relative=library.Relative(jnp.asarray(a), jnp.zeros_like(a)))
scores = attention_scores(jnp.asarray(q)[None, :, None], jnp.asarray(k)[None, :, None], Mask(), options)  # [B, N, T, S]
assert np.allclose(scores[0, 0], shaw, atol=1e-5)

# %% [markdown]
# ## Rotary: turn, and let the product take the difference
#
# Rotary positions add nothing at all. Take the H numbers of a query as H/2 pairs, and each pair as the hand of a clock.
# At position $t$, hand $i$ is turned by the angle $t\,\theta_i$; some clocks are fast, some slow:
#
# $$
# \begin{pmatrix} x_i' \\ x_{i + H/2}' \end{pmatrix} =
# \begin{pmatrix} \cos t\theta_i & -\sin t\theta_i \\ \sin t\theta_i & \cos t\theta_i \end{pmatrix}
# \begin{pmatrix} x_i \\ x_{i + H/2} \end{pmatrix} \qquad \theta_i = 10000^{-2i/H}
# $$
#
# Queries are turned by their position, keys by theirs. The product of two hands depends only on the angle **between**
# them, $(t - s)\,\theta_i$: on the distance. Turn all clocks by an hour, and nothing changes.


# %%
def rotate(x, position, base=10000.0):  # x: [T, H], position: [T]
    half = x.shape[-1] // 2
    theta = base ** (-np.arange(half) / half)  # [H/2]
    angle = position[:, None] * theta  # [T, H/2]
    first, second = x[:, :half], x[:, half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], axis=-1
    )


position = np.arange(T)
early = rotate(q, position) @ rotate(k, position).T  # [T, S]
late = rotate(q, position + 1000) @ rotate(k, position + 1000).T
print("largest change of a score, 1000 positions later:", np.abs(early - late).max())

# %% [markdown]
# The hands of two clocks at positions 0 to 5, a fast one and a slow one:

# %%
figure, axes = plt.subplots(1, 2, figsize=(6, 2.6))
hands = rotate(np.tile([1.0, 1.0, 0.0, 0.0], (6, 1)), np.arange(6), base=10.0)  # both begin at three o'clock
for i, axis in enumerate(axes):
    for p in range(6):
        axis.annotate("", hands[p, [i, i + 2]], (0, 0), arrowprops={"arrowstyle": "->", "color": "#0072b2"})
        axis.text(*(1.12 * hands[p, [i, i + 2]]), str(p), ha="center", va="center")
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", title=["fast: x0 and x2", "slow: x1 and x3"][i])
    axis.set(xlabel=["x0", "x1"][i], ylabel=["x2", "x3"][i])
picture(
    "two clocks with the hands of positions 0 to 5: the fast pair goes most of the way round, the slow one a quarter"
)

# %%
show(library.rotary)

# %%
from transformer_jax.config import TransformerConfig

config = TransformerConfig(d_model=H, num_heads=1, positions="rotary")
ours = rotate(q, position)
theirs = library.rotary(jnp.asarray(q)[None, :, None], jnp.asarray(position)[None], config, config.layer(0))
assert np.allclose(theirs[0, :, 0], ours, atol=1e-5)

# %% [markdown]
# A query that looks for its own content finds it best at distance 0, where all hands agree. With distance the hands
# drift apart, the fast ones first. Take a head of 64 numbers, all 1, for query and key alike.

# %%
predict("How much of the score at distance 0 is left at distance 100?", low=0.5, high=0.62)

# %%
ones = np.ones((512, 64))
profile = (rotate(ones[:1], np.array([0])) @ rotate(ones, np.arange(512)).T)[0] / 64  # [512]
plt.plot(profile)
plt.axhline(0, color="gray", linewidth=0.5)
plt.xlabel("distance")
plt.ylabel("share of the score at 0")
picture("rotary score of equal vectors against distance: it falls fast at first, then slowly and with ripples")
outcome(profile[100])

# %% [markdown]
# More than half: many of the hands have hardly moved after 100 tokens. The score falls slowly and with ripples. Rotary
# says "how far" to the model, and leaves open whether far means less. ALiBi decides that.
#
# ## The four in one table
#
# Parameters of each scheme in a model with 2 layers and 4 heads, counted from the model itself:

# %%
import jax

from transformer_jax.models import GPT


def model_of(scheme):
    return GPT(
        TransformerConfig(
            vocab_size=16,
            max_len=256,
            num_layers=2,
            d_model=32,
            num_heads=4,
            positions=scheme,
            scale_embeddings=scheme == "sinusoidal",  # or the sines drown the embeddings: lesson 04
        )
    )


def num_parameters(scheme):
    shapes = jax.eval_shape(model_of(scheme).init, jax.random.key(0), jnp.zeros((1, 8), int))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


for scheme in ("none", "learned", "sinusoidal", "rotary", "t5", "alibi", "shaw"):
    print(f"{scheme:10s} {num_parameters(scheme) - num_parameters('none'):6,} parameters for positions")

# %% [markdown]
# ## Longer than trained
#
# Now the question for which these schemes were made. A model is trained on windows of 64 characters. Then it reads
# 256. Nothing in the formulas of sines, rotary, T5 and ALiBi forbids that: all four can be computed for any position.
#
# The text is drawn from a hidden Markov model, so the best possible loss is known, and it is the same at every position
# far from the start: a longer text is not harder. What is lost beyond 64 is lost by the model.

# %%
import optax

from course.fit import chain_text, fit, windows
from train.data.entropy import known_truth

train_text, characters = chain_text("hmm", "train", 200_000)
test_text, _ = chain_text("hmm", "val", 40_000)
print("".join(characters[i] for i in train_text[:60]))

test = windows(test_text, 1, 48, 257, seed=99)[0]  # [48, 257]
floor = known_truth("hmm").nats(test).mean(axis=0)  # [256]


def loss_by_position(scheme):
    model = model_of(scheme)
    batches = windows(train_text, steps(250), 16, 65, seed=seed())  # [steps, B, 64 + 1]
    params, _ = fit(model, batches, peak_lr=1e-2, seed=seed())
    logits = jax.jit(model.apply)(params, test[:, :-1])  # [48, 256, V]
    return np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, test[:, 1:])).mean(axis=0)  # [256]


def rise(loss):
    """Nats a character that are lost at positions from 128 on, more than at positions up to 64."""
    gap = loss - floor
    return gap[128:].mean() - gap[16:64].mean()


# %% [markdown]
# Sines first. "Since they are defined for every position, they extrapolate" is what many pages say of them.

# %%
predict("Sines: how many nats a character worse at positions from 128 on than up to 64?", low=0.28, high=0.55)

# %%
losses = {"sinusoidal": loss_by_position("sinusoidal")}
outcome(rise(losses["sinusoidal"]))

# %% [markdown]
# They do not. Being **defined** at position 200 is one thing. Having **learned** what to do with its vector is another:
# the slow sines take values there that the model never saw, and it has no reason to treat them well.

# %%
predict("ALiBi: how many nats a character worse from 128 on than up to 64?", low=-0.02, high=0.06)

# %%
losses["alibi"] = loss_by_position("alibi")
outcome(rise(losses["alibi"]))

# %% [markdown]
# Nothing new happens to ALiBi at position 200. The near keys look as ever, and the far ones are fainter still.
#
# Now the two in use almost everywhere else. In T5's case, distances beyond 64 use buckets that were never trained. In
# rotary's case, the slow hands reach angles that were never seen.

# %%
predict("T5: how many nats a character worse from 128 on than up to 64?", low=0.12, high=0.3)

# %%
losses["rotary"] = loss_by_position("rotary")
losses["t5"] = loss_by_position("t5")
for scheme, loss in losses.items():
    print(f"{scheme:10s}  up to 64: {loss[16:64].mean():.3f} nats   from 128 on: {rise(loss):+.3f}")
    smooth = np.convolve(loss - floor, np.ones(16) / 16, mode="valid")
    plt.plot(np.arange(len(smooth)) + 8, smooth, label=scheme)
plt.axvline(64, color="gray", linewidth=0.8, linestyle="--")
plt.xlabel("position in the text (trained up to 64)")
plt.ylabel("nats above the best possible")
plt.ylim(bottom=0)
plt.legend()
picture(
    "loss above the floor by position: all alike up to 64, then sines jump up, T5 climbs, rotary and ALiBi stay low"
)
outcome(rise(losses["t5"]))

# %% [markdown]
# All four are alike where they were trained, so the training loss tells you nothing about this. Beyond it they part.
#
# Be fair to the losers. In this text the last few characters say nearly everything, so a scheme that looks away from
# far tokens cannot go wrong: ALiBi's bias **is** the truth here. It buys stability by looking away, not by using the
# longer text. Where something must be found far back, steep slopes are in the way. And rotary, which looks good here,
# fails beyond its training length in larger models on ordinary text; that is why `rope_scaling` exists (Chen et al.
# 2023; Peng et al. 2023: "YaRN").
#
# ## "Unlimited context"
#
# Many pages put it like this: before 2017, a fixed window; after 2017, unlimited context. Three facts against one
# sentence. First, learned positions end: there is no vector for the next token.

# %%
from transformer_jax.errors import UserError

short = GPT(TransformerConfig(vocab_size=16, max_len=64, num_layers=1, d_model=32, positions="learned"))
params = short.init(jax.random.key(0), jnp.zeros((1, 64), int))
try:
    short.apply(params, jnp.zeros((1, 65), int))
except UserError as error:
    print(error)

# %% [markdown]
# Second, where a longer text can be computed, it may be read badly: you have just measured it. Third, it costs: scores
# grow with the square of the length, and the keys and values of all earlier tokens must be kept.
#
# A GRU, by the way, reads a text of any length with constant memory. What the Transformer brought is not unlimited
# context but **direct** context: each token of the window is one step away.

# %%
predict("Trained at 64: a text that is 4 times as long has how many times as many scores to compute?", low=16, high=16)

# %%
scores_of = {T: np.zeros((T, T)).size for T in (64, 256)}
outcome(scores_of[256] / scores_of[64])

# %% [markdown]
# ## Change it
#
# 1. Give rotary another `rope_theta` (100, or 1e6) in `model_of`. Look at the last column: which clocks matter for a
#    text of 256?
# 2. Set `rope_scaling="linear", rope_factor=4.0` at test time only, with the parameters that were trained without it.
#    Positions are then squeezed into the trained range. Does it help beyond 128, and what does it cost below 64?
# 3. Train with `positions="none"`. How much is lost up to 64, and how much beyond?
#
# ## Check yourself
#
# **Why does a rotation of queries and keys by their positions give a score that depends on the distance alone?**
#
# <details><summary>Answer</summary>
#
# The product of two hands depends on the angle between them. Turned by $t\theta$ and $s\theta$, the angle changes by
# $(t - s)\theta$. Turning both further by the same amount changes nothing.
#
# </details>
#
# **Values are not rotated. Why not?**
#
# <details><summary>Answer</summary>
#
# The position is needed to decide where to look, which is the score. A value that was turned by its position would
# arrive in the sum turned, and the next layer would have to turn it back.
#
# </details>
#
# **A T5 model was trained at 64 tokens. Why can it not know what to do at distance 100?**
#
# <details><summary>Answer</summary>
#
# Distance 100 falls into a bucket that no pair of tokens of a text of 64 falls into. Its number never got a gradient
# (other than weight decay), so it is what the initialization made it.
#
# </details>
#
# **Which of the four schemes lets one head look three back in one sentence and five back in another?**
#
# <details><summary>Answer</summary>
#
# Shaw and rotary: in both the distance is multiplied with the query, so the query has a say. The biases of T5 and ALiBi
# are the same for all queries of a head; only the content can make a difference.
#
# </details>
#
# ## Exercise
#
# [exercise_11_rotary.py](exercises/exercise_11_rotary.py): frequencies, the rotation, and the score that depends on the
# distance alone. Check it with `python -m lessons check 11`.
#
# ## Where it lives
#
# [nn/positions.py](../transformer_jax/nn/positions.py) has all seven schemes and the dict `POSITIONS`: a new scheme is
# a function and a line. [nn/rope_scaling.py](../transformer_jax/nn/rope_scaling.py) stretches rotary positions.
# [testing/attention.py](../transformer_jax/testing/attention.py) has `check_positions`, laws for a scheme of your own.
#
# ## Papers
#
# - Shaw, Uszkoreit, Vaswani 2018, "Self-Attention with Relative Position Representations", section 3.
# - Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section
#   2.1.
# - Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.4.
# - Press, Smith, Lewis 2022, "Train Short, Test Long: Attention with Linear Biases", section 3.
# - Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation".
# - Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models".
#
# Next: [12 Attention optimizations](12_attention_optimizations.md)
