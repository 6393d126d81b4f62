"""Frozen parameters: no gradient, no optimizer state, and one copy in a run directory, which still samples alone."""

import functools
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from helpers.arrays import by_name
from helpers.checkpoints import SEAL
from helpers.train_steps import make, make_batch

import transformer_jax as tj
from configs import finetune_gpt2
from train.loop import run as train
from train.state import create_state
from transformer_jax.checkpoints.store import Checkpoints
from transformer_jax.models import merge_params, split_params

pytestmark = pytest.mark.usefixtures("compilation_cache")
FIXTURES = Path(__file__).parent / "fixtures"
FROZEN = ("embed/", "stack/block_0/", "stack/norm")
CHANGES = {
    "optimizer.freeze": "^embed/,block_0/,stack/norm",
    "optimizer.weight_decay": 0.5,
    "optimizer.warmup_steps": 1,
    "optimizer.schedule": "constant",
    "optimizer.final_lr_fraction": 0.1,
    "train.batch_size": 5,
    "train.num_steps": 4,
    "train.eval_every": 4,
    "train.log_every": 2,
    "train.tensorboard": False,
    "checkpoint.save_every": 2,
    "checkpoint.keep": 2,
}


def config_of(tmp_path, **changes):
    text = tmp_path / "my.txt"
    text.write_text("The cat sat on the mat, and the dog walked in the garden. " * 60)
    config = finetune_gpt2.get_config()
    config.update_from_flattened_dict(CHANGES | changes)
    config.train.init_from = str(FIXTURES / "gpt2")
    config.data.path = str(text)
    return config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    return train(config_of(folder), folder / "run")


def sizes(folder):
    return {path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in folder.iterdir()}


def test_splitting_and_merging_are_inverse_and_every_name_is_in_one_part():
    params = tj.from_pretrained(FIXTURES / "gpt2").params
    chosen, others = split_params(params, lambda name: "kernel" in name)
    assert by_name(chosen).keys() | by_name(others).keys() == by_name(params).keys()
    assert all("kernel" in name for name in by_name(chosen)) and not any("kernel" in name for name in by_name(others))
    assert jax.tree.structure(merge_params(chosen, others)) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, merge_params(others, chosen), params)


def test_frozen_parameters_stay_bit_equal_and_all_others_change(run_dir):
    before = by_name(tj.from_pretrained(FIXTURES / "gpt2").params)
    after = by_name(tj.load(run_dir).params)
    assert after.keys() == before.keys()
    for name, leaf in before.items():
        assert np.array_equal(leaf, after[name]) == name.startswith(FROZEN), name


def test_a_step_with_frozen_parameters_takes_the_gradient_of_the_others_alone():
    optimizer = optax.sgd(1.0, momentum=0.9)
    step, state = make(optimizer, accumulation=2)
    frozen, trained = split_params(state.params, lambda name: name.startswith("embed/"))
    whole = jax.jit(step)(state, make_batch(3))
    state = create_state(trained, optimizer, frozen=frozen)
    part = jax.jit(step)(state, make_batch(3))
    jax.tree.map(np.testing.assert_array_equal, part.frozen, frozen)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    expected, _ = split_params(whole.params, lambda name: not name.startswith("embed/"))
    jax.tree.map(close, part.params, expected)
    assert jax.tree.leaves(part.opt_state).__len__() == len(jax.tree.leaves(trained))
    gradient = jax.tree.map(lambda a, b: a - b, part.params, trained)
    assert part.grad_norm == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)


def test_a_step_differentiates_no_frozen_parameter_so_integers_can_be_frozen():
    optimizer = optax.sgd(1.0)
    step, state = make(optimizer)
    frozen, trained = split_params(state.params, lambda name: name.startswith("embed/"))
    frozen = jax.tree.map(lambda x: jax.numpy.round(x * 8).astype("int8"), frozen)
    after = jax.jit(step)(create_state(trained, optimizer, frozen=frozen), make_batch(3))
    assert all(leaf.dtype == "int8" for leaf in jax.tree.leaves(after.frozen))


def test_frozen_parameters_are_written_once_and_never_pruned(run_dir):
    folder = run_dir / "checkpoints"
    assert sorted(sizes(folder)) == ["2", "4", "frozen"]
    metas = [Checkpoints(run_dir).meta(step) for step in (2, 4)]
    assert metas[0].frozen == metas[1].frozen != ""
    assert json.loads((folder / "frozen" / "meta" / "metadata").read_text())["parameters"][0].startswith("embed/")
    trained = [name for name in by_name(tj.load(run_dir).params) if not name.startswith(FROZEN)]
    stored = (folder / "4" / "params" / "_METADATA").read_text()
    assert all(name.split("/")[-2] in stored for name in trained) and "embed" not in stored


def test_a_run_with_frozen_parameters_resumes_as_if_it_had_never_stopped(tmp_path, run_dir):
    shutil.copytree(run_dir, tmp_path / "run")
    written = (tmp_path / "run" / "checkpoints" / "frozen" / "sha256.json").stat().st_mtime_ns
    resumed = train(config_of(tmp_path, **{"train.num_steps": 6}), tmp_path / "run")
    uninterrupted = train(config_of(tmp_path, **{"train.num_steps": 6}), tmp_path / "uninterrupted")
    jax.tree.map(np.testing.assert_array_equal, tj.load(resumed).params, tj.load(uninterrupted).params)
    assert (resumed / "checkpoints" / "frozen" / "sha256.json").stat().st_mtime_ns == written
    averaged = tj.load(resumed, average=2)
    jax.tree.map(np.testing.assert_array_equal, averaged.params["embed"], tj.load(resumed).params["embed"])


def test_frozen_parameters_of_a_run_killed_before_its_first_checkpoint_are_written_again(tmp_path, run_dir):
    shutil.copytree(run_dir / "checkpoints" / "frozen", tmp_path / "run" / "checkpoints" / "frozen")
    file = next((tmp_path / "run" / "checkpoints" / "frozen" / "params").rglob("*.*"))
    file.write_bytes(b"other numbers")
    again = train(config_of(tmp_path), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, tj.load(again).params, tj.load(run_dir).params)


@pytest.mark.parametrize("damage", ["gone", "bit", "other"])
def test_a_checkpoint_without_its_frozen_parameters_is_refused(tmp_path, run_dir, damage):
    shutil.copytree(run_dir, tmp_path / "run")
    frozen = tmp_path / "run" / "checkpoints" / "frozen"
    if damage == "gone":
        shutil.rmtree(frozen)
    elif damage == "bit":
        file = max((file for file in frozen.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    else:  # sound, but of another run
        (frozen / "meta" / "metadata").write_text("{}")
        seal = json.loads((frozen / SEAL).read_text())
        (frozen / SEAL).write_text(json.dumps(seal | {"meta/metadata": hashlib.sha256(b"{}").hexdigest()}))
    with pytest.raises(tj.UserError, match="frozen") as error:
        tj.load(tmp_path / "run", checkpoint=4)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(tj.UserError, match="none of its checkpoints"):
        train(config_of(tmp_path, **{"train.num_steps": 6}), tmp_path / "run")
