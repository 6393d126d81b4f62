"""Laws of capture: looking changes nothing, parts sum up, padding counts for nothing, the last lens is the logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from helpers.captures import (
    KINDS,
    TOKENS,
    WITH_LOGITS,
    B,
    D,
    F,
    H,
    K,
    N,
    S,
    T,
    V,
    args_of,
    captured,
    output,
    run_of,
    side_of,
    target_of,
    very_close,
)
from helpers.saved_runs import FIXTURES

import transformer_jax as tj
from transformer_jax.inference.recording import Recorder, activation_names, forward
from transformer_jax.nn.kv_cache_kinds import make_cache

kinds = pytest.mark.parametrize("name", KINDS)


# Laws


@kinds
def test_capturing_changes_no_output_and_has_every_name_in_its_shape(name):
    run, found = run_of(name), captured(name)
    very_close(found["vectors" if "vectors" in found else "logits"], output(name))
    names = tj.capture_names(run)
    assert list(found) == list(names)
    sizes = dict(B=B, T=S, S=S, N=N, K=K, H=H, D=D, F=F, V=V, C=3) | ({"T": T} if run.model.reads_source else {})
    for key, letters in names.items():
        is_self = key.startswith("decoder/") and "/attention/" in key
        here = sizes | ({"S": T} if is_self else {})
        assert found[key].shape == tuple(here[letter] for letter in letters.split()), key
    assert any("weights" in key for key in names) == (run.config.decoder.attention == "softmax")


def test_outside_jit_capturing_changes_no_bit():
    run, name = run_of("gpt sandwich"), "block_0/attention/heads"
    with jax.disable_jit():
        plain = run.model.apply(run.variables, *args_of(run))
        found = tj.capture(run, TOKENS, "*")
        patched = tj.patch(run, TOKENS, {name: found[name]})
    np.testing.assert_array_equal(found["logits"], plain)
    np.testing.assert_array_equal(patched, plain)
    for key, value in captured("gpt sandwich").items():
        close(found[key], value)


@pytest.mark.parametrize("name", ["gpt sandwich", "gpt parallel", "masked_lm", "seq2seq"])
def test_patching_with_what_was_captured_changes_nothing(name):
    def replace(x, operand):
        value, is_patched = operand
        return jnp.where(is_patched, value, x)

    run, found = run_of(name), captured(name)
    args = (*args_of(run), None, None)[: 4 if run.model.reads_source else 2]
    names = tuple(activation_names(run.model))
    functions = tuple((key, replace) for key in names)
    for patched in names:  # one program for all
        values = {key: (found[key] + 10.0 * (key != patched), key == patched) for key in names}
        out, _ = forward(run.model, (), functions, run.variables, args, values)
        close(out, output(name))


def test_a_patch_replaces_what_every_later_part_reads():
    run, found, expected = run_of("gpt"), captured("gpt"), output("gpt")

    def swap(x):
        return x[:, ::-1]

    key = "block_0/residual_after"
    swapped = tj.patch(run, TOKENS, {key: swap})
    very_close(swapped, tj.patch(run, TOKENS, {key: np.asarray(found[key])[:, ::-1]}))
    assert np.abs(swapped - expected).max() > 1e-2
    lens = tj.patch(run, TOKENS, {"block_1/*/out": 0.0})  # what no part adds
    very_close(lens, found["block_0/logits"])


def test_patched_weights_are_what_mixes_the_values():
    run, found = run_of("gpt sandwich"), captured("gpt sandwich")
    uniform = np.full(found["block_0/attention/weights"].shape, 1 / S, np.float32)
    mean = np.asarray(found["block_0/attention/value"]).mean(1, keepdims=True)
    heads = np.broadcast_to(np.repeat(mean, N // K, axis=2), found["block_0/attention/heads"].shape)
    by_weights = tj.patch(run, TOKENS, {"block_0/attention/weights": uniform})
    close(by_weights, tj.patch(run, TOKENS, {"block_0/attention/heads": heads}))


def test_weights_are_those_of_attention_maps():
    run = run_of("gpt")
    found = tj.capture(run, "the cat", "*/weights")
    maps = tj.attention_maps(run, "the cat").weights
    close(np.stack([found[f"block_{i}/attention/weights"][0] for i in range(2)]), maps)


@kinds
def test_the_parts_of_the_residual_stream_sum_to_it(name):
    run, found = run_of(name), captured(name)
    for side in ("encoder/", "decoder/") if run.model.reads_source else ("",):
        total = found[f"{side}embed"]
        for i in range(run.config.decoder.num_layers):
            close(total, found[f"{side}block_{i}/residual_before"])
            parts = [key for key in found if key.startswith(f"{side}block_{i}/") and key.endswith("/out")]
            assert len(parts) == (3 if side == "decoder/" else 2)
            total = total + sum(found[key] for key in parts)
            if run.config.decoder.norm_placement != "post":
                close(total, found[f"{side}block_{i}/residual_after"])


@pytest.mark.parametrize("name", ["gpt", "gpt parallel", "tagger", "seq2seq"])
def test_padding_on_either_side_agrees_with_texts_without_it(name):
    run, found = run_of(name), captured(name)
    first = np.array([3, 0, 1])
    is_token = (np.arange(S + 3) >= first[:, None]) & (np.arange(S + 3) < S + first[:, None])
    tokens = np.full(is_token.shape, 2)
    tokens[is_token] = TOKENS.ravel()
    padded = tj.capture(run, tokens, "*", is_token=is_token, **target_of(run))
    for key, letters in tj.capture_names(run).items():
        value = np.asarray(padded[key])
        is_own = key.startswith("decoder/") and "/cross/" not in key
        if letters.split()[1] == ("S" if run.model.reads_source else "T") and not is_own:  # [B, T, ...]
            value = value[is_token].reshape(found[key].shape)
        elif key == "block_0/attention/weights":  # [B, N, T, S]
            value = np.stack([row[:, mask][..., mask] for row, mask in zip(value, is_token, strict=True)])
        elif value.shape != found[key].shape:
            continue
        close(value, found[key])


def test_several_texts_are_padded_and_one_text_is_a_batch_of_one():
    run = run_of("gpt")
    texts = ["the cat", "a cat sat on"]
    several = tj.hidden_states(run, texts)
    for row, text in enumerate(texts):
        single = tj.hidden_states(run, text)
        assert single.shape == (3, 1, len(text), D)
        close(several[:, row, : len(text)], single[:, 0])


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_the_lens_at_the_last_layer_is_the_logits(name):
    run, found = run_of(name), captured(name)
    last = run.config.decoder.num_layers - 1
    very_close(found[f"{side_of(run)}block_{last}/logits"], output(name))


def test_the_lens_begins_with_the_embedding_and_goes_by_layer():
    run, found = run_of("gpt"), captured("gpt")
    lens = tj.logit_lens(run, TOKENS)
    very_close(lens[1:], np.stack([found["block_0/logits"], found["block_1/logits"]]))
    norm, kernel = run.params["stack"]["norm"], run.params["embed"]["unembed"]["kernel"]
    x = np.asarray(found["embed"])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
    close(lens[0], x @ kernel)


def test_hidden_states_begin_with_the_embedding_and_go_by_layer():
    run, found = run_of("gpt"), captured("gpt")
    expected = [found[key] for key in ("embed", "block_0/residual_after", "final")]
    close(tj.hidden_states(run, TOKENS), np.stack(expected))


def test_the_last_hidden_states_are_those_of_the_reference_library():
    expected = np.load(FIXTURES / "gpt2" / "expected.npz")
    is_token = expected["is_token"]
    states = tj.hidden_states(tj.from_pretrained(FIXTURES / "gpt2"), expected["tokens"], is_token=is_token)
    close(np.asarray(states[-1])[is_token], expected["hidden"][is_token])


def test_pieces_read_with_a_cache_have_the_activations_of_the_whole_text():
    run, found = run_of("gpt"), captured("gpt")
    cache = make_cache(run.config, B, S)
    names = [key for key in found if key.endswith(("residual_after", "heads", "weights", "activations", "final"))]

    @jax.jit
    def extend(piece, cache):
        recorder = Recorder(run.model, tuple(names), {}, {})
        with nn.intercept_methods(recorder):
            _, cache = run.model.apply(run.variables, piece, piece >= 0, cache, method="extend")
        return cache, recorder.recorded

    for first in (0, 3):
        cache, recorded = extend(TOKENS[:, first : first + 3], cache)
        for key in names:
            axis = 2 if key.endswith("weights") else 1
            close(recorded[key], np.take(np.asarray(found[key]), range(first, first + 3), axis))
