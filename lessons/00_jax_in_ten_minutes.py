# %% [markdown]
# # 00 JAX in ten minutes
#
# For readers who know Python and some NumPy and have never used JAX. Half an hour with the questions. If you know JAX,
# read the section on letters and go on to [lesson 01](01_attention_mechanism.md).
#
# After this lesson you can
#
# - read the shapes in this course, such as [B, T, N, H],
# - say what `jit`, `grad` and `vmap` do to a function, and what they ask of it,
# - use random keys without using one twice,
# - make a layer with parameters and train it by hand.
#
# No paper; the [JAX documentation](https://docs.jax.dev) has everything at length.
#
# From time to time a box asks you to **predict** a number. Write down a guess before you unfold the outcome: that is
# half of what these lessons have to give. `python -m lessons run 00 --ask` runs this page on your machine and asks.
#
# The helpers of these lessons come from the folder `course`. `picture` shows a picture, `show` prints a piece of the
# library's source. `seed()` is 0 here; run with `--seed=1`, it is 1, and all random numbers are others. `steps(300)` is
# 300 steps of training, or fewer in a quick run with `--steps=0.1`.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course import outcome, picture, predict, seed, show, steps

# %% [markdown]
# ## Arrays, and their letters
#
# First in NumPy, then the same in JAX: `jax.numpy` has the functions of NumPy under the same names.

# %%
x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
print(x.shape, x.dtype, np.sum(x, axis=1))

# %%
import jax
import jax.numpy as jnp

x = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
print(x.shape, x.dtype, jnp.sum(x, axis=1))

# %% [markdown]
# JAX's arrays differ in two ways. **They never change.** `x[0, 0] = 9` is an error; `x.at[0, 0].set(9)` makes a new
# array.

# %%
try:
    x[0, 0] = 9
except TypeError as error:
    print("TypeError:", str(error)[:60], "...")
y = x.at[0, 0].set(9)
print("x:", x[0], " y:", y[0])

# %% [markdown]
# And **they are float32**, with about seven digits, where NumPy has float64 with sixteen. That is enough for models,
# and half the memory. But it shows:

# %%
predict("In JAX: (1 + 0.00000001) - 1, with jnp.array(1.0) for the first 1?", low=0, high=0)

# %%
print("NumPy:", (np.array(1.0) + 0.00000001) - 1)
outcome((jnp.array(1.0) + 0.00000001) - 1)

# %% [markdown]
# Remember it when two correct results differ in the seventh digit: it is the reason why this course compares numbers
# with a tolerance.
#
# A Transformer reads a text as a row of *tokens*: words, pieces of words or single characters. Inside of it, each token
# is a vector of numbers. So it is mostly a matter of shapes, and this project gives each length a letter, the same
# everywhere:
#
# | letter | length | | letter | length |
# |---|---|---|---|---|
# | B | batch: how many texts at once | | N | heads (lesson 03) |
# | T | tokens of a text that ask (queries) | | H | numbers in a head |
# | S | tokens that are asked (keys) | | F | width of the feed-forward part (lesson 05) |
# | D | numbers in the vector of a token | | V | vocabulary: how many different tokens |
#
# A comment `# [B, T, D]` says the shape of a line's result, and a name such as `scores_BNTS` carries its own.
# `einsum` computes with such letters: what both inputs have and the result has not is multiplied and added up.
# Here a matrix, a *kernel* as JAX's libraries say, is applied to each token of each text.

# %%
B, T, D, F = 2, 5, 3, 4
x = np.random.default_rng(seed()).normal(size=(B, T, D)).astype(np.float32)
kernel = np.random.default_rng(seed() + 1).normal(size=(D, F)).astype(np.float32)
by_letters = jnp.einsum("BTD,DF->BTF", x, kernel)  # the same as x @ kernel
by_loops = np.zeros((B, T, F))
for b, t, f in np.ndindex(B, T, F):
    for d in range(D):
        by_loops[b, t, f] += x[b, t, d] * kernel[d, f]
assert np.allclose(by_letters, by_loops, atol=1e-5)
print(by_letters.shape)

# %% [markdown]
# ## jit: compile a function
#
# `jax.jit(f)` is a function that gives what `f` gives, faster. At the first call it runs your Python once, with
# stand-ins in place of the numbers, and writes down which operations happen. This record is compiled. Later calls run
# the compiled program, and your Python is not run at all.

# %%
predict("A function with a print is jitted and called 100 times. How often does it print?", low=1, high=1)

# %%
prints = []


@jax.jit
def double(x):
    prints.append(f"double runs in Python with x = {x}")  # as good as a print, and we can count it
    return 2 * x


for i in range(100):
    result = double(jnp.array([1.0, i]))
print(prints[0])
print("last result:", result)
outcome(len(prints))

# %% [markdown]
# What Python saw as `x` was no number but a *tracer*: a stand-in that knows shape and type. So within `jit` you
# cannot ask `if x > 0`, since there is no value yet, and a `print` is a thing of the first call. The function must be
# *pure*: its result depends on its arguments only.
#
# And the record is good for this shape only.

# %%
predict("It is then called with arrays of the lengths 3, 4, 3, 5 and 4. How many more prints?", low=3, high=3)

# %%
before = len(prints)
for length in (3, 4, 3, 5, 4):
    double(jnp.zeros(length))
outcome(len(prints) - before)

# %% [markdown]
# One for each new shape. Compiling takes from a moment to a minute, so models keep their shapes: that is why short
# texts are filled up with padding, as lesson 02 shows.
#
# ## grad: the slope of a function
#
# `jax.grad(f)` is a function, too: it gives the slope of `f`, the change of the result for a small change of the
# argument. School says that $x^3$ has the slope $3x^2$.

# %%
predict("jax.grad(lambda x: x**3), called with 2.0?", low=12, high=12)

# %%
outcome(jax.grad(lambda x: x**3)(2.0))

# %% [markdown]
# No formula was given to it, and it did not try small steps. It knows the slope of each operation and applies the chain
# rule to the record of `f`. So `f` may be a whole model with a million numbers, as long as the result is *one* number.
# Then the gradient has the shape of the argument: a slope for each of its numbers.

# %%
weights = jnp.array([1.0, -2.0, 0.5])


def f(weights):
    return jnp.sum(jnp.sin(weights) * weights)


gradient = jax.grad(f)(weights)
by_small_steps = [(f(weights.at[i].add(1e-2)) - f(weights.at[i].add(-1e-2))) / 2e-2 for i in range(3)]
print("grad:       ", gradient)
print("small steps:", np.array(by_small_steps))
assert np.allclose(gradient, by_small_steps, atol=1e-3)

# %% [markdown]
# ## vmap: a function for one becomes a function for many
#
# Write a function for one text; `jax.vmap` makes it a function for a batch, without a loop.


# %%
def length(vector):  # [D] -> a number
    return jnp.sqrt(jnp.sum(vector**2))


print(jax.vmap(length)(jnp.array([[3.0, 4.0], [6.0, 8.0]])))  # [B, D] -> [B]

# %% [markdown]
# All three can be combined: `jax.jit(jax.vmap(jax.grad(f)))` is a compiled function that gives the gradients of a whole
# batch.
#
# ## Keys: random numbers
#
# NumPy hides a state: call `random.normal()` twice, and you get two numbers. A pure function cannot do that. In JAX,
# you pass a **key**, and the key decides which numbers you get.

# %%
predict("jax.random.normal(key, (5,)) is called twice with the same key. How many of the 5 numbers differ?", 0, 0)

# %%
key = jax.random.key(seed())
first = jax.random.normal(key, (5,))
second = jax.random.normal(key, (5,))
outcome(jnp.sum(first != second))

# %% [markdown]
# For other numbers, make other keys: `split` makes several from one, and a key that was split is used up. Two layers
# that were made with the same key would start as twins.

# %%
key_1, key_2 = jax.random.split(key)
print(jax.random.normal(key_1, (3,)), jax.random.normal(key_2, (3,)))

# %% [markdown]
# ## Pytrees: dictionaries of arrays
#
# A model has many arrays, kept in dictionaries within dictionaries. JAX calls any such nesting of dicts, lists and
# tuples with arrays as leaves a *pytree*, and its functions take them as they take arrays. `jax.tree.map` does the
# same to each leaf.

# %%
params = {"first": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "scale": jnp.array(2.0)}
print(jax.tree.map(jnp.shape, params))
print("numbers in all:", sum(leaf.size for leaf in jax.tree.leaves(params)))

# %% [markdown]
# ## A layer, with Flax linen
#
# A *module* says which parameters it needs and how it computes. It holds no numbers itself. `init(key, input)` makes
# the parameters, a pytree; `apply(params, input)` computes with them. This one is $y = x W + b$. `@nn.compact` allows
# `__call__` to ask for its parameters where it uses them (larger modules list their parts in a method `setup` instead):

# %%
import flax.linen as nn


class Linear(nn.Module):
    num_out: int

    @nn.compact
    def __call__(self, x):  # [..., D] -> [..., F]
        kernel = self.param("kernel", nn.initializers.normal(0.1), (x.shape[-1], self.num_out))  # [D, F]
        bias = self.param("bias", nn.initializers.zeros, (self.num_out,))  # [F]
        return x @ kernel + bias


# %%
predict("Linear(3) is initialized with an input of the shape [10, 4]. How many numbers do its parameters have?", 15, 15)

# %%
layer = Linear(num_out=3)
params = layer.init(jax.random.key(seed()), jnp.zeros((10, 4)))
print(jax.tree.map(jnp.shape, params))
outcome(sum(leaf.size for leaf in jax.tree.leaves(params)))

# %% [markdown]
# 4 times 3, and 3. The ten rows do not count: each is treated alike, by the same parameters.
#
# The layers of the library are written in this way. Here is one in full, which you will meet in
# [lesson 05](05_feedforward_networks.md). Do not try to understand what it is for; see that you can read it.

# %%
from transformer_jax.nn.layers import LayerNorm

show(LayerNorm)

# %%
x = np.random.default_rng(seed()).normal(size=(5, 8)).astype(np.float32)
norm = LayerNorm(epsilon=1e-5)
theirs = norm.apply(norm.init(jax.random.key(0), x), x)
ours = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)  # scale 1, bias 0
assert np.allclose(theirs, ours, atol=1e-5)

# %% [markdown]
# ## Everything together: learning
#
# A machine learns by following slopes. Take points near the line $y = 3x - 1$, with some noise. The layer starts with
# small random numbers. The *loss* is the mean squared error; each step changes every parameter a little against its
# slope. `value_and_grad` gives the loss and the slopes at once. These four lines are how every model of this course
# is trained, with a better rule than minus a tenth of the slope ([lesson 10](10_transformer_training.md)).

# %%
random = np.random.default_rng(seed())
x = random.uniform(-1, 1, (200, 1)).astype(np.float32)
y = (3 * x - 1 + 0.3 * random.normal(size=(200, 1))).astype(np.float32)
line = Linear(num_out=1)


def loss(params):
    return jnp.mean((line.apply(params, x) - y) ** 2)


@jax.jit
def step(params):
    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value


# %%
predict("After 300 such steps, what is the kernel, the 3 of the line?", low=2.8, high=3.2)

# %%
params = line.init(jax.random.key(seed()), x)
losses = []
for _ in range(steps(300)):
    params, value = step(params)
    losses.append(float(value))
print("bias:", params["params"]["bias"])
figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
axes[0].plot(losses)
axes[0].set(xlabel="step", ylabel="loss", ylim=(0, None))
axes[1].plot(x, y, ".", alpha=0.4)
axes[1].plot(x, line.apply(params, x), color="C1")
axes[1].set(xlabel="x", ylabel="y")
plt.tight_layout()
picture("Left: the loss falls within 100 steps and stays level. Right: 200 noisy points and the line that was learned")
outcome(params["params"]["kernel"][0, 0])

# %% [markdown]
# The loss does not reach 0: no line passes through noise. What remains is the variance of the noise, $0.3^2$. This
# *floor* comes back in every later lesson: we train on texts whose floor is known, so we can say how good a model is.
#
# ## Words of JAX and Flax that come later
#
# You can read on without them, and look here when you meet one.
#
# | call | what it is |
# |---|---|
# | `jax.lax.scan(f, state, xs)` | a compiled loop, `state, y = f(state, x)` for each x: the last state, all y |
# | `jax.lax.fori_loop(0, n, f, state)` | the same with a counter: `state = f(i, state)` |
# | `jax.vjp(f, x)` | `f(x)`, and a function from slopes of the result to slopes of x: `grad` for many numbers |
# | `jax.eval_shape(f, x)` | only the shapes of what `f(x)` would give; nothing is computed |
# | `nn.Dense(F, name="up")(x)` | Flax's own linear layer: settings and its name among the parameters, then the input |
# | `nn.LayerNorm()(x)`, `nn.Embed(V, D)(ids)` | likewise; `Embed` is a table of vectors [V, D], one for each token |
# | `nn.vmap(Module, ...)` | `vmap` for a module: several copies with parameters of their own |
#
# ## Change it
#
# 1. Replace 0.1 in `step` by 1.5. What do the losses do?
# 2. Put `if x[0] > 0:` into `double`. Read the error: which words in it do you know now?
# 3. Initialize `Linear(3)` twice with the same key, and with two keys from `split`.
#
# ## Check yourself
#
# 1. A jitted function reads a global variable `factor`. You change `factor` and call it again. What happens?
#    <details><summary>Answer</summary>The old value is used: it was written into the record at the first call. Pass it
#    as an argument.</details>
# 2. What is the shape of `jnp.einsum("BTD,BSD->BTS", a, b)`, and what does each number mean?
#    <details><summary>Answer</summary>[B, T, S]: in each text, the dot product of vector t of a with vector s of b. In
#    lesson 01 these are the scores.</details>
# 3. Why does `grad` ask for a function whose result is one number?
#    <details><summary>Answer</summary>Then each number of the argument has one slope, and a small step against all of
#    them makes the result smaller. With several results it would be unclear which of them to make smaller.</details>
#
# There is no exercise for this lesson; the first one belongs to the next.
#
# ## Where it lives
#
# - [transformer_jax/config.py](../transformer_jax/config.py): the letters
# - [transformer_jax/nn/layers.py](../transformer_jax/nn/layers.py): linear layers and norms
# - [lessons/course/fit.py](course/fit.py): the short training loop of these lessons
#
# ## Papers
#
# - Frostig, Johnson, Leary 2018, [Compiling machine learning programs via high-level tracing](https://mlsys.org/Conferences/doc/2018/146.pdf):
#   the idea of `jit`
# - [Flax linen](https://flax-linen.readthedocs.io), the library of modules
#
# Next: [01 Attention mechanism](01_attention_mechanism.md).
