# %% [markdown]
# # 15 Fine-tuning
#
# About two hours. For a reader of lessons [08](08_transformer_decoder.md) and [10](10_transformer_training.md).
#
# Hardly anyone trains a large model from the start. One takes a model that somebody has trained, and adapts it to texts
# of one's own. This lesson adapts one small model in five ways: all parameters, the last block alone, LoRA, a prefix,
# and a prompt. It measures what each learns, and what each forgets.
#
# After this lesson you can
# - write LoRA in four lines, and prove that it starts as the base and can be merged into it;
# - count what each method trains;
# - say what fine-tuning does to what the model knew before;
# - choose a method for a given task.
#
# Papers: Hu et al. 2021, [LoRA](https://arxiv.org/abs/2106.09685) (section 4.1); Li & Liang 2021,
# [Prefix-Tuning](https://arxiv.org/abs/2101.00190); Lester et al. 2021, [prompt
# tuning](https://arxiv.org/abs/2104.08691).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

random = np.random.default_rng(seed())

# %% [markdown]
# ## 1. LoRA in NumPy
#
# A linear layer computes $y = x W$. Fine-tuning changes $W$ to $W + \Delta W$, with as many numbers in $\Delta W$ as in
# $W$. LoRA (**lo**w-**r**ank **a**daptation) allows only changes that are a product of two thin matrices:
#
# $$W' = W + \frac{\alpha}{r} A B, \qquad A: [D, r], \quad B: [r, F]$$
#
# The paper has vectors as columns and so writes $W + B A$; here vectors are rows, as everywhere in this project. Only
# $A$ and $B$ are trained. $A$ starts with random numbers, $B$ with zeros.

# %%
D, F, r, alpha = 6, 10, 2, 4.0
W = random.normal(size=(D, F))
A = random.uniform(-1, 1, (D, r)) / np.sqrt(D)  # lora_in
B = np.zeros((r, F))  # lora_out


def lora(x, W, A, B, scale):  # x: [R, D]
    return x @ W + scale * (x @ A) @ B


x = random.normal(size=(5, D))
assert np.array_equal(lora(x, W, A, B, alpha / r), x @ W)  # starts as the base, to the bit

# %% [markdown]
# With $B = 0$ nothing changes, so training starts from exactly the pretrained model. Why not zeros for both? The
# gradient of $A$ is a product with $B$, and that of $B$ a product with $A$: with two zeros, neither would ever move.
#
# After some training $B$ is no longer zero. Then both can be **merged**: the layer gets one kernel again, and costs
# nothing more than before.

# %%
B = random.normal(size=(r, F))  # as if it had been trained
merged = W + alpha / r * A @ B
assert np.allclose(lora(x, W, A, B, alpha / r), x @ merged)
print("singular values of the change:", np.linalg.svd(merged - W, compute_uv=False).round(3))

# %% [markdown]
# Only $r$ of the singular values are not zero: the change has rank $r$. How much smaller is the adapter?

# %%
predict(
    "A kernel of 768 x 768, as in GPT-2, and r = 8. How many percent of its numbers does LoRA train?", low=2, high=2.2
)

# %%
outcome(100 * (768 * 8 + 8 * 768) / 768**2)

# %% [markdown]
# ## 2. The library's adapters
#
# In the library an adapter lies beside the parameters, not in them. A layer that finds one adds its part. Merging is
# this function, for LoRA and its relatives DoRA (`magnitude`) and IA3:

# %%
import jax
import jax.numpy as jnp

from transformer_jax.nn import adapters

show(adapters.merge_weight)

# %%
adapter = {"lora_in": jnp.asarray(A), "lora_out": jnp.asarray(B), "scale": jnp.array([alpha / r])}
beside = adapters.add_low_rank(adapter, jnp.asarray(x), jnp.asarray(x @ W), jnp.asarray(W), num_rows=1)
assert np.allclose(beside, lora(x, W, A, B, alpha / r), atol=1e-5)
assert np.allclose(adapters.merge_weight(adapter, jnp.asarray(W)), merged, atol=1e-5)

# %% [markdown]
# ## 3. A base, and a new text
#
# The base is a small GPT that learns bracketed arithmetic. The new text comes from the same rules with other habits:
# many square brackets, many divisions, many signs, and `z` where the old one has `1`. We know the probabilities
# behind both, so both have an exact floor.

# %%
from course.fit import chain_text, fit, next_token_loss, windows
from train.data.entropy import Grammar, known_truth
from transformer_jax import TransformerConfig
from transformer_jax.models import GPT

old = known_truth("grammar")
new = Grammar(
    atoms={"1": 0.05, "2": 0.1, "3": 0.3, "x": 0.05, "y": 0.2, "z": 0.3},
    operators={"+": 0.1, "-": 0.1, "*": 0.3, "/": 0.5},
    brackets={"()": 0.2, "[]": 0.8},
    more=(0.4, 0.5, 0.6, 0.3),
    open=(0.2, 0.3, 0.4, 0.0),
    minus=0.2,
).truth()
T = 32
old_text, characters = chain_text("grammar", "train", 200_000)
new_text, new_val = (
    np.array([characters.index(c) for c in new.draw(length, (seed(), length))]) for length in (50_000, 20_000)
)
old_test = windows(chain_text("grammar", "val", 20_000)[0], 1, 256, T + 1)[0]  # [B, T + 1]
new_test = windows(new_val, 1, 256, T + 1)[0]
floors = old.nats(old_test).mean(), new.nats(new_test).mean()
print("old:", "".join(characters[i] for i in old_text[:60]).split("\n")[1:])
print("new:", "".join(characters[i] for i in new_text[:60]).split("\n")[1:])

# %%
model = GPT(
    TransformerConfig(
        vocab_size=len(characters),
        max_len=2 * T,
        num_layers=2,
        d_model=32,
        num_heads=4,
        positions="rotary",
        norm="rmsnorm",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        init_std=0.1,
    )
)
variables, _ = fit(model, windows(old_text, steps(700), 16, T + 1, seed()), peak_lr=5e-3, seed=seed())
base = variables["params"]


def gaps(apply):
    """Nats above the floor, on the old text and on the new one."""
    loss = jax.jit(lambda batch: next_token_loss(apply, batch))
    return np.array([float(loss(test)) - floor for test, floor in zip((old_test, new_test), floors, strict=True)])


of_base = gaps(lambda tokens: model.apply({"params": base}, tokens))
print(f"the base on the old text: {of_base[0]:.3f} nats above the floor")

# %%
predict("And on the new text, whose rules are the same and whose habits differ?", low=0.35, high=0.75)

# %%
outcome(of_base[1])

# %% [markdown]
# It reads brackets well, and expects the wrong ones. That is what fine-tuning is for.
#
# ## 4. Five ways
#
# Each method is a function from *trained numbers* to the *variables of the model*. All else stays as it is. With that,
# one training loop serves all five: 200 steps of eight lines.

# %%
from transformer_jax.models.adapters import variables_of, with_adapter
from transformer_jax.models.prefix import all_variables


class Adapted:
    """The model with some numbers trained, and the others fixed."""

    def __init__(self, variables):
        self.variables = variables  # trained numbers -> variables of the model

    def apply(self, trained, tokens):
        return model.apply(self.variables(trained), tokens)


batches = windows(new_text, steps(200), 8, T + 1, seed())
table = {}


def fine_tune(name, variables, first, peak_lr):
    """Train from the first values, and note the size and both gaps."""
    trained, _ = fit(Adapted(variables), batches, params=first, peak_lr=peak_lr)
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(trained))
    table[name] = num_trained, gaps(lambda tokens: model.apply(variables(trained), tokens))
    return trained


# %% [markdown]
# **Full**: every parameter. **Freezing**: the last block alone; the gradient need not go further down.

# %%
full = fine_tune("full", lambda params: {"params": params}, base, 1e-2)


def with_last_block(block):
    return {"params": base | {"stack": base["stack"] | {"block_1": block}}}


fine_tune("last block", with_last_block, base["stack"]["block_1"], 1e-2)
for name, (number, (_, gap)) in table.items():
    print(f"{name:12s}{number:7,} numbers trained, {gap:.3f} nats above the floor of the new text")

# %% [markdown]
# **LoRA**, rank 4, at all linear layers of the blocks. `scale` is a constant, so we take it out of what is trained.

# %%
from train.adapter_config import AdapterConfig
from train.adapters import adapter_spec, first_adapter


def first_values(config):
    return first_adapter(model, adapter_spec(model, config), config, jax.random.key(seed()), base)


def without_scale(layer):
    return {name: without_scale(x) if isinstance(x, dict) else x for name, x in layer.items() if name != "scale"}


def with_scale(layer):
    if "lora_in" in layer:
        return {**layer, "scale": jnp.array([8.0 / 4])}  # alpha / r
    return {name: with_scale(child) for name, child in layer.items()}


def with_lora(layers):
    return variables_of(with_adapter(base, with_scale(layers)))


first = without_scale(first_values(AdapterConfig(kind="lora", rank=4, alpha=8.0, where="all-linear")))
same = model.apply(with_lora(first), new_test[:2]) == model.apply({"params": base}, new_test[:2])
assert same.all()  # an adapter that is not trained yet changes nothing, to the bit

# %%
predict(
    "Full fine-tuning lowers the gap by some amount. Which share of that does LoRA reach, with a fifth of the numbers?",
    low=0.88,
    high=1.03,
)

# %%
layers = fine_tune("LoRA", with_lora, first, 1e-2)


def gain(name):  # share of full fine-tuning's
    return (of_base[1] - table[name][1][1]) / (of_base[1] - table["full"][1][1])


outcome(gain("LoRA"))

# %% [markdown]
# Merged, it is an ordinary model again. `merge` of the library does to the whole tree what `merge_weight` does to a
# layer:

# %%
from transformer_jax.models.adapters import merge

merged = merge(base, with_scale(layers))
beside = model.apply(with_lora(layers), new_test[:4])
assert np.allclose(model.apply({"params": merged}, new_test[:4]), beside, atol=1e-3)

# %% [markdown]
# **Prefix**: no kernel changes at all. Eight positions before every text get trained keys and values, in every layer.
# **Prompt**: the same, but only eight trained vectors in place of embedded tokens; the model computes the rest
# itself. Both need much larger learning rates.

# %%
predict("A prompt of eight vectors: which share of the gain of full fine-tuning?", low=-0.02, high=0.15)

# %%
for kind in ("prefix", "prompt"):
    fine_tune(
        kind,
        lambda p: all_variables(model, with_adapter(base, p)),
        first_values(AdapterConfig(kind=kind, num_tokens=8)),
        0.3,
    )
for name, (number, (_, gap)) in table.items():
    print(f"{name:12s}{number:7,} numbers trained   gap {gap:.3f}   share of the gain {gain(name):.2f}")
outcome(gain("prompt"))

# %% [markdown]
# A prompt can only say things to the model that the model understands already. Ours was never told what a style is:
# nothing in its training told it to look at the beginning of a text and to write accordingly. Large models have learned
# to do that, and there prompts catch up with full fine-tuning (Lester et al. 2021, figure 1).
#
# An analogy: LoRA is a thin layer of paint on the machine, a prompt is a note to the person who works it. It fails in
# one point: paint does not change what a machine computes; LoRA does, in every layer.
#
# ## 5. What is forgotten
#
# The new text is learned. What became of the old one?

# %%
predict("After full fine-tuning on the new text: how many nats above the floor is the old text?", low=0.4, high=0.9)

# %%
names = ["base", *table]
results = np.array([of_base, *(result for _, result in table.values())])  # [methods, 2]
place = np.arange(len(names))
plt.bar(place - 0.2, results[:, 0], 0.4, label="old text")
plt.bar(place + 0.2, results[:, 1], 0.4, label="new text")
plt.xticks(place, names)
plt.ylabel("nats above the floor")
plt.legend()
picture(
    "Bars for the base and five methods: the gap on the old text and on the new one. Full, last block and LoRA "
    "swap the two: low on the new text, high on the old one"
)
outcome(table["full"][1][0])

# %% [markdown]
# The model has swapped one set of habits for the other: *catastrophic forgetting*. The more a method learns here, the
# more it forgets, LoRA included. But an adapter lies *beside* the base. Take it away, and the old model is there, to
# the bit. One base with ten adapters serves ten tasks, even in one batch. That, and the memory of gradients and
# optimizer, is why adapters are used; not because they learn better.
#
# ## 6. Why a low rank is enough
#
# LoRA assumes that the change that a task needs has a low rank. We have a full fine-tuning at hand: look at the change
# of its kernels.

# %%
predict(
    "Of the change of a 32 x 128 kernel in full fine-tuning: which share of the squares do the 4 largest of 32 "
    "singular values hold?",
    low=0.5,
    high=0.95,
)

# %%
shares = []
for block in ("block_0", "block_1"):
    kernels = (params["stack"][block]["feed_forward"]["up"]["kernel"] for params in (full, base))
    change = np.subtract(*map(np.asarray, kernels))  # [D, F]
    sigma = np.linalg.svd(change, compute_uv=False)
    shares.append((sigma[:4] ** 2).sum() / (sigma**2).sum())
    plt.plot(range(1, 33), np.cumsum(sigma**2) / (sigma**2).sum(), "o-", markersize=3, label=f"{block}, up")
plt.axvline(4, color="gray", linewidth=1)
plt.xlabel("number of singular values, from the largest")
plt.ylabel("share of the squared change")
plt.legend()
picture(
    "Share of the squared change of two kernels that the largest singular values hold: the curve rises fast and "
    "then flattens; a gray line marks four"
)
outcome(np.mean(shares))

# %% [markdown]
# Four of 32 directions hold much more than their eighth. The base knows most of what the new text needs; the change
# only turns some of it up and some down.
#
# ## Change it
# - `rank=1` in place of 4, then `rank=16`: how does the gain change? And `alpha` with it?
# - `peak_lr` of LoRA from 1e-2 to 1e-1. What happens, and why are adapters said to need larger rates than all
#   parameters?
# - Mix old lines into `batches`, half and half. How much is forgotten then, and what does it cost on the new text?
#
# ## Check yourself
#
# 1. Why is B zero and A random at the start, and not both random?
#
# <details><summary>Answer</summary>
#
# With both random, A B is a random change: the model would start worse than the base. With B zero it starts as the
# base, and B has a gradient at once, since A is not zero.
#
# </details>
#
# 2. How much slower is a merged model than the base?
#
# <details><summary>Answer</summary>
#
# Not at all: its kernels have the shapes of the base's. Unmerged, each adapted layer has two thin products more.
#
# </details>
#
# 3. Your customer has 40 tasks and one accelerator. What do you propose?
#
# <details><summary>Answer</summary>
#
# One base in memory, an adapter for each task. Rows of one batch can have different adapters (`adapter_names` in
# [docs/huggingface.md](../docs/huggingface.md)); merging would need 40 copies of the model.
#
# </details>
#
# 4. alpha = 16 and r = 8. You go to r = 16 and keep alpha. What happens to the factor?
#
# <details><summary>Answer</summary>
#
# It falls from 2 to 1. The division keeps the size of the change about the same for any rank, so that the learning rate
# can stay.
#
# </details>
#
# ## Exercise
# [exercise_13_lora.py](exercises/exercise_13_lora.py): LoRA forward, its start, merging, counting, and the best
# low-rank change. `python -m lessons check 13`
#
# ## Where it lives
# - [transformer_jax/nn/adapters.py](../transformer_jax/nn/adapters.py): LoRA, DoRA and IA3 of one layer
# - [transformer_jax/models/adapters.py](../transformer_jax/models/adapters.py): of a whole model; `merge`
# - [transformer_jax/models/prefix.py](../transformer_jax/models/prefix.py): prefixes and prompts
# - [train/adapters.py](../train/adapters.py): which layers, and first values
# - [docs/fine_tuning.md](../docs/fine_tuning.md): pretrained models of Hugging Face, all commands, a table of eight
#   methods with memory and time
#
# ## Papers
# - Hu et al. 2021, [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685)
# - Li & Liang 2021, [Prefix-Tuning](https://arxiv.org/abs/2101.00190)
# - Lester et al. 2021, [The Power of Scale for Parameter-Efficient Prompt Tuning](https://arxiv.org/abs/2104.08691)
# - Aghajanyan et al. 2020, [Intrinsic Dimensionality](https://arxiv.org/abs/2012.13255): why few directions are enough
# - Liu et al. 2024, [DoRA](https://arxiv.org/abs/2402.09353); Liu et al. 2022, [IA3](https://arxiv.org/abs/2205.05638)
#
# Next: [16 Looking inside](16_looking_inside.md)
