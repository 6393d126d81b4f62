"""Scaling laws: the fits, the optimizer whose schedule has the length of the run, a small ladder, the dial."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import depth, scaling_char
from train.config import OptimizerConfig
from train.data import entropy, sources
from train.loop import run as train
from train.optimizer import make_optimizer, make_schedule, stretched_optimizer
from train.scaling.config import LadderConfig, Run
from train.scaling.fit import FORMS, Points, fit, interval, predict, resampled
from train.scaling.ladder import Size, read_done
from train.scaling.loop import run as run_ladder
from transformer_jax.errors import UserError

THETA = {  # of known laws, as the search has them
    "chinchilla": np.array([math.log(1.3), math.log(13.0), math.log(310.0), 0.31, 0.47]),
    "kaplan": np.array([math.log(3e8), math.log(2e6), 0.08, 0.26]),
}


def points_of(name, noise=0.0):
    n, d = (x.ravel() for x in np.meshgrid([16e3, 1e5, 3.3e5, 8e5, 2.6e6], [1e5, 2e5, 4e5, 8e5]))
    scatter = np.random.default_rng(1).normal(size=n.shape) * noise
    return Points(n, d, 6 * n * d, np.exp(FORMS[name].log_loss(THETA[name], np.log(n), np.log(d))[0] + scatter))


# Fits


@pytest.mark.parametrize("name", FORMS)
def test_a_law_that_runs_follow_exactly_is_found(name):
    law = fit(FORMS[name], points_of(name))
    found = [law.numbers[number] for number in FORMS[name].names]
    expected = np.where(FORMS[name].is_log, np.exp(THETA[name]), THETA[name])
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert np.abs(law.residuals(points_of(name))).max() < 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_the_gradient_of_a_law_is_its_slope(name):
    points, step = points_of(name), 1e-5
    at = [np.log(points.n), np.log(points.d)]
    _, gradient = FORMS[name].log_loss(THETA[name], *at)
    for i in range(len(THETA[name])):
        delta = np.eye(len(THETA[name]))[i] * step
        above, below = (FORMS[name].log_loss(THETA[name] + sign * delta, *at)[0] for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, i], (above - below) / (2 * step), rtol=1e-5, atol=1e-8)


def test_intervals_of_noisy_runs_hold_the_true_loss_of_a_larger_run():
    points = points_of("chinchilla", noise=0.003)
    law = fit(FORMS["chinchilla"], points)
    laws = resampled(law, points, 30)
    prediction = predict(law, laws, points, 6_000_000, 1_600_000)
    true = np.exp(FORMS["chinchilla"].log_loss(THETA["chinchilla"], np.log([6e6]), np.log([1.6e6]))[0][0])
    assert prediction.low < true < prediction.high < prediction.low + 0.2
    low, high = interval(np.array([one.numbers["E"] for one in laws]))
    assert low < law.numbers["E"] < high


def test_seeds_of_one_size_and_budget_are_resampled_together():
    n, d = np.repeat([1e4, 1e5, 1e6], 6), np.tile(np.repeat([1e5, 2e5, 4e5], 2), 3)
    loss = 2.0 + 100.0 / n**0.5 + 50.0 / d**0.4 + np.tile([0.0, 0.01], 9)  # the second seed is always worse
    points = Points(n, d, 6 * n * d, loss)
    for law in resampled(fit(FORMS["chinchilla"], points), points, 5):
        assert abs(law.residuals(points).mean()) < 1e-3  # one seed alone would shift a law by half of 0.01


# The schedule


def test_a_stretched_schedule_is_that_of_the_length_of_the_run():
    short = OptimizerConfig(name="adamw", schedule="warmup_linear", warmup_steps=4, clip_norm=0.0)
    long = OptimizerConfig(name="adamw", schedule="warmup_linear", warmup_steps=12, clip_norm=0.0)
    params = {"kernel": jnp.ones((3, 5))}
    grads = {"kernel": jnp.linspace(-1, 1, 15).reshape(3, 5)}
    stretched, plain = stretched_optimizer(short, 20), make_optimizer(long, 60)
    state, expected = stretched.init(params)._replace(num_steps=jnp.int32(60)), plain.init(params)
    for _ in range(60):
        found, state = jax.jit(stretched.update)(grads, state, params)
        wanted, expected = jax.jit(plain.update)(grads, expected, params)
        np.testing.assert_allclose(found["kernel"], wanted["kernel"], rtol=1e-5, atol=1e-12)
    assert float(make_schedule(long, 60)(30)) > 0


# A ladder


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A small ladder on the hidden Markov model, made once; its settings, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "NUM_CHARACTERS", 5000)
        patch.setattr(sources, "NUM_CHARACTERS", 5000)
        workdir = tmp_path_factory.mktemp("ladder")
        run_ladder(settings(), workdir)
        yield settings(), workdir


def settings(**scaling):
    config = scaling_char.get_config()
    config.data.source = "hmm"
    config.model.max_len = 17
    config.model.d_model = 16
    config.model.num_heads = 2
    config.train.batch_size = 3
    config.train.num_steps = 11
    config.optimizer.warmup_steps = 3
    fields = {"sizes": "1x8,1x16,2x8", "tokens": "200,400,600", "predicted_size": "2x16", "predicted_tokens": 700}
    config.scaling.update(fields | {"num_resamples": 20} | scaling)
    return LadderConfig.from_dict(config)


def test_a_ladder_trains_every_size_with_every_budget_and_predicts_the_larger_run(ladder):
    config, workdir = ladder
    runs = read_done(workdir)
    assert [one.run for one in runs] == [*config.scaling.ladder(0), *config.scaling.predicted(0)]
    report = json.loads((workdir / "scaling.json").read_text())
    prediction = report["prediction"]
    assert (prediction["num_params"], prediction["num_targets"]) == (runs[-1].num_params, runs[-1].num_targets)
    is_inside = prediction["low"] <= runs[-1].loss <= prediction["high"]
    assert report["measured"] == {"losses": [runs[-1].loss], "mean": runs[-1].loss, "is_inside": is_inside}
    assert report["laws"].keys() == FORMS.keys() and report["entropy_floor"] == runs[0].floor > 1
    assert (workdir / "scaling.png").stat().st_size > 10_000


def test_a_run_of_a_ladder_is_the_run_that_train_makes(ladder, tmp_path):
    config, workdir = ladder
    run = Run(1, 16, 600, 0)  # 11 steps of 3 x 17 tokens, the length of the recipe's schedule
    train(config.of_run(run), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (done,) = [one for one in read_done(workdir) if one.run == run]
    assert (events[-1]["step"], done.num_targets) == (11, 11 * 3 * 17)
    np.testing.assert_allclose(done.loss, events[-1]["loss"], rtol=1e-6)


def test_budgets_and_seeds_of_a_size_share_one_program(ladder):
    config, _ = ladder
    size = Size(config, Run(1, 8, 200, 0))
    losses = [size.train(run).loss for run in (Run(1, 8, 200, 0), Run(1, 8, 400, 0), Run(1, 8, 400, 1))]
    assert len(set(losses)) == 3
    assert size._parallel._train._cache_size() == 1


def test_an_interrupted_ladder_makes_the_missing_run_alone(ladder, capsys):
    config, workdir = ladder
    path = workdir / "runs.jsonl"
    before = path.read_text()
    kept = before.splitlines(keepends=True)
    path.write_text("".join(kept[:-1]) + kept[-1][:20])  # killed while the last line was written
    run_ladder(config, workdir)
    assert capsys.readouterr().out.count("done before") == 9
    again, first = (json.loads(text.splitlines()[-1]) for text in (path.read_text(), before))
    assert again | {"seconds": 0} == first | {"seconds": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": "4y3,1x8,2x8"}, "scaling.sizes: '4y3' is no size. Write layers x width, such as 4x128."),
        ({"sizes": "1x8,2x8,1x8"}, "scaling.sizes='1x8,2x8,1x8': a fit needs at least 3 sizes"),
        ({"sizes": "1x8,2x8,2x12"}, "scaling: the width of 2x12 must be a multiple of 8"),
        ({"tokens": "1e5,2e5,3e5"}, "scaling.tokens: '1e5' is no number of tokens. Write 100000,200000,400000."),
        ({"predicted_size": "big"}, "scaling.predicted_size: 'big' is no size"),
        ({"num_seeds": 0}, "scaling.num_seeds=0: must be at least 1"),
        ({"num_resamples": 2}, "scaling.num_resamples=2: an interval needs at least 20"),
    ],
)
def test_a_wrong_field_of_a_ladder_is_refused_in_a_line(change, message):
    with pytest.raises(UserError) as error:
        settings(**change)
    assert message in str(error.value)


def test_a_setting_that_a_ladder_does_not_read_is_refused():
    config = scaling_char.get_config()
    config.train.eval_every = 17
    with pytest.raises(UserError, match="train.eval_every=17: a ladder does not read it"):
        LadderConfig.from_dict(config)


def test_runs_of_other_settings_or_other_data_are_not_mixed(ladder):
    config, workdir = ladder
    other = LadderConfig.from_dict(scaling_char.get_config().to_dict() | {"scaling": {"predicted_size": ""}})
    with pytest.raises(UserError, match=r"model.max_len=64: the runs in this workdir were trained with 17"):
        run_ladder(other, workdir)
    (workdir / "data.json").write_text('{"train_tokens": 3}')
    with pytest.raises(UserError, match="data: train_tokens"):
        run_ladder(settings(tokens="200,400,500"), workdir)
    assert config.scaling.tokens == "200,400,600"


# The dial


def test_the_depth_sets_width_heads_learning_rates_and_steps():
    shallow, deep = depth.get_config("2"), depth.get_config("8")
    assert (deep.model.d_model, deep.model.num_heads, deep.model.num_layers) == (256, 8, 8)
    assert shallow.model.d_model // shallow.model.num_heads == deep.model.d_model // deep.model.num_heads
    assert shallow.optimizer.peak_lr == 4 * deep.optimizer.peak_lr
    assert shallow.optimizer.muon_lr == deep.optimizer.muon_lr
    assert deep.train.num_steps > shallow.train.num_steps


@pytest.mark.parametrize("text", ["0", "x", "", "-1", "65", "1.5"])
def test_a_depth_that_is_no_number_is_refused(text):
    with pytest.raises(UserError, match="must be a whole number from 1 to 64"):
        depth.get_config(text)
