# %% [markdown]
# # 08 Transformer decoder
#
# About two and a half hours. You need lessons 01 to 06; lesson 07 helps, but is not needed.
#
# An encoder reads a whole text. A **decoder** writes one: it gives probabilities for the next token, one is chosen, and
# the text with that token goes in again. GPT is a decoder and nothing else.
#
# After this lesson you can
# - say what the shift and the causal mask are for, and prove with a number what happens without the mask;
# - choose tokens greedily, with a temperature, with top-k and with top-p, in NumPy and with the library;
# - explain the KV cache, and what it saves;
# - say in which tasks a recurrent network is better than a GPT, and in which it has no chance.
#
# Papers: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.3 (the mask);
# Radford et al. 2018, [Improving Language Understanding by Generative
# Pre-Training](https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf), section
# 3.1 (GPT).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## 1. The shift
#
# A text of $T + 1$ tokens makes $T$ exercises at once: at every position, predict the token that comes next. So the
# input is the text without its last token, and the targets are the text without its first.

# %%
words = "the cat sat on the mat".split()
inputs, targets = words[:-1], words[1:]
for t, target in enumerate(targets):
    print(f"position {t}: reads {' '.join(inputs[: t + 1]):18} target: {target}")

# %% [markdown]
# ## 2. The mask
#
# All positions are computed together, in one matrix. So position 2, which must predict "on", stands beside position 3,
# whose input *is* "on". If position 2 could look there, it would have to learn nothing.
#
# The causal mask forbids it: position $t$ sees positions $s \le t$. Here are the weights of an encoder and of a decoder
# from the very same queries and keys.


# %%
def attention_weights(q, k, may_attend):  # q [T, H], k [S, H], may_attend [T, S]
    scores = np.where(may_attend, q @ k.T / np.sqrt(q.shape[1]), -1e30)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


T = len(inputs)
random = np.random.default_rng(seed())
q, k = random.normal(size=(2, T, 8))  # [T, H] each
causal = np.arange(T)[:, None] >= np.arange(T)  # [T, S]: is the key at or before the query?
figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
heatmap(attention_weights(q, k, np.ones((T, T), bool)), inputs, inputs, "encoder: all keys", axes[0])
heatmap(attention_weights(q, k, causal), inputs, inputs, "decoder: keys up to its own", axes[1])
axes[0].set_ylabel("query")
figure.tight_layout()
picture("Two attention matrices from the same queries and keys; that of the decoder is 0 above its diagonal")

# %% [markdown]
# The mask comes *before* the softmax: the rows of the right picture sum to 1, and its first row is a single 1. A mask
# that sets weights to 0 *after* the softmax leaves rows that sum to less.
#
# The library's mask is one comparison as well:

# %%
from transformer_jax.nn.masks import causal as library_causal

show(library_causal)

# %%
assert np.array_equal(library_causal(T, T)[0], causal)

# %% [markdown]
# ## 3. What the mask is worth
#
# How do you notice that a mask is missing? The loss of such a model looks *excellent*. To see that it is too good we
# need a text whose best possible loss is known.
#
# This repository has such texts. One of them is drawn from a grammar: lines of arithmetic with brackets. Since the
# grammar is known, the true probability of every next character can be computed. The mean of $-\log p$ under the true
# probabilities is the **entropy floor**: no honest model can be below it, on average.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp

from course.fit import chain_text, fit, mean_loss, windows
from train.data.entropy import known_truth

text, characters = chain_text("grammar", "train", 100_000)
test_text, _ = chain_text("grammar", "test", 40_000)
V, T = len(characters), 32
batches = windows(text, steps(300), 32, T + 1, seed())  # [steps, B, T + 1]
test = windows(test_text, 1, 512, T + 1, seed=1)[0]  # [B, T + 1]
floor = known_truth("grammar").nats(test)  # [B, T]: -log p of each next character under the true distribution
print("".join(characters[i] for i in text[:150]))
print(f"V = {V} characters; uniform guess {np.log(V):.3f} nats, floor {floor.mean():.3f} nats")

# %% [markdown]
# Now the library's GPT, small: one block, width 32. `fit` of this course trains it with AdamW.

# %%
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Encoder

config = TransformerConfig(vocab_size=V, max_len=T, num_layers=1, d_model=32, num_heads=4, positions="rotary")
gpt = GPT(config)
gpt_params, _ = fit(gpt, batches, seed=seed())
gpt_loss = mean_loss(gpt, gpt_params, test)
print(f"GPT: {gpt_loss:.3f} nats, {gpt_loss - floor.mean():+.3f} from the floor")

# %% [markdown]
# And the same model with the mask off. In the library this is an `Encoder`: the same embedding, the same blocks, no
# causality. Everything else stays: data, shift, loss, steps.


# %%
class Unmasked(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens):  # [B, T] -> [B, T, V]
        encoder = Encoder(self.config, has_output=True)
        return encoder.logits(encoder(tokens))


# %%
predict("Without the mask: how many nats is the loss below (-) or above (+) the floor?", low=-1.7, high=-1.4)

# %%
unmasked_params, _ = fit(Unmasked(config), batches, seed=seed())
unmasked_loss = mean_loss(Unmasked(config), unmasked_params, test)
print(f"without the mask: {unmasked_loss:.3f} nats; the floor is {floor.mean():.3f}")
outcome(unmasked_loss - floor.mean())

# %% [markdown]
# Far below what is possible: this model has learned to copy its target from the position to the right. Asked to write a
# text, where there is nothing to the right, it would fail.
#
# A curve of the loss shows none of this; it looks like a great success. So the library compares: in training on a text
# of known entropy it subtracts the floor window by window, and says so when the loss is more than three standard errors
# below.

# %%
from train.entropy_floor import compare, leak_warning

unmasked_logits = jax.jit(lambda tokens: Unmasked(config).apply(unmasked_params, tokens))
logits = unmasked_logits(test[:, :-1])
log_probs = np.asarray(jax.nn.log_softmax(logits))
nats = -np.take_along_axis(log_probs, test[:, 1:, None], axis=-1)[:, :, 0].sum(axis=1)  # [B]: of each window
gaps = nats - floor.sum(axis=1)
sums = {"loss": nats.sum(), "floor": floor.sum(), "gap_squares": (gaps**2).sum(), "windows": len(nats)}
values = compare(sums, test[:, 1:].size)
print("leak:", values["leak"])
print(leak_warning(values))

# %% [markdown]
# You can find the same mistake without a known floor: change the *last* token, and look whether an earlier prediction
# changes.

# %%
gpt_logits = jax.jit(lambda tokens: gpt.apply(gpt_params, tokens))
changed = test[:, :-1].copy()
changed[:, -1] = (changed[:, -1] + 1) % V
for name, function in (("GPT", gpt_logits), ("without the mask", unmasked_logits)):
    difference = np.abs(function(changed) - function(test[:, :-1]))[:, :-1].max()
    print(f"{name}: earlier logits change by up to {difference:.2f}")

# %% [markdown]
# The library's test kit does this for any model, for every position and with padding: `check_causal_lm`.

# %%
from transformer_jax.testing import check_causal_lm

try:
    check_causal_lm(lambda tokens, is_token: unmasked_logits(tokens), vocab_size=V)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## 4. The next token
#
# A GPT gives probabilities, not a word. Let us look at those of the trained model, beside the true ones of the grammar.

# %%
prompt = "\n(x+1"
ids = np.array([[characters.index(character) for character in prompt]])  # [1, T]
p = np.asarray(jax.nn.softmax(gpt_logits(ids)[0, -1]))  # [V]
truth = known_truth("grammar").predict(ids)[0, -1]  # [V]
order = np.argsort(-truth)
labels = [repr(characters[i])[1:-1] for i in order]
plt.bar(np.arange(V) - 0.2, truth[order], 0.4, label="true")
plt.bar(np.arange(V) + 0.2, p[order], 0.4, label="GPT")
plt.xticks(range(V), labels)
plt.xlabel(f"next character after {prompt.strip()}")
plt.ylabel("probability")
plt.legend()
picture("Bars of the probability of each next character after (x+1: true and from the GPT, nearly alike")

# %% [markdown]
# A closing bracket or an operator is likely, another digit is impossible. Now one character must be chosen. That choice
# is no part of the model. There are several ways; each is a line or two of NumPy. Take five words with invented logits.

# %%
candidates = ["mat", "chair", "floor", "roof", "moon"]
word_logits = np.log([0.5, 0.2, 0.15, 0.1, 0.05])  # [V]


def softmax(x):
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


def table(name, p):
    print(f"{name:18}" + "".join(f"{word:>7}{value:5.2f}" for word, value in zip(candidates, p, strict=True)))


# %% [markdown]
# **Greedy**: the largest. **Temperature** $\tau$: divide the logits by it before the softmax,
#
# $$ p_i = \frac{e^{x_i / \tau}}{\sum_j e^{x_j / \tau}} $$
#
# Below 1 the likely words become more likely, above 1 the distribution becomes flat; towards 0 it becomes greedy.

# %%
for temperature in (0.25, 0.5, 1, 2, 10):
    table(f"temperature {temperature}", softmax(word_logits / temperature))

# %% [markdown]
# **Top-k** (Fan et al. 2018): keep the $k$ most likely words, and divide by what is left.


# %%
def top_k(p, k):  # [V]
    kept = np.zeros_like(p)
    order = np.argsort(-p, kind="stable")[:k]  # ties: the smaller id first
    kept[order] = p[order]
    return kept / kept.sum()


table("top-k, k = 3", top_k(softmax(word_logits), 3))

# %% [markdown]
# **Top-p**, or nucleus (Holtzman et al. 2019): keep the smallest set of most likely words that together have
# probability $p$. Where the model is sure, that is one word; where it is not, there are many.


# %%
def top_p(probabilities, p):  # [V]
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]  # the sum of those that are more likely
    kept = np.zeros_like(probabilities)
    kept[order] = np.where(before < p, probabilities[order], 0)
    return kept / kept.sum()


table("top-p, p = 0.8", top_p(softmax(word_logits), 0.8))

# %% [markdown]
# In the library such a step is a *logits processor*. It works on logits: a word that is ruled out gets the lowest
# number that there is.

# %%
from transformer_jax.sampling.logits_processors import TopK, TopP, keep_first

show(keep_first)

# %%
given = jnp.asarray(word_logits, jnp.float32)[None]  # [B, V]
for processor, expected in ((TopK(3), top_k(softmax(word_logits), 3)), (TopP(0.8), top_p(softmax(word_logits), 0.8))):
    logits, _ = processor(given, None, None, ())
    assert np.allclose(jax.nn.softmax(logits[0]), expected, atol=1e-6)

# %% [markdown]
# How many characters does top-p keep for our GPT? It depends on the position, and on average:

# %%
predict("Our GPT knows 15 characters. How many of them does top-p with p = 0.9 keep, on average?", low=5.5, high=6.7)

# %%
probabilities = np.asarray(jax.nn.softmax(gpt_logits(test[:, :-1])))  # [B, T, V]
ordered = -np.sort(-probabilities, axis=-1)
num_kept = (np.cumsum(ordered, axis=-1) - ordered < 0.9).sum(axis=-1)  # [B, T]
plt.hist(num_kept.ravel(), bins=np.arange(0.5, V + 1))
plt.xlabel("characters that top-p with p = 0.9 keeps")
plt.ylabel("positions")
picture("Histogram of the number of characters that top-p keeps: from four to eight")
outcome(num_kept.mean())

# %% [markdown]
# ## 5. Writing
#
# The loop of a decoder: logits of the last position, choose, append, again. First without any trick: the whole text
# goes through the model for every new character. Texts are cut to the last $T$ characters, since the model has learned
# no more positions.


# %%
def write(choose, length=120):
    ids, nats = [characters.index("\n")], []
    for _ in range(length):
        recent = ids[-T:]
        window = np.zeros((1, T), int)  # always T long: what stands after `recent` is never seen, thanks to the mask
        window[0, : len(recent)] = recent
        logits = np.asarray(gpt_logits(window)[0, len(recent) - 1], np.float64)  # [V]
        ids.append(choose(logits))
        nats.append(-np.log(softmax(logits)[ids[-1]]))
    return "".join(characters[i] for i in ids[1:]), np.mean(nats)


def sampler(temperature=1.0, p=1.0):
    random = np.random.default_rng(seed())
    return lambda logits: random.choice(V, p=top_p(softmax(logits / temperature), p))


# %% [markdown]
# On text of the grammar the model has a loss of about 1.8: the mean of $-\log p$ of a character. Each way of writing
# can be measured in the same way, by the model's own probabilities of what it wrote.

# %%
predict("Greedy text: mean of -log p of its characters, by the model itself?", low=0.9, high=1.35)

# %%
surprise = {}
for name, choose in (
    ("greedy", np.argmax),
    ("temperature 1", sampler()),
    ("temperature 2", sampler(temperature=2.0)),
    ("top-p 0.8", sampler(p=0.8)),
):
    written, surprise[name] = write(choose)
    print(f"--- {name}: {surprise[name]:.2f} nats per character\n{written}")
outcome(surprise["greedy"])

# %% [markdown]
# The most likely next character, again and again, gives a text that no writer of this grammar would produce: short
# lines that repeat. Likely at every step is not typical as a whole. Sampling at temperature 1 is what the model has
# learned; a higher temperature makes mistakes, such as brackets that do not match. This is the reason for top-p: it
# removes the tail of unlikely characters, and leaves the rest as it is. (Holtzman et al. 2019 found the same with large
# models: figure 2.)
#
# ## 6. The KV cache
#
# The loop above computes everything again for each new character. But with a causal mask the past cannot change: keys
# and values of earlier positions are the same as before. So keep them. The new token brings one query, one key and one
# value; its query looks at all stored keys.

# %%
predict(
    "Writing 128 tokens after an empty prompt: how many times more positions go through the model without a cache?",
    low=64,
    high=65,
)

# %%
without_cache = sum(range(1, 129))  # the text so far, for each new token
with_cache = 128  # each token once
print(f"positions: {without_cache} without, {with_cache} with a cache")
outcome(without_cache / with_cache)

# %% [markdown]
# In the library a model has two ways in: `__call__` for a whole text, and `extend` for the next tokens after those in
# the cache. Both must give the same logits. We read one text at once, and token by token:

# %%
import time

from transformer_jax.models import init_params
from transformer_jax.nn.kv_cache_kinds import make_cache

longer = GPT(TransformerConfig(vocab_size=V, max_len=128, num_layers=1, d_model=64, num_heads=4))
longer_params = {"params": init_params(longer, jax.random.key(seed()))}
extend = jax.jit(lambda tokens, cache: longer.apply(longer_params, tokens, tokens >= 0, cache, method="extend"))
tokens = jnp.asarray(test_text[None, :128])  # [B, T]
empty = make_cache(longer.config, 1, 128)


def at_once():
    return extend(tokens, empty)[0]  # [B, T, V]


def one_by_one():
    cache, rows = empty, []
    for t in range(128):
        logits, cache = extend(tokens[:, t : t + 1], cache)  # [B, 1, V]
        rows.append(logits)
    return jnp.concatenate(rows, axis=1)


assert np.allclose(at_once(), one_by_one(), atol=1e-4)
print("the same logits")

# %% [markdown]
# Transformers are often said to have "faster inference, because they are parallel". The measurement says when that is
# so.

# %%
predict("128 tokens, with the cache: how many times longer does one by one take than all at once?", low=4, high=200)


# %%
def seconds(function):  # the best of five
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


print(f"at once {1e3 * seconds(at_once):.1f} ms, one by one {1e3 * seconds(one_by_one):.1f} ms")
outcome(seconds(one_by_one) / seconds(at_once))

# %% [markdown]
# *Reading* a prompt (the "prefill") and training are parallel: all tokens are known. *Writing* is not: a token must be
# chosen before the next one can be computed, as in a recurrent network. The cache saves work, but not the waiting.
#
# ## 7. A recurrent network beside the GPT
#
# Before Transformers, texts were written by recurrent networks. A GRU (Cho et al. 2014) reads token by token, and keeps
# all that it knows in one vector of fixed width. One often reads that such networks "are slow, forget, and are worse".
# Two of the three can be tested here, with models of equal size, equal steps, equal data.


# %%
class GRU(nn.Module):
    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens):  # [B, T] -> [B, T, V]
        x = nn.Embed(self.vocab_size, self.width)(tokens)
        x = nn.RNN(nn.GRUCell(self.width))(x)  # one step after the other
        return nn.Dense(self.vocab_size)(x)


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# %% [markdown]
# First the text of the grammar. For comparison also a table of pairs: the probability of a character given the one
# before it, counted.

# %%
predict("Grammar, equal size and steps: loss of the GRU minus loss of the GPT, in nats?", low=-0.09, high=-0.02)

# %%
gru = GRU(V, 48)
gru_params, _ = fit(gru, batches, seed=seed(), peak_lr=1e-2)
gru_loss = mean_loss(gru, gru_params, test)
pairs = np.ones((V, V))
np.add.at(pairs, (text[:-1], text[1:]), 1)
pair_loss = -np.log((pairs / pairs.sum(axis=1, keepdims=True))[test[:, :-1], test[:, 1:]]).mean()
print(f"parameters: GRU {size(gru_params):,}, GPT {size(gpt_params):,}")
losses = {"uniform": np.log(V), "pairs": pair_loss, "GPT": gpt_loss, "GRU": gru_loss, "floor": floor.mean()}
plt.barh(list(losses), list(losses.values()))
for y, value in enumerate(losses.values()):
    plt.text(value, y, f" {value:.3f}", va="center")
plt.xlabel("loss on unseen text, nats per character")
picture("Bars of the loss of a uniform guess, of pairs, of the GPT, of the GRU, and the floor, each below the last")
outcome(gru_loss - gpt_loss)

# %% [markdown]
# The GRU is *better*. The grammar has few states (which brackets are open), and a state that is updated from token to
# token is just what a GRU is. The GPT must find the state again from all the tokens before.
#
# Now a text that no small state can hold. A row has 24 random letters, a mark, and the same 24 letters again. The loss
# counts the second half only: to be right, the model must have kept all 24.

# %%
import optax

K, letters = 24, 16


def recall_rows(random, *shape):  # [..., 2 K + 1]: letters from 1, the mark is 0
    first = random.integers(1, letters, (*shape, K))
    return np.concatenate([first, np.zeros((*shape, 1), int), first], axis=-1).astype(np.int32)


def recall_loss(apply, batch):
    logits = apply(batch[:, :-1])[:, K:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, K + 1 :]).mean()


random = np.random.default_rng(seed())
recall_batches = recall_rows(random, steps(300), 32)
recall_test = recall_rows(random, 256)
recall_gpt = GPT(TransformerConfig(vocab_size=letters, max_len=2 * K, num_layers=1, d_model=32, num_heads=2))
recall_gru = GRU(letters, 48)
right = {}
for name, model, peak_lr in (("GPT", recall_gpt, 3e-3), ("GRU", recall_gru, 1e-2)):
    params, _ = fit(model, recall_batches, loss=recall_loss, seed=seed(), peak_lr=peak_lr)
    guesses = jax.jit(model.apply)(params, recall_test[:, :-1])[:, K:].argmax(axis=-1)  # [B, K]
    right[name] = np.asarray(guesses == recall_test[:, K + 1 :])
    print(name, f"{size(params):,} parameters")

# %%
predict("Share of the 24 letters that the GPT recalls?", low=0.97, high=1)

# %%
outcome(right["GPT"].mean())

# %%
predict("Share of the 24 letters that the GRU recalls? (A guess among 15 letters: 0.07.)", low=0.15, high=0.4)

# %%
for name, values in right.items():
    plt.plot(np.arange(1, K + 1), values.mean(axis=0), label=name)
plt.axhline(1 / 15, color="gray", linestyle=":", label="a guess")
plt.xlabel("letter of the second half")
plt.ylabel("share that is right")
plt.ylim(0, 1.05)
plt.legend()
picture("Share of right letters by position: the GPT at 1 throughout, the GRU far lower")
outcome(right["GRU"].mean())

# %% [markdown]
# The GRU forgets, and the reason is its width: everything must pass through one vector. The GPT looks back; its memory
# grows with the text (this is the KV cache, seen from the other side).
#
# So the three sentences become: recurrent networks *wait* in training, where a Transformer computes all positions at
# once; when writing, both wait. They *forget* what does not fit their state. They are *not worse* where a small state
# is enough.
#
# A picture, and where it fails: a GRU takes notes on one page and may erase; a GPT keeps the whole book open. But a
# reader with an open book knows where to look; a GPT compares its query with every page, each time.

# %% [markdown]
# ## Change it
#
# - In section 3, give the unmasked model 100 steps instead of 300. How soon is it below the floor? (Look at the printed
#   difference.)
# - Write 120 characters with temperature 0.5, and with top-k of 3. Do brackets match? Do lines repeat?
# - In section 7, take `K = 8`. From which length on does the GRU fail?
#
# ## Check yourself
#
# <details>
# <summary>Why does a decoder need the mask in training, but not the shift alone?</summary>
#
# The shift makes the next token the target. The mask keeps a position from reading that target, which is the input of
# the position to its right.
#
# </details>
#
# <details>
# <summary>When is top-p the same as greedy?</summary>
#
# Where the most likely token alone has probability p or more: then the set has one token.
#
# </details>
#
# <details>
# <summary>Why can an encoder not use a KV cache in this way?</summary>
#
# In an encoder a new token changes the vectors of all earlier ones, since they look at it. Then keys and values of the
# next layer change, too, and nothing that was kept is right.
#
# </details>
#
# <details>
# <summary>A model has a training loss far below what others reach. What do you check first?</summary>
#
# Whether it sees its targets: change a later token, and look whether an earlier prediction changes.
#
# </details>
#
# ## Exercise
#
# [Exercise 08](exercises/exercise_08_sampling.py): temperature, top-k, top-p, and the draw. Then
# `python -m lessons check 08`.
#
# ## Where it lives
#
# - [`transformer_jax/models/gpt.py`](../transformer_jax/models/gpt.py): GPT, `__call__` and `extend`
# - [`transformer_jax/nn/masks.py`](../transformer_jax/nn/masks.py): the causal mask
# - [`transformer_jax/nn/kv_cache.py`](../transformer_jax/nn/kv_cache.py): the KV cache
# - [`logits_processors.py`](../transformer_jax/sampling/logits_processors.py): temperature, top-k, top-p and others
# - [`transformer_jax/sampling/decode.py`](../transformer_jax/sampling/decode.py): the compiled loop
# - [`train/data/entropy.py`](../train/data/entropy.py): texts of known entropy
# - [`train/entropy_floor.py`](../train/entropy_floor.py): the comparison of a loss with its floor
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762)
# - Radford et al. 2019, [Language Models are Unsupervised Multitask
#   Learners](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)
#   (GPT-2)
# - Fan et al. 2018, [Hierarchical Neural Story Generation](https://arxiv.org/abs/1805.04833) (top-k)
# - Holtzman et al. 2019, [The Curious Case of Neural Text Degeneration](https://arxiv.org/abs/1904.09751) (top-p)
# - Cho et al. 2014, [Learning Phrase Representations using RNN Encoder-Decoder](https://arxiv.org/abs/1406.1078) (GRU)
#
# Next: [09 The complete Transformer](09_complete_transformer.md), an encoder and a decoder together.
