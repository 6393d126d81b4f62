"""Examples of the course: NumPy alone; the GPT with its gradient by hand equals the library's and jax.grad.

And the bugs that an exercise plants: each breaks its law, and no law is broken once the line is repaired.
"""

import ast
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.course import LESSONS, SOLUTIONS

from transformer_jax import testing
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT

EXAMPLES = LESSONS / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("example_*.py")), ids=lambda path: path.stem)
def test_an_example_imports_numpy_alone(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert "numpy" in names and names <= {"numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("example_0[1-5]*.py")), ids=lambda path: path.stem)
def test_an_example_runs_and_its_own_checks_hold(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120, cwd=path.parent)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 5, done.stderr


def library_params(p, N):
    """Parameters of the example by the names and shapes of the library's GPT."""

    def block(i):
        D = p["query"].shape[-1]
        heads = {name: {"kernel": p[name][i].reshape(D, N, D // N)} for name in ("query", "key", "value")}
        return {
            "attention": heads | {"out": {"kernel": p["out"][i].reshape(N, D // N, D)}},
            "attention_norm": {"scale": p["norm_1"][i]},
            "feed_forward": {name: {"kernel": p[name][i]} for name in ("up", "down")},
            "feed_forward_norm": {"scale": p["norm_2"][i]},
        }

    embed = {name: {"embedding": p[name]} for name in ("tokens", "positions")}
    stack = {f"block_{i}": block(i) for i in range(len(p["query"]))}
    return {"params": {"embed": embed, "stack": stack | {"norm": {"scale": p["norm"]}}}}


@pytest.mark.parametrize("seed, T, D, L, N", [(0, 12, 16, 2, 2), (1, 7, 12, 3, 4)])
def test_the_gradient_by_hand_equals_jax_grad_of_the_library_gpt(seed, T, D, L, N):
    example = runpy.run_path(str(EXAMPLES / "example_06_mini_gpt.py"))
    random = np.random.default_rng(seed)
    V = len(example["WORDS"])
    p = example["init"](random, V, T, D, L)
    p = {name: value + 0.2 * random.normal(size=value.shape).astype("f") for name, value in p.items()}
    tokens = random.integers(0, V, (3, T + 1))
    config = TransformerConfig(
        V,
        T,
        L,
        D,
        N,
        norm="layernorm_no_bias",
        feed_forward="relu",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        backend="reference",
    )

    def loss_of(p):
        logits = GPT(config).apply(library_params(p, N), tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(jax.tree.map(jnp.asarray, p))
    by_hand, g = example["loss_and_gradient"](p, tokens, N)
    scale = np.abs(logits).max()
    np.testing.assert_allclose(example["forward"](p, tokens[:, :-1], N)[0], logits, atol=1e-5 * max(1, scale))
    assert abs(by_hand - loss) < 1e-5
    assert g.keys() == gradient.keys() == p.keys()
    for name in p:
        np.testing.assert_allclose(
            g[name], gradient[name], rtol=0, atol=1e-5 * np.abs(gradient[name]).max(), err_msg=name
        )


def test_the_stories_have_the_entropy_that_is_said():
    example = runpy.run_path(str(EXAMPLES / "example_06_mini_gpt.py"))
    tokens, nats = example["draw"](np.random.default_rng(0), 2000)
    assert tokens.shape == (2000, 3 * example["LENGTH"] + 1)
    p = np.array([p for _, p in example["VERBS"].values()])
    entropy = np.log(8 * 7 * 6) - (p * np.log(p)).sum()
    assert abs(nats - entropy / example["LENGTH"]) < 0.002
    stories = [" ".join(example["story"](np.random.default_rng(seed))[0]) for seed in range(50)]
    assert all(map(example["is_right"], stories))
    assert not example["is_right"](stories[0].replace(" for ", " the "))


BUGS = SOLUTIONS / "exercise_14_find_the_bug.py"
REPAIRED = {
    "attention_1": (3, "scores = scores / jnp.sqrt(q.shape[-1])"),
    "attention_2": (5, "weights = jax.nn.softmax(scores, axis=-1)"),
    "attention_3": (4, "scores = jnp.where(may_attend[:, None], scores, -1e30)"),
    "attention_4": (4, "v = jnp.repeat(v, group, axis=2)"),
    "attention_5": (4, "exps = jnp.exp(scores - scores.max(axis=-1, keepdims=True))"),
    "mixer_6": (3, "heads = x.reshape(B, T, 2, D // 2).swapaxes(1, 2)"),
    "mixer_7": (4, "past = jnp.tril(jnp.ones((T, T), bool))"),
    "mixer_8": (4, "variance = jnp.mean(centered**2, axis=-1, keepdims=True)"),
    "positions_9": (3, "positions = jnp.cumsum(ones, axis=1) - 1"),
    "rotary_10": (7, "other = second * jnp.cos(angle) + first * jnp.sin(angle)"),
    "dropout_11": (5, "return jnp.where(keep, x / (1 - rate), 0)"),
    "bias_12": (3, "distance = jnp.abs(q_positions[:, :, None] - k_positions[:, None])"),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_a_planted_bug_breaks_its_law_and_the_repaired_line_does_not(name):
    number, repaired = REPAIRED[name]
    source = BUGS.read_text(encoding="utf-8")
    names = runpy.run_path(str(BUGS))
    assert names[f"BUG_{name.rsplit('_')[-1]}"] == number
    with pytest.raises(testing.LawBroken):
        names["laws"]()[name]()
    before, function = source.split(f"def {name}(")
    lines = function.split("\n")
    assert lines[number - 1].split("  #")[1].split()[0] == str(number)
    lines[number - 1] = f"    {repaired}"
    changed = {"__name__": "repaired", "__file__": str(BUGS)}
    exec(compile(f"{before}def {name}(" + "\n".join(lines), str(BUGS), "exec"), changed)  # noqa: S102
    changed["laws"]()[name]()
