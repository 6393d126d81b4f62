"""Training of prefixes and prompts: computed once for all rows, and a run directory that has them beside the model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.adapter_training import assert_equal, config_of, pretrained
from helpers.arrays import close, random_like

import transformer_jax as tj
from configs import finetune_bert, finetune_prompt
from train.adapter_config import AdapterConfig
from train.adapters import adapter_spec, first_adapter
from train.config import Config
from train.loop import run as train
from train.losses import causal_lm
from train.tasks.scoring import Options, score
from transformer_jax.checkpoints.store import Checkpoints
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.models.adapters import PREFIX, adapter_shapes, with_adapter
from transformer_jax.models.prefix import all_variables, trained_prefix

pytestmark = pytest.mark.usefixtures("compilation_cache")
P, T, V = 5, 7, 23
POSITIONS = {
    "learned": {},
    "rotary": {"positions": "rotary", "num_kv_heads": 1, "scale_embeddings": True},
    "alibi": {"positions": "alibi"},
    "t5": {"positions": "t5"},
    "shaw": {"positions": "shaw"},
    "window": {"positions": "rotary", "window": 3},
    "linear": {"positions": "sinusoidal", "attention": "linear"},
}
ROWS = np.random.default_rng(1).integers(0, V, (3, T))


@functools.cache
def make(positions="learned"):
    config = TransformerConfig(vocab_size=V, max_len=19, num_layers=2, d_model=12, num_heads=3, **POSITIONS[positions])
    return GPT(config), random_like(parameter_shapes(GPT(config)))


def first(model, params, kind, seed=0):
    """First values of a prefix, and the random tokens that they are of."""
    config = AdapterConfig(kind, num_tokens=P)
    key = jax.random.key(seed)
    array = first_adapter(model, adapter_spec(model, config), config, key, params)[PREFIX]
    tokens = jax.random.randint(jax.random.fold_in(key, 1), (1, P), 0, V)
    return array, np.tile(tokens, (len(ROWS), 1))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, array, *args, **kwargs):
    """The model after a prefix, as in training; without one where the array is None."""
    tree = params if array is None else with_adapter(params, {PREFIX: array})
    return model.apply(all_variables(model, tree), *args, **kwargs)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_prompt_of_embeddings_of_tokens_is_the_text_with_these_tokens_in_front(positions):
    model, params = make(positions)
    array, tokens = first(model, params, "prompt")
    expected = apply(model, params, None, np.concatenate([tokens, ROWS], axis=1))[:, P:]
    close(apply(model, params, array, ROWS), expected)


@pytest.mark.parametrize("positions", ["learned", "alibi"])  # others rotate keys, or have vectors for distances
def test_a_prefix_of_keys_and_values_of_tokens_is_the_text_with_these_tokens_in_front(positions):
    model, params = make(positions)
    array, tokens = first(model, params, "prefix")
    expected = apply(model, params, None, np.concatenate([tokens, ROWS], axis=1))[:, P:]
    close(apply(model, params, array, ROWS), expected)


@pytest.mark.parametrize("positions", ["learned", "window"])
def test_each_of_the_texts_that_are_packed_in_a_row_follows_the_prefix_and_no_other_text(positions):
    model, params = make(positions)
    array, _ = first(model, params, "prompt")
    segments = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 2], [3, 3, 3, 3, 3, 3, 3]])
    masks = [(row, segments[row] == text) for row in range(len(ROWS)) for text in np.unique(segments[row])]
    alone = np.stack(
        [np.pad(ROWS[row, mask], (0, T - mask.sum())) for row, mask in masks]
    )  # none sees padding after it
    expected = apply(model, params, array, alone)
    packed = apply(model, params, array, ROWS, segments=segments)
    for (row, mask), text in zip(masks, expected, strict=True):
        close(packed[row, mask], text[: mask.sum()])


@pytest.mark.parametrize("kind, positions", [("prompt", "rotary"), ("prefix", "learned")])
def test_the_gradient_of_a_prefix_is_that_of_a_copy_of_it_in_every_row(kind, positions):
    model, params = make(positions)
    array, tokens = first(model, params, kind)
    batch = {"tokens": ROWS, "is_token": np.arange(T) < np.array([[7], [4], [2]])}

    def loss(array):
        bound = functools.partial(model.apply, all_variables(model, with_adapter(params, {PREFIX: array})))
        return causal_lm(bound, batch)[0]

    def slow_loss(array):
        def bound(x, method, **kwargs):
            variables = {"params": params, "prefix": {"embed": {"vectors": array}}}
            if method == "logits":
                return model.apply(variables, x, method=method)
            return model.apply(variables, jnp.concatenate([tokens, x], axis=1), method=method)[:, P:]

        return causal_lm(bound, batch)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(array)
    if kind == "prompt":
        expected, slow_gradient = jax.jit(jax.value_and_grad(slow_loss))(array)
        close(value, expected)
        np.testing.assert_allclose(gradient, slow_gradient, rtol=0, atol=1e-5 * np.abs(slow_gradient).max())
        return
    direction = random_like(array, 3)
    after, before = (jax.jit(loss)(array + step * direction) for step in (0.01, -0.01))
    np.testing.assert_allclose(jnp.vdot(gradient, direction), (after - before) / 0.02, rtol=3e-3)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt")
    changes = {"adapter.num_tokens": P, "train.num_steps": 12, "train.eval_every": 6, "train.ema_decay": 0.2}
    return train(config_of(folder, finetune_prompt, **changes | {"checkpoint.save_every": 6}), folder / "run")


def test_training_a_prompt_lowers_the_loss_and_changes_it_alone(run_dir):
    run, base = tj.load(run_dir), pretrained("gpt2")
    assert_equal(run.params, base.params)
    assert not run.adapter and run.prefix.trained.shape == (P, base.config.d_model)
    scores = [Checkpoints(run_dir).meta(step).val_score for step in (6, 12)]
    assert scores[0] < scores[1]


def test_a_run_directory_has_the_model_once_and_a_checkpoint_the_prompt(run_dir):
    stored = (run_dir / "checkpoints" / "12" / "params" / "_METADATA").read_text()
    assert "prefix" in stored and "kernel" not in stored
    assert "kernel" in (run_dir / "checkpoints" / "frozen" / "params" / "_METADATA").read_text()
    prompts = [tj.load(run_dir, step).prefix.trained for step in (6, 12)]
    close(tj.load(run_dir, average=2).prefix.trained, (prompts[0] + prompts[1]) / 2)


def test_the_run_of_a_prompt_has_the_loss_of_its_training_and_answers_as_any_run(run_dir, tmp_path):
    run = tj.load(run_dir)
    meta = tj.read_meta(run_dir)
    values = score(run, Config.from_dict(meta.training.config), "val", Options()).values
    assert values["loss"] == pytest.approx(-meta.val_score, rel=1e-5)
    assert run.decoder_context == run.config.max_len - P
    (found,) = tj.generate_tokens(run, [[5, 6, 7]], method="greedy", max_new_tokens=1)
    assert found.tokens[0] == np.argmax(tj.logits(run, [[5, 6, 7]])[0, -1])
    assert np.abs(tj.logits(tj.quantize(run), ROWS) - tj.logits(run, ROWS)).max() > 0


def test_a_prefix_cannot_be_merged_or_saved_within_a_model(run_dir, tmp_path):
    run = tj.load(run_dir)
    for save in (tj.save, tj.save_pretrained):
        with pytest.raises(tj.UserError, match="run: has a trained prefix, which cannot be merged"):
            save(run, tmp_path / "new")
    config = config_of(tmp_path)
    config.train.init_from = str(run_dir)
    with pytest.raises(tj.UserError, match="train.init_from=.*: has a trained prefix, which cannot be merged"):
        train(config, tmp_path / "run")


def test_a_classifier_trains_a_head_beside_keys_and_values(tmp_path):
    rows = [f"the {word} cat\t{label}\n" for label, word in (("good", "garden"), ("bad", "mat")) for _ in range(20)]
    (tmp_path / "train.tsv").write_text("".join(rows))
    changes = {"data.path": str(tmp_path / "train.tsv"), "adapter.kind": "prefix", "adapter.num_tokens": 3}
    run = tj.load(train(config_of(tmp_path, finetune_bert, "bert", **changes), tmp_path / "run"))
    assert_equal(run.params["encoder"], pretrained("bert").params["encoder"])
    assert run.params["out"]["kernel"].shape == (run.config.d_model, 2)
    assert run.encoder_context == run.config.max_len - 3
    ids = run.tokenizer.encode_whole("the garden cat")
    tj.save_adapter(run, tmp_path / "adapter")
    other = dataclasses.replace(run, prefix=None, params=jax.tree.map(jnp.zeros_like, run.params))
    other = dataclasses.replace(other, params=other.params | {"encoder": run.params["encoder"]})
    again = tj.load_adapter(other, tmp_path / "adapter")  # the head too
    assert_equal((again.params, again.prefix.trained), (run.params, run.prefix.trained))
    close(tj.classify(run, "the garden cat").probabilities, jax.nn.softmax(tj.logits(run, ids[None]))[0])


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize("base", ["bert", "t5"])
def test_first_values_have_their_declared_shapes_and_act_in_training_as_in_a_run(base, kind):
    run = pretrained(base)
    config = AdapterConfig(kind, num_tokens=3)
    spec = adapter_spec(run.model, config)
    (array,) = first_adapter(run.model, spec, config, jax.random.key(0), run.params).values()
    assert array.shape == adapter_shapes(run.model, spec)[PREFIX].shape
    inputs = (ROWS, ROWS) if run.model.reads_source else (ROWS,)
    found = apply(run.model, run.params, array, *inputs)
    with_it = dataclasses.replace(run, prefix=trained_prefix(run.model, run.variables, array))
    target = ROWS if run.model.reads_source else None
    close(tj.logits(with_it, ROWS, target=target), found)
    assert found.shape[1] == T and np.abs(found - tj.logits(run, ROWS, target=target)).max() > 1e-3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"adapter.num_tokens": 64}, "adapter.num_tokens=64: leaves no room for a text in the context of 41"),
        ({"adapter.num_tokens": 0}, "adapter.num_tokens=0: must be at least 1"),
        ({"adapter.rank": 4}, "adapter.rank=4: is read only with adapter.kind=lora | dora"),
        ({"adapter.where": "attention"}, "adapter.where='attention': is read only with adapter.kind=lora | dora | ia3"),
        ({"adapter.dropout": 0.5}, "adapter.dropout=0.5: is read only with"),
        ({"adapter.kind": "lora", "adapter.num_tokens": 9}, "adapter.num_tokens=9: is read only with adapter.kind=pre"),
    ],
)
def test_a_prefix_that_cannot_be_trained_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(tj.UserError, match=message) as error:
        train(config_of(tmp_path, finetune_prompt, **changes), tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1 and not Checkpoints(tmp_path / "run").steps()


def test_keys_and_values_have_no_place_in_linear_attention():
    with pytest.raises(tj.UserError, match="adapter.kind='prefix': linear attention has sums.*adapter.kind=prompt"):
        adapter_spec(make("linear")[0], AdapterConfig("prefix", num_tokens=P))
