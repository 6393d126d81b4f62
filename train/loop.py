"""A training run, in order: settings, data, model, restore; then step, log, evaluate, save; then the end."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.checkpoint import Checkpoints, abstract
from transformer_jax.errors import RunError, UserError
from transformer_jax.models import describe_model, first_params

from . import flops, resume
from .config import Config
from .early_stopping import BestTracker, best_of
from .evaluation import evaluate
from .initialization import InitFrom, find_init_from, load_pretrained_params
from .metrics import MetricsLog
from .optimizer import make_optimizer, make_schedule
from .parallel import Jit, Pmap, make_parallel
from .plot import draw_loss
from .signals import Stopped, StopSignals
from .state import TrainState, create_state, join, split, used_params
from .step import Batch, eval_step, train_step
from .tasks.base import Task
from .tasks.registry import load_task

SHORT_STEP_FLOPS = 5e10  # steps of fewer operations share a call; a second or less on a laptop


def run(config: Any, workdir: str | Path) -> Path:
    """Train as `config` says, in `workdir`; go on from its newest sound checkpoint if there is one.

    Args:
      config: a ConfigDict from a recipe's `get_config()`, a nested dict, or a `train.config.Config`.
      workdir: the run directory, made if need be.
    Returns:
      The run directory: what `transformer_jax.load` and the sampling command want.
    Raises:
      UserError: a setting or the data will not do, or does not fit the checkpoint.
      RunError: the loss stays NaN or infinite, or a checkpoint cannot be written.
      Stopped: SIGTERM or Ctrl-C came, and the state is saved.
    """
    started = time.perf_counter()
    config = config if isinstance(config, Config) else Config.from_dict(config)
    workdir = Path(workdir).expanduser()
    with _lock(workdir), StopSignals() as stop:
        # Where this run stands.
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        step, meta = resume.last_checkpoint(checkpoints)
        changes = resume.changed_fields(meta["config"], config) if meta else []
        num_steps = config.train.num_steps
        what_next = _what_next(workdir, config.train.task)
        if step >= num_steps:
            print(f"Already trained: step {step} of train.num_steps={num_steps}.\n{what_next}")
            return workdir

        # Data and model.
        init_from = find_init_from(
            config.train.init_from, meta, config.train.resize_vocab, config.train.resize_positions
        )
        task = load_task(config, init_from, meta)
        if meta:
            resume.check_data(meta["fingerprint"], task.fingerprint)
        config = dataclasses.replace(config, model=resume.with_vocabulary(config.model, task.tokenizer.vocab_size))
        batches = task.batches(step, num_steps)

        # Optimizer and state.
        optimizer = make_optimizer(config.optimizer, num_steps)
        schedule = make_schedule(config.optimizer, num_steps)
        parallel = build_parallel(config, task.model, task.loss_fn, optimizer)
        state, hf_config = first_state(config, task.model, optimizer, init_from)
        steps_per_call = choose_steps_per_call(config, task, state.params)
        _write_config(workdir, config, task.model.config)
        log = MetricsLog(workdir, step, num_steps, config.train.tensorboard, task.has_perplexity)
        log.say(_describe(config, task, state, hf_config))
        if meta:
            state = _restore(checkpoints, step, state, parallel)
            log.say("\n".join([f"resumed at step {step}", *changes]))
        best, patience = best_of(meta, task.best_by), config.train.patience * config.train.eval_every
        state = parallel.put(state)

        try:
            asked_to_stop = None
            while step < num_steps and not asked_to_stop and not best.is_stale(step, patience):
                # Step. The very first goes alone, to tell how long it took; `n` is not compiled in.
                n = min(steps_per_call, _steps_to_next_event(step, config)) if log.steps_timed else 1
                began = time.perf_counter()
                stacked = _stack(batches, n, steps_per_call)
                state = parallel.train(state, stacked, n)
                step += n
                numbers = parallel.get(_numbers(state))
                _stop_if_stuck(numbers, step, schedule, config, checkpoints)
                num_targets = task.num_targets({name: x[:n] for name, x in stacked.items()})
                log.steps(n, step, num_targets, time.perf_counter() - began)
                if log.steps_timed == 1:
                    since = time.perf_counter() - started
                    log.say(f"first step {since:.1f} s after the start, {log.seconds:.1f} s of it to compile")
                asked_to_stop = stop.signum

                # Log, evaluate, save.
                is_due = functools.partial(_is_due, step, num_steps)
                if is_due(config.train.log_every):
                    log.train(step, numbers, float(schedule(step - 1 - int(numbers["skipped_steps"]))))
                score = None
                if is_due(config.train.eval_every):
                    measured = evaluate(parallel.evaluate, used_params(state), task.eval_batches())
                    score, best = best.score_of(measured), best.after(measured, step)
                    log.val(step, measured, task.bytes_per_token)
                is_last = asked_to_stop or best.is_stale(step, patience)
                if is_due(config.checkpoint.save_every) or best.step == step or is_last:
                    _save(checkpoints, parallel.get(state), step, _meta(config, task, step, score, best))
            checkpoints.wait()
            if best.is_stale(step, patience):
                log.say(f"stopped early: the best is {best}, train.patience={config.train.patience} evaluations ago")
            elif step < num_steps:
                log.say(f"stopped and saved at step {step}; the same command goes on from there")
                raise Stopped(asked_to_stop)
        finally:
            log.close()
        draw_loss(workdir)
        print(f"Trained to step {step}. Loss curve: {workdir / 'loss.png'}\n{what_next}", flush=True)
    return workdir


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[None]:
    """One process at a time in a run directory. The lock goes with the process, however it ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "w")
    except OSError as error:
        raise UserError(f"workdir={workdir}: cannot be written to ({error.strerror}). Give another.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"workdir={workdir}: another process is training here. Wait for it, or stop it.") from error
        yield


def build_parallel(config: Config, model: Any, loss_fn: Any, optimizer: Any) -> Jit | Pmap:
    """The compiled training and evaluation steps of a run."""
    step = functools.partial(
        train_step,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        seed=config.train.seed,
        accumulation=config.train.accumulation,
        max_consecutive_skips=config.train.max_consecutive_skips,
        log_every=config.train.log_every,
        ema_decay=config.train.ema_decay,
    )
    rows = config.train.batch_size // config.train.accumulation
    evaluate = functools.partial(eval_step, model=model, loss_fn=loss_fn)
    return make_parallel(config.train.parallel, step, evaluate, rows)


def first_state(config: Config, model: Any, optimizer: Any, init_from: InitFrom) -> tuple[TrainState, str]:
    """The state before the first step, made on the device in one program; and what of it was trained before."""
    create = functools.partial(first_params, model)
    begin = functools.partial(create_state, optimizer=optimizer, has_average=config.train.ema_decay > 0)
    key = jax.random.key(config.train.seed)
    if init_from.run is None:
        return jax.jit(lambda key: begin(create(key)))(key), ""
    params, note = load_pretrained_params(init_from, jax.jit(create)(key))
    return jax.jit(begin)(params), note


def _write_config(workdir: Path, config: Config, model: Any) -> None:
    """What was asked for, and what the model became: for people, nothing reads it."""
    values = dataclasses.asdict(config) | {"model": dataclasses.asdict(model)}
    (workdir / "config.json").write_text(json.dumps(values, indent=1) + "\n")


def choose_steps_per_call(config: Config, task: Task, params: Any) -> int:
    """How many steps a call of the compiled program takes: several where they are short."""
    if not task.has_one_shape:
        return 1
    step_flops = flops.flops_per_token(params, task.model.config) * task.tokens_per_step
    return config.train.steps_per_call or int(np.clip(SHORT_STEP_FLOPS // step_flops, 1, 10))


def _is_due(step: int, num_steps: int, every: int) -> bool:
    return step % every == 0 or step == num_steps


def _steps_to_next_event(step: int, config: Config) -> int:
    every = (config.train.log_every, config.train.eval_every, config.checkpoint.save_every)
    return min(*(e - step % e for e in every), config.train.num_steps - step)


def _stack(batches: Iterator[Batch], n: int, room: int) -> Batch:
    """The next n batches as one, [room, B, ...]; what is beyond n repeats the last and is not looked at."""
    taken = [next(batches) for _ in range(n)]
    return jax.tree.map(lambda *x: np.stack([*x, *x[-1:] * (room - n)]), *taken)


def _numbers(state: TrainState) -> dict[str, jax.Array]:
    return {
        "loss_sum": state.window.loss_sum,
        "weight_sum": state.window.weight_sum,
        "grad_norm": state.grad_norm,
        "consecutive_skips": state.consecutive_skips,
        "skipped_steps": state.skipped_steps,
    }


def _stop_if_stuck(numbers: dict, step: int, schedule: Any, config: Config, checkpoints: Checkpoints) -> None:
    bad = int(numbers["consecutive_skips"])
    if bad < config.train.max_consecutive_skips:
        return
    with contextlib.suppress(RunError):  # what stopped the run comes first
        checkpoints.wait()
    saved = checkpoints.steps()
    raise RunError(
        f"stopped at step {step}: loss or gradient was NaN or infinite in all steps since {step - bad + 1} (gradient "
        f"norm {float(numbers['grad_norm'])}, learning rate {float(schedule(step - bad)):.3g}). None of these steps "
        f"changed a parameter; the newest checkpoint is {saved[-1] if saved else 'none'}. Lower optimizer.peak_lr, or "
        "set optimizer.clip_norm or more optimizer.warmup_steps."
    )


@jax.jit
def _are_finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))


def _save(checkpoints: Checkpoints, state: TrainState, step: int, meta: dict) -> None:
    params, rest = split(state)
    if not _are_finite(params):
        raise RunError(f"step {step}: a parameter is NaN or infinite, so it is not saved. Lower optimizer.peak_lr.")
    checkpoints.save(step, params, meta, rest)


def _restore(checkpoints: Checkpoints, step: int, state: TrainState, parallel: Jit | Pmap) -> TrainState:
    params, rest = split(abstract(state, parallel.sharding))
    restored = checkpoints.restore(step, params=params, state=rest)
    return join(restored["params"], restored["state"])


def _meta(config: Config, task: Task, step: int, val_score: float | None, best: BestTracker) -> dict:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "step": step,
        "val_score": val_score,
        "best": dataclasses.asdict(best),
        "model": describe_model(task.model),
        "config": dataclasses.asdict(config),
        "tokenizer": task.tokenizer.to_dict(),
        "labels": list(task.labels),
        "texts": {"lowercase": config.data.lowercase, "separator": task.separator},
        "hf_config": task.hf_config,
        "fingerprint": task.fingerprint,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _describe(config: Config, task: Task, state: TrainState, hf_config: str) -> str:
    return (
        f"data: {task.description}; {task.tokenizer.kind} tokenizer, {task.tokenizer.vocab_size:,} ids\n"
        + flops.describe(state.params, state.opt_state, task.model.config, task.tokens_per_step)
        + (f"\n{hf_config}" if hf_config else "")
    )


def _what_next(workdir: Path, task: str) -> str:
    if task == "causal_lm":
        command = f'python -m transformer_jax sample --run_dir={workdir} --prompt="The " --on_overflow=re-prefill'
        return f"Sample from {workdir} with: {command}"
    if task == "seq2seq":
        return f"Translate with: python -m transformer_jax translate --run_dir={workdir} <input >output"
    return f"Its scores: python -m train.evaluate --run_dir={workdir} --split=val"
