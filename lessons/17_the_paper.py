# %% [markdown]
# # 17 The paper
#
# For readers of lessons 01 to 09, with the paper beside the screen. About 4 hours.
#
# After this lesson you can
#
# - read "Attention Is All You Need" from equation 1 to equation 3, and point at the line of code of each;
# - write the whole model of its figure 1 in NumPy, and show that it is right: against the library, and against numbers
#   that another library, in PyTorch, computed;
# - say where this library and later models differ from the paper;
# - add a position scheme or an attention function of your own by one entry in a dict, and test it by laws.
#
# The paper: Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762). We follow its sections.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import LESSONS, outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## Section 3.2.1, equation 1: scaled dot-product attention
#
# $$ \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d_k}}\right) V $$
#
# The paper's $d_k$ is the width of a head, H in this course. Below, `q` is `[N, T, H]`, `k` and `v` are `[N, S, H]`.


# %%
def attention(q, k, v, may_attend):
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])  # [N, T, S]
    scores = np.where(may_attend, scores, -1e30)  # the paper's mask, section 3.2.3
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v  # [N, T, H]


# %% [markdown]
# ## Section 3.2.2: multi-head attention
#
# $$ \mathrm{MultiHead}(Q, K, V) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h) W^O, \quad
# \mathrm{head}_i = \mathrm{Attention}(Q W_i^Q, K W_i^K, V W_i^V) $$
#
# Self-attention takes x three times. In the decoder's cross-attention the queries come from the target, keys and values
# from the encoder (section 3.2.3). The paper writes no biases; most programs have them, so we add them.


# %%
def multi_head(x, source, may_attend, p):
    def heads(y, name):  # W_i^Q and its like, for all i at once
        return np.einsum("td,dnh->nth", y, p[name]["kernel"]) + p[name]["bias"][:, None]

    out = attention(heads(x, "query"), heads(source, "key"), heads(source, "value"), may_attend)
    return np.einsum("nth,nhd->td", out, p["out"]["kernel"]) + p["out"]["bias"]  # Concat and W^O in one sum


# %% [markdown]
# ## Section 3.3, equation 2: the feed-forward network
#
# $$ \mathrm{FFN}(x) = \max(0,\, x W_1 + b_1) W_2 + b_2 $$


# %%
def relu(x):
    return np.maximum(x, 0)


def feed_forward(x, p, activation=relu):
    return activation(x @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]["kernel"] + p["down"]["bias"]


# %% [markdown]
# ## Section 3.1: residual and norm
#
# $$ \mathrm{LayerNorm}(x + \mathrm{Sublayer}(x)) $$


# %%
def add_and_norm(x, out, p):
    y = x + out
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return y * p["scale"] + p["bias"]


# %% [markdown]
# ## Sections 3.4 and 3.5: embeddings and positions
#
# Embeddings are multiplied by $\sqrt{d_{model}}$. One table serves source, target and output projection.
#
# $$ PE_{(pos, 2i)} = \sin(pos / 10000^{2i/d_{model}}), \quad PE_{(pos, 2i+1)} = \cos(pos / 10000^{2i/d_{model}}) $$


# %%
def positions(T, D, halves=False):
    angle = np.arange(T)[:, None] / 10000 ** (np.arange(0, D, 2) / D)  # [T, D / 2]
    sin, cos = np.sin(angle), np.cos(angle)
    return np.concatenate([sin, cos], 1) if halves else np.stack([sin, cos], 2).reshape(T, D)


def embed(tokens, table, halves=False):
    D = table.shape[1]
    return table[tokens] * np.sqrt(D) + positions(len(tokens), D, halves)


# %% [markdown]
# The same two lines in the library. The second layout, all sines before all cosines, is that of the authors' program.
# Does it matter? No: it only renames dimensions, and all kernels are learned.

# %%
from transformer_jax.nn import positions as library_positions

show(library_positions.sinusoid)

# %% [markdown]
# ## Figure 1: the whole model
#
# Left the encoder: N = 6 times self-attention and feed-forward. Right the decoder: masked self-attention, attention to
# the encoder's output, feed-forward.


# %%
def encoder(x, p, activation):
    everything = np.ones((len(x), len(x)), bool)
    for i in range(len(p)):
        q = p[f"block_{i}"]
        x = add_and_norm(x, multi_head(x, x, everything, q["attention"]), q["attention_norm"])
        x = add_and_norm(x, feed_forward(x, q["feed_forward"], activation), q["feed_forward_norm"])
    return x


def decoder(x, encoded, p, activation):
    past = np.tril(np.ones((len(x), len(x)), bool))  # section 3.2.3: no attention to subsequent positions
    everything = np.ones((len(x), len(encoded)), bool)
    for i in range(len(p)):
        q = p[f"block_{i}"]
        x = add_and_norm(x, multi_head(x, x, past, q["attention"]), q["attention_norm"])
        x = add_and_norm(x, multi_head(x, encoded, everything, q["cross"]), q["cross_norm"])
        x = add_and_norm(x, feed_forward(x, q["feed_forward"], activation), q["feed_forward_norm"])
    return x


def transformer(source, target, p, activation=relu, halves=False):
    """Logits of the next target token, [T, V]."""
    table = p["shared"]["embedding"]
    encoded = encoder(embed(source, table, halves), p["encoder"]["stack"], activation)
    x = decoder(embed(target, table, halves), encoded, p["decoder"]["stack"], activation)
    return x @ table.T


# %% [markdown]
# That is all. Some forty lines, and nothing is missing but dropout.
#
# ## First test: the library
#
# The paper's model as a config of the library, small. We draw its parameters with NumPy and compare the logits.

# %%
import jax

from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, parameter_shapes


def paper(vocab_size, max_len, num_layers, d_model, num_heads):
    """The model of Vaswani et al. 2017; the paper's h is num_heads, its N is num_layers."""
    side = TransformerConfig(
        vocab_size,
        max_len,
        num_layers,
        d_model,
        num_heads,
        norm_placement="post",
        feed_forward="relu",
        positions="sinusoidal",
        scale_embeddings=True,
    )
    return Seq2Seq(Seq2SeqConfig(side, side))


random = np.random.default_rng(seed())
model = paper(vocab_size=40, max_len=16, num_layers=2, d_model=24, num_heads=3)
params = jax.tree.map(lambda x: 0.3 * random.normal(size=x.shape).astype(np.float32), parameter_shapes(model))
source, target = random.integers(0, 40, 9), random.integers(0, 40, 7)
logits = np.asarray(jax.jit(model.apply)({"params": params}, source[None], target[None]))[0]
difference = np.abs(transformer(source, target, params) - logits).max() / np.abs(logits).max()
print(f"largest difference: {difference:.1e} of the largest logit")
assert difference < 1e-5

# %% [markdown]
# ## Second test: numbers of another library
#
# Two programs of one author may share a misunderstanding. So the project keeps small models that the reference library
# of the field wrote (Hugging Face transformers, in PyTorch), together with the logits that **it** computed. Among them
# is a Marian model: Marian is a translation program whose architecture is the paper's. It differs in three points, and
# its config says which: `swish` in place of ReLU, sines before cosines, and a bias of the logits.
#
# We load the parameters, and let our NumPy Transformer compute. PyTorch is not needed: its numbers are in a file.

# %%
predict(
    "How many powers of ten below the largest logit is the largest difference between our NumPy and PyTorch?",
    low=5,
    high=9,
)

# %%
import transformer_jax as tj

folder = LESSONS.parent / "tests" / "fixtures" / "marian"
run = tj.from_pretrained(folder)
expected = np.load(folder / "expected.npz")


def swish(x):
    return x / (1 + np.exp(-x))


p = jax.device_get(run.params)
gaps = []
for b in range(3):
    source = expected["source"][b][expected["source_is_token"][b]]
    target = expected["target"][b][expected["target_is_token"][b]]
    ours = transformer(source, target, p, swish, halves=True) + p["decoder"]["embed"]["logit_bias"]
    theirs = expected["logits"][b][expected["target_is_token"][b]]
    gaps.append(np.abs(ours - theirs).max() / np.abs(theirs).max())
    print(f"text {b}: source of {len(source)} tokens, target of {len(target)}: largest difference {gaps[-1]:.1e}")
outcome(-np.log10(max(gaps)))

# %% [markdown]
# That is the rounding of float32 numbers, and nothing else. Had one equation been misread, they would differ by
# percents at least. Try it: "Change it" below has two misreadings for you.
#
# The library itself is held to these numbers for seven families (`tests/test_pretrained.py`). Here is GPT-2's:

# %%
folder = LESSONS.parent / "tests" / "fixtures" / "gpt2"
expected = np.load(folder / "expected.npz")
logits = tj.logits(tj.from_pretrained(folder), expected["tokens"], expected["is_token"])
difference = np.abs(np.asarray(logits) - expected["logits"])[expected["is_token"]].max()
print(f"GPT-2: largest difference {difference / np.abs(expected['logits']).max():.1e} of the largest logit")
assert difference < 1e-5 * np.abs(expected["logits"]).max()

# %% [markdown]
# ## Table 3: how large was it?
#
# The base model has N = 6, d_model = 512, d_ff = 2,048, h = 8, and a shared vocabulary of about 37,000 (section 5.1).
# The last column of table 3 gives its parameters, in millions: 65. Count.

# %%
predict("How many million parameters has the base model, counted exactly?", low=60, high=64)

# %%
counts = {}
for name, d_model, num_heads, said in (("base", 512, 8, 65), ("big", 1024, 16, 213)):
    shapes = parameter_shapes(paper(37_000, 512, 6, d_model, num_heads))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    print(f"{name}: {count:.1f} million; the paper says {said}")
    counts[name] = count
outcome(counts["base"])

# %% [markdown]
# Both are near the paper's figures, and neither is equal: "about 37,000" is rounded, and programs differ in biases.
# Such a check finds a wrong factor, such as a third table of embeddings. It cannot find a wrong axis.
#
# ## Section 5.3, equation 3: the learning rate
#
# $$ lrate = d_{model}^{-0.5} \cdot \min(step\_num^{-0.5},\; step\_num \cdot warmup\_steps^{-1.5}) $$
#
# It rises for `warmup_steps` = 4,000 steps, then falls with the root of the step.

# %%
predict("How high is the peak of the learning rate, for d_model = 512?", low=0.00069, high=0.00071)


# %%
def learning_rate(step, d_model=512, warmup_steps=4000):
    return d_model**-0.5 * np.minimum(step**-0.5, step * warmup_steps**-1.5)


step = np.arange(1, 100_001)
plt.plot(step, learning_rate(step), label="base, d_model = 512")
plt.plot(step, learning_rate(step, d_model=1024), label="big, d_model = 1,024")
plt.xlabel("step (of 100,000, section 5.2)")
plt.ylabel("learning rate")
plt.legend()
picture("The paper's learning rate rises in a straight line for 4,000 steps and then falls with the root of the step")
outcome(learning_rate(step).max())

# %% [markdown]
# ## Section 5.4: label smoothing
#
# The model is trained towards 0.9 for the right token, and the remaining 0.1 spread over all V tokens. "This hurts
# perplexity", says the paper. By how much? Even a perfect model, which gives exactly these probabilities, has a loss:

# %%
predict("Label smoothing 0.1 and V = 37,000: the smallest loss that is possible, in nats?", low=1.36, high=1.39)

# %%
import jax.numpy as jnp

from train.losses import cross_entropy

V, smoothing = 37_000, 0.1
q = np.full(V, smoothing / V)
q[7] += 1 - smoothing  # token 7 is right
smallest = -(q * np.log(q)).sum()  # cross-entropy of q with itself

nats = cross_entropy(lambda x: x, jnp.log(q)[None, None], jnp.array([[7]]), smoothing=smoothing)
print(f"by the formula {smallest:.4f}; the library's loss of such a model {float(jnp.sum(nats)):.4f}")
assert abs(smallest - float(jnp.sum(nats))) < 1e-3
outcome(smallest)

# %% [markdown]
# So a loss with label smoothing cannot be compared with one without. The library trains with smoothing, if asked, and
# evaluates without.
#
# ## Beyond the paper: a position scheme of your own
#
# The paper's last section has plans for other kinds of attention. Most later papers change one thing. In this library
# that is one entry in a dict. Take a bias that falls with the **logarithm** of the distance (Chi et al. 2022, KERPLE,
# in the simplest form): far keys are hard to tell apart, so each doubling of the distance costs about the same.
#
# $$ \mathrm{score} \leftarrow \mathrm{score} - r \log(1 + |t - s|) $$

# %%
import flax.linen as nn

from transformer_jax.nn.positions import POSITIONS, DistanceBias, Scheme


def log_bias(rates, distance):  # distance: [B, T, S] -> [B, N, T, S]
    return -jax.nn.softplus(rates)[:, None, None] * jnp.log1p(jnp.abs(distance))[:, None]


class Logarithmic(nn.Module):
    """A learned rate for each head."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, is_causal):
        return DistanceBias(self.param("rates", nn.initializers.ones, (self.config.num_heads,)), log_bias)


POSITIONS["logarithmic"] = Scheme(bias=Logarithmic)  # the one entry

# %% [markdown]
# Every law of the library now applies to it. A model with the new scheme must be causal and blind to padding. Written
# word by word, with a cache, it must give the logits of one full pass. And its scores may depend on differences of
# positions only.

# %%
from transformer_jax import testing
from transformer_jax.nn.kv_cache_kinds import make_cache

config = TransformerConfig(11, 16, 2, 16, 4, positions="logarithmic", init_std=0.3)
small = GPT(config)
variables = {
    "params": jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), parameter_shapes(small))
}
apply = jax.jit(lambda tokens, is_token: small.apply(variables, tokens, is_token))
extend = jax.jit(lambda *inputs: small.apply(variables, *inputs, method="extend"))


def scores(q, k, q_positions, k_positions):
    distance = k_positions[:, None] - q_positions[:, :, None]
    return jnp.einsum("btnh,bsnh->bnts", q, k) + log_bias(jnp.ones(q.shape[2]), distance)


testing.check_causal_lm(apply, vocab_size=11, has_positions=True)
testing.check_positions(scores)
testing.check_cache(apply, extend, lambda rows: make_cache(config, rows, 9), vocab_size=11)
print("all laws hold")

# %% [markdown]
# It is lawful. Is it any good? Take one layer, and a text from a hidden Markov model: a hidden state, which changes
# rarely, makes some letters likely. To know the state, look at the letters before, and more at near ones than at far
# ones. The entropy of this text is known: no model can be better, so we measure the gap to it.

# %%
predict("The gap with the new scheme, as a share of the gap without positions?", low=0.35, high=0.65)

# %%
from course.fit import chain_text, fit, mean_loss, windows
from train.data.entropy import known_truth

text, characters = chain_text("hmm", "train", 40_000)
held_out = windows(chain_text("hmm", "val", 20_000)[0], 1, 256, 33, seed=1)[0]
floor = known_truth("hmm").nats(held_out).mean()
above = {}
for scheme in ("none", "logarithmic"):
    model = GPT(TransformerConfig(len(characters), 32, 1, 32, 4, positions=scheme, init_std=0.08, backend="reference"))
    params, _ = fit(model, windows(text, steps(300), 16, 33, seed()), peak_lr=5e-3, seed=seed())
    above[scheme] = mean_loss(model, params, held_out) - floor
    print(f"{scheme:12s} {above[scheme]:.3f} nats above the floor")
rates = jax.nn.softplus(params["params"]["stack"]["position_bias"]["rates"])
print("rates of the heads:", np.round(np.asarray(rates), 1))
outcome(above["logarithmic"] / above["none"])

# %% [markdown]
# Each head learned how fast the past fades. A scheme of ten lines has removed about half of what one layer without
# positions could not see.
#
# ## An attention function of your own
#
# The same with attention itself: `BACKENDS` has a name for each implementation. Here is one that never subtracts the
# maximum but halves the scores and squares the exponentials, which is the same on paper. Do the laws accept it?

# %%
import functools

from transformer_jax.nn.attention import BACKENDS, Backend, attend


def squared(q, k, v, mask, options):
    scores = jnp.einsum("btnh,bsnh->bnts", q * options.scale / 2, jnp.repeat(k, q.shape[2] // k.shape[2], axis=2))
    weights = jnp.exp(scores) ** 2
    may_attend = mask.block(0, q.shape[1], 0, k.shape[1])
    weights = weights if may_attend is None else jnp.where(may_attend[:, None], weights, 0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
    return jnp.einsum("bnts,bsnh->btnh", weights, jnp.repeat(v, q.shape[2] // v.shape[2], axis=2))


BACKENDS["squared"] = Backend(squared)
mine = functools.partial(attend, backend="squared")
q, k, v = (jnp.asarray(random.normal(size=(2, 5, 3, 8)), jnp.float32) for _ in range(3))
testing.check_twins(mine, functools.partial(attend, backend="reference"), q, k, v)
print("equal to the reference in values and gradients, for ordinary numbers")
try:
    testing.check_attention(mine)
except testing.LawBroken as broken:
    print("but:", broken)

# %% [markdown]
# It equals the formula until scores get large; then exp overflows. The law found in a second what a training run would
# have found after days, as a NaN. That is what laws are for.
#
# ## What has changed since 2017
#
# | the paper | since then | by | lesson |
# |---|---|---|---|
# | post-norm | pre-norm; norms on both sides | GPT-2, Gemma | 06 |
# | LayerNorm | RMSNorm | T5, Llama | 13 |
# | ReLU | GELU; gated: SwiGLU | GPT, BERT; Llama | 05, 13 |
# | sines added to embeddings | learned; rotary; biases | GPT, BERT; Llama; T5, ALiBi | 04, 11 |
# | embeddings times sqrt(d_model) | dropped, but in Gemma and Marian | | 04 |
# | as many key heads as query heads | grouped | Llama 2 and 3 | 03 |
# | encoder and decoder | one of them | BERT; GPT | 06 |
# | equation 3 | warmup, then cosine | GPT-3 | 10 |
#
# What has not changed: equation 1, heads, the residual, two thirds of a block in the feed-forward layer. GPT-2 and
# GPT-3 are the right half of figure 1 without the middle part, with learned positions and pre-norm (Radford et al.
# 2019, section 2.3; Brown et al. 2020, section 2.1: every other layer sparse).
#
# ## Where to go from here
#
# - **Read the next paper the same way**: an equation, six lines of NumPy, a law, a comparison with numbers of others.
# - **Move between frameworks**: kernels are `[in, out]` here and `[out, in]` in PyTorch's `Linear`. The tables in
#   [huggingface/families](../transformer_jax/huggingface/families) name each tensor in both worlds.
# - **Fine-tune**: lesson 15, and `tj.from_pretrained` for any folder of seven families.
# - **Contribute**: [CONTRIBUTING.md](../CONTRIBUTING.md); the table "What to change where" of
#   [ARCHITECTURE.md](../ARCHITECTURE.md) says which tests answer.
#
# ## Change it
#
# 1. Misread the paper: in `positions`, give the cosine the exponent of the next sine. Which of the two tests notices?
# 2. In `decoder`, forget the mask (`past`). By how much do the logits differ from PyTorch's, in powers of ten?
# 3. Replace `log1p(|distance|)` by `sqrt(|distance|)`. Are the laws still kept? Does it learn better?
#
# ## Check yourself
#
# **Which lines of the NumPy model let information pass from one token to another?**
#
# <details><summary>Answer</summary>
#
# Only `weights @ v` in `attention`. All other lines work on each token alone.
#
# </details>
#
# **Three attentions in figure 1: what are queries, keys and values, and what is the mask?**
#
# <details><summary>Answer</summary>
#
# Encoder: all three from the source, no mask but padding. Decoder: all three from the target, only the past. Cross:
# queries from the target, keys and values from the encoder's output, no mask but padding of the source.
#
# </details>
#
# **The NumPy model equals the library to 1e-6. Why was the PyTorch test needed?**
#
# <details><summary>Answer</summary>
#
# Both were written by people who read the paper in the same way. Only numbers from elsewhere can show a shared
# misunderstanding.
#
# </details>
#
# **Why does a new position scheme need no new test here?**
#
# <details><summary>Answer</summary>
#
# Laws say what holds for every scheme: causality, padding, caching, shifts. Tests run over the dict, so an entry is
# tested as soon as it is there. What laws cannot say is whether it is good: for that we trained.
#
# </details>
#
# ## Exercise
#
# [exercise_14_find_the_bug.py](exercises/exercise_14_find_the_bug.py): twelve functions with a bug each, and the laws
# to find it. `python -m lessons check 14`.
#
# ## Where it lives
#
# | paper | library |
# |---|---|
# | equation 1 | [nn/attention.py](../transformer_jax/nn/attention.py): `attend`, `attention_weights` |
# | section 3.2.2 | the same file: `Attention` |
# | section 3.2.3 | [nn/masks.py](../transformer_jax/nn/masks.py): `causal`, `padding` |
# | equation 2, section 3.4 | [nn/layers.py](../transformer_jax/nn/layers.py): `FeedForward`, `Embedding` |
# | section 3.5 | [nn/positions.py](../transformer_jax/nn/positions.py): `sinusoid` |
# | section 3.1 | [nn/blocks.py](../transformer_jax/nn/blocks.py): `Block` |
# | figure 1 | [models/seq2seq.py](../transformer_jax/models/seq2seq.py): `Seq2Seq` |
# | equation 3 | [train/optimizer.py](../train/optimizer.py): `SCHEDULES`, without this one |
# | section 5.4, dropout | [nn/dropout.py](../transformer_jax/nn/dropout.py) |
# | section 5.4, label smoothing | [train/losses.py](../train/losses.py): `cross_entropy` |
# | section 6.1 | [sampling](../transformer_jax/sampling): beam search with length penalty |
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
# - Junczys-Dowmunt et al. 2018, [Marian: Fast Neural Machine Translation in C++](https://arxiv.org/abs/1804.00344).
# - Chi et al. 2022, [KERPLE: Kernelized Relative Positional Embedding](https://arxiv.org/abs/2205.09921).
# - Brown et al. 2020, [Language Models are Few-Shot Learners](https://arxiv.org/abs/2005.14165).
#
# This was the last lesson. [The first one](00_jax_in_ten_minutes.md) is where to send a friend.
