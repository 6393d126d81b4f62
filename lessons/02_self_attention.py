# %% [markdown]
# # 02 Self-attention
#
# For readers of [lesson 01](01_attention_mechanism.md). About two hours.
#
# After this lesson you can
#
# - make queries, keys and values from one and the same sentence,
# - write the two masks that every model has, and say why they go before the softmax,
# - say exactly when a model without positions knows the order of its words,
# - read the attention picture of a trained model, and say what such a picture does not show.
#
# Papers: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), sections 3.2.3 and 4.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## A sentence asks itself
#
# In lesson 01 a query came from outside and looked into a dictionary. Now there is only a sentence, and it plays all
# three parts: **each word asks all words of its own sentence, itself included**. That is *self-attention*. What a word
# gets back is a mean of what the others offer. So afterwards the vector of a word also tells something of its
# surroundings: *bank* next to *river* becomes another vector than *bank* next to *money*.
#
# The sentence is an array `x` of the shape [T, D]: T words (we say *tokens*), each a vector of D numbers. The number
# of keys is now the number of queries, S = T, and the weights are a square, [T, T].
#
# The shortest way is to take `x` itself for queries, keys and values. Let us try that on random words.

# %%
predict("10 random words of 64 numbers, q = k = v = x: the mean weight of a word on itself?", low=0.97, high=1.0)


# %%
def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


random = np.random.default_rng(seed())
x = random.normal(size=(10, 64))  # [T, D]
weights = softmax(x @ x.T / np.sqrt(64))  # [T, T]
outcome(np.diagonal(weights).mean())

# %% [markdown]
# Every word finds itself and hears nobody else. No vector fits a word better than its own: the product of a vector
# with itself is its squared length, about 64, and with another it is about 0.
#
# And if *dog* is to find *bites*, then *bites* finds *dog* with the same score, since `x @ x.T` is symmetric. A word
# can neither look for something that it is not, nor be found by something other than what it looks for.
#
# ## Three matrices
#
# So each word gets three vectors, made by three learned matrices of the shape [D, H]. Such a product with a matrix is
# called a *projection*:
#
# $$ Q = X W^Q \qquad K = X W^K \qquad V = X W^V $$
#
# - the **query**: what the word looks for,
# - the **key**: what it can be found by,
# - the **value**: what it tells to those who find it.


# %%
def self_attention(x, W_q, W_k, W_v, may_attend):  # [T, D], [D, H] three times, bool [T, T]
    q, k, v = x @ W_q, x @ W_k, x @ W_v  # [T, H] each
    scores = q @ k.T / np.sqrt(q.shape[-1])  # [T, T]
    weights = softmax(np.where(may_attend, scores, -1e30))
    weights = np.where(may_attend, weights, 0)
    return weights @ v, weights  # [T, H], [T, T]


# %% [markdown]
# Learned matrices are hard to read, so here are three written by hand. A word is only its kind: article, noun, verb or
# preposition, a 1 in one of four places. In `W_q`, the row of a kind says what words of this kind look for: an article
# its noun, a noun its article and a verb, a verb nouns, a preposition nouns. A key just tells the kind.

# %%
kinds = {"the": 0, "cat": 1, "mat": 1, "sat": 2, "on": 3}
words = "the cat sat on the mat".split()
x = np.eye(4)[[kinds[word] for word in words]]  # [T, D] = [6, 4]
W_q = 6.0 * np.array(
    [
        # art noun verb prep
        [0.0, 1.0, 0.0, 0.0],  # an article looks for a noun
        [0.6, 0.0, 1.0, 0.0],  # a noun for a verb, and for an article
        [0.0, 1.0, 0.0, 0.0],  # a verb for a noun
        [0.0, 1.0, 0.5, 0.0],  # a preposition for a noun, and for a verb
    ]
)
W_k = W_v = np.eye(4)
everything = np.ones((6, 6), bool)
out, weights = self_attention(x, W_q, W_k, W_v, everything)
heatmap(weights, words, words)
plt.xlabel("keys: who is read")
plt.ylabel("queries: who reads")
picture("Attention matrix of the cat sat on the mat: sat reads cat and mat alike, nouns read sat")

# %% [markdown]
# Read the picture by rows: row *sat* says whom *sat* reads. *sat* reads *cat* and *mat*, and *cat* reads *sat*; the
# picture is not symmetric, thanks to the two matrices.
#
# Look closer: *sat* gives *cat* and *mat* **exactly** the same weight. Of course: both are nouns, and nothing else is
# known about them. Which of them sat on which? And the two articles have equal rows and equal columns. A sentence is
# here a bag of words, in which nothing has a place. We come back to that.
#
# ## Who may read whom: masks
#
# A *language model* predicts the next word. It is trained on all places of a text at once: at *cat* it predicts *sat*,
# at *sat* it predicts *on*. If *cat* could read the words after it, it would simply read the answer. So a word may read
# only itself and the words before it: the **causal mask**, True on and below the diagonal.

# %%
causal = np.tril(np.ones((6, 6), bool))  # True: may attend; row t has its True up to column t
out, weights = self_attention(x, W_q, W_k, W_v, causal)
heatmap(weights, words, words)
plt.xlabel("keys: who is read")
plt.ylabel("queries: who reads")
picture("The same attention matrix with the causal mask: all above the diagonal is 0, and the first word reads itself")

# %% [markdown]
# Each row still sums to 1. The first word has nobody but itself, whatever it looks for.
#
# A *GPT* is such a causal language model ([lesson 08](08_transformer_decoder.md) builds one).
# Many tutorials show, side by side, a GPT and a picture in which *sat* reads both *cat* and *mat*. Can that be?

# %%
predict("In a causal model, what is the weight of *mat* for *sat*, in 'the cat sat on the mat'?", low=0, high=0)

# %%
outcome(weights[words.index("sat"), words.index("mat")])

# %% [markdown]
# It contradicts itself. *mat* is written three words after *sat*; when a GPT reads *sat*, it does not exist yet. The
# first picture of this lesson is one of an **encoder**, such as BERT, which reads whole sentences and predicts no next
# word ([lesson 07](07_full_transformer_encoder.md)). A causal model may read back only: *mat* may read *sat*.
#
# ### Before the softmax, not after it
#
# One also reads: *the mask sets the upper triangle of the weights to zero*. It does, but not so that you take the
# softmax and then write zeros. Try it on random sentences of five words.

# %%
predict(
    "Zeros are written after the softmax. What do the weights of the first of five words sum to, on average?",
    low=0.19,
    high=0.21,
)

# %%
random = np.random.default_rng(seed())
triangle = np.tril(np.ones((5, 5), bool))
zeroed = softmax(random.normal(size=(20_000, 5, 5))) * triangle  # 20,000 random matrices of scores
print("one of them, rows sum to", zeroed[0].sum(axis=-1).round(2))
print("all, rows sum on average to", zeroed.sum(axis=-1).mean(axis=0).round(2))
outcome(zeroed[:, 0].sum(axis=-1).mean())

# %% [markdown]
# A fifth: the first word may read one of five, and the rest of its budget is thrown away. The first words of each text
# would get pale, short vectors, and the last word a full one.
#
# Worse, the future still leaks. The weights were divided by a sum that contains the scores of *later* words; change a
# later word, and that sum changes. We can ask the library to find it. `testing.check_causal_lm` holds the laws of
# causal language models, for any function from tokens to a score for each next token. Here is one with our attention
# and a random table of 11 word vectors.
#
# It also needs the second mask. Sentences of a batch have different lengths, so short ones are filled up with
# *padding*, and `is_token` is False there. **Nobody may read padding**: a column of the mask is closed. Both masks
# together are an *and*.

# %%
from transformer_jax import testing

random = np.random.default_rng(seed())
table = random.normal(size=(11, 8))  # [V, D]: a vector for each token id
matrices = random.normal(size=(3, 8, 8))


def next_token_scores(tokens, is_token, mask_weights_only=False):  # int [B, T], bool [B, T] -> [B, T, V]
    x = table[np.asarray(tokens)]  # [B, T, D]
    T = x.shape[1]
    may_attend = np.tril(np.ones((T, T), bool)) & np.asarray(is_token)[:, None, :]  # [B, T, T]
    q, k, v = (x @ W for W in matrices)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(8)  # k.T would turn the batch around, too
    if not mask_weights_only:
        scores = np.where(may_attend, scores, -1e30)
    weights = np.where(may_attend, softmax(scores), 0)
    return (x + weights @ v) @ table.T


testing.check_causal_lm(next_token_scores, vocab_size=11)
print("masked before the softmax: all laws hold")
try:
    testing.check_causal_lm(lambda *inputs: next_token_scores(*inputs, mask_weights_only=True), vocab_size=11)
except testing.LawBroken as broken:
    print("masked after the softmax:", broken)

# %% [markdown]
# ## The library's masks
#
# The causal mask is one comparison: the slot of the key, its place in the text, is at most that of the
# query. (`first_slot` is for texts that are read in pieces: then the first query is not the first key.)

# %%
from transformer_jax.nn import masks
from transformer_jax.nn.attention import attend

show(masks.causal)

# %%
assert (np.asarray(masks.causal(6, 6))[0] == causal).all()

q, k, v = (np.float32(x @ W) for W in (W_q, W_k, W_v))
theirs = attend(q[None, :, None], k[None, :, None], v[None, :, None], masks.Mask(is_causal=True), backend="reference")
difference = np.abs(np.asarray(theirs)[0, :, 0] - out).max()
print(f"largest difference: {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## Is a sentence a bag of words?
#
# *dog bites man* and *man bites dog* have the same words. "Without positions, self-attention cannot tell them apart",
# says nearly every text about Transformers, and a bag of words, the mean of all word vectors, certainly cannot. Is it
# true of attention?
#
# We read both sentences with random models that get no positions, and compare what they make of the full stop at the
# end, which has read the whole sentence. First an encoder: no mask, two layers (attention twice, one on top of the
# other; a layer also has a feed-forward part, [lesson 05](05_feedforward_networks.md), which does not mix words).

# %%
predict(
    "Encoder, 2 layers, no positions: largest difference at the full stop between both sentences?", low=0, high=1e-4
)

# %%
import jax

from transformer_jax import TransformerConfig
from transformer_jax.models import GPT, Encoder

ids = {"dog": 0, "bites": 1, "man": 2, ".": 3}
sentences = np.array([[ids[word] for word in text.split()] for text in ("dog bites man .", "man bites dog .")])


def difference_at_the_end(kind, num_layers):
    config = TransformerConfig(
        vocab_size=4, max_len=4, num_layers=num_layers, d_model=16, num_heads=1, positions="none", init_std=0.5
    )  # d_model: our D; init_std: the spread of the first random numbers
    model = kind(config)
    params = jax.jit(model.init)(jax.random.key(seed()), sentences)
    out = jax.jit(model.apply)(params, sentences)  # [2, T, D or V]
    return float(np.abs(out[0, -1] - out[1, -1]).max())


outcome(difference_at_the_end(Encoder, 2))

# %% [markdown]
# Right for an encoder, however many layers it has. Its words are a set: shuffle them, and the vectors are shuffled
# along, nothing else. (That is a law, too: `testing.check_encoder(..., has_positions=False)`.)
#
# And a causal model, a GPT without positions?

# %%
predict("How many layers does a GPT without positions need, to tell the two sentences apart?", low=2, high=2)

# %%
differences = [difference_at_the_end(GPT, num_layers) for num_layers in (1, 2, 3)]
for num_layers, difference in enumerate(differences, start=1):
    print(f"GPT, layers: {num_layers}, difference: {difference:.1e}")
outcome(1 + next(i for i, difference in enumerate(differences) if difference > 1e-3))

# %% [markdown]
# Two. With one layer the full stop reads four words, as a set. But in a causal model the words before it have read
# different things: in the first sentence *man* has read *dog*, in the second it has read nobody. After one layer,
# *man* is therefore a different vector in each of them, and the second layer of the full stop reads that. The mask
# itself is a sense of order.
#
# So the sentence that "without positions order is lost" is true for encoders and for a single layer, and false for
# every GPT in use. It is a weak sense, though: [lesson 04](04_positional_encoding.md) measures what real positions add.
#
# ## Why attention, and not a chain?
#
# Before 2017, texts were read by recurrent networks, one word after the other, or by convolutions, where each layer
# mixes direct neighbours. How far apart are two words of a text, in steps of computation? Table 1 of the paper compares
# the three by this.

# %%
predict("A convolution mixes each word with its two neighbours. Layers until word 1 of 100 reaches word 100?", 99, 99)

# %%
T = 100
neighbours = np.abs(np.arange(T)[:, None] - np.arange(T)) <= 1  # [T, T]: who is mixed with whom in one layer
reached = np.eye(T, dtype=bool)[0]  # word 1 knows of itself
num_layers = 0
while not reached[-1]:
    reached = neighbours @ reached
    num_layers += 1
print("recurrent network: ", T - 1, "steps, one after the other")
print("self-attention:     1 layer")
outcome(num_layers)

# %% [markdown]
# In self-attention all words are one step apart, and all of them are computed at the same time. The price is the
# square: T words need T² weights. For 1,000 words that is a million, for each head of each layer
# ([lesson 12](12_attention_optimizations.md) says what can be done).
#
# ## What does a trained model look at?
#
# Our matrices were written by hand. Now let a model find its own. The text is drawn from a small *grammar*: lines of
# arithmetic with brackets that always match. Whoever wants to predict when `)` and when `]` may come must know which
# bracket was opened last and is still open, even if it is ten characters back. (The piece that is printed begins in the
# middle of a line, so its first `]` has no partner.)

# %%
from course.fit import chain_text, fit, windows

tokens, characters = chain_text("grammar", "train", 100_000)
T = 24
print("".join(characters[i] for i in tokens[:120]))

# %% [markdown]
# `windows` cuts pieces of T + 1 characters out of the text, 16 at random places for each training step, and `fit`
# follows the slopes as lesson 00 did, with a better rule for the size of a step.

# %%
config = TransformerConfig(
    vocab_size=len(characters), max_len=T, num_layers=2, d_model=32, num_heads=1, init_std=0.08
)  # with positions, which are learned
model = GPT(config)
params, losses = fit(model, windows(tokens, steps(900), 16, T + 1, seed()), peak_lr=5e-3, seed=seed())
plt.plot(losses)
plt.xlabel("training step")
plt.ylabel("loss in nats")
picture("Loss against training steps: a steep fall in the first hundred steps, then slowly downwards")

# %% [markdown]
# (The loss is the mean of $-\log$ of the probability that the model gave to the character that came. With the natural
# logarithm its unit is called *nat*: a loss of 1 nat is a probability of $1/e$, about 0.37. Lesson 10 is about
# training; here we only want its result.)
#
# Nobody told the model of brackets. Now we look at its two attention layers, at all places where a term has just
# ended inside brackets. There the model must decide: an operator, or which closing bracket? Does it look at the
# innermost open bracket, among all characters before, the right one of two or three candidates?

# %%
predict(
    "In what share of these places is the innermost open bracket read most, in the better layer (guessing: 0.08)?",
    low=0.4,
    high=0.97,
)

# %%
import transformer_jax as tj
from transformer_jax.run import Run

run = Run(model, params["params"], tokenizer=None, config=config)


def weights_of(texts):  # int [B, T] -> [B, L, T, T], L layers
    found = tj.capture(run, texts, "*/attention/weights")  # what the layers compute, by name; [B, N, T, S], N = 1
    return np.concatenate([np.asarray(found[f"block_{i}/attention/weights"]) for i in range(2)], axis=1)


def places(text):
    """(t, s) for each term that ends at t within brackets: s is the innermost bracket that is open there."""
    opened = []
    for t, character in enumerate(text):
        if character in "([":
            opened.append(t)
        elif character in ")]" and opened:
            opened.pop()
        elif character == "\n":
            opened = []
        if opened and t - opened[-1] >= 2 and character in "123xyz)]":
            yield t, opened[-1]


test_tokens, _ = chain_text("grammar", "val", 200 * T)
texts = test_tokens.reshape(200, T)
weights = weights_of(texts)  # [B, L, T, T]
hits, shares, equal_shares = [], [], []
for b, row in enumerate(texts):
    for t, s in places("".join(characters[i] for i in row)):
        hits.append(weights[b, :, t].argmax(axis=-1) == s)  # [L]
        shares.append(weights[b, :, t, s])
        equal_shares.append(1 / (t + 1))
print(len(hits), "places")
print("largest weight on the innermost open bracket, by layer:", np.mean(hits, axis=0).round(2))
print("mean weight on it, by layer:", np.mean(shares, axis=0).round(2))
print("if all weights were equal:", np.mean(equal_shares).round(2))
outcome(np.mean(hits, axis=0).max())

# %%
layer = int(np.mean(hits, axis=0).argmax())
text = "[x*(1+2)-y]+(z-3)*[1]\n\n1"
row = np.array([[characters.index(character) for character in text[:T]]])
labels = [character.replace("\n", "⏎") for character in text[:T]]
figure, axis = plt.subplots(figsize=(5, 4.6))
heatmap(weights_of(row)[0, layer], labels, labels, f"layer {layer + 1}", axis)
axis.set_xlabel("keys: who is read")
axis.set_ylabel("queries: who reads")
picture("Attention of a trained layer on bracketed arithmetic: within brackets, rows are darkest in the column of one")

# %% [markdown]
# Follow row by row: within `[ ]` the column of `[` is dark, within `( )` the column of `(`, and after `)` the rows
# return to `[`. Operators look elsewhere: no bracket can close right after a `+`. The model has built itself a stack,
# out of weighted averages.
#
# Two warnings before you read stories out of such pictures:
#
# - Train with another seed (`python -m lessons run 02 --seed=1`) and the picture is paler: about as good a model, with
#   the work spread differently over its layers. The band of the prediction is wide for that reason.
# - A picture shows where a layer *looks*, not what it *does* with what it sees. Lessons
#   [03](03_multi_head_attention.md) and [16](16_looking_inside.md) take parts away and measure what breaks.
#
# For any trained model of yours, `transformer-jax attention` draws such pictures on the command line, and
# `transformer-jax explore` makes a page of them.
#
# ## Change it
#
# 1. In the hand-made sentence, give nouns a fifth number, *is the subject*, 1 for *cat* only. Which row of `W_q` must
#    change so that *sat* reads *cat* only?
# 2. Replace the causal mask by one that also closes the diagonal. What does the first word get? Which law breaks?
# 3. Train on brackets with `positions="none"`. Is the loss higher? Does a layer still find the innermost bracket?
#
# ## Check yourself
#
# 1. Why does a word need a query *and* a key? Would one matrix do for both?
#    <details><summary>Answer</summary>With one matrix for both, scores are symmetric, and a word always fits itself
#    well. It could not look for something that it is not.</details>
# 2. `x` has the shape [T, D]. What are the shapes of W_q, q, the scores and the result?
#    <details><summary>Answer</summary>[D, H], [T, H], [T, T], and [T, H].</details>
# 3. A causal model reads 10 words; then word 7 is changed. Which outputs may change?
#    <details><summary>Answer</summary>Those of words 7, 8, 9 and 10. This is the law that check_causal_lm
#    tests.</details>
# 4. Which words may a padding token read, and does it matter?
#    <details><summary>Answer</summary>Nothing forbids it to read the words before it; its own result is never used, so
#    it does not matter. What matters is that nobody reads the padding: a closed column, not a closed row.</details>
#
# ## Exercise
#
# [exercises/exercise_02_self_attention.py](exercises/exercise_02_self_attention.py): the causal mask, the projections,
# and self-attention with both masks. `python -m lessons check 02`. In plain NumPy, with a sentence that finds out whom
# *it* means: [examples/example_02_self_attention.py](examples/example_02_self_attention.py).
#
# ## Where it lives
#
# - [transformer_jax/nn/masks.py](../transformer_jax/nn/masks.py): causal, padding, windows, packed texts; a `Mask` by
#   its parts
# - [transformer_jax/nn/attention.py](../transformer_jax/nn/attention.py): `Attention`, with the three projections
# - [transformer_jax/testing/models.py](../transformer_jax/testing/models.py): the laws of causal models and encoders
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762): section 4, *Why Self-Attention*
# - Haviv et al. 2022, [Transformer Language Models without Positional Encodings Still Learn Positional Information](https://arxiv.org/abs/2203.16634)
# - Jain and Wallace 2019, [Attention is not Explanation](https://arxiv.org/abs/1902.10186)
#
# Next: [03 Multi-head attention](03_multi_head_attention.md), since one softmax is one budget.
