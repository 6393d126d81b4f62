import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config import OptimizerConfig
from train.optimizer import OPTIMIZERS, SCHEDULES, is_decayed, make_optimizer, make_schedule, muon_dimensions
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT

NUM_STEPS, WARMUP = 41, 7
D, N, H, F, V = 13, 3, 5, 17, 23


def gpt_params(**changes):
    """Shapes of the parameters of a GPT."""
    fields = dict(vocab_size=V, max_len=11, num_layers=1, d_model=D, num_heads=N, head_dim=H, d_ff=F) | changes
    model = GPT(TransformerConfig(**fields))
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 7), jnp.int32))["params"]


def random_like(tree, seed):
    """Random numbers with the shapes of `tree`, none of them near 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(rng.choice([-1, 1], x.shape) * rng.uniform(0.5, 2, x.shape)), tree)


def named(tree, is_leaf=None):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def updates_of(config, params, gradients):
    """Updates of a new optimizer for each of these gradients in turn."""
    optimizer = make_optimizer(config, NUM_STEPS)
    state, all_updates = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        all_updates.append(updates)
    return all_updates


# Schedules


@pytest.mark.parametrize("warmup_steps", [0, WARMUP])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_rises_from_0_to_its_peak_and_falls_to_its_final_value(name, warmup_steps):
    config = OptimizerConfig(schedule=name, peak_lr=0.5, final_lr_fraction=0.2, warmup_steps=warmup_steps)
    rates = jax.vmap(make_schedule(config, NUM_STEPS))(jnp.arange(NUM_STEPS + 1))
    last, middle = (0.5, 0.5) if name == "constant" else (0.1, 0.3)
    rise = np.linspace(0, 0.5, warmup_steps + 1) if warmup_steps else [0.5]
    np.testing.assert_allclose(rates[: warmup_steps + 1], rise, atol=1e-6)
    np.testing.assert_allclose(rates[NUM_STEPS], last, atol=1e-6)
    assert np.all(np.diff(rates[warmup_steps:]) <= 1e-7)
    if (NUM_STEPS - warmup_steps) % 2 == 0:
        np.testing.assert_allclose(rates[(NUM_STEPS + warmup_steps) // 2], middle, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warmup_takes_at_most_half_of_the_run(name):
    rates = [
        [
            float(make_schedule(OptimizerConfig(schedule=name, warmup_steps=warmup), NUM_STEPS)(step))
            for step in range(NUM_STEPS)
        ]
        for warmup in (NUM_STEPS // 2, 10 * NUM_STEPS)
    ]
    assert rates[0] == rates[1]
    assert max(rates[0]) == pytest.approx(OptimizerConfig().peak_lr)


def test_an_unknown_optimizer_or_schedule_is_refused_with_the_known_names():
    with pytest.raises(UserError, match="optimizer.schedule='cosine'.*warmup_cosine, warmup_linear, constant"):
        make_schedule(OptimizerConfig(schedule="cosine"), NUM_STEPS)
    with pytest.raises(UserError, match="optimizer.name='adam'.*adamw, muon"):
        make_optimizer(OptimizerConfig(name="adam", warmup_steps=0), NUM_STEPS)


# Which parameters decay, and which are for Muon


NORMS = {"norm": "rmsnorm_plus_one", "norm_placement": "sandwich", "qk_norm": "all"}


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, NORMS, {"norm": "layernorm_no_bias"}], ids=str)
def test_kernels_and_embeddings_decay_and_biases_and_norms_do_not(changes):
    for name, decays in named(is_decayed(gpt_params(**changes))).items():
        assert decays == (name.rsplit("/", 1)[-1] in ("kernel", "embedding")), name
        assert decays or name.rsplit("/", 1)[-1] in ("bias", "scale"), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_shrinks_kernels_and_embeddings_only(optimizer):
    params = random_like(gpt_params(tie_embeddings=False), 0)
    config = OptimizerConfig(name=optimizer, schedule="constant", warmup_steps=0, weight_decay=0.3, clip_norm=0.0)
    [updates] = updates_of(config, params, [jax.tree.map(jnp.zeros_like, params)])
    for name, update in named(updates).items():
        param = named(params)[name]
        if name.rsplit("/", 1)[-1] in ("kernel", "embedding"):
            assert np.all(np.sign(update) == -np.sign(param)), name
            assert np.ptp(update / param) < 1e-6, name  # the same fraction of every number
        else:
            assert np.all(update == 0), name


def test_muon_gets_the_rows_and_columns_of_every_matrix_between_activations():
    expected = {
        "query": ((0,), (1, 2)),
        "key": ((0,), (1, 2)),
        "value": ((0,), (1, 2)),
        "out": ((0, 1), (2,)),
        "up": ((0,), (1,)),
        "gate": ((0,), (1,)),
        "down": ((0,), (1,)),
    }
    params = gpt_params(tie_embeddings=False, feed_forward="swiglu")
    seen = set()
    is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731
    for name, dimensions in named(muon_dimensions(params), is_leaf).items():
        parts = name.split("/")
        if parts[-1] == "kernel" and parts[-2] != "unembed":
            assert (tuple(dimensions.reduction_axis), tuple(dimensions.output_axis)) == expected[parts[-2]], name
            seen.add(parts[-2])
        else:
            assert dimensions is None, name
    assert seen == set(expected)


def test_with_muon_embeddings_norms_and_biases_are_updated_by_adam():
    params = random_like(gpt_params(tie_embeddings=False), 0)
    config = OptimizerConfig(
        name="muon", schedule="constant", warmup_steps=0, peak_lr=1e-3, muon_lr=1e-2, weight_decay=0.0, clip_norm=0.0
    )
    [updates] = updates_of(config, params, [random_like(params, 1)])
    for name, update in named(updates).items():
        is_adam = (
            np.ptp(np.abs(update)) < 0.05 * np.abs(update).max()
        )  # Adam's first update has the same size everywhere
        assert is_adam == ("kernel" not in name or "unembed" in name), name
        if not is_adam:
            num_in = 2 if "out/" in name else 1
            matrix = np.asarray(update).reshape(np.prod(update.shape[:num_in]), -1)
            scale = 1e-2 * max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5
            assert 0.6 < np.linalg.norm(matrix, 2) / scale < 1.4, name  # about orthonormal, times muon_lr


@pytest.mark.parametrize("name, shape, num_in", [("query", (D, N, H), 1), ("out", (N, H, D), 2)])
def test_muon_treats_a_kernel_of_three_axes_as_its_flattened_matrix(name, shape, num_in):
    flat_shape = (int(np.prod(shape[:num_in])), int(np.prod(shape[num_in:])))
    config = OptimizerConfig(name="muon", schedule="constant", warmup_steps=0, weight_decay=0.2)
    tensors = [random_like({name: {"kernel": jnp.zeros(shape)}}, seed) for seed in range(4)]
    matrices = [{"flat": {"kernel": tree[name]["kernel"].reshape(flat_shape)}} for tree in tensors]
    for a, b in zip(
        updates_of(config, tensors[0], tensors[1:]), updates_of(config, matrices[0], matrices[1:]), strict=True
    ):
        np.testing.assert_allclose(a[name]["kernel"].reshape(flat_shape), b["flat"]["kernel"], atol=1e-6)


# Clipping


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_above_clip_norm_is_scaled_to_that_norm(optimizer):
    params = random_like(gpt_params(), 2)
    large, small = random_like(params, 3), random_like(params, 4)
    scale = float(optax.tree.norm(large))
    assert scale > 2
    clipped = jax.tree.map(lambda x: x * (0.5 / scale), large)
    small = jax.tree.map(lambda x: x * (0.3 / optax.tree.norm(small)), small)  # below clip_norm: unchanged
    settings = dict(name=optimizer, schedule="constant", warmup_steps=0)
    with_clip = updates_of(OptimizerConfig(**settings, clip_norm=0.5), params, [large, small])
    by_hand = updates_of(OptimizerConfig(**settings, clip_norm=0.0), params, [clipped, small])
    never = updates_of(OptimizerConfig(**settings, clip_norm=0.0), params, [large, small])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_clip, by_hand)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(*map(jax.tree.leaves, (with_clip, never)), strict=True))
