"""Training steps on four devices equal those on one. Run as a program, this file is the process with four devices."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from train.losses import causal_lm
from train.parallel import PARALLEL, make_parallel
from train.state import TrainState, create_state
from train.step import eval_step, train_step
from transformer_jax.checkpoints.meta import CheckpointMeta
from transformer_jax.checkpoints.store import Checkpoints, abstract
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT

ROOT = Path(__file__).parents[1]
B, T, V, NUM_STEPS, NUM_DEVICES = 8, 7, 23, 3, 4
MODEL = GPT(
    TransformerConfig(
        vocab_size=V, max_len=11, num_layers=1, d_model=13, num_heads=2, head_dim=5, d_ff=17, init_std=0.2
    )
)
CASES = [(name, accumulation) for name in PARALLEL for accumulation in (1, 2)]


def make_batch(seed):
    """A batch with rows of very different lengths; some devices get only padding."""
    rng = np.random.default_rng(seed)
    is_token = np.arange(T + 1) < np.array([8, 0, 3, 0, 1, 2, 8, 5])[:, None]
    return {"tokens": rng.integers(0, V, (B, T + 1), dtype=np.int32), "is_token": is_token}


def make(name, accumulation=1):
    optimizer = optax.sgd(0.5)  # without state: the parameters show the gradients
    step = functools.partial(
        train_step,
        model=MODEL,
        loss_fn=causal_lm,
        optimizer=optimizer,
        seed=0,
        accumulation=accumulation,
        max_consecutive_skips=3,
        log_every=100,
    )
    evaluate = functools.partial(eval_step, model=MODEL, loss_fn=causal_lm)
    parallel = make_parallel(name, step, evaluate, B // accumulation)
    return parallel, create_state(first_params(), optimizer)


@functools.cache
def first_params():
    return jax.device_get(jax.jit(MODEL.init)(jax.random.key(1), make_batch(0)["tokens"][:, :T])["params"])


def train(name, accumulation) -> tuple[TrainState, list[float]]:
    """Train NUM_STEPS steps; return the state, and the sums of an evaluation."""
    parallel, state = make(name, accumulation)
    batches = jax.tree.map(lambda *x: np.stack(x), *map(make_batch, range(NUM_STEPS)))
    state = parallel.train(parallel.put(state), batches, NUM_STEPS)
    sums = [float(x) for x in parallel.evaluate(state.params, make_batch(99))[:2]]
    return parallel.get(state), sums


def on_four_devices(folder: Path) -> None:
    """Train every case, save checkpoints, and print a report."""
    report = {"devices": jax.device_count(), "sums": {}, "refused": {}}
    for name, accumulation in CASES:
        state, report["sums"][f"{name}-{accumulation}"] = train(name, accumulation)
        checkpoints = Checkpoints(folder / f"{name}-{accumulation}")
        checkpoints.save(
            state.params, CheckpointMeta(NUM_STEPS, MODEL, None), {"step": state.step, "accumulator": state.accumulator}
        )
        checkpoints.wait()
        np.savez(folder / f"{name}-{accumulation}.npz", *map(np.asarray, jax.tree.leaves(state.params)))
    for name in PARALLEL:
        try:
            make_parallel(name, lambda: None, lambda: None, 6)
        except UserError as error:
            report["refused"][name] = str(error)
    print(json.dumps(report))


@pytest.fixture(scope="module")
def one_device():
    """The state on a single device, the reference of this file, and the sums of an evaluation."""
    assert jax.device_count() == 1
    return train("jit", 1)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four_devices")
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(NUM_DEVICES)}
    process = subprocess.run([sys.executable, __file__, folder], env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["devices"] == NUM_DEVICES
    return folder, report


def assert_close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name, accumulation", CASES)
def test_steps_on_four_devices_equal_those_on_one(one_device, four_devices, name, accumulation):
    folder, report = four_devices
    state, sums = one_device
    with np.load(folder / f"{name}-{accumulation}.npz") as arrays:
        for array, expected in zip(arrays.values(), jax.tree.leaves(state.params), strict=True):
            assert_close(array, expected)
    np.testing.assert_allclose(report["sums"][f"{name}-{accumulation}"], sums, rtol=1e-5)


@pytest.mark.parametrize("name, accumulation", [("pmap", 2)])
def test_steps_on_one_device_are_the_same_under_pmap(one_device, name, accumulation):
    state, sums = train(name, accumulation)
    jax.tree.map(assert_close, state.params, one_device[0].params)
    np.testing.assert_allclose(sums, one_device[1], rtol=1e-5)


def test_an_evaluation_counts_every_target_once(one_device):
    assert one_device[1][1] == make_batch(99)["is_token"][:, 1:].sum()


@pytest.mark.parametrize("name", PARALLEL)
def test_a_batch_that_the_devices_do_not_divide_is_refused(four_devices, name):
    assert "= 6: must be divisible by the 4 devices" in four_devices[1]["refused"][name]


@pytest.mark.parametrize("name, accumulation", CASES)
def test_a_checkpoint_of_four_devices_is_restored_exactly_on_one(one_device, four_devices, name, accumulation):
    folder, _ = four_devices
    checkpoints = Checkpoints(folder / f"{name}-{accumulation}")
    state, _ = one_device
    templates = {"params": state.params, "state": {"step": state.step, "accumulator": state.accumulator}}
    restored = checkpoints.restore(checkpoints.find(), **abstract(templates))
    with np.load(folder / f"{name}-{accumulation}.npz") as arrays:
        for array, leaf in zip(arrays.values(), jax.tree.leaves(restored["params"]), strict=True):
            np.testing.assert_array_equal(leaf, array)
    assert restored["state"]["step"] == NUM_STEPS
    assert restored["state"]["accumulator"].weight_sum == state.accumulator.weight_sum


if __name__ == "__main__":
    on_four_devices(Path(sys.argv[1]))
