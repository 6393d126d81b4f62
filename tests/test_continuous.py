"""Continuous batching: more texts than a batch, each as it is alone, whoever had its row before."""

import dataclasses

import numpy as np
import pytest
from helpers.arrays import close
from helpers.runs import make_run

import transformer_jax as tj
from transformer_jax.inference.continuous import ContinuousEngine

LENGTHS = (5, 1, 13, 2, 7, 3, 11, 1, 2)
rng = np.random.default_rng(0)
PROMPTS = [rng.integers(5, 250, length) for length in LENGTHS]
WILD = {"eos_ids": tuple(range(2, 283, 9))}  # so that texts end after any number of tokens


def wild_run(**changes):
    run = make_run("byte", **changes)
    return dataclasses.replace(run, generation_defaults=dataclasses.replace(run.generation_defaults, **WILD))


def assert_as_alone(run, prompts, batch_size, **settings):
    found = tj.generate_tokens(run, prompts, batch_size=batch_size, **settings)
    alone = tj.generate_tokens(run, prompts, batch_size=97, **settings)
    for one, other in zip(found, alone, strict=True):
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        close(one.log_probs, other.log_probs)
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_texts_in_rows_of_others_are_those_of_one_large_batch(batch_size):
    settings = {"max_new_tokens": 11, "num_samples": 2, "temperature": 5.0, "seeds": range(9), "presence_penalty": 0.7}
    found = assert_as_alone(wild_run(), PROMPTS, batch_size, **settings, num_top=2)
    assert len({len(one.tokens) for one in found}) > 4
    assert {one.finish for one in found} == {"eos", "length"}


def test_a_stop_string_makes_room_too():
    run = make_run("byte")
    texts = [one.text for one in tj.generate_tokens(run, PROMPTS, max_new_tokens=19)]
    stop = tuple({text[2:4] for text in texts if len(text) > 4})[:3]
    found = assert_as_alone(run, PROMPTS, 3, max_new_tokens=19, stop=stop)
    assert "stop" in {one.finish for one in found}


def test_constraints_and_forced_tokens_begin_anew_in_each_row():
    settings = {"max_new_tokens": 7, "choices": ["the", "a dog", "no"], "method": "greedy"}
    found = assert_as_alone(make_run("byte"), PROMPTS, 3, **settings)
    assert {one.text for one in found} <= {"the", "a dog", "no"}


@pytest.mark.parametrize("settings", [{"method": "beam", "num_beams": 3}, {"prompt_lookup": 1, "method": "greedy"}])
def test_other_methods_take_one_batch_after_the_other(settings):
    assert_as_alone(make_run("byte"), PROMPTS[:5], 2, max_new_tokens=5, **settings)


def test_a_row_waits_for_no_other(monkeypatch):
    calls = []
    read = ContinuousEngine._read_prompts

    def count(engine):
        calls.append(int(np.sum(engine._index < 0)))
        return read(engine)

    monkeypatch.setattr(ContinuousEngine, "_read_prompts", count)
    found = tj.generate_tokens(wild_run(), PROMPTS, batch_size=3, max_new_tokens=23, temperature=5.0, seeds=range(9))
    assert len(found) == len(PROMPTS)
    assert calls[0] == 3 and set(calls[1:]) <= {1, 2, 3} and calls[1:].count(1) > 3
