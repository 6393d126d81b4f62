# %% [markdown]
# # 06 Transformer architecture
#
# For readers of lessons 01 to 05. About 3 hours with the exercise.
#
# After this lesson you can
#
# - write a Transformer block with the norm after, before and beside its parts, and say what each choice does;
# - put the whole of a GPT together, and draw it from memory;
# - tell the three families apart (encoder, decoder, encoder-decoder) by what sees what;
# - count the parameters of a real model from seven numbers, and say where they are.
#
# Papers: Vaswani et al. 2017, "Attention Is All You Need", sections 3.1 to 3.4; Xiong et al. 2020, "On Layer
# Normalization in the Transformer Architecture"; Radford et al. 2019 (GPT-2); Brown et al. 2020 (GPT-3).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import heatmap, outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## The five components
#
# The key insight of this lesson: a Transformer is **one block, repeated**. You have seen all that a block is made of:
#
# | component | what it does to the vectors `[B, T, D]` | lesson |
# |---|---|---|
# | embedding with positions | a token becomes a vector that says what it is and where | 04 |
# | multi-head attention | moves information **between** tokens | 01, 02, 03 |
# | feed-forward layer | computes **within** each token | 05 |
# | residual connection | adds a part's result to what was there | 05 |
# | layer norm | keeps the size of the vectors | 05 |
#
# One attention and one feed-forward layer, with their residuals and norms, are a **block**. A model is a stack of
# blocks. All blocks have the same shape and different parameters.
#
# A picture that helps: the vector of a token is a page of notes which is handed through the stack. Each block reads the
# page, and the pages of others, and adds some lines. Where the picture fails: nothing is written below something else.
# The lines are added up in the same D numbers, and a block may also cancel what an earlier one wrote.

# %% [markdown]
# ## The block in NumPy
#
# First the two parts, short, for one text `[T, D]`. `p` holds the parameters.


# %%
def norm(x, p):
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attention(x, p):
    q, k, v = (np.einsum("td,dnh->nth", x, p[name]["kernel"]) for name in ("query", "key", "value"))
    past = np.tril(np.ones((len(x), len(x)), bool))
    e = np.where(past, np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])), 0)  # [N, T, T]
    return np.einsum("nth,nhd->td", e / e.sum(-1, keepdims=True) @ v, p["out"]["kernel"])


def feed_forward(x, p):
    return np.maximum(x @ p["up"]["kernel"], 0) @ p["down"]["kernel"]


# %% [markdown]
# Now the block. The first paper (section 3.1) puts a norm after each sum, so it is called **post-norm**:
#
# $$ x \leftarrow \mathrm{LayerNorm}(x + \mathrm{Sublayer}(x)) $$


# %%
def post_norm_block(x, p):
    x = norm(x + attention(x, p["attention"]), p["attention_norm"])
    return norm(x + feed_forward(x, p["feed_forward"]), p["feed_forward_norm"])


# %% [markdown]
# GPT-2 and nearly all later models normalize what a part **reads**. This is **pre-norm** (Xiong et al. 2020, figure 1):
#
# $$ x \leftarrow x + \mathrm{Sublayer}(\mathrm{LayerNorm}(x)) $$
#
# Nothing stands on the way of x itself. The vectors that flow through all blocks, only ever added to, are called the
# **residual stream**.


# %%
def pre_norm_block(x, p):
    x = x + attention(norm(x, p["attention_norm"]), p["attention"])
    return x + feed_forward(norm(x, p["feed_forward_norm"]), p["feed_forward"])


# %% [markdown]
# GPT-J (Wang & Komatsuzaki 2021) and PaLM let both parts read the same vectors, at the same time. This is the
# **parallel** block:
#
# $$ x \leftarrow x + \mathrm{Attention}(\mathrm{LayerNorm}(x)) + \mathrm{FeedForward}(\mathrm{LayerNorm}(x)) $$


# %%
def parallel_block(x, p):
    y = norm(x, p["attention_norm"])
    return x + attention(y, p["attention"]) + feed_forward(y, p["feed_forward"])


BLOCKS = {"post": post_norm_block, "pre": pre_norm_block, "parallel": parallel_block}

# %% [markdown]
# ## The block in the library
#
# The library has one class for all of them. A row of a table says where the norms are:

# %%
from transformer_jax.nn import blocks

for name, row in blocks.NORM_PLACEMENTS.items():
    print(f"{name:13s}", ", ".join(field for field, value in row._asdict().items() if value))

# %% [markdown]
# Two short methods read that row. This is the norm of a part's input:

# %%
show(blocks.Block._before)

# %% [markdown]
# And this adds what a part has found; only post-norm normalizes the sum:

# %%
show(blocks.Block._add)

# %% [markdown]
# ## A whole GPT
#
# Embedding with positions, the blocks, a last norm (post-norm blocks end in one already), and the output projection.
# The output projection is the embedding table again, transposed: the logit of a word is the product of its embedding
# with the vector that left the stack. Radford et al. 2019 take this from Press & Wolf 2017; it is called **tied**.


# %%
def gpt(tokens, p, placement):
    x = p["embed"]["tokens"]["embedding"][tokens]  # [T, D]
    x = x + p["embed"]["positions"]["embedding"][: len(tokens)]
    for i in range(NUM_LAYERS):
        x = BLOCKS[placement](x, p["stack"][f"block_{i}"])
    if placement != "post":
        x = norm(x, p["stack"]["norm"])
    return x @ p["embed"]["tokens"]["embedding"].T  # logits [T, V]


NUM_LAYERS = 3

# %% [markdown]
# Ten lines; but is it a GPT? We give it the parameters of the library's model, and compare.

# %%
import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Encoder, Seq2Seq, Seq2SeqConfig, parameter_shapes

random = np.random.default_rng(seed())


def random_params(model, std):
    """Parameters of a model, drawn with NumPy: normal kernels and embeddings, scales near 1, biases near 0."""

    def draw(path, shape):
        return (path[-1].key == "scale") + std * random.normal(size=shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))


no_bias = {"qkv_bias": False, "out_bias": False, "mlp_bias": False}
small = {"vocab_size": 50, "max_len": 16, "num_layers": NUM_LAYERS, "d_model": 32, "num_heads": 4} | no_bias
tokens = random.integers(0, 50, 12)
for placement in BLOCKS:
    model = GPT(TransformerConfig(**small, feed_forward="relu", norm_placement=placement))
    params = random_params(model, std=0.2)
    logits = jax.jit(model.apply)({"params": params}, tokens[None])[0]
    difference = np.abs(gpt(tokens, params, placement) - logits).max() / np.abs(logits).max()
    print(f"{placement:9s} largest difference from the library: {difference:.1e} of the largest logit")
    assert difference < 1e-5

# %% [markdown]
# ## A drawing that cannot be wrong
#
# Drawings of the Transformer are copied from paper to paper, and often the norm has moved on the way. So we do not draw
# by hand. Flax can call a function of ours whenever a module of the model is called (`intercept_methods`). We write
# down each call: its place in the tree, and the shape of the parameters it owns.

# %%
import flax.linen as nn


def calls_of(model, *inputs):
    """Calls of modules with parameters of their own, in order: (path in the tree, shape)."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    calls = []

    def note(next_function, args, kwargs, context):
        tree = shapes
        for name in context.module.path:
            tree = tree.get(name, {}) if isinstance(tree, dict) else {}
        leaf = next((tree[name] for name in ("kernel", "scale", "embedding") if name in tree), None)
        if leaf is not None and context.method_name in ("__call__", "unembed"):
            calls.append((*context.module.path, context.method_name, leaf.shape))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return calls


for *path, method, shape in calls_of(GPT(TransformerConfig(**small)), tokens[None])[:8]:
    print("/".join(path), method, shape)

# %% [markdown]
# Each line becomes a box, from the bottom to the top, in the order in which the model really computes. Blocks after the
# first look the same, so one is drawn. The sums are no modules: a circle marks each place where a part's
# result is added to the residual stream.

# %%
COLORS = {"embed": "#e69f00", "attention": "#0072b2", "feed_forward": "#009e73"}


def draw(axis, model, title):
    calls = [call for call in calls_of(model, tokens[None]) if not any(name in call for name in ("block_1", "block_2"))]
    blocks = [i for i, call in enumerate(calls) if "block_0" in call]
    axis.add_patch(
        plt.Rectangle((-0.06, min(blocks) - 0.1), 1.2, len(blocks) - 0.05, fill=False, color="gray", ls="--")
    )
    axis.text(1.16, np.mean(blocks) + 0.35, f"× {model.config.num_layers}", va="center", color="gray")
    for i, (*path, method, shape) in enumerate(calls):
        part = next((name for name in path if name in COLORS), "")
        axis.add_patch(plt.Rectangle((0, i), 1, 0.75, color=COLORS.get(part, "#999999"), alpha=0.35))
        name = (
            "output (the table again)"
            if method == "unembed"
            else " ".join(path[-2 if part and part != "embed" else -1 :])
        )
        axis.text(
            0.5, i + 0.36, f"{name.replace('_', ' ')}  {'×'.join(map(str, shape))}", ha="center", va="center", size=6.5
        )
        if path[-1] in ("out", "down"):
            axis.text(1.07, i + 0.36, "⊕", ha="center", va="center", size=11)
    axis.set(xlim=(-0.1, 1.4), ylim=(-0.3, 13.2), title=title)
    axis.axis("off")


fig, axes = plt.subplots(1, 3, figsize=(8.4, 4.2))
for axis, placement in zip(axes, BLOCKS, strict=True):
    draw(axis, GPT(TransformerConfig(**small, norm_placement=placement)), placement)
fig.tight_layout()
picture(
    "Three columns of boxes, read from the bottom: embedding, one block of norm, attention and feed-forward, output"
)

# %% [markdown]
# Read the gray boxes: these are the norms. In `post` they stand above each circle, in `pre` below each part, in
# `parallel` one serves both parts. Everything else is the same.
#
# ## Why the norm moved: gradients at the start
#
# Xiong et al. 2020 asked how large the gradient of each block is **before any training**. Take 16 blocks, with kernels
# drawn so that each part adds vectors about as large as the ones that came in. In pre-norm the residual stream grows:
# after n blocks its variance is about n times as large, so one more block changes less and less. Their theory says:
# in pre-norm, the gradient of a block shrinks with depth; in post-norm it stays large up to the output.
#
# We ask for the gradient of the first feed-forward kernel of each block.

# %%
predict(
    "Pre-norm, 16 blocks: how large is the gradient of the last block, as a share of that of the first?",
    low=0.25,
    high=0.5,
)

# %%
import optax

from transformer_jax.nn.blocks import Block
from transformer_jax.nn.masks import Mask

DEPTH, WIDTH, CAUSAL = 16, 48, Mask(is_causal=True)
text = random.integers(0, 27, (16, 33))
table = jnp.asarray(random.normal(size=(27, WIDTH)) / WIDTH**0.5, jnp.float32)


def loss(params, block, ends_in_norm):
    """Loss of a stack of blocks whose parameters have a first axis for the layer."""
    x = table[text[:, :-1]]
    x, _ = jax.lax.scan(lambda x, p: (block.apply({"params": p}, x, CAUSAL)[0], None), x, params)
    x = x if ends_in_norm else (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    logits = x @ table.T
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


def gradients(placement):
    """Size of the gradient of each block's first feed-forward kernel, [L], before any training: mean of 20 draws."""
    block = Block(TransformerConfig(27, 32, 1, WIDTH, 4, norm_placement=placement))
    shapes = jax.eval_shape(block.init, jax.random.key(0), table[text[:1]], CAUSAL)["params"]

    def draw(path, shape):
        if path[-1].key != "kernel":  # scales 1, biases 0
            return jnp.full((DEPTH, *shape.shape), path[-1].key == "scale", jnp.float32)
        return jnp.asarray(random.normal(size=(DEPTH, *shape.shape)) / WIDTH**0.5, jnp.float32)

    gradient = jax.jit(lambda p: jax.grad(loss)(p, block, placement == "post")["feed_forward"]["up"]["kernel"])
    draws = [gradient(jax.tree_util.tree_map_with_path(draw, shapes)) for _ in range(20)]
    return np.linalg.norm(draws, axis=(2, 3)).mean(0)


by_placement = {placement: gradients(placement) for placement in ("pre", "post")}
outcome(by_placement["pre"][-1] / by_placement["pre"][0])

# %% [markdown]
# It falls with depth, as the theory says, since the last block adds to a stream that is already large. Now post-norm.

# %%
predict("How many times larger is the last block's gradient in post-norm than in pre-norm?", low=3.5, high=7)

# %%
for placement, values in by_placement.items():
    plt.plot(range(1, DEPTH + 1), values, "o-", label=f"{placement}-norm", ms=3)
plt.xlabel("block, from the input to the output")
plt.ylabel("size of its gradient")
plt.ylim(0)
plt.legend()
picture(
    "Gradient by block: pre-norm falls from the first to the last block, post-norm stays and is far larger at the end"
)
outcome(by_placement["post"][-1] / by_placement["pre"][-1])

# %% [markdown]
# The first paper therefore starts with a tiny learning rate and raises it slowly (warmup, lesson 10): with post-norm, a
# large first step would throw the last blocks far off. Pre-norm needs less care, and so it is the usual choice today.
# It has a price of its own: late blocks change the large residual stream little. Placements after pre and post
# (`sandwich` in Gemma 2, `output` in OLMo 2) look for a middle way.
#
# ## Three families: what sees what
#
# The blocks of all Transformers are the same. Families differ in the **mask**, and in whether there is a second stack.
#
# | family | attention | trained to | examples | lesson |
# |---|---|---|---|---|
# | encoder | every token sees every token | fill in hidden words | BERT, RoBERTa: classify, tag, search | 07 |
# | decoder | a token sees itself and the past | predict the next word | GPT-2, GPT-3, Llama: write | 08 |
# | both | target sees its past and the whole source | write a target for a source | T5, BART, Marian: translate | 09 |
#
# The library loads these seven families of published models: GPT-2, Llama, BERT, RoBERTa, T5, BART, Marian. A careful
# word: the encoder is not "unmasked" in practice. It still may not look at padding.
#
# We do not believe the table. We measure: change one input token, and look which outputs change. A decoder with 6
# tokens has 6 × 6 pairs of an input and an output.

# %%
predict(
    "A decoder reads 6 tokens. Of the 36 pairs (input, output), in how many does the input change the output?", 21, 21
)

# %%
config = TransformerConfig(**small | {"num_layers": 2})


def influence(apply, *texts):
    """[T, number of inputs]: whether a change of an input token changes the output at t. Texts: one or two, [T]."""
    lengths = [len(text) for text in texts]
    joined = np.concatenate(texts)
    rows = np.tile(joined, (len(joined) + 1, 1))
    rows[np.arange(len(joined)), np.arange(len(joined))] += 1  # row s: input s is changed; the last row: none
    out = np.asarray(apply(*np.split(rows, np.cumsum(lengths)[:-1], axis=1)))
    return (out[:-1] != out[-1]).any(-1).T


def apply_of(model):
    params = jax.tree.map(jnp.asarray, random_params(model, std=0.2))
    return jax.jit(lambda *rows: model.apply({"params": params}, *rows))


source, target = tokens[:6] % 40, tokens[6:10] % 40
decoder = influence(apply_of(GPT(config)), source)
outcome(decoder.sum())

# %% [markdown]
# Six, and five, and four ... : that is the triangle of the causal mask. Now a translator: its source has 6 tokens, its
# target 4. The target's outputs see both.

# %%
predict(
    "An encoder-decoder: source of 6 tokens, target of 4. Of the 4 × 10 pairs, how many are connected?", low=34, high=34
)

# %%
encoder = influence(apply_of(Encoder(config)), source)
both = influence(apply_of(Seq2Seq(Seq2SeqConfig(config, config))), source, target)
fig, axes = plt.subplots(1, 3, figsize=(8, 2.7), width_ratios=(6, 6, 10))
for axis, seen, title in zip(axes, (encoder, decoder, both), ("encoder", "decoder", "encoder-decoder"), strict=True):
    axis.imshow(seen, vmin=0, vmax=1.4)
    axis.set(title=title, xlabel="input token", ylabel="output", xticks=range(seen.shape[1]), yticks=range(len(seen)))
axes[2].axvline(5.5, color="#d55e00")
axes[2].set_xlabel("source | target token")
fig.tight_layout()
picture("What sees what: the encoder everything, the decoder a triangle, both together the source and a triangle")
assert encoder.all()
outcome(both.sum())

# %% [markdown]
# ## Sizes of real models
#
# Seven numbers fix the size of a GPT: layers L, width D, feed-forward width F, heads, vocabulary V, context length, and
# whether the output is tied. Leaving small things out (norms, biases, positions):
#
# $$ \text{parameters} \approx L\,(4 D^2 + 2 D F) + V D $$
#
# Four kernels of D × D in attention (queries, keys, values, output), two of D × F in the feed-forward layer. With
# F = 4 D this is 12 L D² + V D.
#
# The library counts exactly, without allocating anything: it traces the shapes. A GPT-3 on your laptop, on paper only.


# %%
def parts_of(model):
    """Number of parameters by part: embedding (and output), attention, feed-forward, the rest (norms)."""
    counts = dict.fromkeys(("embedding", "attention", "feed-forward", "rest"), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(model)):
        names = [key.key for key in path]
        if "embed" in names or "shared" in names:
            part = "embedding"
        elif "attention" in names or "cross" in names:
            part = "attention"
        else:
            part = "feed-forward" if "feed_forward" in names else "rest"
        counts[part] += int(np.prod(leaf.shape))
    return counts


def decoder_of(vocab_size, max_len, num_layers, d_model, num_heads, **others):
    return GPT(TransformerConfig(vocab_size, max_len, num_layers, d_model, num_heads, **others))


bert = TransformerConfig(30522, 512, 12, 768, 12, norm_placement="post", embed_norm=True, num_token_types=2)
t5 = {"norm": "rmsnorm", "feed_forward": "relu", "positions": "t5", "mlp_bias": False, "qkv_bias": False}
t5 = TransformerConfig(32128, 512, 12, 768, 12, d_ff=3072, out_bias=False, **t5)
llama = {"norm": "rmsnorm", "feed_forward": "swiglu", "positions": "rotary", "tie_embeddings": False} | no_bias
MODELS = {
    "GPT-2 small": decoder_of(50257, 1024, 12, 768, 12),
    "GPT-2 XL": decoder_of(50257, 1024, 48, 1600, 25),
    "GPT-3 175B": decoder_of(50257, 2048, 96, 12288, 96),
    "Llama 2 7B": decoder_of(32000, 4096, 32, 4096, 32, d_ff=11008, **llama),
    "BERT base": Encoder(bert),
    "T5 base": Seq2Seq(Seq2SeqConfig(t5, t5)),
    "demo": decoder_of(4096, 128, 4, 128, 4, positions="rotary"),  # `make demo` of this project
}

# %% [markdown]
# Many pages say: "most parameters of a Transformer are in the feed-forward layers". In a block it is so: 8 D² of 12 D²,
# two thirds, whatever the size. But the embedding counts as well.

# %%
predict("GPT-2 small: what percentage of all its parameters is in the feed-forward layers?", low=45, high=46)

# %%
parts = {name: parts_of(model) for name, model in MODELS.items()}
totals = {name: sum(counts.values()) for name, counts in parts.items()}
shares = {name: {part: 100 * n / totals[name] for part, n in counts.items()} for name, counts in parts.items()}
outcome(shares["GPT-2 small"]["feed-forward"])

# %%
predict("And of GPT-3 175B?", low=66, high=67)

# %%
print("                        parameters  float32      by the formula      L      D      F  heads")
for name, model in MODELS.items():
    c = model.config.decoder
    formula = (c.num_layers * (4 * c.d_model**2 + 2 * c.d_model * c.d_ff)) + c.vocab_size * c.d_model
    formula = f"{formula / 1e6:13,.1f} M" if isinstance(model, GPT) and "Llama" not in name else " " * 15
    print(
        f"{name:22s}{totals[name] / 1e6:10,.1f} M{totals[name] * 4 / 1e9:8.2f} GB  {formula}"
        f"{c.num_layers:9d}{c.d_model:7d}{c.d_ff:7d}{c.num_heads:7d}"
    )
fig, axis = plt.subplots(figsize=(6.5, 2.8))
left = np.zeros(len(MODELS))
for part in ("embedding", "attention", "feed-forward", "rest"):
    widths = np.array([shares[name][part] for name in MODELS])
    axis.barh(list(MODELS), widths, left=left, label=part)
    left += widths
axis.invert_yaxis()
axis.set_xlabel("percent of all parameters")
axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.4, 1.2), frameon=False)
picture(
    "Shares of embedding, attention and feed-forward: the embedding is a third of GPT-2 small, nearly nothing of GPT-3"
)
outcome(shares["GPT-3 175B"]["feed-forward"])

# %% [markdown]
# So the saying is true of large models only. In small ones the embedding takes a large share: V D grows with the width,
# L D² with its square. In float32 a parameter takes 4 bytes, so a model of 10 million parameters is a file of 40 MB.
#
# Is the GPT that you have just written "the same architecture as GPT-3"? Yes, but for one thing: in GPT-3 every other
# layer looks at a local band of the past (Brown et al. 2020, section 2.1). What makes the difference is size, and
# data: 300 billion tokens were read (the same paper, table 2.1). Lesson 14 asks what size buys.

# %% [markdown]
# ## Attention from layer to layer
#
# What do blocks do with their depth? We train three of them on little stories. The second sentence follows from the
# first: who gives gets thanked.


# %%
NAMES, THINGS = "anna bob carl dora emil fay gus hana".split(), "ball book coat drum egg fish".split()
WORDS = [*NAMES, *THINGS, "gives", "the", "thanks", "for", "."]


def story(random):
    giver, taker = random.choice(NAMES, 2, replace=False)
    thing = random.choice(THINGS)
    return f"{giver} gives {taker} the {thing} . {taker} thanks {giver} for the {thing} .".split()


def stories(num_rows, first_seed):
    random = np.random.default_rng(first_seed)
    rows = [[".", *(word for _ in range(3) for word in story(random))] for _ in range(num_rows)]
    return np.array([[WORDS.index(word) for word in row] for row in rows])


num_steps = steps(450)
batches = stories(16 * num_steps, seed()).reshape(num_steps, 16, -1)
batches.shape  # steps, B, T + 1

# %% [markdown]
# Names and things are drawn at random: log 8, log 7 and log 6 nats a story. All other words are certain. So we know the
# smallest loss that is possible, and can see whether the model has learned all there is.

# %%
from course.fit import fit, mean_loss

model = GPT(TransformerConfig(len(WORDS), 39, 3, 32, 4, init_std=0.08, backend="reference"))
params, losses = fit(model, batches, peak_lr=5e-3, seed=seed())
floor = np.log(8 * 7 * 6) / 13
print(f"loss {mean_loss(model, params, stories(200, 10**6)):.3f} nats a word, the floor {floor:.3f}")

# %% [markdown]
# Now look inside, while it reads a story that it has never seen. `capture` records any array in the model by name.

# %%
import transformer_jax as tj

run = tj.Run(model, params["params"], None, model.config)
text = ". dora gives emil the drum . emil thanks dora for the".split()
ids = np.array([[WORDS.index(word) for word in text]])
weights = [np.asarray(w)[0] for w in tj.capture(run, ids, "block_*/attention/weights").values()]  # each [N, T, T]
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for i, axis in enumerate(axes):
    heatmap(weights[i].mean(0), text, text, f"layer {i + 1}, mean of heads", axis)
    axis.set_xlabel("looked at")
axes[0].set_ylabel("looking")
fig.tight_layout()
for i, w in enumerate(weights):
    distance = np.arange(len(text))[:, None] - np.arange(len(text))
    entropy = -(w * np.log(w + 1e-9)).sum(-1).mean()
    print(
        f"layer {i + 1}: looks {(w * distance).sum(-1).mean():.1f} words back, spread over {np.exp(entropy):.1f} words"
    )
picture(
    "Mean attention of each of three layers for a story of twelve words: three triangles, darkest in the first rows; "
    "in the last rows it is spread over nearly all words"
)

# %% [markdown]
# After "for the" must come the thing that was given. It stands six words before the last "the". Somewhere a head has to
# look there.

# %%
predict(
    "What is the largest weight that any head of any layer puts on 'drum', reading the last word?", low=0.5, high=1.0
)

# %%
to_drum = np.array([w[:, -1, text.index("drum")] for w in weights])  # [L, N]
print("weight on 'drum', layers by heads:")
print(to_drum.round(2))
outcome(to_drum.max())

# %% [markdown]
# The look-up is done by a head which found out, from examples alone, how far back the answer stands. The table
# shows in which layer. The other heads have less to do in this small world: many look everywhere, and add little. That
# is common: not every head of a trained model matters (lesson 16 switches heads off and measures).
#
# ## Change it
#
# 1. In `draw`, take `norm_placement="sandwich"`. How many gray boxes has a block now?
# 2. Set `DEPTH` to 64. By what factor does the gradient of the last block of pre-norm change? The theory says: by the
#    root of 4.
# 3. In the story, let the verb decide: "gives ... thanks", "sells ... pays". What does the floor become, and how far
#    back must a head look for the verb?
#
# ## Check yourself
#
# **Where does a pre-norm GPT have norms?**
#
# <details><summary>Answer</summary>
#
# Two in each block, before attention and before the feed-forward layer, and one after the last block. The last one is
# needed: the residual stream has grown, and nothing has normalized it.
#
# </details>
#
# **A GPT has L = 24, D = 1,024, F = 4,096, V = 50,257. About how many parameters?**
#
# <details><summary>Answer</summary>
#
# 12 · 24 · 1,024² + 50,257 · 1,024 is 302 million + 51 million: about 353 million. It is GPT-2 medium.
#
# </details>
#
# **Which part of a Transformer lets one token know of another?**
#
# <details><summary>Answer</summary>
#
# Attention, and nothing else. Norms, feed-forward layers, embedding and output work on each token alone. So an
# architecture's family is decided by its mask.
#
# </details>
#
# **Why can an encoder not write text word by word, as a decoder does?**
#
# <details><summary>Answer</summary>
#
# It was trained to see both sides of a word. While writing, the right side does not exist yet; and each new word would
# change the vectors of all earlier ones, so that everything had to be computed again.
#
# </details>
#
# ## Exercise
#
# [exercise_03_transformer.py](exercises/exercise_03_transformer.py): put twelve parts of a Transformer in order, then
# write the five classes of a GPT in Flax. `python -m lessons check 03`. Before you open it: draw a pre-norm GPT on
# paper, from memory. Two examples in NumPy alone: [the block](examples/example_05_transformer_block.py), and
# [a whole GPT with its gradient by hand](examples/example_06_mini_gpt.py).
#
# ## Where it lives
#
# [nn/blocks.py](../transformer_jax/nn/blocks.py): `NORM_PLACEMENTS`, `Block`, `Stack`.
# [models/gpt.py](../transformer_jax/models/gpt.py), [models/encoder.py](../transformer_jax/models/encoder.py),
# [models/seq2seq.py](../transformer_jax/models/seq2seq.py): the three families.
# [config.py](../transformer_jax/config.py): the numbers that fix a model.
#
# ## Papers
#
# - Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.
# - Xiong et al. 2020, [On Layer Normalization in the Transformer Architecture](https://arxiv.org/abs/2002.04745).
# - Press & Wolf 2017, [Using the Output Embedding to Improve Language Models](https://arxiv.org/abs/1608.05859).
# - Brown et al. 2020, [Language Models are Few-Shot Learners](https://arxiv.org/abs/2005.14165), sections 2.1 and 2.2.
# - Raffel et al. 2020, [Exploring the Limits of Transfer Learning](https://arxiv.org/abs/1910.10683), section 2.1 (T5).
#
# Next: [07 Full Transformer encoder](07_full_transformer_encoder.md)
