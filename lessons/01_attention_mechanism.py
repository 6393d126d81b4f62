# %% [markdown]
# # 01 Attention mechanism
#
# About two hours, for a reader who knows Python and some NumPy. You need nothing about neural networks here; JAX
# appears near the end, and [lesson 00](00_jax_in_ten_minutes.md) has all of it that you need.
#
# Attention is one small function. Every model of this course is built around it. We write it in six lines of NumPy,
# find out why each of the six is there, and then meet the same function in the library.
#
# After this lesson you can
#
# - say what queries, keys and values are, and what they are called in a search engine;
# - write attention in NumPy, and check it by hand on three numbers;
# - explain the division by $\sqrt{H}$ with a measurement, not with a formula;
# - say what happens when there is nothing to attend to.
#
# Paper: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.1.

# %% [markdown]
# How to read a lesson: from time to time a box asks you to **predict** a number. Write your guess down before you
# unfold the outcome. A guess that turns out wrong is what you will remember tomorrow. `python -m lessons run 01 --ask`
# runs the lesson on your machine and asks you there. (`seed()` is 0 on this page; run with `--seed=1`, it is 1, and
# all random numbers are others.)

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show

# %% [markdown]
# ## 1. A dictionary
#
# A Python dictionary maps **keys** to **values**. You come with a **query**; if it equals a key, you get the value of
# that key. Here the keys are animals, and a value has two numbers: legs and wings.

# %%
legs_and_wings = {"cat": (4, 0), "horse": (4, 0), "hen": (2, 2), "bee": (6, 4)}
print(legs_and_wings["hen"])
try:
    legs_and_wings["fox"]
except KeyError as error:
    print("KeyError:", error)

# %% [markdown]
# A dictionary is all or nothing. It does not know what a fox is, although a fox is nearly a cat. And a model could not
# learn such a thing step by step: a query that is a little less wrong still finds nothing at all.
#
# ## 2. A soft dictionary
#
# Now describe each animal by numbers instead of a name: fur, flight, size. The numbers are ours, between 0 and 3. We
# put the keys into one array and the values into another.
#
# The letters are those of the whole project: $T$ queries, $S$ keys (and as many values), $H$ numbers in each vector.

# %%
animals = ["cat", "horse", "hen", "bee"]
k = np.array([[3, 0, 1], [2, 0, 3], [0, 2, 1], [1, 3, 0]], float)  # [S, H]: fur, flight, size
v = np.array([legs_and_wings[animal] for animal in animals], float)  # [S, 2]: legs, wings
fox = np.array([3.0, 0.0, 1.0])  # [H]

# %% [markdown]
# **Scores.** How well does the query fit each key? Multiply number by number and add up: the dot product
# $q \cdot k = \sum_h q_h k_h$. It is large where both vectors are large in the same places.

# %%
scores = k @ fox  # [S]
for animal, score in zip(animals, scores, strict=True):
    print(f"{animal:6}{score:6.1f}")

# %% [markdown]
# **Weights.** We want to read mostly from the keys with large scores. So scores become weights: positive numbers that
# sum to 1. That is what the *softmax* does: the exponential makes each number positive, the division makes their sum 1.
#
# $$ w_s = \frac{e^{x_s}}{\sum_j e^{x_j}} $$
#
# Before we use it, a question about it.

# %%
predict("Softmax of the scores 1, 2 and 3: how many times larger is the largest weight than the smallest?", 7.38, 7.4)


# %%
def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


weights = softmax(np.array([1.0, 2.0, 3.0]))
print("weights", weights.round(3), "sum", weights.sum().round(6))
outcome(weights.max() / weights.min())

# %% [markdown]
# It is $e^{3-1}$. In a softmax only *differences* of scores count, and each step of 1 multiplies a weight by $e$,
# about 2.7.
#
# That is also why the first line of `softmax` may take the maximum away: it changes no difference. Without that, `exp`
# of a score of 1,000 would be infinite for a computer.

# %%
print("scores 1, 2, 3:         ", softmax(np.array([1.0, 2.0, 3.0])).round(3))
print("scores 1001, 1002, 1003:", softmax(np.array([1001.0, 1002.0, 1003.0])).round(3))
with np.errstate(over="ignore"):
    print("exp(1003) alone:        ", np.exp(1003.0))

# %% [markdown]
# **Answer.** The answer is the mean of the values, each with its weight. Nothing else happens in attention: *it is a
# weighted average*.

# %%
weights = softmax(scores)
answer = weights @ v  # [2]
print("legs, wings of a fox:", answer.round(2))
plt.barh(animals[::-1], weights[::-1])
plt.xlim(0, 1)
plt.xlabel("weight for the query fox")
picture("Bars of the weights of cat, horse, hen and bee for the query fox: cat is the largest, horse follows")

# %% [markdown]
# The fox was never in the dictionary, and the answer is nearly right, since a fox resembles animals that are.
#
# Here the picture of a dictionary ends, and it is good to know where. The answer is always a *mixture*. A bat has fur
# and flies; it is somewhere between a cat and a bee.

# %%
bat = np.array([2.0, 2.0, 0.0])
for animal, weight in zip(animals, softmax(k @ bat), strict=True):
    print(f"{animal:6}{weight:6.2f}")
print("legs, wings of a bat:", (softmax(k @ bat) @ v).round(2))

# %% [markdown]
# No animal has such numbers of legs and wings. A dictionary never answers with something that was not put into it;
# attention nearly always does.
#
# | | dictionary | search engine | attention |
# |---|---|---|---|
# | query | a key | what you type | a vector: what is looked for |
# | key | equal or not | title of a page | a vector: what it can be found by |
# | value | stored object | the page | a vector: what is read |
# | answer | one value | a list, the best first | the mean of all values, by weight |
#
# Nobody in a model chooses such vectors. They are learned, as the very last experiment shows.
#
# ## 3. Six lines
#
# The equation of the paper (equation 1), for many queries at once. $Q$ has a row for each query, $K$ and $V$ have a row
# for each key. The paper's $d_k$ is our $H$.
#
# $$ \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{H}}\right) V $$
#
# Two things are new: the division by $\sqrt{H}$, and `may_attend`, which says which query may read which key. Both get
# a section below. First the whole:


# %%
def attention(q, k, v, may_attend):  # [T, H], [S, H], [S, H], bool [T, S]
    scores = q @ k.T / np.sqrt(q.shape[-1])  # [T, S]: row t has the scores of query t
    scores = np.where(may_attend, scores, -1e30)  # as good as minus infinity: its exponential is 0
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)  # each row sums to 1
    weights = np.where(may_attend, weights, 0)
    return weights @ v  # [T, H]: row t is the answer to query t


# %% [markdown]
# By hand, once: one query, two keys, vectors of one number, so $\sqrt{H} = 1$. The scores are $2 \cdot 1$ and
# $2 \cdot 0$. Their exponentials are 7.39 and 1, so the weights are 0.88 and 0.12, and the answer is
# $0.88 \cdot 10 + 0.12 \cdot 20$.

# %%
print(attention(np.array([[2.0]]), np.array([[1.0], [0.0]]), np.array([[10.0], [20.0]]), np.ones((1, 2), bool)))

# %% [markdown]
# And three queries at once against our four animals, as a picture: one row a query, one column a key. You will see many
# such pictures in this course. Each row is one question, and its numbers sum to 1.

# %%
q = np.array([fox, bat, [0, 3, 1]])
heatmap(softmax(q @ k.T / np.sqrt(3)), ["fox", "bat", "gull"], animals)
plt.xlabel("keys")
plt.ylabel("queries")
picture("Attention matrix: fox reads cat and horse, bat reads all with bee first, gull reads bee and hen")

# %% [markdown]
# ## 4. Why divide by the root of H?
#
# A model does not have three numbers a vector, but 64 or 128. A dot product is a sum of $H$ products, so it grows with
# $H$. How much does that matter? Take 16 keys and a query, all of them random normal numbers. The 16 keys are equally
# good, so no key should win by much.

# %%
predict(
    "A random query and 16 random keys of 1,024 numbers, scores not divided at all: the largest weight?", 0.93, 0.99
)


# %%
def largest_weight(H, divisor, repeats=300):
    random = np.random.default_rng(seed())
    q = random.normal(size=(repeats, 1, H))
    k = random.normal(size=(repeats, 16, H))
    scores = (q * k).sum(axis=-1) / divisor  # [repeats, 16]
    return softmax(scores).max(axis=-1).mean()


outcome(largest_weight(1024, divisor=1))

# %% [markdown]
# One key gets nearly everything, by chance alone. Now divide by $\sqrt{H} = 32$.

# %%
predict("The same, with scores divided by the root of H: the largest weight?", 0.22, 0.28)

# %%
outcome(largest_weight(1024, divisor=np.sqrt(1024)))

# %% [markdown]
# And why the root? Each of the $H$ products has variance 1, so their sum has variance $H$, and its standard deviation
# is $\sqrt{H}$. Divided by it, scores have standard deviation 1, *whatever H is*. Divided by $H$, they would shrink to
# nothing, and all 16 keys would get the same weight, a sixteenth.

# %%
widths = [4, 16, 64, 256, 1024]
for name, divisors in {
    "not divided": [1] * len(widths),
    "divided by the root of H": np.sqrt(widths),
    "divided by H": widths,
}.items():
    largest = [largest_weight(H, divisor) for H, divisor in zip(widths, divisors, strict=True)]
    print(f"{name:26}", np.round(largest, 2))
    plt.semilogx(widths, largest, "o-", base=2, label=name)
plt.axhline(1 / 16, color="gray", linestyle=":")
plt.ylim(0, 1)
plt.xticks(widths, widths)
plt.xlabel("H, numbers in a vector")
plt.ylabel("largest of 16 weights")
plt.legend()
picture(
    "Largest of 16 weights against H: it rises to 1 undivided, stays level with the root, falls to 1/16 divided by H"
)

# %% [markdown]
# What is wrong with a weight of nearly 1? A model learns by small changes of scores. The slope of the softmax, the
# change of a weight $w$ for a small change of its own score, is $w (1 - w)$. At $w = 1$ that is 0: a small change of
# the score changes nothing. A new model would stick to the choices that chance made for it.

# %%
predict("H = 1,024, not divided: in what share of cases is the slope of the largest weight below 0.01?", 0.65, 0.87)


# %%
def slopes(divisor, H=1024, repeats=300):
    random = np.random.default_rng(seed())
    q, k = random.normal(size=(repeats, 1, H)), random.normal(size=(repeats, 16, H))
    largest = softmax((q * k).sum(axis=-1) / divisor).max(axis=-1)
    return largest * (1 - largest)


plt.hist([slopes(1), slopes(np.sqrt(1024))], bins=10, label=["not divided", "divided by the root of H"])
plt.xlabel("slope of the largest weight")
plt.ylabel("how often, of 300")
plt.legend()
picture("Histogram of slopes: not divided, nearly all are 0; divided by the root, they lie between 0.1 and 0.25")
print("divided by the root of H:", (slopes(np.sqrt(1024)) < 0.01).mean())
outcome((slopes(1) < 0.01).mean())

# %% [markdown]
# That is the paper's reason: "regions where it has extremely small gradients" (section 3.2.1; its footnote 4 has the
# variance).
#
# ## 5. Nothing to attend to
#
# `may_attend` closes keys: words that do not exist yet, or padding that fills a short sentence up. A closed key must
# get the weight 0, *and the other weights must still sum to 1*. So it is closed **before** the softmax, by a score that
# is as good as minus infinity.

# %%
may_attend = np.array([[True, True, True, True], [True, True, True, False], [False, False, False, False]])
closed = np.where(may_attend, q @ k.T / np.sqrt(3), -1e30)
print(softmax(closed).round(2))

# %% [markdown]
# Row by row: the fox may read everything, as before. To the bat the bee is closed: its weight is 0, and the other three
# share what it had, mostly the cat. The last query, the gull, may attend *nothing*. Look at its row.

# %%
predict("The gull may attend nothing. What do the weights in its row sum to?", 1, 1)

# %%
outcome(softmax(closed)[2].sum())

# %% [markdown]
# All its scores are equal, so the softmax shares the weight equally, among keys that are all forbidden. With a true
# minus infinity it would be worse: the row would be `nan`, "not a number", and spoil whatever is computed from it.
# So the last line but one of `attention` sets the weights of closed keys to 0: who may read nothing gets zeros.

# %%
print(attention(q, k, v, may_attend).round(2))
with np.errstate(invalid="ignore"):
    print("with minus infinity:", softmax(np.where(may_attend, q @ k.T, -np.inf))[2])

# %% [markdown]
# ## 6. The library's function
#
# This is the function that our models rest on. A model computes many sentences at once (a *batch* of $B$), and several
# attentions side by side ($N$ *heads*; [lesson 03](03_multi_head_attention.md)). So an array has four axes, and the
# letters at the end of its name say which: queries are `q_BTNH`, weights are `weights_BNTS`. `attention_scores` is our
# first line, `mask.block` gives `may_attend`, `SMALLEST` is the library's -1e30, and the last three lines are ours.

# %%
from transformer_jax.nn.attention import attend, attention_weights

show(attention_weights)

# %% [markdown]
# `attend` takes the mean of the values as well. With one sentence and one head it must equal ours.

# %%
random = np.random.default_rng(seed())
T, S, H = 5, 7, 3
q, k, v = (random.normal(size=(length, H)).astype(np.float32) for length in (T, S, S))
may_attend = random.random((T, S)) < 0.6
may_attend[3] = False  # a query that may attend nothing

ours = attention(q, k, v, may_attend)
theirs = attend(
    q[None, :, None],  # [T, H] -> [B, T, N, H], with B = N = 1
    k[None, :, None],
    v[None, :, None],
    may_attend[None],
    backend="reference",  # the formula; other backends are faster and equal
)
difference = np.abs(ours - np.asarray(theirs)[0, :, 0]).max()
print(f"largest difference: {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# The library also has the *laws* of attention, which hold for any correct implementation: weights sum to 1, closed keys
# count nothing, the order of the keys does not matter. They judge your own function, too. Here is ours for sentences
# and heads. `einsum` names the axes: `BTNH,BSNH->BNTS` multiplies, adds up over H, the letter that the result does not
# have, and keeps the others. For each sentence and head that is `q @ k.T`.

# %%
import jax.numpy as jnp

from transformer_jax import testing


def our_attention(q, k, v, may_attend):  # [B, T, N, H], [B, S, N, H], [B, S, N, H], bool [B, T, S]
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(may_attend[:, None], scores, -1e30)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    weights = jnp.where(may_attend[:, None], weights, 0)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v)


testing.check_attention(our_attention, is_grouped=False)
print("all laws hold")

# %% [markdown]
# ## 7. At a party
#
# You stand in a room full of voices and listen to one of them. Attention is often explained by this *cocktail party*.
# Let us go to one. Each guest has a voice: 64 random numbers. You know the voice of your friend; that is your query.
# How much of what you hear comes from your friend?

# %%
predict(
    "1,000 guests are talking, your friend is one of them. What is the mean weight of your friend's voice?", 0.5, 0.66
)


# %%
def party(num_guests, is_friend_there=True, repeats=150):
    random = np.random.default_rng(seed())
    friend, other = [], []
    for _ in range(repeats):
        voices = random.normal(size=(num_guests, 64))
        query = voices[0] if is_friend_there else random.normal(size=64)
        weights = softmax(voices @ query / np.sqrt(64))
        friend.append(weights[0])
        other.append(weights[1:].sum())
    return np.mean(friend), np.mean(other)


outcome(party(1000)[0])

# %% [markdown]
# One voice in a thousand: an equal share would be 0.001. Attention finds it without any training, since random vectors
# of 64 numbers are nearly at right angles. But the crowd is heard as well, and more of it as the room fills.

# %%
guests = [10, 30, 100, 300, 1000, 3000]
shares = [party(number, repeats=50)[0] for number in guests]
plt.semilogx(guests, shares, "o-")
plt.ylim(0, 1.05)
plt.xlabel("guests")
plt.ylabel("weight of your friend's voice")
picture("Weight of the friend's voice against the number of guests: nearly 1 with 10 guests, falling with more")

# %%
friend, other = party(1000, is_friend_there=False)
print(f"your friend stayed at home: weights of all guests together {friend + other:.2f}")

# %% [markdown]
# Where the picture of the party breaks:
#
# - A listener can hear nobody. Attention cannot: weights sum to 1, so if your friend is not there, it listens to
#   strangers instead. (Trained models often make themselves a place to look at when there is nothing to find, mostly
#   the first word: an *attention sink*.)
# - A listener follows one voice at a time. In a sentence each word asks its own question, all at once.
# - Here query and key are the same vector, the friend's voice. In a model they are different: what a word looks for is
#   not what it is. A verb may look for its subject.
#
# ## 8. A dictionary that is learned
#
# Last: if a query differs from its key, who tells it which key to find? Nobody; it is learned. We teach a dictionary.
# There are 12 English words and 12 German ones, each with a random vector. A matrix $W$ turns an English vector into a
# query; the German vectors are the keys. At first $W$ is random, and no word finds its translation but by chance.
#
# Attention is made of smooth steps only. So JAX can compute, for each number of $W$, whether the right weights grow
# when that number grows: that is the gradient, `jax.grad`. We follow it for 200 small steps.

# %%
import jax

english = "dog cat house tree bread water hand book night sun day word".split()
german = "Hund Katze Haus Baum Brot Wasser Hand Buch Nacht Sonne Tag Wort".split()
random = np.random.default_rng(seed())
words = random.normal(size=(12, 16)).astype(np.float32)  # [T, D]: row i is an English word
keys = random.normal(size=(12, 16)).astype(np.float32)  # [S, H]: row i is its translation


def translation_weights(W):  # [D, H] -> [T, S]
    return jax.nn.softmax(words @ W @ keys.T / np.sqrt(16), axis=-1)


def loss(W):  # small when each English word finds its own translation
    return -jnp.log(jnp.diagonal(translation_weights(W))).mean()


# %%
predict("After 200 steps of learning: the mean weight of the right German word?", 0.9, 1.0)

# %%
W = 0.1 * random.normal(size=(16, 16)).astype(np.float32)
slope = jax.jit(jax.grad(loss))
before = translation_weights(W)
for _ in range(200):
    W = W - 0.3 * slope(W)
after = translation_weights(W)

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for axis, weights, title in zip(axes, (before, after), ("before", "after"), strict=True):
    axis.imshow(weights, vmin=0, vmax=1)
    axis.set_title(title)
    axis.set_yticks(range(12), english)
    axis.set_xticks(range(12), german, rotation=90)
axes[1].set_yticks([])
axes[0].set_ylabel("query")
picture("Two attention matrices of English against German words: before learning all pale, after it a dark diagonal")
outcome(jnp.diagonal(after).mean())

# %% [markdown]
# The dictionary of section 1 is all or nothing: change a query a little, and nothing changes, so there is no gradient
# to follow. *That is why attention is soft*: not because mixtures are good answers, but because a mixture can be
# improved a little at a time.
#
# ## Change it
#
# 1. Multiply the fox by 3, then by 10, before the scores (section 2). What happens to the weights? And by 0.1?
# 2. In section 4, take 64 keys instead of 16. Does the largest weight with the root still stay level over H?
# 3. At the party, let your friend speak with a cold: add `0.5 * random.normal(size=64)` to the query. How many guests
#    are now too many?
#
# ## Check yourself
#
# 1. Which of queries, keys and values may have another number of rows? Which may have another width?
#    <details><summary>Answer</summary>Keys and values have the same number of rows, S; queries have T, any number.
#    Queries and keys have the same width, since they are multiplied; values may have another, and the answer has
#    theirs (in section 2: width 3 for keys, 2 for values).</details>
# 2. Why not close a key by setting its *weight* to 0 after the softmax, and leave it at that?
#    <details><summary>Answer</summary>The remaining weights then sum to less than 1, by as much as the closed key had
#    taken. The answer shrinks, and what was closed still has influence.</details>
# 3. In your own words, to somebody who has never programmed: what are query, key and value?
#    <details><summary>A model answer</summary>In a library, the query is the question that you bring, the keys are
#    the labels on the backs of the books, the values are what is written in them. You compare your question with all
#    labels, and read from every book a little: much from those that fit well, hardly anything from the rest. (It fails
#    where it says "you": each word of a sentence does this, at the same time. Nobody grades this answer.)</details>
# 4. All keys are equal. What is the answer of any query?
#    <details><summary>Answer</summary>All scores are equal, so all weights are 1/S: the plain mean of the
#    values.</details>
#
# ## Exercise
#
# [exercises/exercise_01_attention.py](exercises/exercise_01_attention.py): by hand, then the softmax, then attention.
# `python -m lessons check 01` grades it, and knows the usual mistakes by name; `python -m lessons hint 01` helps.
# The same in plain NumPy with real words: [examples/example_01_attention.py](examples/example_01_attention.py).
#
# ## Where it lives
#
# - [transformer_jax/nn/attention.py](../transformer_jax/nn/attention.py): `attend`, `attention_weights`, and the faster
#   backends that must equal them
# - [transformer_jax/testing/attention.py](../transformer_jax/testing/attention.py): the laws
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762): the equation, the root, the
#   word *scaled*
# - Bahdanau, Cho, Bengio 2014, [Neural Machine Translation by Jointly Learning to Align and Translate](https://arxiv.org/abs/1409.0473):
#   where attention came from, with scores from a small network instead of a dot product
# - Xiao et al. 2023, [Efficient Streaming Language Models with Attention Sinks](https://arxiv.org/abs/2309.17453)
#
# Next: [02 Self-attention](02_self_attention.md), where queries, keys and values all come from the same sentence.
