"""Small runs of every kind, and what was captured in them, for tests of capture and interventions."""

import functools

import jax
import numpy as np

import transformer_jax as tj
from helpers.arrays import random_like
from transformer_jax.models import MODELS, Seq2SeqConfig, parameter_shapes
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import CharTokenizer

CHARS = CharTokenizer.train("the cat sat on a mat.")
B, T, S, N, K, H, D, F, V = 3, 5, 7, 6, 2, 4, 11, 13, CHARS.vocab_size
SIZES = dict(vocab_size=V, max_len=19, num_layers=1, d_model=D, num_heads=N, num_kv_heads=K, head_dim=H, d_ff=F)
POST = {"norm_placement": "post", "embed_norm": True}
KINDS = {  # name: model, changes of the config
    "gpt": ("gpt", {"num_layers": 2, "positions": "shaw", "tie_embeddings": False}),
    "gpt sandwich": ("gpt", {"positions": "rotary", "norm_placement": "sandwich", "norm": "rmsnorm_plus_one"}),
    "gpt parallel": ("gpt", {"attention": "linear", "norm_placement": "parallel"}),
    "encoder": ("encoder", {"norm_placement": "output"}),
    "masked_lm": ("masked_lm", POST),
    "classifier": ("classifier", POST),
    "tagger": ("tagger", {"positions": "t5"}),
    "embedder": ("embedder", {"positions": "alibi"}),
    "seq2seq": ("seq2seq", POST | {"logit_bias": True}),
}
WITH_LOGITS = [name for name, (kind, _) in KINDS.items() if kind not in ("encoder", "embedder")]
TOKENS = np.random.default_rng(0).integers(3, V, (B, S))
TARGET = np.random.default_rng(1).integers(3, V, (B, T))


@functools.cache
def run_of(name):
    kind, changes = KINDS[name]
    config = tj.TransformerConfig(**SIZES | changes)
    settings = {"classifier": {"num_classes": 3}, "tagger": {"num_tags": 3}}.get(kind, {})
    model = MODELS[kind](Seq2SeqConfig(config, config) if kind == "seq2seq" else config, **settings)
    params = random_like(parameter_shapes(model), scale=0.4)
    return tj.Run(model, params, CHARS, model.config, generation_defaults=GenerationDefaults((2,), 0, 1))


def target_of(run, target=TARGET):
    return {"target": target} if run.model.reads_source else {}


def side_of(run):
    return "decoder/" if run.model.reads_source else ""


def args_of(run):
    return (TOKENS, TARGET) if run.model.reads_source else (TOKENS,)


@functools.cache
def plain(name):
    """The model without any recorder: a function of its variables and inputs."""
    return jax.jit(run_of(name).model.apply)


@functools.cache
def output(name):
    return np.asarray(plain(name)(run_of(name).variables, *args_of(run_of(name))))


@functools.cache
def captured(name):
    run = run_of(name)
    return tj.capture(run, TOKENS, "*", **target_of(run))


def very_close(actual, expected):
    """The same to 1e-6 of the largest number: one program against another."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
