# %% [markdown]
# # 10 Training
#
# About three hours. You have built the models ([06](06_transformer_architecture.md) to
# [09](09_complete_transformer.md)); now one is trained, from a text file to samples. After this lesson you can
#
# - cut a text into subwords and batches, and write the loss with its shift;
# - write AdamW, warmup with a cosine, and clipping by the global norm, a few lines each;
# - run the checks that find most mistakes before a long run: the first loss, and one batch learned by heart;
# - kill a run and resume it with the same numbers to the last bit;
# - say why two perplexities cannot be compared unless their tokenizers are the same.
#
# Papers: Sennrich et al. 2016 (BPE, section 3.2), Kingma and Ba 2015 (Adam, algorithm 1), Loshchilov and Hutter 2017
# (the cosine) and 2019 (AdamW), Pascanu et al. 2013 (clipping, section 3.2), Press and Wolf 2017 (tied embeddings).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## From a text to numbers: subwords
#
# A model reads numbers. Characters make long sequences, words make endless vocabularies. **Byte-pair encoding** (BPE)
# lies between: begin with characters, and again and again join the pair of neighbours that is most frequent.

# %%
counts = {"low": 3, "lower": 1, "lowest": 1, "newer": 2, "newest": 1, "wider": 1}  # words of a small text
words = {word: list(word) for word in counts}  # each in parts, at first its characters

for _ in range(4):
    pairs = {}
    for word, parts in words.items():
        for pair in zip(parts[:-1], parts[1:], strict=True):
            pairs[pair] = pairs.get(pair, 0) + counts[word]
    best = max(pairs, key=pairs.get)  # the most frequent pair of neighbours
    for parts in words.values():
        for i in reversed(range(len(parts) - 1)):
            if (parts[i], parts[i + 1]) == best:
                parts[i : i + 2] = ["".join(best)]
    print(f"{best[0]} + {best[1]} ({pairs[best]} times):", " ".join("|".join(parts) for parts in words.values()))

# %% [markdown]
# After four merges `low` is one token, and `er` is a token that three words share. The library trains the same
# algorithm on bytes, so that any text has an encoding. Our text is Python's own documentation, which every Python
# brings along.

# %%
from pydoc_data.topics import topics

from transformer_jax.tokenizers import BPETokenizer

text = "\n\n".join(topics[name] for name in sorted(topics))[:200_000]
tokenizer = BPETokenizer.train(text, vocab_size=512)
print([tokenizer.decode([i]) for i in tokenizer.encode("The for statement is used to iterate.")])
assert tokenizer.decode(tokenizer.encode(text)) == text

# %%
predict("With a vocabulary of 512 tokens, how many characters has a token on average?", low=2.0, high=2.7)

# %%
tokens = tokenizer.encode(text)
outcome(len(text) / len(tokens))

# %% [markdown]
# ## Batches
#
# The text is now one long row of numbers. A training example is a window of $T + 1$ of them: the first $T$ are the
# input, the last $T$ the targets, so each token is predicted from all those before it.
#
# Which windows a step sees must not depend on what happened before, or a run that is resumed would see others. So the
# batch of a step is a **function of the seed and the step**.

# %%
from train.data.batch_sampler import WindowSampler, _epoch_starts

show(WindowSampler.starts)
show(_epoch_starts)

# %%
B, T = 8, 64
sampler = WindowSampler(num_tokens=len(tokens), max_len=T, batch_size=B, seed=seed())
starts = sampler.starts(step=17)  # [B]
batch = tokens[starts[:, None] + np.arange(T + 1)]  # [B, T + 1]
inputs, targets = batch[:, :-1], batch[:, 1:]  # [B, T] each
print("input: ", repr(tokenizer.decode(inputs[0, :12])))
print("target:", repr(tokenizer.decode(targets[0, :12])))
assert np.array_equal(inputs[:, 1:], targets[:, :-1])

# %% [markdown]
# ## The loss
#
# The model gives a probability to every token of the vocabulary, at every position. The loss is minus the logarithm of
# the probability that the right token got, averaged over all targets:
#
# $$
# \ell = -\frac{1}{BT} \sum_{b, t} \ln p_{b,t}(y_{b,t}) \qquad p_{b,t} = \text{softmax}(\text{logits}_{b,t})
# $$


# %%
def next_token_loss(logits, targets):  # [B, T, V], [B, T]
    logits = logits - logits.max(axis=-1, keepdims=True)  # so that exp does not overflow
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, targets[..., None], axis=-1).mean()


# %% [markdown]
# A small GPT of one block, for the checks that follow. The mini Transformer with four blocks comes below.

# %%
import functools

import jax
import jax.numpy as jnp

from train import losses
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT

model = GPT(TransformerConfig(vocab_size=512, max_len=T, num_layers=1, d_model=64, num_heads=4))
params = jax.jit(model.init)(jax.random.key(seed()), inputs)
print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")

# %% [markdown]
# Before the first step it knows nothing. The first check of any training run costs one line: is the first loss what it
# should be?

# %%
predict("512 tokens, no training: what is the loss, in nats?", low=6.2, high=6.35)

# %%
logits = jax.jit(model.apply)(params, inputs)  # [B, T, V]
first_loss = next_token_loss(np.asarray(logits), targets)
print("ln 512 =", np.log(512))
outcome(first_loss)

# %% [markdown]
# A model that knows nothing gives each of $V$ tokens about $1/V$, and minus the logarithm of that is $\ln V$. If your
# first loss is far above, the initialization is too large. If it is far below, something leaks.
#
# The library's loss gives a **sum** and the **number of targets**, not a mean: batches with padding have different
# numbers of targets, and only sums can be added up over devices before they are divided.

# %%
show(losses.packed_targets)

# %%
one = {"tokens": batch, "is_token": np.ones_like(batch, bool)}
loss_sum, num_targets, _ = jax.jit(functools.partial(losses.causal_lm, functools.partial(model.apply, params)))(one)
assert np.isclose(loss_sum / num_targets, first_loss, rtol=1e-5)

# %% [markdown]
# ## AdamW
#
# Plain gradient descent takes one step size for all parameters. Adam keeps two running means for every parameter, of
# the gradient $g$ and of its square, and divides one by the root of the other:
#
# $$
# m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2
# $$
# $$
# \theta \leftarrow \theta - \eta \left( \frac{m / (1 - \beta_1^i)}{\sqrt{v / (1 - \beta_2^i)} + \epsilon} + \lambda\,
# \theta \right)
# $$
#
# $i$ is the number of the step, from 1. The divisions by $1 - \beta^i$ make up for means that begin at 0. The W stands
# for the last term: weight decay beside the fraction, not inside it.


# %%
def adamw(theta, g, m, v, i, lr=1e-3, b1=0.9, b2=0.95, epsilon=1e-8, decay=0.1):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    m_hat, v_hat = m / (1 - b1**i), v / (1 - b2**i)
    return theta - lr * (m_hat / (np.sqrt(v_hat) + epsilon) + decay * theta), m, v


# %%
from train import optimizer as library

show(library._adamw)

# %%
import optax

random = np.random.default_rng(seed())
theta, m, v = random.normal(size=5), np.zeros(5), np.zeros(5)
theirs = {"kernel": jnp.asarray(theta)}
adam = optax.adamw(1e-3, 0.9, 0.95, weight_decay=0.1)
state = adam.init(theirs)
for i in range(1, 4):
    g = random.normal(size=5)
    theta, m, v = adamw(theta, g, m, v, i)
    updates, state = adam.update({"kernel": jnp.asarray(g)}, state, theirs)
    theirs = optax.apply_updates(theirs, updates)
assert np.allclose(theirs["kernel"], theta, atol=1e-6)

# %% [markdown]
# How far does a parameter move in the very first step? Its gradient may be 0.00001 or 1,000.

# %%
predict(
    "Learning rate 0.001, a gradient of 0.00001: how many learning rates does the first step move?", low=0.99, high=1
)

# %%
for g in (1e-5, 1.0, 1e3):
    moved = adamw(np.array(0.0), g, 0.0, 0.0, 1)[0]
    print(f"gradient {g:g}: moves by {moved:.6f}")
outcome(abs(adamw(np.array(0.0), 1e-5, 0.0, 0.0, 1)[0]) / 1e-3)

# %% [markdown]
# One learning rate, whatever the gradient: $g$ over the root of $g^2$ is its sign. So the first step of Adam moves
# **every** parameter by a full learning rate, in a direction that comes from a single batch. That is why training
# begins with a warmup.
#
# ## Warmup and cosine
#
# The learning rate rises from 0 in a straight line for some steps, then falls as half a wave of a cosine:
#
# $$
# \eta(i) = \eta_{\text{final}} + (\eta_{\text{peak}} - \eta_{\text{final}})\,\tfrac{1}{2}\left(1 + \cos \pi\,
# \frac{i - i_{\text{warmup}}}{i_{\text{total}} - i_{\text{warmup}}}\right)
# $$


# %%
def learning_rate(i, peak, warmup, total, final):
    if i < warmup:
        return peak * i / warmup
    progress = min((i - warmup) / (total - warmup), 1)
    return final + (peak - final) * 0.5 * (1 + np.cos(np.pi * progress))


# %%
show(library._warmup_cosine)

# %%
from train.config import OptimizerConfig

settings = OptimizerConfig(peak_lr=1e-3, warmup_steps=100, final_lr_fraction=0.1)
schedule = library.make_schedule(settings, num_steps=1000)
curve = np.array([learning_rate(i, 1e-3, 100, 1000, 1e-4) for i in range(1100)])
assert np.allclose([schedule(i) for i in (0, 50, 100, 400, 999, 1099)], curve[[0, 50, 100, 400, 999, 1099]], atol=1e-9)
plt.plot(curve)
plt.xlabel("step")
plt.ylabel("learning rate")
picture("learning rate against step: a straight line up for 100 steps, then half a cosine wave down to a tenth")

# %% [markdown]
# ## Clipping
#
# Now and then a batch has a gradient many times as long as usual. Clipping makes it shorter, and keeps its direction.
# The length is that of **all** parameters together, the global norm:
#
# $$
# g \leftarrow g \cdot \min\left(1, \frac{c}{\lVert g \rVert}\right) \qquad \lVert g \rVert = \sqrt{\textstyle\sum_j
# g_j^2}
# $$


# %%
def clip(grads, limit):
    norm = np.sqrt(sum(np.sum(g**2) for g in grads))
    return [g * min(1, limit / norm) for g in grads]


print(clip([np.array([3.0]), np.array([4.0])], 1.0))
theirs, _ = optax.clip_by_global_norm(1.0).update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, None)
assert np.allclose([theirs["a"], theirs["b"]], clip([np.array([3.0]), np.array([4.0])], 1.0))

# %% [markdown]
# But Adam divides the size of the gradient away. Is clipping of any use then? Let a parameter have the gradient 1 for a
# hundred steps, and then once a gradient of 100.

# %%
predict(
    "Spike at step 100, no clipping: from step 110 to 130, how far does the parameter move, as a share of the usual?",
    low=0.1,
    high=0.25,
)


# %%
def path(limit):
    theta, m, v = np.array(0.0), 0.0, 0.0
    places = [0.0]
    for i in range(1, 161):
        g = 100.0 if i == 100 else 1.0
        theta, m, v = adamw(theta, min(g, limit), m, v, i, lr=1.0, decay=0.0)
        places.append(-theta)
    return np.array(places)


spiked, clipped = path(np.inf), path(1.0)
plt.plot(spiked, label="one gradient of 100 at step 100")
plt.plot(clipped, label="the same, clipped to 1")
plt.xlabel("step")
plt.ylabel("distance moved, in learning rates")
plt.xlim(80, 160)
plt.ylim(75, 160)
plt.legend()
picture("distance moved against step: at the spike the path without clipping bends and stays nearly flat for long")
outcome((spiked[130] - spiked[110]) / (clipped[130] - clipped[110]))

# %% [markdown]
# The first ten steps are left out, since the momentum of the spike still pushes. The spike does its damage
# **afterwards**: its square sits in $v$ and makes all later steps small, until $\beta_2^i$ has forgotten it.
#
# ## One batch by heart
#
# The second check before a long run: train on **one** batch, again and again. A model with a working gradient learns it
# by heart. If it does not, there is a bug, and no amount of data will help. The step is the library's own.

# %%
from train.state import create_state
from train.step import train_step

number = steps(60)
adam = library.make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=10, weight_decay=0.0), number)
step = jax.jit(
    functools.partial(
        train_step,
        model=model,
        loss_fn=losses.causal_lm,
        optimizer=adam,
        seed=seed(),
        accumulation=1,
        max_consecutive_skips=10,
        log_every=1,
    )
)

# %%
predict("60 steps on one batch of 8 x 64 tokens: what is the loss at the end?", low=0.0, high=0.1)

# %%
state = create_state(params["params"], adam)
curve = []
for _ in range(number):
    state = step(state, one)
    curve.append(float(state.accumulator.loss_sum / state.accumulator.weight_sum))
plt.plot(curve)
plt.xlabel("step")
plt.ylabel("loss on the one batch (nats)")
picture("loss against step on one batch: from 6.2 down to nearly 0")
outcome(curve[-1])

# %% [markdown]
# ## The whole run, killed in the middle
#
# Everything so far is in `python -m train`. A **recipe** is a short Python file that changes a few defaults. This one
# trains the mini Transformer on Python's documentation: four blocks with the norm before each part, a last norm, and an
# output layer that shares its matrix with the embedding. Its positions are rotary, the subject of the
# [next lesson](11_relative_positions.md).

# %%
import tempfile
from pathlib import Path

temporary = tempfile.TemporaryDirectory()  # removed at the end
folder = Path(temporary.name)
num_steps = steps(200)
recipe = f"""
from configs import default

def get_config():
    config = default.get_config()
    config.data.source = "python_docs"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 512
    config.model.max_len = 64
    config.model.num_layers = 4
    config.model.d_model = 64
    config.model.num_heads = 4
    config.model.positions = "rotary"
    config.optimizer.peak_lr = 6e-3
    config.optimizer.warmup_steps = 20
    config.train.seed = {seed()}
    config.train.batch_size = 8
    config.train.num_steps = {num_steps}
    config.train.log_every = 20
    config.train.eval_every = {num_steps}
    config.train.tensorboard = False
    config.checkpoint.save_every = {max(1, num_steps // 4)}
    config.checkpoint.keep = 4
    return config
"""
(folder / "mini.py").write_text(recipe)
print(recipe)

# %% [markdown]
# Now start it as a process of its own, wait until the first checkpoint is there, and kill it: not with Ctrl-C, which it
# would notice, but with SIGKILL, as a power cut would.

# %%
import os
import subprocess
import sys
import time

run_dir = folder / "killed"
command = [sys.executable, "-m", "train", f"--config={folder / 'mini.py'}", f"--workdir={run_dir}"]
root = Path(losses.__file__).parents[1]  # of the clone
environment = os.environ | {"PYTHONPATH": str(root)}
process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
deadline = time.monotonic() + 300
while process.poll() is None and time.monotonic() < deadline:
    if any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*")):
        break
    time.sleep(0.02)
process.kill()
process.wait()
print("checkpoints on disk:", sorted(int(p.name) for p in (run_dir / "checkpoints").glob("*") if p.name.isdigit()))

# %% [markdown]
# The same recipe once more, in the same folder: it resumes. And a second time from the start in another folder, never
# interrupted.

# %%
import contextlib
import importlib.util
import io

import transformer_jax as tj

spec = importlib.util.spec_from_file_location("mini", folder / "mini.py")
mini = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mini)


def train(workdir):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        tj.train(mini.get_config(), workdir)
    return printed.getvalue().splitlines()


resumed = train(run_dir)
whole = train(folder / "whole")
print(*[line for line in resumed if "resumed" in line or "model:" in line], sep="\n")

# %%
predict("Of all parameters, how many differ between the killed and the uninterrupted run?", low=0, high=0)

# %%
a, b = (jax.tree.leaves(tj.load(path).params) for path in (run_dir, folder / "whole"))
print(f"compared: {sum(x.size for x in a):,} numbers, bit by bit")
outcome(sum(int((np.asarray(x) != np.asarray(y)).sum()) for x, y in zip(a, b, strict=True)))

# %% [markdown]
# Not close: equal. Three things make that possible. The checkpoint has the optimizer's state and not only the
# parameters; the batch of a step is a function of the step; and the random numbers of a step (dropout) are a function
# of the step as well. A checkpoint counts only once it is complete on the disk, so a kill at any moment leaves the last
# good one.
#
# The loss of the run, step by step:

# %%
import json

records = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
training = [(record["step"], record["loss"]) for record in records if record.get("split") == "train"]
plt.plot(*zip(*training, strict=True), marker="o", label="training")
plt.axhline(np.log(512), color="gray", linestyle="--", linewidth=0.8, label="ln 512: knows nothing")
plt.xlabel("step")
plt.ylabel("loss (nats a token)")
plt.legend()
picture("training loss of the mini Transformer against step: from ln 512 down, fast at first, then slowly")

# %% [markdown]
# ## What it writes
#
# The same prompt and the same random numbers, at a quarter of the run and at its end.

# %%
for number in (max(1, num_steps // 4), num_steps):
    run = tj.load(folder / "whole", checkpoint=number)
    sample = tj.generate(run, "The ", max_new_tokens=50, temperature=0.7, top_k=40)
    print(f"--- step {number}\n{sample}\n")

# %% [markdown]
# First spaces and frequent pieces, later words and marks of its text, no sense yet. Coherence comes with size and time:
# `make demo` takes a minute or two for a model of 1.3 million parameters, and the recipe
# [gpt_bpe_shakespeare](../configs/gpt_bpe_shakespeare.py) a quarter of an hour for one of 5 million.
#
# ## Words that are used alike lie alike
#
# Nobody told the model what a digit is. Each token has a vector, the row of the embedding, and at the start all of
# them are random. Look at the ten digits at the end.

# %%
predict("Of the ten digits, how many have another digit as nearest neighbour?", low=8, high=10)

# %%
E = np.asarray(run.params["embed"]["tokens"]["embedding"])  # [V, D]
E = E - E.mean(axis=0)
E /= np.linalg.norm(E, axis=-1, keepdims=True)
names = [run.tokenizer.decode([i]) for i in range(len(E))]


def neighbours(token, number=5):
    nearest = np.argsort(-E @ E[names.index(token)])  # cosine of the angle, largest first
    return [names[i] for i in nearest[1 : number + 1]]


for token in ("3", " the", "ing", ")"):
    print(repr(token), "->", neighbours(token))
outcome(sum(neighbours(digit, 1)[0] in set("0123456789") for digit in "0123456789"))

# %% [markdown]
# Tokens that can stand in each other's place get similar gradients, and so similar vectors. (Say "similar use", not
# "similar meaning": opposites like *true* and *false* are used alike, too.)
#
# ## Perplexity, and why 40 to 60 says nothing
#
# **Perplexity** is $e^{\ell}$: the number of tokens among which the model would have to choose blindly to have this
# loss. Some tutorials promise "a perplexity of 40 to 60" after half an hour. You have just seen samples of a model that
# was trained for some seconds.

# %%
predict("What is the perplexity of the mini Transformer on its validation text, per token?", low=42, high=66)

# %%
validation = [record for record in records if record.get("split") == "val"][-1]
print(validation)
outcome(np.exp(validation["loss"]))

# %% [markdown]
# So we are there already? The trick is the vocabulary: choosing among 512 short tokens is easy. Here is the same model
# with the same text and the same loss, per character.

# %%
predict("The same model, the same text: what is its perplexity per character?", low=5, high=7.5)

# %%
bits_per_byte = validation["bits_per_byte"]
nats_per_character = bits_per_byte * np.log(2)  # nearly all of the text is ASCII: a byte a character
outcome(np.exp(nats_per_character))

# %% [markdown]
# Nothing about the model has changed, only the unit. With 4,096 tokens instead of 512 each token holds more characters,
# and the perplexity is higher **although the model is better**: `make demo` ends at 111 with 1.73 bits per byte. A
# Shakespeare run of this project has a perplexity of 53 and 2.25 bits per byte. So compare **bits per byte**:
#
# $$
# \text{bits per byte} = \frac{\text{nats per token}}{\ln 2 \cdot \text{bytes per token}}
# $$

# %%
bytes_per_token = validation["loss"] / np.log(2) / bits_per_byte
print(f"{bytes_per_token:.2f} bytes a token; {bits_per_byte:.3f} bits a byte")

# %% [markdown]
# ## What to do in which order
#
# | step | what it finds |
# |---|---|
# | print a few inputs and targets as text | wrong shift, wrong tokenizer |
# | first loss $= \ln V$ | bad initialization, leaks |
# | one batch by heart | wrong gradient, wrong mask, learning rate far off |
# | a short run, training and validation loss side by side | overfitting, a split that leaks |
# | the learning rate, a factor of 3 up and down | the one setting that matters most |
# | kill and resume | what you would rather find now than after a week |
# | bits per byte (language), BLEU (translation, [09](09_complete_transformer.md)) | scores that others can compare |
#
# ## Change it
#
# 1. Set `config.optimizer.warmup_steps = 0` and `peak_lr = 3e-2` in the recipe. Does the loss still fall? And with a
#    warmup of 20?
# 2. Set `vocab_size` to 300 and to 1,000 (at the same number of steps). Compare perplexity and bits per byte: do they
#    agree on the better one?
# 3. In "one batch by heart", compare the output with the input instead: hand `batch[:, :-1]` twice. How fast does the
#    loss fall, and why is that no good news?
#
# ## Check yourself
#
# **Your model has 10,000 tokens and its first loss is 14. What is wrong?**
#
# <details><summary>Answer</summary>
#
# $\ln 10000$ is about 9.2. A loss of 14 says that it is sure of wrong tokens: logits that are too large, so an
# initialization that is too large.
#
# </details>
#
# **A checkpoint has the parameters and the number of the step, nothing else. What goes wrong when the run is resumed?**
#
# <details><summary>Answer</summary>
#
# $m$ and $v$ begin at 0 again, in the middle of the run, with a full learning rate and without warmup. The loss jumps,
# and the run is not the one that was interrupted.
#
# </details>
#
# **Why does the library's loss return a sum and a weight?**
#
# <details><summary>Answer</summary>
#
# Micro-batches and devices can have different numbers of targets. The mean of their means would weigh a target in a
# short batch more. Sums can be added, and divided once.
#
# </details>
#
# **Two papers report perplexities of 20 and 25 on the same text. Which model is better?**
#
# <details><summary>Answer</summary>
#
# Nobody knows before the tokenizers are known. Turn both into bits per byte.
#
# </details>
#
# ## Exercise
#
# [exercise_10_training.py](exercises/exercise_10_training.py): the loss, the learning rate, clipping and AdamW, with
# the corners that this page left out (padding, warmup of 0, gradients of 0). Check it with `python -m lessons check
# 10`.
#
# ## Where it lives
#
# [train/step.py](../train/step.py): one training step, pure. [train/losses.py](../train/losses.py),
# [train/optimizer.py](../train/optimizer.py), [train/data/batch_sampler.py](../train/data/batch_sampler.py).
# [train/loop.py](../train/loop.py): the order of a run. [configs/](../configs): recipes, among them
# [dates_en_de](../configs/dates_en_de.py), a translator, by the same loop. More:
# [docs/training.md](../docs/training.md).
#
# ## Papers
#
# - Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword Units", section 3.2.
# - Kingma, Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
# - Loshchilov, Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".
# - Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
# - Pascanu, Mikolov, Bengio 2013, "On the Difficulty of Training Recurrent Neural Networks", section 3.2.
# - Press, Wolf 2017, "Using the Output Embedding to Improve Language Models".
#
# Next: [11 Relative positions](11_relative_positions.md)
