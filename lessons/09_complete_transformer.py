# %% [markdown]
# # 09 The complete Transformer
#
# About three hours. You need lessons 01 to 06 and 08.
#
# The first Transformer was a translator: an **encoder** reads a sentence, a **decoder** writes another one. Between
# them is one more attention, the bridge. Here we build it, train it on two small tasks, search for good outputs, and
# measure them.
#
# After this lesson you can
# - write cross-attention, and say where its queries, keys and values come from;
# - say what teacher forcing is, and why a model that gets most letters right may get no word right;
# - search with beams, and find a case where the greedy choice loses;
# - compute BLEU by hand, and say what it does not see.
#
# Papers: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), sections 3.1 and 3.2.3;
# Papineni et al. 2002, [BLEU](https://aclanthology.org/P02-1040/).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## 1. Cross-attention
#
# It is the attention that you know. Only the inputs differ: **queries come from the target, keys and values from the
# source**.
#
# $$ Q = Y W_Q, \qquad K = X W_K, \qquad V = X W_V $$
#
# $X$ is what the encoder made of the source, $[S, D]$; $Y$ is the decoder's stream, $[T, D]$. So the weights are $[T,
# S]$, not square. No causal mask: the source is known as a whole. Only its padding is hidden.


# %%
def cross_attention(y, x, w_q, w_k, w_v, source_is_token):  # y [T, D], x [S, D], w [D, H], [S]
    q, k, v = y @ w_q, x @ w_k, x @ w_v  # [T, H], [S, H], [S, H]
    scores = np.where(source_is_token, q @ k.T / np.sqrt(q.shape[1]), -1e30)  # [T, S]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ v, weights  # [T, H], [T, S]


random = np.random.default_rng(seed())
source, target = ["das", "rote", "Haus", "<pad>"], ["<start>", "the", "red"]
S, T, D, H = len(source), len(target), 16, 8
x, y = random.normal(size=(S, D)), random.normal(size=(T, D))
w_q, w_k, w_v = random.normal(size=(3, D, H)) / np.sqrt(D)
is_token = np.array([True, True, True, False])
out, weights = cross_attention(y, x, w_q, w_k, w_v, is_token)
heatmap(weights, target, source, "queries: target, keys: source")
picture("A cross-attention matrix of three target tokens and four source tokens; the column of the padding is 0")

# %% [markdown]
# The library has no second function for it: `attend` takes any queries, keys and values.

# %%
from transformer_jax.nn.attention import attend

q, k, v = y @ w_q, x @ w_k, x @ w_v
ours = attend(q[None, :, None], k[None, :, None], v[None, :, None], is_token[None, None])  # [B, T, N, H]
assert np.allclose(ours[0, :, 0], out, atol=1e-5)
print("equal")

# %% [markdown]
# A block of the decoder now has three parts, each added to the stream: self-attention with a causal mask (what have I
# written?), cross-attention (what does the source say?), and the feed-forward part. And this is the whole model, source
# tokens and target tokens to activations:

# %%
from transformer_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig

show(Seq2Seq.activations)

# %% [markdown]
# How large was the first one? The base model of the paper: 6 layers on each side, $D = 512$, 8 heads, $F = 2048$, one
# table of about 37,000 tokens for source, target and output.

# %%
predict("How many million parameters has the base model?", low=58, high=68)

# %%
from train.flops import count_params
from transformer_jax.config import TransformerConfig
from transformer_jax.models import parameter_shapes

for name, d_model, num_heads in (("big", 1024, 16), ("base", 512, 8)):
    side = TransformerConfig(
        vocab_size=37_000,
        max_len=512,
        num_layers=6,
        d_model=d_model,
        num_heads=num_heads,
        norm_placement="post",
        positions="sinusoidal",
        scale_embeddings=True,
    )
    millions = count_params(parameter_shapes(Seq2Seq(Seq2SeqConfig(side, side)))) / 1e6
    print(f"{name}: {millions:.1f} million")
outcome(millions)

# %% [markdown]
# Table 3 of the paper says 65 million for the base model and 213 million for the big one. (The difference may be the
# exact size of the vocabulary, of which the paper says only "about 37000".)
#
# ## 2. Teacher forcing
#
# In training the decoder reads the *right* target, shifted by one, whatever it would have written itself. So all
# positions are trained at once, in parallel. This is called teacher forcing: the teacher corrects after every letter.
#
# A task that needs no data: **reverse** a word of ten letters.

# %%
import jax
import optax

from course.fit import fit

LETTERS = "abcdefghijklmnop"
START, END = len(LETTERS), len(LETTERS) + 1
V, LENGTH = len(LETTERS) + 2, 10


def reverse_pairs(random, *shape):
    words = random.integers(0, len(LETTERS), (*shape, LENGTH))
    start, end = (np.full((*shape, 1), i) for i in (START, END))
    source = np.concatenate([words, end], axis=-1)  # [..., S]
    target = np.concatenate([start, words[..., ::-1], end], axis=-1)  # [..., T + 1]
    return source.astype(np.int32), target.astype(np.int32)


def text_of(ids):
    return "".join({START: "<", END: ">"}.get(int(i)) or LETTERS[i] for i in ids)


random = np.random.default_rng(seed())
batches = reverse_pairs(random, steps(200), 32)
test_source, test_target = reverse_pairs(random, 500)
print("source:         ", text_of(test_source[0]))
print("decoder reads:  ", text_of(test_target[0, :-1]))
print("decoder writes: ", text_of(test_target[0, 1:]))

# %% [markdown]
# The loss is that of lesson 08, with a source beside it. We train two models that differ in one word: learned
# positions, or rotary ones, which modern models have and which are usually the better choice.


# %%
def seq2seq_loss(apply, batch):
    source, target = batch  # [B, S], [B, T + 1]
    logits = apply(source, target[:, :-1])  # [B, T, V]
    return optax.softmax_cross_entropy_with_integer_labels(logits, target[:, 1:]).mean()


def make_model(positions, vocab_size, length):
    side = TransformerConfig(
        vocab_size=vocab_size, max_len=length + 1, num_layers=1, d_model=48, num_heads=4, positions=positions
    )
    return Seq2Seq(Seq2SeqConfig(side, side))


models, logits_of, curves = {}, {}, {}
for positions in ("learned", "rotary"):
    model = make_model(positions, V, LENGTH)
    trained, losses = fit(model, batches, loss=seq2seq_loss, seed=seed(), peak_lr=5e-3)
    models[positions] = model
    logits_of[positions] = jax.jit(lambda source, target, m=model, p=trained: m.apply(p, source, target))
    curves[positions] = losses


def letters_right(positions):  # with teacher forcing
    logits = logits_of[positions](test_source, test_target[:, :-1])
    return float((np.asarray(logits).argmax(axis=-1) == test_target[:, 1:]).mean())


# %%
predict("With learned positions: share of letters that are right (teacher forcing)?", low=0.99, high=1)

# %%
outcome(letters_right("learned"))

# %%
predict("With rotary positions, all else equal: share of letters that are right?", low=0.4, high=0.7)

# %%
for positions, losses in curves.items():
    plt.plot(losses, label=positions)
plt.xlabel("step")
plt.ylabel("loss, nats per letter")
plt.legend()
picture("Loss by step of the reversing model: with learned positions it goes to 0, with rotary ones it stays above 1")
outcome(letters_right("rotary"))

# %% [markdown]
# Why? Rotary positions act inside of attention: they turn queries and keys by their positions, so that a score knows
# the *distance* of two tokens of one text. Between a target and a source there is no distance, so cross-attention has
# no positions at all. (It is the same with the position schemes of T5 and ALiBi.) The decoder asks "which letter stands
# at position 7?", and no key can answer.
#
# Learned and sinusoidal positions are added to the embedding. They are in the stream, so keys of the source have them.
#
# In a translation this is no great loss: words are found by meaning, and by their neighbours. That is why T5 does well.
# And with enough steps a rotary model learns this task as well: the encoder can mark a letter by its distance from the
# end. But it is a detour.
#
# ## 3. Writing: no teacher any more
#
# When a model writes, it reads its own letters. Here is the greedy loop: the largest logit, append, again.


# %%
def write(positions, source, length=LENGTH + 1, start=START):
    target = np.full((len(source), length + 1), start)
    for t in range(length):  # what stands after position t is not seen: the mask
        target[:, t + 1] = np.asarray(logits_of[positions](source, target[:, :-1]))[:, t].argmax(axis=-1)
    return target[:, 1:]


for positions in models:
    written = write(positions, test_source)
    for i in range(3):
        print(f"{positions:8} {text_of(test_source[i])} -> {text_of(written[i])}")

# %%
predict("The rotary model gets about half of the letters right. Share of words without any mistake?", 0, 0.05)

# %%
words_right = {
    positions: float((write(positions, test_source) == test_target[:, 1:]).all(axis=-1).mean()) for positions in models
}
print(words_right)
outcome(words_right["rotary"])

# %% [markdown]
# One wrong letter spoils a word, and a wrong letter is also read by the next step. Accuracy with teacher forcing is
# easy to compute and says little about what a model writes. Always look at what it writes.
#
# In the library the encoder runs once for a source; its keys and values for cross-attention are kept, and the decoder's
# loop has the KV cache of lesson 08.
#
# ## 4. Where does it look? Dates
#
# A translation with an order that changes: American dates into German ones. Month and day change places.

# %%
CHARACTERS = "0123456789/."
DATE_START, DATE_END = len(CHARACTERS), len(CHARACTERS) + 1


def date_pairs(random, *shape):
    month, day = random.integers(1, 13, shape), random.integers(1, 29, shape)
    year = random.integers(1900, 2100, shape)

    def encode(*texts):
        return [CHARACTERS.index(character) for character in "".join(texts)]

    sources, targets = [], []
    for m, d, y in zip(month.flat, day.flat, year.flat, strict=True):
        sources.append([*encode(f"{m:02}/{d:02}/{y}"), DATE_END])
        targets.append([DATE_START, *encode(f"{d:02}.{m:02}.{y}"), DATE_END])
    return np.array(sources, np.int32).reshape(*shape, -1), np.array(targets, np.int32).reshape(*shape, -1)


date_batches = date_pairs(random, steps(250), 32)
date_source, date_target = date_pairs(random, 200)
date_model = make_model("learned", len(CHARACTERS) + 2, LENGTH)
date_params, _ = fit(date_model, date_batches, loss=seq2seq_loss, seed=seed(), peak_lr=5e-3)
logits_of["dates"] = jax.jit(lambda source, target: date_model.apply(date_params, source, target))
written = write("dates", date_source, start=DATE_START)
for i in range(3):
    print(
        "".join(CHARACTERS[c] for c in date_source[i, :-1]), "->", "".join((CHARACTERS + "<>")[c] for c in written[i])
    )
print("dates without a mistake:", (written == date_target[:, 1:]).all(axis=-1).mean())

# %% [markdown]
# Now the cross-attention of this model, the mean of its four heads. A row is a character as it is written, a column a
# character of the source.

# %%
predict("Of the 8 digits of a date: for how many is the largest weight on the digit that is copied?", low=6, high=8)

# %%
from transformer_jax.inference.recording import forward

name = "decoder/block_0/cross/weights"
recorded = forward(date_model, (name,), (), date_params, (date_source, date_target[:, :-1]), {})[1]
weights = np.asarray(recorded[name]).mean(axis=(0, 1))  # [T, S]: the mean over dates and heads
rows = ["D", "D", ".", "M", "M", ".", "Y", "Y", "Y", "Y", "end"]
columns = ["M", "M", "/", "D", "D", "/", "Y", "Y", "Y", "Y", "end"]
heatmap(weights, rows, columns)
plt.ylabel("writes")
plt.xlabel("looks at")
picture("Cross-attention of the dates: the day is written from columns 3 and 4, the month from 0 and 1")
copied_from = {0: 3, 1: 4, 3: 0, 4: 1, 6: 6, 7: 7, 8: 8, 9: 9}
outcome(sum(weights[t].argmax() == s for t, s in copied_from.items()))

# %% [markdown]
# Two small diagonals that have changed places, then the year: the model has found out what to copy from where, from
# pairs alone. Such a picture is called an *alignment*. The century is 19 or 20, so one look is enough for both of its
# digits; here copying is not what the model has learned, and the picture shows that, too.
#
# It is this clear because the task is a copy. In larger models several heads and layers share the work, and a large
# weight does not prove that a token mattered (lesson 16 tests that).
#
# ## 5. Beam search
#
# Greedy takes the best *next* token. The best *text* may begin with another one. A small example, tokens a, b and the
# end, with the probabilities of the next token given the last one:

# %%
names = ["a", "b", "<end>"]
first = np.log([0.55, 0.40, 0.05])
after = np.log([[0.30, 0.30, 0.40], [0.05, 0.05, 0.90], [1 / 3, 1 / 3, 1 / 3]])  # row: the last token


# %% [markdown]
# **Beam search** keeps the $W$ most likely texts that go on, its beams. Each step continues all of them with all
# tokens, sets those that end aside, and keeps the best $W$ of the rest. $W = 1$ is nearly greedy.


# %%
def beam_search(first, after, end, num_beams, max_tokens):
    beams, complete = [(0.0, [])], []
    for _ in range(max_tokens):
        going_on = []
        for log_prob, text in beams:
            row = after[text[-1]] if text else first
            for token in range(len(row)):
                (complete if token == end else going_on).append((log_prob + row[token], [*text, token]))
        beams = sorted(going_on, reverse=True)[:num_beams]
    return sorted(complete + beams, reverse=True)


def greedy(first, after, end, max_tokens):
    log_prob, text = 0.0, []
    while len(text) < max_tokens and end not in text:
        row = after[text[-1]] if text else first
        text.append(int(row.argmax()))
        log_prob += row.max()
    return log_prob, text


# %%
predict("How many times more likely is the best text than the greedy one?", low=1.63, high=1.64)

# %%
greedy_log_prob, greedy_text = greedy(first, after, 2, 4)
best_log_prob, best_text = beam_search(first, after, 2, num_beams=2, max_tokens=4)[0]
for label, log_prob, text in (("greedy", greedy_log_prob, greedy_text), ("2 beams", best_log_prob, best_text)):
    print(f"{label:8} {' '.join(names[i] for i in text):10} probability {np.exp(log_prob):.3f}")
outcome(np.exp(best_log_prob - greedy_log_prob))

# %% [markdown]
# Every token makes a text less likely, so plain probability likes short texts. Translators divide the log-probability
# by a **length penalty**; Wu et al. 2016, equation 14, with an exponent $\alpha$ of about 0.6 to 1:
#
# $$ \mathrm{lp}(n) = \left(\frac{5 + n}{6}\right)^{\alpha} $$
#
# In the library it is a line in a table:

# %%
from transformer_jax.sampling.beam_search import LENGTH_PENALTIES

for n in (1, 7, 25):
    assert LENGTH_PENALTIES["gnmt"](n, 0.6) == ((5 + n) / 6) ** 0.6
    print(f"{n} tokens: divided by {LENGTH_PENALTIES['gnmt'](n, 0.6):.2f}")

# %% [markdown]
# More beams are not always better. They find more likely texts, and the most likely text of a model is often a short
# and dull one, as lesson 08 has shown for greedy text. For translation 4 is usual; for stories one samples.
#
# ## 6. BLEU
#
# How good is a translation? BLEU counts words and groups of words that a human translation has as well. For each $n$
# from 1 to 4: of the groups of $n$ words in the translation, the share $p_n$ that is in the reference. Each group
# counts at most as often as the reference has it.
#
# $$ \mathrm{BLEU} = \mathrm{BP} \cdot \exp\Big(\tfrac14 \sum_{n=1}^{4} \log p_n\Big), \qquad \mathrm{BP} = \min(1,
# e^{1 - r/c}) $$
#
# $c$ and $r$ are the lengths of translation and reference: BP punishes what is too short, which precision alone would
# not.

# %%
from collections import Counter


def precision(translation, reference, n):  # (matches, total)
    found, wanted = (
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (translation, reference)
    )
    return (found & wanted).total(), found.total()  # & takes the smaller counts


def bleu(translation, reference):
    translation, reference = translation.split(), reference.split()
    counts = [precision(translation, reference, n) for n in (1, 2, 3, 4)]
    if any(matches == 0 for matches, _ in counts):
        return 0.0
    brevity = min(1.0, np.exp(1 - len(reference) / len(translation)))
    return 100 * brevity * np.exp(np.mean([np.log(matches / total) for matches, total in counts]))


# %%
predict('"the cat sat on the mat" for the reference "the cat is on the mat": BLEU, from 0 to 100?', low=0, high=0)

# %%
reference = "the cat is on the mat"
for n in (1, 2, 3, 4):
    print(f"n = {n}: {precision('the cat sat on the mat'.split(), reference.split(), n)}")
for translation in (
    "the cat is on the mat",
    "the cat sat on the mat",
    "the cat is on the",
    "the the the the the the",
    "on the mat there is a cat",
):
    print(f"{bleu(translation, reference):6.1f}  {translation}")
outcome(bleu("the cat sat on the mat", reference))

# %% [markdown]
# One word of six differs, and no four words in a row match, so one factor is 0. BLEU is a measure for a whole *corpus*:
# add up matches and totals over all sentences first. For one sentence it says little. And it does not see meaning: "on
# the mat there is a cat" is a good translation.
#
# The library's scores come from sacrebleu, the reference program. For a corpus without smoothing it gives what the
# formula gives:

# %%
import sacrebleu

pairs = [
    ("the red house is at the end of the road", "the red house is at the end of the street"),
    ("he came home late", "he was late when he came home"),
]
score = sacrebleu.corpus_bleu(
    [pair[0] for pair in pairs], [[pair[1] for pair in pairs]], smooth_method="none", tokenize="none"
)
counts = [np.sum([precision(*(side.split() for side in pair), n) for pair in pairs], axis=0) for n in (1, 2, 3, 4)]
lengths = [sum(len(pair[side].split()) for pair in pairs) for side in (0, 1)]
by_hand = 100 * min(1, np.exp(1 - lengths[1] / lengths[0])) * np.exp(np.mean([np.log(m / t) for m, t in counts]))
print(
    f"sacrebleu {score.score:.3f}, by hand {by_hand:.3f}, mean over sentences {np.mean([bleu(*p) for p in pairs]):.3f}"
)
assert np.isclose(score.score, by_hand)

# %% [markdown]
# ## 7. A real one
#
# The library has all of this, with batches, a compiled beam search and scores. In a clone,
#
#     make demo-translate
#
# trains a translator of English dates, times, durations and quantities into German ones, scores it on unseen examples,
# and lets you try it. It takes a few minutes on two cores. Afterwards look at its attention:
# `transformer-jax attention --help`.

# %% [markdown]
# ## Change it
#
# - In section 2, take `"sinusoidal"` or `"t5"` for `"rotary"`. Which of them can reverse?
# - Give the rotary model 600 steps. What does its curve do, and what do its words look like?
# - In section 4, write the year with two digits in the target (`{y % 100:02}`). Where does the model look for it?
#
# ## Check yourself
#
# <details>
# <summary>Three kinds of attention are in this model. Where do queries and keys of each come from, and what is
# masked?</summary>
#
# Encoder: both from the source, padding is masked. Decoder: both from the target, later positions and padding. Cross:
# queries from the target, keys from the source, only its padding.
#
# </details>
#
# <details>
# <summary>Why can training be parallel over the positions of the target, but writing cannot?</summary>
#
# In training the right target is known, so every position has its input. When writing, the input of a position is what
# was written just before.
#
# </details>
#
# <details>
# <summary>With as many beams as there are texts, what does beam search find?</summary>
#
# The best text of all, since nothing is dropped. With fewer it may miss it.
#
# </details>
#
# <details>
# <summary>A translation leaves out half of the sentence, and the rest is perfect. What does BLEU do?</summary>
#
# All precisions are 1, and the brevity penalty is $e^{1 - 2}$, about 0.37.
#
# </details>
#
# ## Exercise
#
# [Exercise 09](exercises/exercise_09_beam_bleu.py): beam search with a length penalty, and BLEU. Then
# `python -m lessons check 09`.
#
# ## Where it lives
#
# - [`transformer_jax/models/seq2seq.py`](../transformer_jax/models/seq2seq.py): the model
# - [`transformer_jax/nn/blocks.py`](../transformer_jax/nn/blocks.py): a block with cross-attention
# - [`transformer_jax/sampling/beam_search.py`](../transformer_jax/sampling/beam_search.py): the search, in one compiled
#   loop
# - [`train/losses.py`](../train/losses.py): `seq2seq`, with teacher forcing
# - [`configs/dates_en_de.py`](../configs/dates_en_de.py): the recipe of `make demo-translate`
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762)
# - Bahdanau et al. 2015, [Neural Machine Translation by Jointly Learning to Align and
#   Translate](https://arxiv.org/abs/1409.0473), where attention between two texts began
# - Wu et al. 2016, [Google's Neural Machine Translation System](https://arxiv.org/abs/1609.08144) (length penalty)
# - Papineni et al. 2002, [BLEU: a Method for Automatic Evaluation of Machine
#   Translation](https://aclanthology.org/P02-1040/); Post 2018, [A Call for Clarity in Reporting BLEU
#   Scores](https://arxiv.org/abs/1804.08771) (sacrebleu)
# - Raffel et al. 2020, [Exploring the Limits of Transfer Learning with a Unified Text-to-Text
#   Transformer](https://arxiv.org/abs/1910.10683) (T5)
#
# Next: [10 Transformer training](10_transformer_training.md).
