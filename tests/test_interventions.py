"""Interventions and attributions against slow twins, and mistakes in one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import close
from helpers.captures import CHARS, TOKENS, D, N, S, args_of, captured, output, plain, run_of, target_of, very_close
from helpers.saved_runs import FIXTURES

import transformer_jax as tj
from transformer_jax.inference.recording import forward

# Interventions


@pytest.mark.parametrize("name, part, layer", [("gpt", "", 1), ("seq2seq", "decoder/cross", 0)])
def test_ablating_a_head_is_zeroing_its_rows_of_the_output_kernel(name, part, layer):
    run = run_of(name)
    path = ["decoder", "stack", "block_0", "cross"] if part else ["stack", "block_1", "attention"]
    for heads in ([4], [0, 4]):
        params = jax.tree.map(np.array, run.params)
        functools.reduce(lambda tree, key: tree[key], [*path, "out"], params)["kernel"][heads] = 0.0
        expected = plain(name)({"params": params}, *args_of(run))
        pairs = [(layer, head) for head in heads]
        very_close(tj.ablate(run, TOKENS, pairs, part=part, **target_of(run)), np.asarray(expected))
        assert np.abs(expected - output(name)).max() > 1e-2


def test_a_head_is_replaced_by_its_mean_over_the_tokens_that_are_no_padding():
    run, key = run_of("gpt"), "block_1/attention/heads"
    is_token = np.arange(S) < np.array([[7], [4], [2]])
    heads = np.array(tj.capture(run, TOKENS, key, is_token=is_token)[key])
    heads[:, :, 3] = heads[is_token].mean(0)[3]
    expected = np.asarray(tj.patch(run, TOKENS, {key: heads}, is_token=is_token))
    ablated = tj.ablate(run, TOKENS, [(1, 3)], "mean", is_token=is_token)
    close(ablated[is_token], expected[is_token])


def test_all_heads_share_one_compiled_program():
    run = run_of("gpt")
    tj.ablate(run, TOKENS, [(0, 0)])
    num_programs = forward._cache_size()
    effects = [tj.ablate(run, TOKENS, [(layer, head)]) for layer in range(2) for head in range(N)]
    assert forward._cache_size() == num_programs
    assert len({float(jnp.sum(effect)) for effect in effects}) == 2 * N


@pytest.mark.parametrize("name", ["gpt", "gpt sandwich", "gpt parallel"])
def test_attributions_of_all_parts_sum_to_the_logit(name):
    logits = output(name)[0]
    parts = tj.direct_logit_attribution(run_of(name), TOKENS[:1])
    np.testing.assert_allclose(sum(parts.values()), logits[-1].max(), rtol=1e-4)
    parts = tj.direct_logit_attribution(run_of(name), TOKENS[:1], 5, position=1)
    np.testing.assert_allclose(sum(parts.values()), logits[1, 5], atol=1e-4)


@pytest.mark.parametrize("folder", ["llama", "t5", "bart", "marian"])
def test_attributions_sum_to_the_logit_of_the_reference_library(folder):
    run = tj.from_pretrained(FIXTURES / folder)
    expected = np.load(FIXTURES / folder / "expected.npz")
    tokens = expected["source" if run.model.reads_source else "tokens"][:1]
    target = {"target": expected["target"][:1]} if run.model.reads_source else {}
    parts = tj.direct_logit_attribution(run, tokens, 5, position=3, **target)
    np.testing.assert_allclose(sum(parts.values()), expected["logits"][0, 3, 5], atol=1e-4)
    assert len(parts) >= 2 + run.config.decoder.num_layers * (1 + run.config.decoder.num_heads)


def test_the_attribution_of_a_head_is_what_it_wrote_through_the_norm_and_the_kernel():
    run, found = run_of("gpt"), captured("gpt")
    own = run.params["stack"]["block_1"]["attention"]["out"]["kernel"][3]
    written = np.asarray(found["block_1/attention/heads"])[:1, -1, 3] @ own
    x = np.asarray(found["block_1/residual_after"])[0, -1]
    normed = (written - written.mean()) / np.sqrt(x.var() + 1e-5) * run.params["stack"]["norm"]["scale"]
    expected = normed[0] @ run.params["embed"]["unembed"]["kernel"][:, 7]
    parts = tj.direct_logit_attribution(run, TOKENS[:1], 7)
    np.testing.assert_allclose(parts["block_1/attention/head_3"], expected, rtol=1e-4)


def test_activation_patching_is_a_patch_of_each_layer_at_each_position():
    run = run_of("gpt")
    clean, corrupted = "the cat sat", "the mat sat"
    grid = tj.activation_patching(run, clean, corrupted, ("c", "m"), at="attention/out")
    values, others = (tj.capture(run, text, ["*/attention/out", "logits"]) for text in (clean, corrupted))
    ids = CHARS.encode_continuation("cm")
    differences = [float(x["logits"][0, -1, ids[0]] - x["logits"][0, -1, ids[1]]) for x in (values, others)]
    np.testing.assert_allclose([grid.clean, grid.corrupted], differences, rtol=1e-5)
    assert grid.effects.shape == (2, len(clean)) and np.all(grid.effects[:, :4] == 0)
    for layer, position in ((0, 4), (1, 10), (1, 5)):
        key = f"block_{layer}/attention/out"
        mixed = np.array(others[key])
        mixed[:, position] = values[key][:, position]
        logits = tj.patch(run, corrupted, {key: mixed})[0, -1]
        expected = float(logits[ids[0]] - logits[ids[1]]) - grid.corrupted
        np.testing.assert_allclose(grid.effects[layer, position], expected, atol=1e-5)
        assert (abs(expected) > 1e-3) == (layer == 0 or position == 10)  # nothing reads the last layer elsewhere
    whole = tj.activation_patching(run, clean, corrupted, ("c", "m"), at="residual_after")
    np.testing.assert_allclose(whole.effects[1, -1], whole.clean - whole.corrupted, atol=1e-5)


def test_a_prefix_and_an_adapter_of_the_run_are_there():
    run = tj.from_pretrained(FIXTURES / "gpt2")
    after = tj.with_prefix(run, "the cat")
    found = tj.capture(after, [[5, 6, 7]], ["logits", "block_0/attention/weights"])
    close(found["logits"], tj.logits(after, [[5, 6, 7]]))
    P = after.prefix.length
    assert found["block_0/attention/weights"].shape[2:] == (3, P + 3)
    both = tj.load_adapter(run, FIXTURES / "adapters" / "gpt2_dora", name="dora")
    tokens = np.array([[5, 6, 7]] * 2)
    names = ["", "dora"]
    found = tj.capture(both, tokens, "logits", adapter_names=names)["logits"]
    close(found, tj.logits(both, tokens, adapter_names=names))
    assert np.abs(found[0] - found[1]).max() > 1e-3


# Mistakes


@pytest.mark.parametrize(
    "name, call, message",
    [
        ("gpt", lambda run: tj.capture(run, "a", "blok_0/embed"), "names: 'blok_0/embed' matches no name. The nearest"),
        ("gpt", lambda run: tj.capture(run, "a", ["embed", "block_2/*"]), r"'block_2/\*' matches no name"),
        ("gpt", lambda run: tj.capture(run, "a", []), r"names=\[\]: is empty"),
        ("gpt", lambda run: tj.capture(run, "a", ""), "names='': is empty"),
        ("gpt", lambda run: tj.capture(run, "a", None), "names: must be a name or a list"),
        ("gpt", lambda run: tj.capture(run, [], "*"), "text: is empty"),
        ("gpt", lambda run: tj.capture(run, "", "*"), "text='': has no tokens"),
        ("gpt", lambda run: tj.capture(run, ["a", ""], "*"), r"text\[1\]='': has no tokens"),
        ("gpt", lambda run: tj.capture(run, [[3], [3, 4]], "*"), "text: .*rows differ in length"),
        ("gpt", lambda run: tj.capture(run, 3.0, "*"), "text: must be a string, a list of .*, not of type float"),
        ("gpt", lambda run: tj.capture(run, [3, 4], "*"), r"text: must be integers \[B, T\]"),
        ("gpt", lambda run: tj.capture(run, np.zeros((2, 0), int), "*"), r"text: has the shape \[2, 0\], and so no"),
        ("gpt", lambda run: tj.capture(run, "a", "EMBED"), "The nearest is 'embed'"),
        ("gpt", lambda run: tj.patch(run, "a", {"embed": lambda x: np.sin(np.asarray(x))}), "Write it with jax.numpy"),
        ("gpt", lambda run: tj.patch(run, "a", {"embed": lambda x: x if x.sum() > 0 else -x}), "jax.disable_jit"),
        ("gpt", lambda run: tj.capture(run, "a" * 20, "*"), "text: 20 tokens, and the model's context is 19"),
        ("gpt", lambda run: tj.capture(run, "a", "*", is_token=[[True]]), "is_token: belongs to token ids"),
        ("gpt", lambda run: tj.capture(run, "a", "*", target="a"), "target: a GPT has no decoder"),
        ("seq2seq", lambda run: tj.capture(run, "a", "*"), "target: a Seq2Seq needs one"),
        ("seq2seq", lambda run: tj.capture(run, ["a", "a"], "*", target="a"), "target: 1 of them, and 2 texts"),
        ("gpt parallel", lambda run: tj.capture(run, "a", "*/weights"), "linear.*no weights to see"),
        ("gpt", lambda run: tj.patch(run, "a", {}), "patches: must be a dict"),
        ("gpt", lambda run: tj.patch(run, "a", {"block_0/logits": 0.0}), "patches: 'block_0/logits' matches no name"),
        ("gpt", lambda run: tj.patch(run, "a", {"*d": 0.0, "embed": 1.0}), "both match 'embed'"),
        ("gpt", lambda run: tj.patch(run, "a", {"embed": np.ones(D)}), r"shape \[1, 1, 11\], not \[11\]"),
        ("gpt", lambda run: tj.patch(run, "a", {"embed": lambda x: x[0]}), r"shape \[1, 1, 11\], not \[1, 11\]"),
        ("gpt", lambda run: tj.patch(run, "a", {"embed": lambda x: None}), "must be a number.*not of type NoneType"),
        ("gpt", lambda run: tj.patch(run, "a", {"embed": "x"}), "must be numbers or a function, not of type str"),
        ("gpt", lambda run: tj.ablate(run, "a", [(2, 0)]), "layer=2: must lie between 0 and 1"),
        ("gpt", lambda run: tj.ablate(run, "a", [(0, -1)]), "head=-1: must lie between 0 and 5"),
        ("gpt", lambda run: tj.ablate(run, "a", []), "heads=.*must be a list of pairs"),
        ("gpt", lambda run: tj.ablate(run, "a", (0, 1)), "heads=.*must be a list of pairs"),
        ("gpt", lambda run: tj.ablate(run, "a", [(0, 1)], "median"), "how='median': unknown"),
        ("gpt", lambda run: tj.ablate(run, "a", [(0, 1)], part="cross"), "part='cross': unknown"),
        ("encoder", lambda run: tj.logit_lens(run, "a"), "run: is a Encoder, which makes no logits"),
        ("tagger", lambda run: tj.direct_logit_attribution(run, "a"), "whose head is no linear layer"),
        ("gpt", lambda run: tj.direct_logit_attribution(run, "a", "at"), "token='at': is 2 tokens"),
        ("gpt", lambda run: tj.direct_logit_attribution(run, "a", 99), "token=99: must be an id between 0"),
        ("gpt", lambda run: tj.direct_logit_attribution(run, "a", position=1), "position=1: must be an int from -1"),
        ("gpt", lambda run: tj.direct_logit_attribution(run, ["a", "a"]), "text: 2 of them"),
        ("gpt", lambda run: tj.activation_patching(run, "a", "at", ("a", "t")), r"corrupted: has the shape \[1, 2\]"),
        ("gpt", lambda run: tj.activation_patching(run, "a", "t", "at"), "tokens='at': must be two"),
        ("gpt", lambda run: tj.activation_patching(run, "a", "t", "at", at="attention/weights"), "tokens='at'|at="),
        ("gpt", lambda run: tj.activation_patching(run, "a", "t", (3, 4), at="weights"), "at='weights': unknown"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(name, call, message):
    with pytest.raises(tj.UserError, match=message) as error:
        call(run_of(name))
    assert len(str(error.value).splitlines()) == 1
