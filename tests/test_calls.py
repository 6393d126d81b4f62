"""Calls of the training step: which steps share one, in which order batches are read, how many fit."""

import dataclasses

import jax
import numpy as np
import pytest

import train.loop
from train.calls import SHORT_STEP_FLOPS, choose_steps_per_call, read_calls
from train.config import Config
from train.evaluation import evaluate
from train.losses import MAX_LOGITS
from train.metrics import MetricsLog
from train.parallel import Jit

SETTINGS = {
    "data": {"source": "text"},
    "tokenizer": {"kind": "byte"},
    "model": {"num_layers": 1, "d_model": 6, "num_heads": 2, "max_len": 5},
    "train": {"batch_size": 2, "num_steps": 17, "log_every": 7, "eval_every": 13, "tensorboard": False},
    "checkpoint": {"save_every": 50},
}


def batch_of(step):
    return {"tokens": np.full((2, 3), step), "is_token": np.arange(3) < np.array([[3], [step % 4]])}


def calls_from(step, steps_per_call):
    batches = map(batch_of, range(step, 17))
    config = Config.from_dict(SETTINGS)
    return list(read_calls(batches, lambda batch: int(batch["is_token"].sum()), step, config, steps_per_call))


@pytest.mark.parametrize("first, expected", [(0, [1, 3, 3, 3, 3, 1, 3]), (5, [1, 1, 3, 3, 1, 3])])
def test_calls_have_every_step_once_and_end_at_every_event(first, expected):
    calls = calls_from(first, 3)
    assert [call.num_steps for call in calls] == expected
    steps = [step for call in calls for step in call.batches["tokens"][: call.num_steps, 0, 0]]
    assert steps == list(range(first, 17))
    ends = first + np.cumsum([call.num_steps for call in calls])
    assert {7, 13, 14, 17} <= set(ends)


def test_calls_have_one_shape_and_count_the_targets_of_their_own_steps():
    calls = calls_from(0, 5)
    assert {call.batches["tokens"].shape for call in calls} == {(5, 2, 3)}
    steps = iter(range(17))
    for call in calls:
        own = [next(steps) for _ in range(call.num_steps)]
        assert call.num_targets == sum(batch_of(step)["is_token"].sum() for step in own)


def test_batches_of_the_next_call_are_read_while_the_device_works(tmp_path, monkeypatch):
    events = []

    def recorded(name, function):
        def call(*args, **kwargs):
            events.append(name)
            return function(*args, **kwargs)

        return call

    def calls(*args):
        for call in read_calls(*args):
            events.append("read")
            yield call

    monkeypatch.setattr(train.loop, "read_calls", calls)
    monkeypatch.setattr(Jit, "train", recorded("start", Jit.train))
    monkeypatch.setattr(MetricsLog, "add_steps", recorded("wait", MetricsLog.add_steps))
    (tmp_path / "text.txt").write_text("a quick brown fox " * 20)
    settings = SETTINGS | {"data": {"source": "text", "path": str(tmp_path / "text.txt")}}
    settings["train"] = settings["train"] | {"num_steps": 3, "steps_per_call": 1}
    train.loop.run(settings, tmp_path / "run")
    assert events == ["read", "start", "read", "wait", "start", "read", "wait", "start", "wait"]


def test_an_evaluation_starts_a_batch_before_it_fetches_the_sums_of_the_last():
    events = []

    class Sum:
        def __init__(self, batch):
            self.batch = batch

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.batch}")
            return np.array(self.batch, dtype)

    def eval_step(params, batch):
        events.append(f"start {batch}")
        return Sum(batch), np.float32(2), {}

    assert evaluate(eval_step, None, [5, 7, 11]) == {"loss": 23 / 6}
    assert events == ["start 5", "start 7", "fetch 5", "start 11", "fetch 7", "fetch 11"]


def test_short_steps_share_a_call_on_each_platform(monkeypatch):
    @dataclasses.dataclass
    class Task:
        model: object
        tokens_per_step: int
        has_one_shape: bool = True

    config = Config.from_dict(SETTINGS)
    params = {"kernel": jax.ShapeDtypeStruct((1000, 1000), np.float32)}
    model = type("Model", (), {"config": dataclasses.replace(config.model, vocab_size=11, tie_embeddings=False)})
    chosen = {}
    for platform in MAX_LOGITS:
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        for tokens in (100, 2000, 10**6):
            chosen[platform, tokens] = choose_steps_per_call(config, Task(model, tokens), params)
    assert set(SHORT_STEP_FLOPS) == set(MAX_LOGITS)
    # 6 MFLOP a token: 0.6, 12 and 6,000 GFLOP a step.
    assert [chosen["cpu", tokens] for tokens in (100, 2000, 10**6)] == [10, 4, 1]
    assert [chosen["gpu", tokens] for tokens in (100, 2000, 10**6)] == [10, 10, 3]
    assert choose_steps_per_call(config, Task(model, 100, has_one_shape=False), params) == 1
