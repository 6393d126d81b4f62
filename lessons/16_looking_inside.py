# %% [markdown]
# # 16 Looking inside
#
# About two hours. For a reader of lessons [03](03_multi_head_attention.md) and [08](08_transformer_decoder.md).
#
# Every course shows a picture of attention and tells a story about it: "this head finds out whom *she* means",
# "*bird* is the most relevant word for the next one". A picture shows where a head **looks**. It does not show
# whether that **matters**. To know that, take something away and see what breaks. This lesson does both, on models so
# small that nothing is hidden.
#
# After this lesson you can
# - read any array inside a model (`tj.capture`), and its guesses layer by layer (the logit lens);
# - tell attention from importance, by taking away words and heads (`tj.ablate`);
# - find an induction head, and the head that it depends on;
# - follow a fact through the layers by activation patching.
#
# Papers: Jain & Wallace 2019, [Attention is not Explanation](https://arxiv.org/abs/1902.10186); Michel et al. 2019,
# [Are Sixteen Heads Really Better than One?](https://arxiv.org/abs/1905.10650) (section 2.3); Olsson et al. 2022,
# [In-context Learning and Induction Heads](https://arxiv.org/abs/2209.11895); Meng et al. 2022,
# [Locating and Editing Factual Associations in GPT](https://arxiv.org/abs/2202.05262) (section 2).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show, steps

random = np.random.default_rng(seed())

# %% [markdown]
# ## 1. A small world
#
# Our stories all have the same form. Two things in a story follow from what came before: the sound that an animal
# makes, and the name at the end, which is the person whom *she* or *he* means. Everything else is chance.

# %%
people = {"she": ["Anna", "Lena", "Mia", "Zoe"], "he": ["Tom", "Omar", "Ben", "Max"]}
sounds = {"bird": "sings", "dog": "barks", "cat": "purrs", "cow": "moos"}


def story():
    cast = {pronoun: random.choice(names) for pronoun, names in people.items()}
    first, second = random.permutation(list(cast.values()))
    pronoun = random.choice(["she", "he"])
    animal, other = random.choice(list(sounds), 2, replace=False)
    words = [first, random.choice(["meets", "visits"]), second, ".", pronoun, random.choice(["sees", "hears"])]
    words += ["a", animal, random.choice(["behind", "beside"]), "a", other, ".", "it", sounds[animal], "."]
    return [*words, cast[pronoun], random.choice(["smiles", "waits"]), "."]


PERSON, PRONOUN, ANIMAL, IT, END = 15, 4, 7, 12, 14  # positions; the name is predicted at END, the sound at IT
print(" ".join(story()))

# %%
import jax

import transformer_jax as tj
from course.fit import fit
from transformer_jax import TransformerConfig
from transformer_jax.models import GPT
from transformer_jax.run import Run

stories = [story() for _ in range(16 * steps(1200))]
words = sorted({word for one in stories + [story() for _ in range(200)] for word in one})


def ids(texts):  # lists of words -> [B, T]
    return np.array([[words.index(word) for word in one] for one in texts])


config = TransformerConfig(vocab_size=len(words), max_len=18, num_layers=2, d_model=32, num_heads=4, init_std=0.08)
params, _ = fit(GPT(config), ids(stories).reshape(-1, 16, 18), peak_lr=5e-3, seed=seed())
run = Run(GPT(config), params["params"], None, config)

tests = [story() for _ in range(256)]
tokens = ids(tests)  # [B, T]


def log_probs(logits, position):
    """Of the word that really follows the position, [B]."""
    return np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, position], tokens[:, position + 1, None], 1)[
        :, 0
    ]


before = tj.logits(run, tokens)
print(f"probability of the right sound: {np.exp(log_probs(before, IT)).mean():.3f}")
print(f"probability of the right name: {np.exp(log_probs(before, END)).mean():.3f} (of two people: 0.5)")

# %% [markdown]
# The model has understood both. Now: how?
#
# ## 2. "Bird is the most relevant word"
#
# `tj.capture` returns any array inside the model, by its name. We want the attention weights of all heads, at the word
# *it*, where the model has to say *sings*.

# %%
inside = tj.capture(run, tokens, "block_*/attention/weights")
weights = np.stack(list(inside.values()), axis=1)  # [B, L, N, T, S]
print(weights.shape)

# %%
predict(
    "At 'it', averaged over all heads and stories: how much weight is on the animal that makes the sound?",
    low=0.1,
    high=0.4,
)

# %%
mean_weights = weights[:, :, :, IT, : IT + 1].mean(axis=(0, 1, 2))  # [S]
labels = ["name", "meets", "name", ".", "she", "sees", "a", "bird", "behind", "a", "dog", ".", "it"]
plt.bar(range(13), mean_weights)
plt.xticks(range(13), labels, rotation=60)
plt.ylabel("mean weight of all heads")
picture(
    "Bars of the mean attention at the word it over the thirteen words before: spread over all words, with the "
    "largest part on the bird"
)
outcome(mean_weights[ANIMAL])

# %% [markdown]
# The rest, most of it, is spread over words that have nothing to do with the sound. If attention were importance, even
# the dots would matter. So take words away: put another word of the same kind in the place of one, and see how much the
# probability of the right sound changes.

# %%
kinds = [
    people["she"] + people["he"],
    ["meets", "visits"],
    ["she", "he"],
    ["sees", "hears"],
    list(sounds),
    ["behind", "beside"],
]


def exchanged(texts, position):
    """Each text with another word of the same kind at the position; the same text if there is only one."""
    changed = []
    for text in texts:
        kind = next((kind for kind in kinds if text[position] in kind), [text[position]])
        others = [word for word in kind if word != text[position]] or kind
        changed.append([*text[:position], random.choice(others), *text[position + 1 :]])
    return changed


def probability_without(position, asked):
    return np.exp(log_probs(tj.logits(run, ids(exchanged(tests, position))), asked)).mean()


# %%
predict(
    "All other words stay, and the animal is exchanged: the probability that the model still gives to the old sound?",
    low=0.0,
    high=0.02,
)

# %%
effect = np.array([np.exp(log_probs(before, IT)).mean() - probability_without(position, IT) for position in range(13)])
plt.bar(np.arange(13) - 0.2, mean_weights, 0.4, label="mean attention")
plt.bar(np.arange(13) + 0.2, effect, 0.4, label="probability lost when exchanged")
plt.xticks(range(13), labels, rotation=60)
plt.legend()
picture(
    "Two bars for each word: mean attention is spread over all; the probability that is lost when the word is "
    "exchanged is one for the bird and zero for every other word"
)
outcome(probability_without(ANIMAL, IT))

# %% [markdown]
# So the sentence from the top is true for this model, and we know it from taking away. The attention alone would
# have told us a weaker and blurred story: it gives weight to words that can be exchanged without any effect.
#
# ## 3. "A head finds out whom *she* means"
#
# The name at the end follows from the pronoun and the two names in the first sentence. Does some head, at the word
# *she*, look at the person? There are five words to look at, so a head that does not care gives each about a fifth.

# %%
pronoun_is_first = np.array([one[0] == one[PERSON] for one in tests])
person = np.where(pronoun_is_first, 0, 2)  # where the person was named, [B]
rows = np.arange(len(tests))

# %%
predict(
    "The largest weight that any of the eight heads gives, at the pronoun, to the person whom it means (mean of "
    "all stories)?",
    low=0.2,
    high=0.4,
)

# %%
at_pronoun = weights[rows, :, :, PRONOUN, person].mean(axis=0)  # [L, N]
at_end = weights[rows, :, :, END, person].mean(axis=0)
at_end_other = weights[rows, :, :, END, 2 - person].mean(axis=0)
print("by layer and head:")
print(at_pronoun.round(2))
outcome(at_pronoun.max())

# %% [markdown]
# There are five words to look at, so a head that does not care gives each 0.2. No head is much above that: *at the
# pronoun*, where the story from the top puts it, nothing of the kind happens. The model need not know at once whom
# *she* means. It needs the name only at the end.
#
# Now take heads away. `tj.ablate` replaces the output of a head by its mean over all stories and positions.

# %%
heads = [(layer, head) for layer in range(2) for head in range(4)]
largest = np.array([weights[:, layer, head, END].max(axis=-1).mean() for layer, head in heads])
lost = np.array(
    [(log_probs(before, END) - log_probs(tj.ablate(run, tokens, [head], "mean"), END)).mean() for head in heads]
)

# %%
predict("Of the eight heads, how many cost more than 0.1 nats of the name when they are taken away?", low=2, high=3)

# %%
plt.scatter(largest, lost)
for (layer, head), weight, nats in zip(heads, largest, lost, strict=True):
    if nats > 0.1:  # the names of the others would lie on top of each other
        plt.annotate(f"layer {layer}, head {head}  ", (weight, nats), ha="right", va="center")
plt.xlabel("largest attention weight at the last word, mean")
plt.ylabel("nats lost without the head")
picture(
    "Eight heads as points: largest attention weight against the loss when the head is taken away. Two heads stand "
    "apart, six lose nothing"
)
print("head  largest weight  on the person  on the other  nats lost without it")
for (layer, head), weight, nats in zip(heads, largest, lost, strict=True):
    on_person, on_other = at_end[layer, head], at_end_other[layer, head]
    print(f"{layer}.{head} {weight:12.2f} {on_person:14.2f} {on_other:14.2f} {nats:14.3f}")
outcome((lost > 0.1).sum())

# %% [markdown]
# Two heads do it. The others attend to something at this word as well, since weights must sum to 1, and a picture of
# them would look like a picture. They can go without any harm.
#
# And the two that matter? Look at their columns "on the person" and "on the other": both find the person whom *she*
# means, and hardly look at the other one. So the sentence from the top is right, but at another word: not at the
# pronoun, where one would look for it, but at the last word, where the name is needed. The picture alone would not have
# told which of the eight heads to believe.
#
# ## 4. The logit lens
#
# The residual stream has the same width after each block. So the output projection can read it anywhere, and say what
# the model *would* answer if it stopped there. That is the logit lens (nostalgebraist 2020).

# %%
layer_norm, embedding = run.params["stack"]["norm"], np.asarray(run.params["embed"]["tokens"]["embedding"])  # [V, D]
x = np.asarray(tj.capture(run, tokens, "block_0/residual_after")["block_0/residual_after"])  # [B, T, D]
x = x - x.mean(axis=-1, keepdims=True)
x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * layer_norm["scale"] + layer_norm["bias"]
by_layer = tj.logit_lens(run, tokens)  # [L + 1, B, T, V]
assert np.allclose(x @ embedding.T, by_layer[1], atol=1e-3)

# %% [markdown]
# Final norm, then the output projection, which is the embedding transposed: `tj.logit_lens` does that for every layer.

# %%
predict("Reading after the first of the two blocks: the probability of the right name?", low=0.05, high=0.65)

# %%
for asked, label in ((IT, "the sound"), (END, "the name")):
    plt.plot([np.exp(log_probs(logits, asked)).mean() for logits in by_layer], "o-", label=label)
plt.xticks([0, 1, 2], ["embedding", "after block 0", "after block 1"])
plt.ylabel("probability of the right word")
plt.legend()
picture(
    "Probability of the right sound and name by the logit lens: near zero after the embedding, higher after each block"
)
outcome(np.exp(log_probs(by_layer[1], END)).mean())

# %% [markdown]
# ## 5. Activation patching
#
# Where is the fact "it is she" kept, layer by layer? Take two stories that differ in the pronoun alone. Run the model
# on the wrong one, and put back what it had computed for the right one, at *one* layer and *one* position. If the
# right name comes back, the fact was there. The library's patch is one line: the clean numbers at one position, and
# what is there already at all others.

# %%
from transformer_jax.inference import interventions

show(interventions._restore)

# %%
clean = "Anna meets Tom . she sees a bird behind a dog . it sings .".split()
corrupted = ["he" if word == "she" else word for word in clean]
names = words.index("Anna"), words.index("Tom")
grid = tj.activation_patching(run, ids([clean]), ids([corrupted]), names)
share = grid.effects / (grid.clean - grid.corrupted)  # [L, T]: 1 if all comes back

plt.figure(figsize=(6.4, 1.6))
plt.imshow(share, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
plt.xticks(range(len(clean)), clean, rotation=60)
plt.yticks([0, 1], ["before block 0", "before block 1"])
plt.colorbar(label="share that comes back")
picture(
    "Heat map of two layers by fifteen words: before block 0 the pronoun carries the fact alone; before block 1 "
    "it has moved to the last word"
)

# %%
predict(
    "Before block 1: which share comes back at the last word, the '.' where the name is predicted?", low=0.9, high=1.1
)

# %%
print(f"at 'she', before block 0: {share[0, PRONOUN]:.2f}, before block 1: {share[1, PRONOUN]:.2f}")
outcome(share[1, END])

# %% [markdown]
# Before the first block the fact is at the word *she*, of course: nothing else differs. One block later, it has gone to
# the place where it is needed. That is what attention does: it moves things.
#
# The lens read only a part of the name at this very place. Both are true: the fact is there, in a form that the output
# projection cannot read yet. The second block, whose heads we could all take away, still has its feed-forward layer.
#
# ## 6. Induction heads
#
# The second model reads random letters that repeat, like `dkbdkbdkb`, with a period that differs from text to text. The
# first round is pure chance. From the second round on, everything can be known: find where the present letter stood
# before, and say what came after it. A head that does this is an *induction head*.

# %%
from transformer_jax.tokenizers.base import CharTokenizer

tokenizer = CharTokenizer.train("abcdefghijklmnop")


def repeated(number, length=25):
    """Random letters with a period of 4 to 10, [B, length], and the periods."""
    periods = random.integers(4, 11, number)
    first = random.integers(3, tokenizer.vocab_size, (number, 10))  # ids below 3 are special
    return np.stack([np.resize(row[:period], length) for row, period in zip(first, periods, strict=True)]), periods


config = TransformerConfig(
    vocab_size=tokenizer.vocab_size,
    max_len=32,
    num_layers=2,
    d_model=32,
    num_heads=2,
    positions="t5",
    norm="rmsnorm",
    init_std=0.1,
)
params, losses = fit(GPT(config), repeated(32 * steps(1500))[0].reshape(-1, 32, 25), peak_lr=4e-3, seed=seed())
run = Run(GPT(config), params["params"], tokenizer, config)
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss, nats")
picture("Loss over the training steps: first a plateau, then a fast fall within a few hundred steps, then a slow one")

# %%
tokens, periods = repeated(256)
t = np.arange(24)
is_known = t[None] > periods[:, None]  # the next letter can be known: the second round has begun


def mean_nats(logits, chosen):
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    return nats[chosen].mean()


before = tj.logits(run, tokens)
print(f"first round: {mean_nats(before, t[None] < periods[:, None] - 1):.2f} nats; log 16 = {np.log(16):.2f}")

# %%
predict("And from the second round on, in nats?", low=0.02, high=0.6)

# %%
outcome(mean_nats(before, is_known))

# %% [markdown]
# The weights of all four heads for one text of period six. A previous-token head has a line just below the diagonal. An
# induction head looks at the letter *after* the last occurrence of the present one: five places back.

# %%
text = "kcamgb" * 3
found = tj.capture(run, text, "block_*/attention/weights")
_, axes = plt.subplots(1, 4, figsize=(11, 3))
for axis, (layer, head) in zip(axes, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
    heatmap(found[f"block_{layer}/attention/weights"][0, head], text, text, f"layer {layer}, head {head}", axis)
plt.tight_layout()
picture(
    "Attention of four heads on a text of period six. In layer 0 one head attends to the previous letter; heads "
    "of layer 1 attend five letters back, to the letter after the last occurrence"
)

# %% [markdown]
# Two scores measure this on all test texts: the mean weight on the previous letter, and the mean weight on the letter
# after the last occurrence, `period - 1` back.

# %%
inside = tj.capture(run, tokens, "block_*/attention/weights")
b, q = np.nonzero(is_known)
nats_before = mean_nats(before, is_known)
table = []
for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1)):
    weights = np.asarray(inside[f"block_{layer}/attention/weights"])[:, head]
    without = mean_nats(tj.ablate(run, tokens, [(layer, head)], "mean"), is_known)
    table.append((weights[b, q, q - 1].mean(), weights[b, q, q - periods[b] + 1].mean(), without - nats_before))
table = np.array(table)  # [heads, 3]
for name, row in zip(("0.0", "0.1", "1.0", "1.1"), table, strict=True):
    print(f"head {name}: previous letter {row[0]:.2f}, induction {row[1]:.2f}")

# %%
predict(
    "The head that looks at the previous letter never looks at the right answer. What does its loss cost, in nats?",
    low=1.2,
    high=4,
)

# %%
for name, row in zip(("0.0", "0.1", "1.0", "1.1"), table, strict=True):
    print(f"without head {name}: {row[2]:+.2f} nats")
previous = table[:2, 0].argmax()
outcome(table[previous, 2])

# %% [markdown]
# Compare the two heads of layer 1 as well: on this page they have nearly the same weight on the right letter, and very
# different costs. Attention did not tell which one the model relies on.
#
# And the head of layer 0? It costs as much as losing the skill. The two layers work as a team: the head below writes
# at each position "my predecessor was k"; the head above looks for a position whose predecessor is the present
# letter. A single layer cannot do this. Whoever looked for the important head by "which one attends to the answer"
# would have missed the first half of the mechanism.
#
# An analogy: one clerk writes on each file which file came before it, another finds files by that note. It fails in one
# point: nobody told them, and nobody gave them their posts. Other seeds give the work to other heads, and share it.
#
# ## 7. The explorer
#
# All of this for a model of your own, without a line of code: `transformer-jax explore` writes one page for the
# browser. Heads, predictions, the lens, and what each head costs when it is taken away.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    page = Path(folder) / "page.html"
    tj.explore(run, text, max_new_tokens=4).save(page)
    print(f"one file of {page.stat().st_size / 1e6:.1f} MB, with everything in it")

# %% [markdown]
# For a run directory: `python -m transformer_jax explore --run_dir=runs/mine --text="..." --output=page.html`
#
# ## Change it
# - `num_layers=1` in the second model, with `tj.ablate` of layer 0 only. What loss is left from the second round on?
# - `"zero"` in place of `"mean"` in `tj.ablate`. Which heads seem more important now, and which of the two is fairer?
# - In section 5, exchange the first name (`Zoe` for `Anna`) in place of the pronoun. Which way does that fact take?
#
# ## Check yourself
#
# 1. A head puts 0.95 of its weight on one word. Name two ways in which it may still not matter.
#
# <details><summary>Answer</summary>
#
# The value of that word may hold nothing that the model uses, or what the head writes is written by others, too (then
# no single ablation shows it). Or the text needs no such information at this place.
#
# </details>
#
# 2. You ablate a head and the loss rises. Have you shown that it does what you think it does?
#
# <details><summary>Answer</summary>
#
# No. You have shown that something after it relies on its output. What that is, takes more: patching single positions,
# texts that differ in one thing only, predictions that could fail.
#
# </details>
#
# 3. Why does an induction head need two layers?
#
# <details><summary>Answer</summary>
#
# A key is made from its own position. For a key to say "my predecessor was k", something must have brought the
# predecessor there before: a head of an earlier layer.
#
# </details>
#
# ## Where it lives
# - [transformer_jax/inference/capture.py](../transformer_jax/inference/capture.py): `capture`, `logit_lens`
# - [transformer_jax/inference/interventions.py](../transformer_jax/inference/interventions.py): `ablate`, `patch`,
#   `activation_patching`
# - [transformer_jax/explorer/](../transformer_jax/explorer): the page
# - [docs/inspect.md](../docs/inspect.md), [docs/explorer.md](../docs/explorer.md): all names, and GPT-2 as an example
#
# ## Papers
# - Jain & Wallace 2019, [Attention is not Explanation](https://arxiv.org/abs/1902.10186), and the answer of Wiegreffe &
#   Pinter 2019, [Attention is not not Explanation](https://arxiv.org/abs/1908.04626)
# - Michel et al. 2019, [Are Sixteen Heads Really Better than One?](https://arxiv.org/abs/1905.10650)
# - Elhage et al. 2021, [A Mathematical Framework for Transformer
#   Circuits](https://transformer-circuits.pub/2021/framework/index.html)
# - Olsson et al. 2022, [In-context Learning and Induction Heads](https://arxiv.org/abs/2209.11895)
# - nostalgebraist 2020, [interpreting GPT: the logit
#   lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)
# - Meng et al. 2022, [Locating and Editing Factual Associations in GPT](https://arxiv.org/abs/2202.05262)
#
# Next: [17 The paper](17_the_paper.md)
