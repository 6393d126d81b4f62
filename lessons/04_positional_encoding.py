# %% [markdown]
# # 04 Positional encoding
#
# For readers of [lesson 03](03_multi_head_attention.md). About an hour and a half.
#
# After this lesson you can
#
# - say when attention cannot tell the order of words, and when it can,
# - write the sines and cosines of the first Transformer, and say what they are good for,
# - check a position table by its law: a shift is a rotation,
# - say where positions enter, why the embeddings are multiplied by a root there, and what happens in longer
#   texts.
#
# Paper: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), sections 3.4 and
# 3.5.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## Why positions?
#
# *Dog bites man* and *man bites dog* have the same words. Attention looks at each pair of words, and
# multiplies their vectors. Where the words stand does not occur in that formula. Let us see what this means
# for the word *bites*.


# %%
def softmax(x):
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def attend(x, W_q, W_k, W_v, may_attend=True):  # x [T, D]
    scores = (x @ W_q) @ (x @ W_k).T / np.sqrt(x.shape[-1])
    return softmax(np.where(may_attend, scores, -np.inf)) @ (x @ W_v)


D = 16
random = np.random.default_rng(seed())
vector = {word: random.normal(size=D) for word in "the big dog bites man".split()}
W = random.normal(size=(3, D, D)) / np.sqrt(D)  # W_q, W_k, W_v
first = "the dog bites the big man".split()
second = "the man bites the big dog".split()
x, y = (np.array([vector[word] for word in words]) for words in (first, second))  # [T, D]

# %%
predict("How much does a number of the answer for 'bites' differ between the two sentences, at most?", low=0, high=1e-9)

# %%
outcome(np.abs(attend(x, *W)[2] - attend(y, *W)[2]).max())

# %% [markdown]
# By nothing at all (up to rounding). The answer is a weighted mean over a *set* of words. So an encoder
# without positions knows which words there are, and never their order. More layers do not help: if all inputs
# are shuffled, all outputs are shuffled in the same way, and the next layer sees a shuffled set again.
#
# It is often said that this holds for every Transformer. A GPT has a causal mask (lesson 02): a word sees
# only what came before it. Take two layers with that mask, and look at the last word of a text. We exchange
# the first and the third word and see whether the last answer notices. One random model might be lucky, so we
# take the mean over twenty.

# %%
predict(
    "Two causal layers without positions: two earlier words change places. By what share of its length does the "
    "last answer change?",
    low=0.15,
    high=0.7,
)


# %%
def two_causal_layers(x, layers):
    is_past = np.tril(np.ones((len(x), len(x)), bool))
    for matrices in layers:
        x = x + attend(x, *matrices, is_past)
    return x


changes = []
for _ in range(20):
    layers = random.normal(size=(2, 3, D, D)) / np.sqrt(D)
    x = random.normal(size=(7, D))
    y = x[[2, 1, 0, 3, 4, 5, 6]]
    last, other = two_causal_layers(x, layers)[-1], two_causal_layers(y, layers)[-1]
    changes.append(np.linalg.norm(last - other) / np.linalg.norm(last))
outcome(np.mean(changes))

# %% [markdown]
# It does change. In layer 1 the first word sees one word, the second sees two, and so on. That leaves a trace
# of the order in the vectors, and layer 2 can read it. So the mask alone gives a hint of positions. It is a
# weak one, and below we measure how much a real position is worth.
#
# ## Waves
#
# The simplest idea: give every position a vector, and add it to the vector of the word. The first Transformer
# took waves:
#
# $$ PE(p, 2i) = \sin\left(p / 10000^{2i/D}\right) \qquad PE(p, 2i+1) = \cos\left(p / 10000^{2i/D}\right) $$
#
# Numbers come in pairs, a sine and a cosine of the same angle. Each pair is a hand of a clock. The first hand
# turns by one radian for each word, the next ones more and more slowly, like the hands for seconds, minutes
# and hours.


# %%
def sines(positions, D):  # [T] -> [T, D]
    pair = np.arange(0, D, 2)  # 0, 2, 4, ...: this is 2i
    angle = positions[:, None] / 10000 ** (pair / D)  # [T, D / 2]
    table = np.zeros((len(positions), D))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle)
    return table


D = 64
table = sines(np.arange(100), D)
print(table[:4, :6].round(3))

# %%
plt.imshow(table[:60].T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
plt.colorbar()
plt.gca().set(xlabel="position p", ylabel="number of the vector", title="sines and cosines")
picture(
    "The position table as a heat map: the first rows change quickly from left to right, the last rows hardly at all."
)

# %% [markdown]
# The picture of the clock has a limit: the hands of a clock are locked together, each exactly sixty times
# slower than the one before. Here the speeds form a smooth series, and nothing ever repeats as a whole.

# %%
predict("D = 64: after how many words has the slowest hand turned once?", low=46_500, high=47_500)

# %%
outcome(2 * np.pi * 10000 ** (62 / 64))

# %% [markdown]
# So within any usual text the slow hands never come round, and no two positions have the same vector.
#
# ## The law: a shift is a rotation
#
# Why a sine *and* a cosine? With both, moving on by k words turns each hand by a fixed angle, wherever it
# stands:
#
# $$ \sin(a + b) = \sin a \cos b + \cos a \sin b \qquad \cos(a + b) = \cos a \cos b - \sin a \sin b $$
#
# So there is one matrix for "k words further", the same at every position. A model can learn it as part of
# W_q or W_k, and then "the word three before me" is one matrix. The paper names this as the reason for its
# choice.


# %%
def rotation(k, D):  # [D, D], with sines(p + k) = sines(p) @ rotation(k)
    angle = k / 10000 ** (np.arange(0, D, 2) / D)
    matrix = np.zeros((D, D))
    for i, b in enumerate(angle):
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]]
    return matrix


plt.imshow(rotation(3, 16), cmap="RdBu", vmin=-1, vmax=1)
plt.gca().set(title="the matrix of 'three words further', D = 16", xlabel="to number", ylabel="from number")
picture("A matrix with 2 by 2 blocks along its diagonal: fast turns at the top left, almost none at the bottom right.")

# %%
predict(
    "Turn positions 0 to 999 by the matrix for 3: how far from positions 3 to 1,002 is the worst number?",
    low=0,
    high=1e-9,
)

# %%
positions = np.arange(1000)
outcome(np.abs(sines(positions, D) @ rotation(3, D) - sines(positions + 3, D)).max())

# %% [markdown]
# A law is a test. One course outline prints a worked example in which the cosine has another exponent than
# its sine, (2i + 1) / D in place of 2i / D. It looks harmless: the table has the same shape, and the picture
# looks the same. Does the law still hold? We ask for the best of all matrices, by least squares.

# %%
predict(
    "With the misprint, how far is the worst number after a shift by 1, with the best possible matrix?",
    low=0.6,
    high=1.2,
)


# %%
def misprinted(positions, D):
    table = sines(positions, D)
    table[:, 1::2] = np.cos(positions[:, None] / 10000 ** ((np.arange(0, D, 2) + 1) / D))
    return table


def best_shift_error(table):
    matrix = np.linalg.lstsq(table[:-1], table[1:], rcond=None)[0]
    return np.abs(table[:-1] @ matrix - table[1:]).max()


print("right:", best_shift_error(sines(positions, D)))
outcome(best_shift_error(misprinted(positions, D)))

# %% [markdown]
# The law is gone. Numbers between -1 and 1 miss by nearly the whole range. Whether a *trained model* cares is
# another question. We come back to it.
#
# ## How similar are two positions?
#
# Attention compares vectors by their product. For two positions, the law makes it simple: the product depends
# on their distance only.
#
# $$ PE(p) \cdot PE(q) = \sum_i \cos\left((p - q) / 10000^{2i/D}\right) $$

# %%
predict("D = 64: what is the product of a position's vector with itself?", low=31.99, high=32.01)

# %%
similarity = table @ table.T
print("positions 0, 7 and 50 with themselves:", similarity[[0, 7, 50], [0, 7, 50]])
outcome(similarity[7, 7])

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.5, 2.5))
axes[0].imshow(similarity[:32, :32])
axes[0].set(title="product of two positions", xlabel="position q", ylabel="position p")
axes[1].plot(np.arange(60), similarity[0, :60])
axes[1].set(title="product, by distance", xlabel="distance p - q", ylabel="product", ylim=(0, None))
plt.tight_layout()
picture("Left: products of pairs of positions, stripes parallel to the diagonal. Right: it falls from 32, in waves.")

# %% [markdown]
# Near positions are similar, far ones less so. Fed to attention with W_q = W_k = 1, positions alone make
# every word look around itself:

# %%
heatmap(
    softmax(similarity[:8, :8] / np.sqrt(D)),
    [str(p) for p in range(8)],
    [str(p) for p in range(8)],
    "attention by position alone",
)
plt.gca().set(xlabel="key position", ylabel="query position")
picture("Attention matrix of positions 0 to 7: most weight on the diagonal, less with growing distance.")

# %% [markdown]
# With a rotation in W_q the bright diagonal moves: "look around the word three before me". That is how a head
# can find a place.

# %%
turned = table[:8] @ rotation(-3, D) @ table[:8].T
heatmap(softmax(turned), [str(p) for p in range(8)], [str(p) for p in range(8)], "query turned by -3")
plt.gca().set(xlabel="key position", ylabel="query position")
picture("Attention matrix of positions 0 to 7, sharp: each query from 3 on looks at the key three before it.")
assert (turned[3:].argmax(axis=1) == np.arange(5)).all()

# %% [markdown]
# ## The library's version

# %%
from transformer_jax.nn.positions import sinusoid

show(sinusoid)

# %%
import jax.numpy as jnp

assert np.allclose(sinusoid(jnp.arange(100)[None], D)[0], table, atol=1e-5)

# %% [markdown]
# `positions` is an argument there, not `arange`: with padding on the left, or in the middle of a text that is
# being written, the first token of a call does not stand at 0.
#
# ## What is a position worth?
#
# An experiment. The text is random letters, 15 kinds of them. The task: at each position, name the letter
# **three before**. It is easy if you know where you are, and a guess has a loss of log 15, about 2.7 nats.
#
# One small model for everything that follows. Each token becomes its *embedding*, its row in a learned table
# [V, D]; positions are added; then comes one *block*, attention and the feed-forward part of the next lesson;
# and the products with all embeddings are a score for each token, the *logits*, whose softmax is the prediction.
# Which positions it gets is part of its input, so that all variants are one and the same program:

# %%
import flax.linen as nn
import optax

from course.fit import chain_text, fit, windows
from transformer_jax.config import TransformerConfig
from transformer_jax.nn.blocks import Stack
from transformer_jax.nn.masks import Mask

V, D, T = 15, 32, 24


class Model(nn.Module):
    std: float  # of all first random numbers

    @nn.compact
    def __call__(self, tokens, table, scale, is_learned):  # tokens [B, T], table [P, D] -> logits [B, T, V]
        embeddings = self.param("embeddings", nn.initializers.normal(self.std), (V, D))
        learned = self.param("positions", nn.initializers.normal(self.std), table.shape)
        positions = table + is_learned * learned
        x = scale * embeddings[tokens] + positions[: tokens.shape[1]]
        config = TransformerConfig(d_model=D, num_heads=2, num_layers=1, positions="none", init_std=self.std)
        x, _ = Stack(config)(x, Mask(is_causal=True))
        return x @ embeddings.T


P = 2 * T  # rows of the tables: texts are at most twice as long as in training
NOTHING = np.zeros((P, D))
SINES = sines(np.arange(P), D)
ROOT = D**0.5


# %%
def losses(apply, batch):  # [B, T]
    tokens, targets, *positions = batch
    return optax.softmax_cross_entropy_with_integer_labels(apply(tokens, *positions), targets)


def loss(apply, batch):
    return losses(apply, batch)[:, 3:].mean()


def train(data, table, scale=1.0, is_learned=0.0, std=D**-0.5, peak_lr=1e-2):
    positions = [np.float32(value) for value in (table, scale, is_learned)]
    inputs = [np.repeat(value[None], len(data[0]), axis=0) for value in positions]  # the same for every batch
    params, curve = fit(Model(std), (*data, *inputs), loss=loss, peak_lr=peak_lr, seed=seed())

    def evaluate(tokens, targets):
        return losses(lambda *inputs: Model(std).apply(params, *inputs), (tokens, targets, *positions))

    return evaluate, curve  # curve: the loss at each step of the training


def draw(num_batches, length, seed):
    tokens = np.random.default_rng(seed).integers(0, V, (num_batches, 32, length))
    return tokens, np.roll(tokens, 3, axis=-1)  # the target of t is the token of t - 3


letters = draw(steps(400), T, seed=seed() + 1)
test = tuple(part[0] for part in draw(1, P, seed=seed() + 1000))


def by_part(evaluate):
    by_position = np.asarray(evaluate(*test)).mean(axis=0)
    return by_position[3:T].mean(), by_position[T:].mean()  # inside the trained length, and beyond


# %%
predict("Loss without positions? (a guess: 2.7, perfect: 0)", low=1.6, high=2.5)

# %%
parts = {"none": by_part(train(letters, NOTHING)[0])}
outcome(parts["none"][0])

# %% [markdown]
# A little better than a guess: the model knows which letters came before, and in a short text that narrows it
# down. With one layer it has no way to tell them apart by their order. Now with sines. (`ROOT` is explained
# below.)

# %%
predict("Loss with sines and cosines?", low=0, high=0.15)

# %%
parts["sines"] = by_part(train(letters, SINES, scale=ROOT)[0])
outcome(parts["sines"][0])

# %% [markdown]
# ## Learned positions
#
# The other simple way, of BERT and GPT-2: a table of numbers, one row a position, that is trained like the
# embeddings. Nobody tells the rows that 4 lies between 3 and 5. Does that make the task harder?

# %%
predict("Loss with learned positions?", low=0, high=0.15)

# %%
parts["learned"] = by_part(train(letters, NOTHING, is_learned=1.0)[0])
outcome(parts["learned"][0])

# %% [markdown]
# No difference that matters. The paper found the same (its table 3, row E).
#
# ## Longer than in training
#
# We trained on texts of 24 letters. The test texts have 48. A learned table has rows for the positions 24 to
# 47, but they never got a gradient: they are still random numbers. Sines are defined everywhere, and you can
# read that they *extrapolate* to longer texts; the paper itself hoped so.

# %%
predict("Sines: loss at the positions 24 to 47? (a guess: 2.7)", low=2.75, high=9)

# %%
for name, (inside, beyond) in parts.items():
    print(f"{name:8}  up to 24: {inside:6.3f}   from 24 on: {beyond:6.3f}")
plt.bar(np.arange(3) - 0.2, [inside for inside, _ in parts.values()], 0.4, label="positions 3 to 23, as in training")
plt.bar(np.arange(3) + 0.2, [beyond for _, beyond in parts.values()], 0.4, label="positions 24 to 47, new")
plt.axhline(np.log(V), color="gray", linestyle=":", label="a guess")
plt.xticks(range(3), parts)
plt.ylabel("loss (nats)")
plt.legend()
picture(
    "Bars of the loss without positions, with sines and learned: within the trained length 2, 0, 0; beyond it all fail."
)
outcome(parts["sines"][1])

# %% [markdown]
# Worse than a guess: the model is *confidently wrong*. The law holds at every position, but a trained
# model has only seen the slow hands in the first part of their turn. Where they stand later is new to it.
# Schemes that put the *distance* of two words into the scores (rotary, T5, ALiBi) do better or much better;
# they are the subject of [lesson 11](11_relative_positions.md).
#
# ## The root that is often forgotten
#
# Section 3.4 of the paper has a line that many programs miss: the embeddings are multiplied by the root of D
# before the positions are added. Why? Sines are numbers of size 1. Embeddings often start with a standard
# deviation of 0.02.

# %%
embeddings = 0.02 * np.random.default_rng(seed()).normal(size=(V, 512))
print("mean size of a number of an embedding:", np.sqrt(np.mean(embeddings**2)))
print("mean size of a number of a position:  ", np.sqrt(np.mean(sines(np.arange(P), 512) ** 2)))

# %% [markdown]
# Added as they are, the words are a whisper beside the positions. Let us hear what a model makes of it. Now
# on a text in which words matter more than places: bracketed arithmetic such as `(a+b)*c`, made by a grammar,
# where the task is the next character. (The piece below begins in the middle of a line.)

# %%
text, characters = chain_text("grammar", "train", 60_000)
formulas = windows(text, steps(400), 32, T + 1, seed=seed())
formulas = formulas[..., :-1], formulas[..., 1:]  # the target is the next character
held_out = windows(chain_text("grammar", "val", 20_000)[0], 1, 128, T + 1, seed=1)[0]
formulas_test = held_out[:, :-1], held_out[:, 1:]
assert len(characters) == V
print("".join(characters[i] for i in text[:60]))

# %%
predict(
    "Embeddings of size 0.02: halfway through training, the loss with sines minus the loss without positions?",
    low=0.5,
    high=0.85,
)


# %%
def on_text(table, scale=1.0):
    evaluate, curve = train(formulas, table, scale, std=0.02, peak_lr=3e-3)
    return float(np.mean(np.asarray(evaluate(*formulas_test))[:, 3:T])), curve


runs = {"no positions": on_text(NOTHING), "sines": on_text(SINES), "sines, with the root": on_text(SINES, ROOT)}
halfway = {}
for name, (final, curve) in runs.items():
    smooth = np.convolve(curve, np.ones(20) / 20, mode="valid") if len(curve) > 20 else curve
    plt.plot(smooth, label=name)
    halfway[name] = smooth[len(smooth) // 2]
    print(f"{name:20}  halfway {halfway[name]:.3f}   at the end, on new text {final:.3f}")
plt.gca().set(xlabel="training step", ylabel="loss (nats)", title="words of size 0.02, positions of size 1")
plt.legend(loc="upper right")
picture(
    "Loss by step: without positions it falls at once, with the root soon after; with plain sines it long stays flat."
)
outcome(halfway["sines"] - halfway["no positions"])

# %% [markdown]
# Worse than *none at all*. For half of the training the model with plain sines learns nothing but how
# frequent each character is: it does not hear the words. Then its embeddings have grown enough, and it starts
# to learn. In a short training it never recovers. With the root the words are heard much sooner. In
# the library this is `scale_embeddings=True`. Learned positions do not have the problem, since they start as
# small as the embeddings.
#
# (Why is the model without positions so good here? For the next character of a formula the last few
# characters matter, and the mask leaves a trace of their order, as we saw.)
#
# And the misprint? Here is its loss on the same text, beside the loss with the right table.

# %%
predict("Loss on new text with the misprinted table minus loss with the right one, in nats?", low=-0.05, high=0.05)

# %%
wrong, _ = on_text(misprinted(np.arange(P), D), ROOT)
right, _ = runs["sines, with the root"]
print(f"right: {right:.3f}  misprinted: {wrong:.3f}")
outcome(wrong - right)

# %% [markdown]
# The loss does not care. That is a lesson about testing: a bug that breaks a law may not show in the loss at
# all, or only in a model of another size. Check laws, not only losses.
#
# ## Relative positions, in one paragraph
#
# All of this adds *absolute* positions to the words, once, at the bottom. Most newer models do something else
# in every layer: they turn queries and keys by their position (rotary), so that a score depends on the
# distance, exactly like the product of two waves above. Lesson 11 compares them.
#
# ## Change it
#
# 1. Replace `10000` by `100` in `sines`. How many positions are still different? Look at the similarity
#    picture.
# 2. In `draw`, take the letter ten before in place of three. Does the loss without positions change? And with
#    sines?
# 3. Train on the letters with `train(letters, misprinted(np.arange(P), D), scale=ROOT)`. Here an exact
#    distance matters. Does the loss care now?
#
# ## Check yourself
#
# <details><summary>Does attention know the order of its inputs?</summary>
#
# Not by itself: it is a mean over a set. With a causal mask and two layers or more, a trace of the order gets
# in. Positions are what makes order easy to learn.
#
# </details>
#
# <details><summary>Why are there a sine and a cosine of each angle?</summary>
#
# Only together can they be turned: the sine of a sum of angles needs the cosine, too. So a shift of the
# position is a rotation, one matrix for all positions.
#
# </details>
#
# <details><summary>A model with a learned table of 512 rows gets a text of 600 tokens. What happens?</summary>
#
# There is no row for the tokens from 512 on. The library refuses such a text (`max_len`). With sines there
# would be vectors, but a model that never saw them would be wrong.
#
# </details>
#
# <details><summary>Explain positional encoding to a friend in two sentences. (A model answer.)</summary>
#
# Attention treats a text as a set of words, so each word gets a vector that says where it stands, added to
# the vector that says what it is. The vectors are waves of many lengths, or simply learned.
#
# </details>
#
# ## Exercise
#
# [exercise_05_positions.py](exercises/exercise_05_positions.py): sines, the shift as a rotation, learned
# positions. Check it with `python -m lessons check 05`. More pictures in the terminal:
# [example_04_positional_encoding.py](examples/example_04_positional_encoding.py).
#
# ## Where it lives
#
# - [transformer_jax/nn/positions.py](../transformer_jax/nn/positions.py): all position schemes, and the dict
#   POSITIONS
# - [transformer_jax/models/embed.py](../transformer_jax/models/embed.py): `Embedder`, where positions are
#   added
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), sections 3.4 and 3.5
# - Gehring et al. 2017, [Convolutional Sequence to Sequence Learning](https://arxiv.org/abs/1705.03122):
#   learned positions
# - Haviv et al. 2022, [Transformer Language Models without Positional Encodings Still Learn Positional
#   Information](https://arxiv.org/abs/2203.16634)
# - Press et al. 2022, [Train Short, Test Long](https://arxiv.org/abs/2108.12409): sines in longer texts, and
#   ALiBi
#
# Next: [05 Feed-forward networks](05_feedforward_networks.md).
