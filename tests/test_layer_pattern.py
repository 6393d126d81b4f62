"""Layers that differ: a pattern of local and global ones against its NumPy twin, and `config.layer`."""

import functools

import jax
import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.numpy_gpt import GEMMA, numpy_gpt

from transformer_jax.config import LayerConfig, TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, SequenceClassifier, init_params, parameter_shapes
from transformer_jax.nn.kv_cache_kinds import overflow_error

B, T, V = 3, 7, 23
SIZES = dict(vocab_size=V, max_len=11, d_model=13, num_heads=6, head_dim=4, d_ff=17)
PATTERN = {"layer_pattern": "local,global", "local_window": 3}
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))


@pytest.mark.parametrize(
    "changes",
    [{}, {"global_positions": False, "qk_norm": "all", "rotary_dim": 4}],
    ids=["two_bases", "no_positions_in_global_layers"],
)
def test_a_pattern_of_local_and_global_layers_is_its_formula_in_numpy(changes):
    model = GPT(TransformerConfig(**SIZES | GEMMA | changes))
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    close(jax.jit(model.apply)(params, TOKENS), numpy_gpt(model.config, params, TOKENS))


def test_the_settings_of_a_layer_are_those_of_its_kind_and_repeat():
    config = TransformerConfig(**SIZES | GEMMA | {"num_layers": 7})
    local, whole = LayerConfig(3, True, 30.0, "none"), LayerConfig(0, True, 500.0, "linear")
    assert [config.layer(i) for i in range(7)] == [local, local, local, whole, local, local, local]
    same_base = TransformerConfig(**SIZES | GEMMA | {"local_rope_theta": 0.0, "local_positions": False})
    assert same_base.layer(1) == LayerConfig(3, False, 500.0, "linear")
    alike = TransformerConfig(window=5, rope_theta=70.0)
    assert {alike.layer(i) for i in range(4)} == {LayerConfig(5, True, 70.0, "none")}
    assert config.layer_period == 4 and alike.layer_period == 1


def test_parameter_shapes_are_those_of_every_layer_though_one_of_a_kind_is_traced():
    """Also where a kind has parameters of its own: Shaw's vectors in local layers alone."""
    shaw = TransformerConfig(**SIZES, positions="shaw", global_positions=False, num_layers=5, **PATTERN)
    alike = TransformerConfig(**SIZES, num_layers=3)
    for model in (GPT(shaw), Seq2Seq(Seq2SeqConfig(alike, shaw)), SequenceClassifier(shaw, 2)):
        assert parameter_shapes(model) == jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))


def test_a_model_with_global_layers_cannot_slide_past_its_context():
    assert "model.layer_pattern='local,local,local,global': has global layers" in overflow_error(
        TransformerConfig(**SIZES | GEMMA)
    )


REFUSED = [
    ({"local_window": 3}, "model.local_window=3: is read only with model.layer_pattern. Take 0, or a pattern such as"),
    ({"global_positions": False}, "model.global_positions=False: is read only with model.layer_pattern. Take True"),
    (PATTERN | {"layer_pattern": "local,glbal"}, "kind='glbal': unknown. Choose one of: local, global."),
    (PATTERN | {"layer_pattern": "local, global"}, "kind=' global': unknown"),
    (PATTERN | {"layer_pattern": "local,local"}, "must have local and global layers. If all are alike, take model.win"),
    (PATTERN | {"num_layers": 1}, "has 2 layers, but model.num_layers=1"),
    (
        PATTERN | {"window": 2},
        "model.window=2: must be 0 with model.layer_pattern; local layers have model.local_window",
    ),
    (
        {"layer_pattern": "local,global"},
        "model.local_window=0: must be at least 1 with model.layer_pattern='local,glob",
    ),
    (PATTERN | {"local_rope_theta": -1.0}, "model.local_rope_theta=-1.0: must be 0"),
    ({"rotary_dim": 3}, "model.rotary_dim=3: must be even, .* at most model.head_dim=32. Take 2."),
    ({"rotary_dim": 34}, "model.rotary_dim=34: .* Take 32."),
    ({"qk_norm": "heads"}, "model.qk_norm='heads': unknown. Choose one of: none, head, all"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda x: ",".join(x) if isinstance(x, dict) else "")
def test_an_illegal_mix_of_layers_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        TransformerConfig(**changes)
    assert "\n" not in str(error.value)
