"""Session: a chat reads only what is new, and gets the tokens of reading all again."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.runs import make_run

import transformer_jax as tj
from transformer_jax.errors import UserError
from transformer_jax.inference import engine as engine_module
from transformer_jax.inference.forward import step_function
from transformer_jax.models import GPT, parameter_shapes

TURNS = ["the cat", " sat?", " 狐 and €5", ".", " Dogs ran over green hills, the"]
SETTINGS = {
    "sample": {"temperature": 1.5, "seed": 3},
    "greedy": {"method": "greedy", "repetition_penalty": 1.7},
    "stop": {"temperature": 3.0, "seed": 1, "stop": ("a", "e", "\x00")},
}


def windowed_run(**changes):
    run = make_run("byte")
    config = dataclasses.replace(run.config, head_dim=4, **changes)
    model = GPT(config)
    return dataclasses.replace(run, model=model, config=config, params=random_like(parameter_shapes(model), 0))


@pytest.mark.parametrize("name", SETTINGS)
def test_five_turns_have_the_tokens_of_reading_all_again(name):
    run = make_run("byte")
    session, text = tj.Session(run), np.zeros(0, np.int32)
    for i, turn in enumerate(TURNS):
        session.extend(turn)
        found = session.generate_tokens(max_new_tokens=3 + i, **SETTINGS[name])
        text = np.append(text, run.tokenizer.encode(turn)).astype(np.int32)
        (expected,) = tj.generate_tokens(run, [text], max_new_tokens=3 + i, **SETTINGS[name])
        assert (found.tokens, found.text, found.finish) == (expected.tokens, expected.text, expected.finish)
        close(found.log_probs, expected.log_probs)
        text = np.append(text, found.tokens).astype(np.int32)
        assert session.tokens == text.tolist()
    assert session.text == run.tokenizer.decode(text)


@pytest.mark.parametrize(
    "changes, on_overflow",
    [
        ({"positions": "rotary", "window": 5}, "slide"),
        ({"positions": "none", "attention": "linear"}, "slide"),
        ({"positions": "rotary", "layer_pattern": "local,global", "num_layers": 2, "local_window": 3}, "error"),
    ],
    ids=["window", "linear", "pattern"],
)
def test_so_do_turns_of_other_caches(changes, on_overflow):
    run = windowed_run(**changes)
    session = tj.Session(run)
    for turn in TURNS[:3]:
        session.extend(turn)
        before = [np.array(session.tokens)]
        settings = {"max_new_tokens": 7, "on_overflow": on_overflow, "seed": 5}
        found = session.generate_tokens(**settings)
        (expected,) = tj.generate_tokens(run, before, **settings)
        assert found.tokens == expected.tokens
        close(found.log_probs, expected.log_probs)


def test_a_turn_reads_its_new_tokens_and_no_other(monkeypatch):
    run, reads = make_run("byte"), []
    plain = step_function(run)

    def counting(run):
        def step(tokens, is_token, cache):
            jax.debug.callback(lambda n: reads.append(int(n)), is_token.sum())
            return plain(tokens, is_token, cache)

        return jax.tree_util.Partial(step)

    monkeypatch.setattr(engine_module, "step_function", counting)
    session, num_read = tj.Session(run), 0
    for turn in TURNS:
        session.extend(turn)
        reads.clear()
        session.generate(max_new_tokens=5, method="greedy", suppress=[2])
        jax.effects_barrier()
        num_read += sum(reads)
        assert num_read == len(session.tokens) - 1  # the newest token is read in the next turn


def test_text_is_generated_without_text_in_between_and_by_ids():
    run = make_run("byte")
    session = tj.Session(run)
    session.extend(run.tokenizer.encode("the cat"))
    twice = session.generate_tokens(max_new_tokens=4, method="greedy").tokens
    twice += session.generate_tokens(max_new_tokens=5, method="greedy").tokens
    (once,) = tj.generate_tokens(run, [run.tokenizer.encode("the cat")], max_new_tokens=9, method="greedy")
    assert twice == once.tokens


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"method": "beam"}, "method='beam'"),
        ({"num_samples": 2}, "num_samples=2"),
        ({"prompt_lookup": 1}, "prompt_lookup=1"),
        ({"on_overflow": "re-prefill"}, "on_overflow='re-prefill'"),
        ({"cache_type": "int8"}, "cache_type='int8'.*'model' in the first turn"),
        ({"max_new_tokens": 97}, "max_new_tokens=97.*context of 97"),
    ],
)
def test_what_a_session_does_not_have_is_refused_and_changes_nothing(settings, words):
    session = tj.Session(make_run("byte"))
    session.extend("the cat")
    session.generate(max_new_tokens=3, seed=1)
    before = list(session.tokens)
    with pytest.raises(UserError, match=words) as error:
        session.generate(**settings)
    assert "\n" not in str(error.value) and session.tokens == before
    session.generate(max_new_tokens=3, seed=1)


def test_an_empty_session_and_ids_of_no_token_are_refused():
    session = tj.Session(make_run("byte"))
    with pytest.raises(UserError, match="session: has no text yet"):
        session.generate()
    with pytest.raises(UserError, match="ids of sequence 0 must lie between 0 and"):
        session.extend([1, 10_000])
    assert session.tokens == []
