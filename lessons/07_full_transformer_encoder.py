# %% [markdown]
# # 07 The full Transformer encoder
#
# About two hours. You need lessons 01 to 06.
#
# An encoder reads a whole text and gives every token a vector that knows about all the others. What is it good for?
# That depends on the **head** on top of it: one that classifies the text, one that labels each token, one that guesses
# hidden words. BERT is an encoder that was first trained with the last of these, and then used for the others.
#
# After this lesson you can
# - turn the vectors of a text into one vector (pooling), whatever the length of the text;
# - say how BERT is trained, and what "80, 10, 10" means;
# - tag tokens, classify texts, and say when a much simpler method is better;
# - compute parameters, operations and memory of a model before you build it.
#
# Paper: Devlin et al. 2019, [BERT](https://arxiv.org/abs/1810.04805), section 3.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## 1. Texts of different lengths
#
# A batch is one array, so short texts are filled up to the length of the longest, with **padding**. `is_token` says
# what is real. Two rules make padding harmless: nobody attends to it, and nobody averages over it.
#
# $B$ texts, $T$ positions, $D$ numbers in a vector.

# %%
B, T, D = 2, 64, 16
random = np.random.default_rng(seed())
x = random.normal(size=(B, T, D))  # vectors of two texts that have nothing to do with each other
x[:, 5:] = random.normal(size=D)  # each has 5 tokens; the rest is padding, the same vector everywhere
is_token = np.arange(T) < np.array([[5], [5]])  # [B, T]


def cosine(a, b):
    return a @ b / np.sqrt(a @ a * (b @ b))


# %% [markdown]
# To classify a text we need *one* vector for it. The simplest is the mean of its tokens. A popular mistake is to
# average over all positions. What does it do to our two unrelated texts?

# %%
predict("Two unrelated texts of 5 tokens, padded to 64, plain mean: cosine similarity of their vectors?", 0.98, 1)


# %%
def mean_pool(x, is_token):  # [B, T, D], [B, T] -> [B, D]
    weights = is_token[:, :, None].astype(float)
    return (x * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)


plain = x.mean(axis=1)
right = mean_pool(x, is_token)
print(f"tokens only: {cosine(*right):.3f}")
outcome(cosine(*plain))

# %% [markdown]
# With the plain mean all short texts look alike. The mean over tokens keeps them apart.
#
# ## 2. Four ways to one vector
#
# **First**: the vector of the first token. BERT puts a special token `[CLS]` there, which has nothing else to do.
# **Mean** and **max**: over the tokens, number by number. **Attention pooling**: a mean whose weights are learned, the
# softmax of one score for each token,
#
# $$ \alpha = \mathrm{softmax}(w \cdot x_t + b), \qquad \mathrm{pooled} = \sum_t \alpha_t x_t $$


# %%
def attention_pool(x, scores, is_token):  # [B, T, D], [B, T], [B, T] -> [B, D]
    scores = np.where(is_token, scores, -1e30)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("bt,btd->bd", weights, x)


# %% [markdown]
# It is attention with a single query, which is the same for all texts: $w$. In the library the four are rows of a
# table:

# %%
import jax
import jax.numpy as jnp

from transformer_jax.models.encoder import POOLINGS

show(POOLINGS["attention"])
show(POOLINGS["first"])

# %%
w = random.normal(size=D)
assert np.allclose(POOLINGS["mean"](x, is_token, None), mean_pool(x, is_token), atol=1e-5)
pooled = POOLINGS["attention"](jnp.asarray(x), jnp.asarray(is_token), lambda x: (x @ w)[:, :, None])
assert np.allclose(pooled, attention_pool(x, x @ w, is_token), atol=1e-5)
print(list(POOLINGS))

# %% [markdown]
# And the encoder itself must not see padding either. Here is the library's encoder on a text of 6 tokens, alone and
# padded to 16:

# %%
from transformer_jax.config import TransformerConfig
from transformer_jax.models import Encoder, init_params

small = Encoder(TransformerConfig(vocab_size=20, max_len=16, num_layers=1, d_model=16, num_heads=2))
small_params = {"params": init_params(small, jax.random.key(seed()))}
tokens = random.integers(0, 20, (1, 16))
run = jax.jit(small.apply)
alone = run(small_params, tokens[:, :6])
padded = run(small_params, tokens, np.arange(16)[None] < 6)
forgotten = run(small_params, tokens)
print(f"padded, with is_token: {np.abs(padded[:, :6] - alone).max():.1e}")
print(f"padded, without:       {np.abs(forgotten[:, :6] - alone).max():.1e}")

# %% [markdown]
# ## 3. A label for each token
#
# **Tagging**: a label for each token, such as "person" or "place" (named entities), or the part of speech. The head is
# one dense layer on every vector. Names of several words are written with B (begins), I (inside) and O (outside):

# %%
words = ["Ada", "Lovelace", "was", "born", "in", "London"]
tags = ["B-person", "I-person", "O", "O", "O", "B-place"]


def entities(tags):
    found = []
    for t, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append([tag[2:], t, t + 1])
        elif tag.startswith("I-") and found:
            found[-1][2] = t + 1
    return [(kind, " ".join(words[start:end])) for kind, start, end in found]


print(entities(tags))

# %% [markdown]
# Why an encoder for this, and not a GPT? Because a label may depend on what comes *later*. The purest case: texts of 24
# random letters, and the label of a letter is 1 if the same letter comes again. A model that reads from left to right
# cannot know that. The best it can do is to guess from the number of letters that are still to come.

# %%
V, T = 16, 24


def again_later(tokens):  # [..., T] -> [..., T]
    same = tokens[..., :, None] == tokens[..., None, :]  # [..., T, T]
    return (same & (np.arange(T) > np.arange(T)[:, None])).any(axis=-1).astype(np.int32)


chance = 1 - (1 - 1 / V) ** (T - 1 - np.arange(T))  # of seeing this letter again, by position
from_left = np.maximum(chance, 1 - chance)
print(f"best possible from the left: {from_left.mean():.3f} of the labels")

# %%
predict("The library's tagger, one block, 500 steps: share of labels that are right on new texts?", 0.96, 1)

# %%
import optax

from course.fit import fit
from transformer_jax.models import TokenTagger


def tag_loss(apply, batch):
    tokens, labels = batch  # [B, T] each
    return optax.softmax_cross_entropy_with_integer_labels(apply(tokens), labels).mean()


config = TransformerConfig(vocab_size=V, max_len=T, num_layers=1, d_model=32, num_heads=4, positions="rotary")
tagger = TokenTagger(config, num_tags=2)
train_tokens = np.random.default_rng(seed()).integers(0, V, (steps(500), 32, T)).astype(np.int32)
tagger_params, _ = fit(tagger, (train_tokens, again_later(train_tokens)), loss=tag_loss, seed=seed())
test_tokens = np.random.default_rng(1000).integers(0, V, (500, T)).astype(np.int32)
guesses = np.asarray(jax.jit(tagger.apply)(tagger_params, test_tokens)).argmax(axis=-1)  # [B, T, 2] -> [B, T]
is_right = guesses == again_later(test_tokens)
plt.plot(is_right.mean(axis=0), label="encoder")
plt.plot(from_left, label="best possible from the left")
plt.xlabel("position")
plt.ylabel("share of right labels")
plt.ylim(0, 1.05)
plt.legend()
picture("Share of right labels by position: the encoder is near 1, the best guess from the left falls to one half")
outcome(is_right.mean())

# %% [markdown]
# The encoder looks to the right, and so it is better than anything that cannot.
#
# ## 4. How BERT learns: hidden words
#
# Labels are expensive, text is cheap. Devlin et al. hide 15 % of the tokens of a text, and train the encoder to guess
# them. Of the hidden tokens, 80 % become the token `[MASK]`, 10 % a random one, and 10 % stay as they are. The loss is
# the cross-entropy at the chosen positions only:
#
# $$ L = -\frac{1}{|M|} \sum_{t \in M} \log p_t(x_t) $$
#
# Why not always `[MASK]`? In later use no text has a `[MASK]`. A model that has learned to think only at `[MASK]` would
# have nothing to say there. So now and then it must doubt what it reads.


# %%
def corrupt(tokens, is_chosen, choice, random_tokens, mask_id):  # [B, T] each
    hidden = np.where(choice < 0.8, mask_id, np.where(choice < 0.9, random_tokens, tokens))
    return np.where(is_chosen, hidden, tokens)


# %% [markdown]
# The library's function draws the random numbers itself:

# %%
from train.data.corruption import mask_tokens

show(mask_tokens)

# %%
predict("Masked at a rate of 15 %: what share of all tokens looks different afterwards?", low=0.13, high=0.139)

# %%
tokens = random.integers(0, 1000, (200, 500))
corrupted, is_chosen = mask_tokens(tokens, np.random.default_rng(seed()), 0.15, mask_id=1000, vocab_size=1000)
again = np.random.default_rng(seed())  # the same draws in the same order
chosen, choice = again.random(tokens.shape) < 0.15, again.random(tokens.shape)
assert np.array_equal(corrupted, corrupt(tokens, chosen, choice, again.integers(0, 1000, tokens.shape), 1000))
assert np.array_equal(chosen, is_chosen)
outcome((corrupted != tokens).mean())

# %% [markdown]
# Nine tenths of 15 %. And only 15 % of the positions teach anything in a step, against 100 % in a GPT: one reason why
# encoders learn more slowly, step by step.
#
# What is it worth to see both sides? For a text of known probabilities this can be computed. The repository has a
# Markov chain of letters: each depends on the one before it, and on nothing else. With $P(a, b)$, the probability of
# $b$ after $a$, a hidden letter between $a$ and $c$ is $b$ with probability
#
# $$ p(b \mid a, c) = \frac{P(a, b)\,P(b, c)}{\sum_{b'} P(a, b')\,P(b', c)} $$

# %%
predict("From the left, a letter costs 2.3 nats (the floor of a GPT). And with both neighbours known?", 1.3, 1.55)

# %%
from train.data.entropy import draw_part, known_truth

chain = known_truth("markov")
P = chain.arcs.sum(axis=2).T  # [V, V]: P[a, b]
ids = np.array([chain.characters.index(character) for character in draw_part("markov", "test", 40_000)])
a, b, c = ids[:-2], ids[1:-1], ids[2:]
both = P[a, b] * P[b, c] / np.einsum("ij,ji->i", P[a], P[:, c])
print(f"from the left {-np.log(P[a, b]).mean():.2f} nats, from both sides {-np.log(both).mean():.2f} nats")
outcome(-np.log(both).mean())

# %% [markdown]
# So a masked model may have a lower loss than the best GPT on the same text. The two numbers answer different
# questions, and must not be compared.
#
# ## 5. One label for a text, and a much simpler rival
#
# Names of countries, languages, scripts and currencies, in ten languages: which language is it? The names come with the
# repository's requirements (Unicode's CLDR). First **naive Bayes**: count pieces of one to three letters in each
# language, and add up logarithms. No vectors, no training loop, one second.

# %%
from collections import Counter

from train.data.languages import languages

train_rows, test_rows = languages(None, "train"), languages(None, "val") + languages(None, "test")
labels = sorted({language for _, language, _ in train_rows})
print(len(train_rows), "names to learn from, such as", [row[:2] for row in train_rows[:3]])
print(len(test_rows), "names to test;", ", ".join(labels))


def pieces(name):
    name = f"^{name.lower()}$"
    return [name[i : i + n] for n in (1, 2, 3) for i in range(len(name) - n + 1)]


counts = {label: Counter() for label in labels}
for name, label, _ in train_rows:
    counts[label].update(pieces(name))
num_kinds = len(set().union(*counts.values()))
totals = {label: counts[label].total() + 0.1 * num_kinds for label in labels}


def naive_bayes(name):
    return max(labels, key=lambda y: sum(np.log((counts[y][piece] + 0.1) / totals[y]) for piece in pieces(name)))


# %%
predict("Naive Bayes: share of the test names whose language is right?", low=0.75, high=0.8)

# %%
outcome(np.mean([naive_bayes(name) == label for name, label, _ in test_rows]))

# %% [markdown]
# Now the encoder: single letters, one block, attention pooling, 300 steps.

# %%
predict("The encoder after 300 steps: share of the test names whose language is right?", low=0.45, high=0.57)

# %%
from transformer_jax.models import SequenceClassifier

T = 32
letters = sorted({letter for name, *_ in train_rows for letter in name.lower()})
id_of = {letter: i + 2 for i, letter in enumerate(letters)}  # 0 is padding, 1 an unknown letter


def encode(rows):
    tokens = np.zeros((len(rows), T), np.int32)
    for i, (name, *_) in enumerate(rows):
        name_ids = [id_of.get(letter, 1) for letter in name.lower()][:T]
        tokens[i, : len(name_ids)] = name_ids
    return tokens, np.array([labels.index(row[1]) for row in rows], np.int32)


def class_loss(apply, batch):
    tokens, label = batch  # [B, T], [B]
    return optax.softmax_cross_entropy_with_integer_labels(apply(tokens, tokens > 0), label).mean()


config = TransformerConfig(
    vocab_size=len(letters) + 2, max_len=T, num_layers=1, d_model=48, num_heads=4, positions="rotary"
)
classifier = SequenceClassifier(config, num_classes=len(labels), pooling="attention")
chosen_rows = np.random.default_rng(seed()).integers(0, len(train_rows), (steps(300), 64))
train_tokens, train_labels = encode(train_rows)
class_params, _ = fit(
    classifier, (train_tokens[chosen_rows], train_labels[chosen_rows]), loss=class_loss, seed=seed(), peak_lr=6e-3
)
test_tokens, test_labels = encode(test_rows)
logits = jax.jit(lambda tokens: classifier.apply(class_params, tokens, tokens > 0))(test_tokens)
outcome((np.asarray(logits).argmax(axis=-1) == test_labels).mean())

# %% [markdown]
# Counting wins, clearly. With a few thousand short names and three hundred steps an encoder has not seen enough to find
# out what counting takes for granted: that groups of letters matter. The recipe
# [`configs/languages.py`](../configs/languages.py) needs subwords, dropout and five times the steps to be a little
# better than naive Bayes. *Always try the simple thing first.* An encoder pays where order and context decide, as in
# section 3, or where it was trained on much more text before.
#
# Attention pooling has one thing to offer: it shows where it looks.

# %%
from transformer_jax.models.encoder import Pool

examples = [i for i in range(len(test_rows)) if 8 <= len(test_rows[i][0]) <= 14][:6]
variables = class_params["params"]
run = jax.jit(Encoder(config).apply)
vectors = run({"params": variables["encoder"]}, test_tokens[examples], test_tokens[examples] > 0)  # [B, T, D]
score = variables["pool"]["score"]
scores = np.asarray(vectors @ score["kernel"] + score["bias"])[:, :, 0]  # [B, T]
scores = np.where(test_tokens[examples] > 0, scores, -np.inf)
weights = np.exp(scores - scores.max(axis=1, keepdims=True))
weights /= weights.sum(axis=1, keepdims=True)
ours = np.einsum("bt,btd->bd", weights, vectors)
pool = Pool("attention").apply({"params": variables["pool"]}, vectors, test_tokens[examples] > 0)
assert np.allclose(ours, pool, atol=1e-4)
figure, axis = plt.subplots(figsize=(6.5, 2.6))
axis.imshow(weights[:, :14], vmin=0, vmax=weights.max(), aspect="auto")
for row, i in enumerate(examples):
    for t, letter in enumerate(test_rows[i][0]):
        axis.text(
            t,
            row,
            letter,
            ha="center",
            va="center",
            color="white" if weights[row, t] > 0.6 * weights.max() else "black",
        )
axis.set_yticks(range(len(examples)), [test_rows[i][1] for i in examples])
axis.set_xlabel("letter")
picture("Six names with the weight that attention pooling gives to each letter: a few letters of each are dark")

# %% [markdown]
# ## 6. What a model costs
#
# Parameters, operations and memory follow from shapes alone, so they can be known before anything is built. BERT base
# is a stack of 12 of the blocks of lesson 06, post-norm, with $D = 768$, 12 heads, $F = 3072$, a vocabulary of 30,522,
# a norm after the embedding, and two token types (first or second sentence).
#
# A block has $4 D^2$ weights in attention and $2 D F$ in the feed-forward part. An operation is a multiplication or an
# addition; a weight costs 2 for each token in the forward pass, and twice that again for the gradient: 6 in training.

# %%
predict("How many million parameters has BERT base?", low=105, high=112)

# %%
from train.flops import count_params, flops_per_token
from transformer_jax.models import MaskedLM, parameter_shapes

bert = TransformerConfig(
    vocab_size=30_522,
    max_len=512,
    num_layers=12,
    d_model=768,
    num_heads=12,
    d_ff=3072,
    norm_placement="post",
    embed_norm=True,
    num_token_types=2,
)
shapes = parameter_shapes(MaskedLM(bert))
num_params = count_params(shapes)
blocks = 12 * (4 * 768**2 + 2 * 768 * 3072)
table = 30_522 * 768
print(f"blocks {blocks / 1e6:.1f} million, table of tokens {table / 1e6:.1f}, all {num_params / 1e6:.1f}")
outcome(num_params / 1e6)

# %% [markdown]
# The paper says 110 million. And how much of the work is attention itself, the products of queries, keys, weights and
# values, which have no parameters? Their number grows with the length of the text, $12 L N H T$ for each token in
# training.

# %%
predict("BERT base, texts of 512 tokens: share of the operations that is attention without its weights?", 0.06, 0.11)

# %%
flops = flops_per_token(shapes, bert)
for length in (128, 512, 4096):
    attention = 12 * 12 * 768 * length
    rest = flops - 12 * 12 * 768 * 512
    print(f"T = {length:4}: {attention / (attention + rest):.2f}")
print(f"operations to train on one token: {flops / 1e6:,.0f} million")
print(f"memory: parameters {4 * num_params / 1e9:.2f} GB, with gradient and AdamW {16 * num_params / 1e9:.2f} GB")
print(f"attention weights of one text of 512, all layers: {4 * 12 * 12 * 512**2 / 1e9:.2f} GB if they are kept")
outcome(12 * 12 * 768 * 512 / flops)

# %% [markdown]
# "Attention is quadratic" is true, but at the lengths of BERT most of the work is in plain dense layers. Lesson 12 is
# about the lengths where this changes.

# %% [markdown]
# ## Change it
#
# - Section 3: `num_layers=2`. Does the tagger become perfect? Then label a letter 1 if it came *before*: who is better
#   now, the encoder or the guess from the left?
# - Section 5: `pooling="first"`. There is no `[CLS]` in these texts. What does the first letter have to do now?
# - Section 5: give naive Bayes single letters only (`n in (1,)`). Is it still better than the encoder?
#
# ## Check yourself
#
# <details>
# <summary>Why is a mask for padding on the keys enough in attention? Queries at padding compute something,
# too.</summary>
#
# They do, but nobody reads it: no key, no pooling and no loss looks at those positions.
#
# </details>
#
# <details>
# <summary>What would happen if all chosen tokens of BERT stayed as they are?</summary>
#
# The answer would stand at the position itself. The model would learn to copy, and nothing else.
#
# </details>
#
# <details>
# <summary>A batch has one long text and 63 short ones. What does padding cost?</summary>
#
# All texts are computed at the length of the longest. That is why texts of similar length are put into one batch.
#
# </details>
#
# <details>
# <summary>Can an encoder write text, word by word?</summary>
#
# Not well. It was never trained to guess a word without what follows; and each new word changes the vectors of all
# others, so nothing can be kept. That is what a decoder is for.
#
# </details>
#
# ## Exercise
#
# [Exercise 07](exercises/exercise_07_encoder.py): the mask, three poolings, the corruption, and the loss. Then
# `python -m lessons check 07`.
#
# ## Where it lives
#
# - [`transformer_jax/models/encoder.py`](../transformer_jax/models/encoder.py): the encoder, its poolings and heads
# - [`train/data/corruption.py`](../train/data/corruption.py): masked tokens, and the spans of T5
# - [`train/losses.py`](../train/losses.py): `classify`, `tag`, `masked_lm`
# - [`train/flops.py`](../train/flops.py): parameters, operations, bytes
# - [`docs/tasks.md`](../docs/tasks.md): how to train a classifier or a tagger on your own files
#
# ## Papers
#
# - Devlin et al. 2019, [BERT: Pre-training of Deep Bidirectional Transformers](https://arxiv.org/abs/1810.04805)
# - Lin et al. 2017, [A Structured Self-attentive Sentence Embedding](https://arxiv.org/abs/1703.03130), section 2.1
#   (attention pooling)
# - Reimers & Gurevych 2019, [Sentence-BERT](https://arxiv.org/abs/1908.10084) (mean pooling)
#
# Next: [08 Transformer decoder](08_transformer_decoder.md).
