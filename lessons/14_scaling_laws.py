# %% [markdown]
# # 14 Scaling laws
#
# About an hour and a half. For a reader of lesson [10](10_transformer_training.md): you know what a loss in nats is,
# and that a text of known entropy has a floor which no model can pass.
#
# Twice the parameters, twice the text: how much better? If losses fall along a simple curve, a ladder of small, cheap
# models can tell what a large one will do *before* it is trained. That is how large models are planned.
#
# After this lesson you can
# - train a ladder of models that differ in nothing but size and budget;
# - fit a power law, and predict a model that was held out;
# - say why the floor has to be known, or fitted, and how badly that can go;
# - split a given amount of compute between parameters and text.
#
# Papers: Kaplan et al. 2020, [Scaling Laws for Neural Language Models](https://arxiv.org/abs/2001.08361) (section 1.2);
# Hoffmann et al. 2022, [Training Compute-Optimal Large Language Models](https://arxiv.org/abs/2203.15556), known as
# "Chinchilla" (section 3.3).

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, steps

# %% [markdown]
# ## 1. A power law is a line on logarithmic axes
#
# Let $N$ be the number of parameters. (In this lesson $N$, and $D$ for the tokens of training, are the letters of the
# scaling papers, not heads and width.) The law says: of what can still be gained, a model keeps
#
# $$L(N) - E = \frac{A}{N^\alpha}$$
#
# $L$ is the loss, $E$ the floor: the entropy of the text. Take logarithms, and it is a straight line with slope
# $-\alpha$:
#
# $$\log(L - E) = \log A - \alpha \log N$$
#
# Three lines of NumPy fit it:


# %%
def fit_line(numbers, gaps):  # [sizes], [sizes] -> A, alpha
    slope, intercept = np.polyfit(np.log(numbers), np.log(gaps), 1)
    return np.exp(intercept), -slope


A, alpha = fit_line(np.array([100, 1000]), np.array([0.4, 0.2]))
print(f"ten times the parameters, half the gap: alpha = {alpha:.3f}, log10(2) = {np.log10(2):.3f}")
assert np.isclose(A / 10_000**alpha, 0.1)

# %% [markdown]
# ## 2. A ladder
#
# The text comes from a hidden Markov process: a machine with eight hidden states, each of which prefers some letters.
# To predict well, a model has to guess the state from the letters so far. The process is known, so its entropy is known
# too; the library computes it exactly. On a real text nobody knows $E$.

# %%
from course.fit import chain_text, next_token_loss, windows
from train.data.entropy import known_truth

T, batch_size = 32, 16
text, characters = chain_text("hmm", "train", 1_000_000)
test = windows(chain_text("hmm", "val", 40_000)[0], 1, 512, T + 1)[0]  # [B, T + 1]
floor = known_truth("hmm").nats(test).mean()
print(f"{len(characters)} letters. Guessing: {np.log(len(characters)):.3f} nats, the floor: {floor:.3f} nats")

# %% [markdown]
# Four sizes, one layer each, 4 to 32 wide; three budgets of training steps. The rules of a fair ladder:
# - the runs differ in size and budget only;
# - each run has a learning-rate schedule of its own length, from warmup to nearly zero. A longer run that was stopped
#   in the middle is no short run: its learning rate is still high (this error bent the first laws of 2020);
# - a wider model has a smaller learning rate, here by one over the root of the width;
# - the text is three times as long as the longest run, so that little is read twice.
#
# The number of steps is an argument of the compiled loop, so that each size is compiled once.

# %%
import jax
import jax.numpy as jnp
import optax

from transformer_jax import TransformerConfig
from transformer_jax.models import GPT

budgets = [steps(150), steps(300), steps(600)]
data = jnp.asarray(windows(text, max(budgets), batch_size, T + 1, seed()))  # [steps, B, T + 1]


def learning_rate(share, width):  # share of the run that is over, 0 to 1
    warmup = jnp.minimum(share / 0.1, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((share - 0.1) / 0.9, 0, 1)))
    return 0.01 * np.sqrt(8 / width) * warmup * (0.1 + 0.9 * cosine)


def train(width):
    """Loss above the floor for each budget, and the number of parameters."""
    model = GPT(
        TransformerConfig(
            vocab_size=len(characters),
            max_len=T,
            d_model=width,
            num_layers=1,
            num_heads=max(1, width // 8),
            positions="rotary",
            norm="rmsnorm",
            init_std=0.1,
        )
    )
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99))

    def loss(params, batch):
        return next_token_loss(lambda tokens: model.apply(params, tokens), batch)

    @jax.jit
    def run(params, num_steps):
        def step(i, state):
            params, memory = state
            direction, memory = adam.update(jax.grad(loss)(params, data[i]), memory)
            rate = learning_rate((i + 1) / num_steps, width)
            return jax.tree.map(lambda p, d: p - rate * d, params, direction), memory

        params, _ = jax.lax.fori_loop(0, num_steps, step, (params, adam.init(params)))
        return loss(params, jnp.asarray(test))

    params = jax.jit(model.init)(jax.random.key(seed()), data[0][:, :-1])
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return num_params, [float(run(params, num_steps)) - floor for num_steps in budgets]


widths = [4, 8, 16]
ladder = [train(width) for width in widths]
N = np.array([num_params for num_params, _ in ladder])  # [sizes]
gaps = np.array([row for _, row in ladder])  # [sizes, budgets]
print("N:", N)
print(f"nats above the floor after {budgets} steps:")
print(gaps.round(4))

# %% [markdown]
# Every number is smaller than the one to its left and than the one above it, or nearly so. How steep is the last
# column?

# %%
predict("Fit the line to the three sizes at the largest budget. What is alpha?", low=0.25, high=0.65)

# %%
A, alpha = fit_line(N, gaps[:, -1])
outcome(alpha)

# %% [markdown]
# Ten times the parameters divide the gap by $10^\alpha$. Kaplan et al. report 0.076 for English and large models:
# there, ten times the parameters take away a sixth. Exponents belong to a text and a range of sizes; they are no
# constants of nature.
#
# ## 3. A prediction that can fail
#
# The fourth size was held out: 32 wide, nearly four times the parameters of the largest so far. The line predicts its
# gap. Then we train it.

# %%
predict("The gap of the held-out model, as a multiple of the predicted one?", low=0.75, high=1.75)

# %%
num_held_out, row = train(32)
predicted = A / num_held_out**alpha
print(f"N = {num_held_out:,}: predicted {predicted:.4f}, came {row[-1]:.4f} nats above the floor")

line = np.geomspace(N[0], num_held_out)
plt.loglog(N, gaps[:, -1], "o", label="the ladder")
plt.loglog(line, A / line**alpha, "-", color="gray", label="the line through it")
plt.loglog([num_held_out], [row[-1]], "s", label="held out")
plt.xlabel("parameters N")
plt.ylabel("nats above the floor")
plt.legend()
picture(
    "Gap to the floor over parameters on logarithmic axes: three points of the ladder, a line through them, and "
    "the held-out model near its end"
)
outcome(row[-1] / predicted)

# %% [markdown]
# In nats the prediction is close, a few thousandths. As a share it is less impressive, and it usually errs to the same
# side: the larger model is *worse* than its line. The reason is in the table: the larger a model, the more it still
# gains from more steps. At a fixed budget the curve has to bend, since the budget becomes the limit.
#
# ## 4. Two limits: parameters and text
#
# Hoffmann et al. give each limit a term of its own. $D$ is the number of training tokens:
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# Five numbers, twelve runs. The fit is a search from many starts, since this curve has many local best fits. The
# library has it, for its own ladder (`python -m train.scaling`). We give it the losses as they are, and keep the floor
# secret.

# %%
from train.scaling.fit import FORMS, Points, fit

N = np.append(N, num_held_out)
gaps = np.vstack([gaps, row])
sizes, tokens = (x.ravel().astype(float) for x in np.meshgrid(N, np.array(budgets) * batch_size * T, indexing="ij"))
points = Points(sizes, tokens, 6 * sizes * tokens, floor + gaps.ravel())
law = fit(FORMS["chinchilla"], points)
print({name: float(f"{number:.3g}") for name, number in law.numbers.items()})
errors = np.exp(law.log_loss(sizes, tokens)) - points.loss
print(f"largest error of the law: {np.abs(errors).max():.3f} nats")

# %% [markdown]
# The law describes the twelve runs well. Does it know the truth about the text? $E$ is where the loss would go with
# endless parameters and text, and we know where that is.

# %%
predict("How far from the true floor is the fitted E, in nats?", low=0.0, high=0.35)

# %%
for i, number in enumerate(N):
    plt.semilogx(tokens[:3], floor + gaps[i], "o-", label=f"N = {number:,}")
plt.axhline(floor, color="black", linewidth=1, label="true floor")
plt.axhline(law.numbers["E"], color="black", linestyle="--", linewidth=1, label="fitted E")
plt.xlabel("training tokens D")
plt.ylabel("loss, nats")
plt.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
picture(
    "Loss over training tokens for four sizes: larger models are lower. Below them the true floor, and the fitted"
    " E as a dashed line"
)
outcome(abs(law.numbers["E"] - floor))

# %% [markdown]
# Remember how well the law fits where there *are* runs. Where it goes when both limits are far away is another
# matter: a little more of $E$ and a steeper curve fit nearly as well. So be careful with any "irreducible loss of
# English" that was fitted, and with the last digit of $\alpha$. With a ladder that spans more, the project's own
# experiments come closer, and they print intervals: [docs/scaling.md](../docs/scaling.md).
#
# What if one forgets the floor, and draws the line through the loss itself?

# %%
predict("alpha of the same four models at the largest budget, if the floor is not subtracted?", low=0.008, high=0.03)

# %%
_, alpha_without_floor = fit_line(N, floor + gaps[:, -1])
outcome(alpha_without_floor)

# %% [markdown]
# It looks as if size hardly mattered: most of the loss is the floor, which no model can change. The same models, the
# same losses, and an exponent that is more than ten times smaller. When two papers compare exponents, ask what was
# subtracted.
#
# ## 5. Spending compute
#
# Training costs about $C = 6 N D$ operations: a multiplication and an addition per parameter and token, once forward
# and twice backward. For a fixed $C$, a larger model means less text. Under the law, the best $N$ grows as
#
# $$N_\mathrm{best} \propto C^{\beta / (\alpha + \beta)}$$
#
# Let us look at our twelve runs instead, each at its cost.

# %%
cost = points.flops.reshape(gaps.shape)
for i, number in enumerate(N):
    plt.loglog(cost[i], gaps[i], "o-", label=f"N = {number:,}")
plt.xlabel("training compute C = 6 N D, operations")
plt.ylabel("nats above the floor")
plt.legend(fontsize=7)
picture(
    "Gap to the floor over compute for four sizes on logarithmic axes: the curves of small models lie lower at "
    "small compute, and flatten as compute grows"
)

# %% [markdown]
# For little compute the smallest model is the best one; then its curve flattens, and the next size takes over. The
# lower edge of all curves is what compute can buy. A model that is too large for its budget wastes compute as much as
# one that is too small: that was the message of the Chinchilla paper, whose 70 billion parameters with 1.4 trillion
# tokens were better than 280 billion parameters with 300 billion tokens, at the same cost.
#
# An analogy: parameters are the size of a notebook, tokens the hours of lectures. A large notebook is of little use
# after one lecture. It fails in one point: a notebook that is too large does no harm, while a model that is too large
# costs more for every token.
#
# ## Change it
# - `chain_text("grammar", ...)` and `known_truth("grammar")`: is there still a line? (A grammar has rules that a model
#   either has room for or not.)
# - `num_layers=2`: does a model with as many parameters, but two layers, lie on the line of the others?
# - Stop the longest run after a half in place of giving the short one its own schedule: `learning_rate((i + 1) / 600,
#   width)`. How much worse is the middle column?
#
# ## Check yourself
#
# 1. A gap of 0.08 at N = 1,000 and of 0.04 at N = 16,000: what is alpha?
#
# <details><summary>Answer</summary>
#
# log 2 / log 16 = 1/4.
#
# </details>
#
# 2. Why may the learning rate not be the same for all sizes?
#
# <details><summary>Answer</summary>
#
# Wide models want smaller rates. With one rate for all, some size would have its best rate by chance, and the line
# would measure the tuning, not the size.
#
# </details>
#
# 3. Under the law with alpha = beta, you get 100 times the compute. How do you spend it?
#
# <details><summary>Answer</summary>
#
# The exponent is 1/2: ten times the parameters, ten times the tokens.
#
# </details>
#
# 4. A law was fitted to models of up to a billion parameters. What does it say about a trillion?
#
# <details><summary>Answer</summary>
#
# That the line, continued, is there. Whether the models are, nobody has measured. Text that runs out, another limit, or
# a skill that appears late are in no point of the fit.
#
# </details>
#
# ## Where it lives
# - [train/scaling/fit.py](../train/scaling/fit.py): both laws, the fit, intervals by the bootstrap
# - [train/scaling/ladder.py](../train/scaling/ladder.py): the rules of a fair ladder; `python -m train.scaling`
# - [train/data/entropy.py](../train/data/entropy.py): texts of known entropy
# - [docs/scaling.md](../docs/scaling.md): a real ladder on Tiny Shakespeare, with a prediction that came true and one
#   that did not
#
# ## Papers
# - Kaplan et al. 2020, [Scaling Laws for Neural Language Models](https://arxiv.org/abs/2001.08361)
# - Hoffmann et al. 2022, [Training Compute-Optimal Large Language Models](https://arxiv.org/abs/2203.15556)
# - Besiroglu et al. 2024, [Chinchilla Scaling: A replication attempt](https://arxiv.org/abs/2404.10102): the published
#   numbers did not fit the published runs
# - Hestness et al. 2017, [Deep Learning Scaling is Predictable, Empirically](https://arxiv.org/abs/1712.00409)
#
# Next: [15 Fine-tuning](15_fine_tuning.md)
