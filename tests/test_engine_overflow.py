"""Prefill in chunks, and texts past the context with a rolling cache: results stay the same."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from helpers.arrays import close, random_like

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.inference.forward import step_function
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.nn.kv_cache_kinds import make_cache, make_rolling_cache
from transformer_jax.run import Run
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.sampling.decode import chunked_prefill
from transformer_jax.tokenizers import train_tokenizer

B, T, NUM_UNUSED, WINDOW, CONTEXT = 5, 29, 6, 7, 41
KINDS = {
    "full": dict(positions="rotary"),
    "learned": dict(positions="learned"),
    "ring": dict(positions="rotary", window=WINDOW),
    "linear": dict(positions="none", attention="linear"),
}
LEFT = np.ones((B, T), bool)  # padded on the left, and NUM_UNUSED positions on the right of every row
for row, start in enumerate((0, 3, 11, 17, 22)):
    LEFT[row, :start] = False
LEFT[:, T - NUM_UNUSED :] = False
RAGGED = LEFT.copy()  # and some on the right: the last tokens of the rows are in several chunks
RAGGED[1, 5:] = RAGGED[2, 14:] = False
PROMPTS = ["the cat sat on a mat " * 5, "a", "dogs ran"]


@functools.cache
def make_run(kind="ring", context=CONTEXT, **kwargs):
    """A run with random parameters and no end token."""
    tokenizer = train_tokenizer("byte", 283, "the cat")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        max_len=context,
        d_model=12,
        num_heads=2,
        num_kv_heads=1,
        **{"num_layers": 2} | KINDS[kind] | kwargs,
    )
    params = random_like(parameter_shapes(GPT(config)), 0)
    return Run(GPT(config), params, tokenizer, config, generation_defaults=GenerationDefaults((), 0, 1))


def longer(run):
    """The same parameters in a model whose context has room for all tokens."""
    config = dataclasses.replace(run.config, max_len=1999)
    return dataclasses.replace(run, model=GPT(config), config=config)


# Chunks

prefill = jax.jit(chunked_prefill, static_argnums=5)
read = jax.jit(lambda step, *args: step(*args))


@pytest.mark.parametrize(
    "kind, chunk", [*itertools.product(("full", "ring"), (2, 7, 29)), ("linear", 2), ("linear", 7), ("learned", 7)]
)
def test_a_prompt_read_in_chunks_gives_the_logits_of_one_read_at_once(kind, chunk):
    run = make_run(kind, num_layers=2 if kind in ("full", "ring") else 1)
    tokens = np.random.default_rng(1).integers(0, 283, (B, T))
    step = step_function(run)
    for is_token, unused in ((LEFT, NUM_UNUSED), (RAGGED, NUM_UNUSED)):
        cache = make_rolling_cache(run.config, B, chunk) if kind == "ring" else make_cache(run.config, B, CONTEXT)
        logits, cache = prefill(step, cache, tokens, is_token, unused, chunk)
        expected, whole = read(step, tokens, is_token, make_cache(run.config, B, CONTEXT))
        close(logits, expected)
        np.testing.assert_array_equal(cache.num_tokens, whole.num_tokens)
        assert kind == "linear" or cache.num_written == T - unused
        newest = np.full((B, 1), 11)  # and the next token gets the same logits
        close(read(step, newest, newest > 0, cache)[0], read(step, newest, newest > 0, whole)[0])


def test_chunks_of_padding_alone_are_not_read():
    run, read_by_host = make_run("full"), []
    step = step_function(run)

    def counting(tokens, is_token, cache):
        jax.debug.callback(lambda: read_by_host.append(tokens.shape[1]))
        return step(tokens, is_token, cache)

    empty, tokens = make_cache(run.config, B, CONTEXT), np.ones((B, T), np.int32)
    jax.block_until_ready(prefill(jax.tree_util.Partial(counting), empty, tokens, LEFT, 17, 4))
    jax.effects_barrier()
    assert read_by_host == [1, 4, 4, 4]  # 12 positions in use: 1 that fills no chunk, and 3 chunks


def test_texts_do_not_depend_on_the_chunk_size(monkeypatch):
    run = make_run("full", context=149, num_layers=1)
    config = tj.GenerationConfig(max_new_tokens=23, seed=3)
    usual = tj.complete(run, PROMPTS, config)
    for chunk in (50, 64):  # of 128 positions
        monkeypatch.setattr(sampling, "PREFILL_CHUNK", chunk)
        for ours, expected in zip(tj.complete(run, PROMPTS, config), usual, strict=True):
            assert ours.tokens == expected.tokens
            np.testing.assert_allclose(ours.log_probs, expected.log_probs, atol=1e-4)


# Past the context


@pytest.mark.parametrize("kind", ["ring", "linear"])
def test_a_text_that_slides_past_the_context_equals_that_of_a_longer_context(kind):
    run = make_run(kind, num_layers=2 if kind == "ring" else 1)
    settings = dict(max_new_tokens=211, seed=3)  # prompts of 105 tokens, 1 and 8; the context is 41
    expected = tj.generate(longer(run), PROMPTS, **settings)
    assert tj.generate(run, PROMPTS, on_overflow="slide", **settings) == expected
    if kind == "ring":
        pieces = list(tj.stream(run, PROMPTS[0], on_overflow="slide", **settings))
        assert PROMPTS[0] + "".join(pieces) == expected[0] and len(pieces) > 1


@pytest.mark.parametrize("window", [1, 300])  # the least; more than a chunk, and than the text
def test_a_text_slides_with_any_window(window):
    run = make_run("ring", window=window, num_layers=1)
    settings = dict(max_new_tokens=67, method="greedy")
    assert tj.generate(run, PROMPTS, on_overflow="slide", **settings) == tj.generate(longer(run), PROMPTS, **settings)


def test_within_the_context_slide_changes_nothing():
    settings = dict(max_new_tokens=13, seed=5)
    prompts = ["dogs", *PROMPTS[1:]]  # as many rows as in the test above: the eager operations are compiled for them
    run = make_run(num_layers=1)
    assert tj.generate(run, prompts, on_overflow="slide", **settings) == tj.generate(run, prompts, **settings)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"kind": "full"}, "model.window=0"),
        ({"kind": "learned"}, "model.window=0"),
        ({"positions": "learned"}, "model.positions='learned'"),
        ({"positions": "sinusoidal", "kind": "linear"}, "model.positions='sinusoidal'"),
    ],
    ids=str,
)
def test_a_model_that_cannot_pass_its_context_refuses_to_slide(kwargs, words):
    for call in (tj.generate, tj.stream):  # a stream at once, not at its first piece
        with pytest.raises(UserError, match=words) as error:
            call(make_run(**kwargs), "a", on_overflow="slide")
        assert "\n" not in str(error.value) and "on_overflow=re-prefill" in str(error.value)


def test_a_text_that_outgrows_the_context_gets_an_error_that_names_the_fix():
    with pytest.raises(UserError, match="on_overflow=slide"):
        tj.generate(make_run(), "a", max_new_tokens=CONTEXT)
    with pytest.raises(UserError, match="on_overflow=re-prefill"):
        tj.generate(make_run("full"), "a", max_new_tokens=CONTEXT)
    with pytest.raises(UserError, match=f"prompt: 105 tokens, and the model's context is {CONTEXT}"):
        tj.generate(make_run(), PROMPTS, max_new_tokens=1)
    with pytest.raises(UserError, match="beam search stays within the context"):
        tj.GenerationConfig(method="beam", on_overflow="slide")
