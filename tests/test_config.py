"""Configurations: derived fields, refusals, schema."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.commands import assert_is_one_error, command
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Config
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.nn.layers import FEED_FORWARDS, NORMS
from transformer_jax.nn.positions import POSITIONS
from transformer_jax.schema import config_fields, from_dict, unknown_field

lightly = settings(max_examples=100, deadline=None, database=None)


def refused(build, *parts):
    """`build` raises a UserError of one line that contains every part."""
    with pytest.raises(UserError) as error:
        build()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_zeros_are_derived():
    config = TransformerConfig(d_model=132, num_heads=6)
    assert (config.num_kv_heads, config.head_dim, config.d_ff) == (6, 22, 528)


def test_what_is_set_is_not_derived():
    config = TransformerConfig(d_model=11, num_heads=6, num_kv_heads=3, head_dim=4, d_ff=13)
    assert (config.num_kv_heads, config.head_dim, config.d_ff) == (3, 4, 13)


@given(st.integers(1, 999))
@lightly
def test_swiglu_has_8_thirds_of_the_width_rounded_up_to_a_multiple_of_8(d_model):
    d_ff = TransformerConfig(d_model=d_model, num_heads=1, feed_forward="swiglu", head_dim=2).d_ff
    assert d_ff % 8 == 0 and 0 <= d_ff - 8 * d_model / 3 < 8


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig().d_model = 7


REFUSED = [
    ({"vocab_size": 10**400}, "model.vocab_size=1000", "below 2**31"),
    *[({name: 0}, f"model.{name}=0", "at least 1") for name in ("max_len", "num_layers", "d_model", "num_heads")],
    *[({name: -1}, f"model.{name}=-1", "0 (") for name in ("vocab_size", "num_kv_heads", "head_dim", "d_ff")],
    ({"d_model": 131, "num_heads": 6}, "model.d_model=131", "divisible by model.num_heads=6", "126 or 132", "head_dim"),
    ({"d_model": 3, "num_heads": 5}, "model.d_model=3", "divisible by model.num_heads=5"),
    ({"num_heads": 6, "head_dim": 4, "num_kv_heads": 4}, "num_kv_heads=4", "divide model.num_heads=6", "[1, 2, 3, 6]"),
    ({"num_heads": 6, "head_dim": 4, "num_kv_heads": 12}, "num_kv_heads=12", "divide model.num_heads=6"),
    ({"positions": "rotary", "head_dim": 7}, "model.head_dim=7", "even", "8"),
    *[({"dropout_rate": x}, f"model.dropout_rate={x}", "at least 0 and below 1") for x in (-0.1, 1.0, math.nan)],
    ({"dtype": "float16"}, "model.dtype='float16'", "float32, bfloat16"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: ",".join(case[0]))
def test_a_refusal_names_field_value_and_rule(case):
    kwargs, *parts = case
    refused(lambda: TransformerConfig(**kwargs), *parts)


def test_an_unknown_name_is_refused_with_the_list_of_known_ones():
    refused(lambda: choose({"one": 1, "two": 2}, "three", "model.norm"), "model.norm='three'", "one, two")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"d_modle": 7}, ["d_modle", "Did you mean d_model?"]),
        ({"zzz": 7}, ["zzz", "Known here", "d_model", "dtype"]),
        ({"d_model": "128"}, ["d_model='128'", "int", "str"]),
        ({"d_model": 128.0}, ["d_model=128.0", "int", "float"]),
        ({"d_model": True}, ["d_model=True", "int", "bool"]),
        ({"d_model": None}, ["d_model=None", "int", "NoneType"]),
        ({"mlp_bias": 1}, ["mlp_bias=1", "bool", "int"]),
        ({"init_std": True}, ["init_std=True", "float", "bool"]),
        ({"init_std": math.nan}, ["init_std=nan", "finite"]),
        ({"rope_theta": math.inf}, ["rope_theta=inf", "finite"]),
        ({"rope_theta": -math.inf}, ["rope_theta=-inf", "finite"]),
    ],
)
def test_from_dict_refuses_what_does_not_fit(values, parts):
    refused(lambda: from_dict(TransformerConfig, values), *parts)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"model": 7}, ["model=7", "section"]),
        ({"model": {"d_model": True}}, ["model.d_model=True", "int"]),
        ({"model": {"d_modle": 7}}, ["model.d_modle", "Did you mean model.d_model?"]),
        ({"optimiser": {}}, ["optimiser", "Did you mean optimizer?"]),
        ({"train": {"accumulation": 5}}, ["train.accumulation=5", "divide train.batch_size=16"]),
    ],
)
def test_from_dict_names_a_nested_field_in_full(values, parts):
    refused(lambda: Config.from_dict(values), *parts)


def test_an_int_is_accepted_where_a_float_is_expected():
    theta = from_dict(TransformerConfig, {"rope_theta": 500}).rope_theta
    assert theta == 500.0 and type(theta) is float


@given(
    num_heads=st.sampled_from([1, 3, 6]),
    num_kv_heads=st.sampled_from([0, 1, 3]),
    head_dim=st.sampled_from([0, 2]),
    norm=st.sampled_from([*NORMS]),
    feed_forward=st.sampled_from([*FEED_FORWARDS]),
    positions=st.sampled_from([*POSITIONS]),
    qkv_bias=st.booleans(),
)
@lightly
def test_a_config_survives_being_saved_and_read(num_heads, num_kv_heads, **kwargs):
    num_kv_heads = min(num_kv_heads, num_heads)
    config = TransformerConfig(d_model=132, num_heads=num_heads, num_kv_heads=num_kv_heads, **kwargs)
    assert from_dict(TransformerConfig, dataclasses.asdict(config)) == config
    assert Config.from_dict(dataclasses.asdict(Config(model=config))) == Config(model=config)


def test_config_fields_lists_every_leaf_by_its_dotted_name_in_order():
    sections = [(s.name, dataclasses.fields(s.type)) for s in dataclasses.fields(Config)]
    assert [*config_fields(Config)] == [f"{name}.{field.name}" for name, fields in sections for field in fields]
    assert config_fields(Config)["model.d_model"].default == 128
    assert [*config_fields(TransformerConfig)] == [field.name for field in dataclasses.fields(TransformerConfig)]


@pytest.mark.parametrize("cls", [TransformerConfig, Config])
def test_every_field_has_a_meaning_and_a_default_of_its_type(cls):
    for name, field in config_fields(cls).items():
        assert field.metadata["meaning"].strip(), name
        assert type(field.default) is field.type, name


@pytest.mark.parametrize(
    ("field", "table"), [("norm", NORMS), ("feed_forward", FEED_FORWARDS), ("positions", POSITIONS)]
)
def test_a_variant_field_lists_its_variants_in_its_meaning(field, table):
    field = config_fields(TransformerConfig)[field]
    assert field.metadata["meaning"] == " | ".join(table)
    assert field.default in table


def test_numpy_numbers_are_refused_because_they_cannot_be_saved_as_json():
    refused(lambda: from_dict(TransformerConfig, {"d_model": np.int64(128)}), "d_model", "int64")


@pytest.mark.parametrize(("field", "value"), [("norm_epsilon", -1.0), ("rope_theta", 0.0), ("init_std", -0.5)])
def test_numbers_that_would_make_nan_later_are_refused(field, value):
    with pytest.raises(UserError, match=f"model.{field}={value}: must be above 0"):
        TransformerConfig(**{field: value})


def test_an_integer_too_large_for_a_float_is_refused_by_name():
    with pytest.raises(UserError, match="init_std"):
        from_dict(TransformerConfig, {"init_std": 10**400})


# Names that do not exist, and recipes that fail


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("optimizer.lr", "optimizer.peak_lr"),
        ("lr", "optimizer.peak_lr"),
        ("train.steps", "train.num_steps"),
        ("model.n_layers", "model.num_layers"),
        ("model.dropout", "model.dropout_rate"),  # not tokenizer.dropout
        ("train.d_model", "model.d_model"),
        ("optimiser.peak_lr", "optimizer.peak_lr"),
        ("train.tensorbord", "train.tensorboard"),
        ("train.xyzzy", None),
    ],
)
def test_the_nearest_name_is_one_of_the_same_section_with_the_same_words(name, nearest):
    message = str(unknown_field(name, list(config_fields(Config))))
    assert message.startswith(f"{name}: no such field. " + (f"Did you mean {nearest}?" if nearest else "Known here: "))


RECIPES = {
    "return 1 / 0": "ZeroDivisionError: division by zero",
    "raise ValueError('one\\ntwo')": "two",
    "raise SystemExit(3)": "SystemExit: 3",
    "import no_such_package": "No module named 'no_such_package'",
    "open('/no/such/file')": "No such file or directory: '/no/such/file'",
    "return None": "get_config() returns None",
    "return [1]": "get_config() returns [1]",
    "return [": "SyntaxError: '[' was never closed",
    "return get_config()": "RecursionError",
    "config = default(); config.train.num_stepz = 3": 'Did you mean "num_steps"',
    "config = default(); config.train.num_steps = '1e3'": "TypeError: Could not override field 'num_steps'",
}


@pytest.mark.parametrize("body", RECIPES)
def test_a_recipe_that_fails_is_reported_in_one_line(tmp_path, body):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"from configs.default import get_config as default\ndef get_config():\n    {body}\n")
    done = command("train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}")
    assert_is_one_error(done, "error: --config: the recipe gives no configuration: ", RECIPES[body])
    assert not (tmp_path / "run").exists()


def test_what_follows_the_colon_is_the_argument_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config(text):\n    raise ValueError(f'it is {text}')\n")
    by_name = "depth='0': must be a whole number from 1 to 64, such as depth:4. See"
    for config, message in ((f"{recipe}:a=b:4", "ValueError: it is a=b:4. See"), ("depth:0", by_name)):
        done = command("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
        assert_is_one_error(done, "error: --config: the recipe gives no configuration: ", message)
