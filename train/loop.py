"""A training run, in order: settings, data, model, restore; then step, log, evaluate, save; then the end."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax.checkpoint import Checkpoints, abstract
from transformer_jax.checkpoint_meta import CheckpointMeta, TrainingMeta
from transformer_jax.errors import RunError
from transformer_jax.models import Model, Params, init_params

from . import flops, resume, run_directory
from .calls import Call, choose_steps_per_call, read_calls
from .config import Config
from .early_stopping import BestTracker, best_of
from .initialization import InitFrom, load_init_from, load_pretrained_params
from .metrics import MetricsLog
from .optimizer import make_optimizer, make_schedule
from .parallel import Jit, Pmap, make_parallel
from .plot import draw_loss
from .signals import Stopped, StopSignals
from .state import TrainState, create_state, eval_params, from_checkpoint, to_checkpoint
from .step import eval_step, train_step
from .tasks.base import Task, load_task
from .tasks.registry import TASKS


def run(config: object, workdir: str | Path) -> Path:
    """Train with `config` in `workdir`; resume from its newest sound checkpoint if it has one.

    Args:
      config: a ConfigDict from a recipe's `get_config()`, a nested dict, or a `train.config.Config`.
      workdir: the run directory, created if it does not exist; returned for `transformer_jax.load`.
    Raises:
      UserError: a setting or the data is invalid, or does not fit the checkpoint.
      RunError: the loss stays NaN or infinite, or a checkpoint cannot be written.
      Stopped: SIGTERM or Ctrl-C arrived, and the state is saved.
    """
    started = time.perf_counter()
    config = config if isinstance(config, Config) else Config.from_dict(config)
    workdir = Path(workdir).expanduser()
    with run_directory.lock(workdir), StopSignals() as stop:
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        checkpoints.clean_up()
        meta = resume.last_checkpoint(checkpoints)
        step = meta.step if meta else 0
        changes = resume.changed_fields(resume.trained_config(meta, workdir) if meta else None, config)
        if step >= config.train.num_steps:
            print(f"Already trained: step {step} of train.num_steps={config.train.num_steps}.")
        else:
            step = _train(config, workdir, checkpoints, meta, changes, stop, started)
            draw_loss(workdir)
            print(f"Trained to step {step}. Loss curve: {workdir / 'loss.png'}")
        print(_next_command(workdir, config.train.task), flush=True)
    return workdir


def _train(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    meta: CheckpointMeta | None,
    changes: list[str],
    stop: StopSignals,
    started: float,
) -> int:
    """Train, resuming from the checkpoint with `meta` if there is one. Returns the last step."""
    # Data and model.
    step = meta.step if meta else 0
    before = meta.training if meta else None
    num_steps = config.train.num_steps
    init_from = load_init_from(config.train, meta)
    task = load_task(config, init_from)
    if before:
        resume.check_data(before.fingerprint, task.fingerprint)
    config = dataclasses.replace(config, model=resume.with_vocab_size(config.model, task.tokenizer.vocab_size))
    batches = task.batches(step, num_steps)

    # Optimizer and state.
    optimizer = make_optimizer(config.optimizer, num_steps)
    schedule = make_schedule(config.optimizer, num_steps)
    parallel = build_parallel(config, task.model, task.loss_fn, optimizer)
    state, init_note = init_state(config, task.model, optimizer, init_from)
    steps_per_call = choose_steps_per_call(config, task, state.params)
    calls = read_calls(batches, task.num_targets, step, config, steps_per_call)
    run_directory.write_config(workdir, config, task.model.config)
    log = MetricsLog(workdir, step, num_steps, config.train.tensorboard, task.has_perplexity)
    with contextlib.closing(log):
        log.print(_describe(config, task, state, init_note))
        if meta:
            state = _restore(checkpoints, step, state, parallel)
            log.print("\n".join([f"resumed at step {step}", *changes]))
        best = best_of(before.best if before else None, task.best_by)
        patience = config.train.patience * config.train.eval_every
        state = parallel.put(state)

        stop_signal = None
        call: Call | None = next(calls)
        while call and not stop_signal and not best.is_stale(step, patience):
            # Step. The batches of the next call are read while the device works on this one.
            call_started = time.perf_counter()
            n = call.num_steps
            num_targets = call.num_targets
            state = parallel.train(state, call.batches, n)
            step += n
            call = next(calls, None)
            metrics = parallel.get(_step_metrics(state))
            _stop_if_not_finite(metrics, step, schedule, config, checkpoints)
            log.add_steps(n, step, num_targets, time.perf_counter() - call_started)
            if log.steps_timed == 1:
                log.print_first_step(time.perf_counter() - started)
            stop_signal = stop.signum

            # Log, evaluate, save.
            is_due = functools.partial(_is_due, step, num_steps)
            if is_due(config.train.log_every):
                log.train(step, metrics, float(schedule(step - 1 - int(metrics["skipped_steps"]))))
            score = None
            if is_due(config.train.eval_every):
                measured = task.evaluate(parallel.evaluate, eval_params(state))
                score, best = best.score_of(measured), best.after(measured, step)
                log.val(step, measured)
            is_last = stop_signal or best.is_stale(step, patience)
            if is_due(config.checkpoint.save_every) or best.step == step or is_last:
                _save(checkpoints, parallel.get(state), _meta(config, task, step, score, best))
        checkpoints.wait()
        if best.is_stale(step, patience):
            log.print(f"stopped early: the best is {best}, train.patience={config.train.patience} evaluations ago")
        elif stop_signal and step < num_steps:
            log.print(f"stopped and saved at step {step}; the same command continues from there")
            raise Stopped(stop_signal)
    return step


def build_parallel(
    config: Config, model: Model, loss_fn: Callable, optimizer: optax.GradientTransformation
) -> Jit | Pmap:
    """Build the compiled training and evaluation steps of a run."""
    step = functools.partial(
        train_step,
        model=model.clone(remat=config.train.remat),
        loss_fn=loss_fn,
        optimizer=optimizer,
        seed=config.train.seed,
        accumulation=config.train.accumulation,
        max_consecutive_skips=config.train.max_consecutive_skips,
        log_every=config.train.log_every,
        ema_decay=config.train.ema_decay,
    )
    # With train.batch_tokens the sampler chooses a number of rows that devices and micro-batches divide.
    rows = 0 if config.train.batch_tokens else config.train.batch_size // config.train.accumulation
    evaluate = functools.partial(eval_step, model=model, loss_fn=loss_fn)
    return make_parallel(config.train.parallel, step, evaluate, rows)


def init_state(
    config: Config, model: Model, optimizer: optax.GradientTransformation, init_from: InitFrom
) -> tuple[TrainState, str]:
    """Create the state before the first step, on the device in one program.

    Returns:
      The state, and a note on which parameters are pre-trained ("" if none).
    """
    create_params = functools.partial(init_params, model)
    create = functools.partial(create_state, optimizer=optimizer, has_ema=config.train.ema_decay > 0)
    key = jax.random.key(config.train.seed)
    if init_from.run is None:
        return jax.jit(lambda key: create(create_params(key)))(key), ""
    params, note = load_pretrained_params(init_from, create_params, key)
    return jax.jit(create)(params), note


def _is_due(step: int, num_steps: int, every: int) -> bool:
    return step % every == 0 or step == num_steps


def _step_metrics(state: TrainState) -> dict[str, jax.Array]:
    return {
        "loss_sum": state.accumulator.loss_sum,
        "weight_sum": state.accumulator.weight_sum,
        "grad_norm": state.grad_norm,
        "consecutive_skips": state.consecutive_skips,
        "skipped_steps": state.skipped_steps,
    }


def _stop_if_not_finite(
    metrics: dict[str, Any], step: int, schedule: optax.Schedule, config: Config, checkpoints: Checkpoints
) -> None:
    """Raise RunError after `train.max_consecutive_skips` skipped steps in a row."""
    skips = int(metrics["consecutive_skips"])
    if skips < config.train.max_consecutive_skips:
        return
    with contextlib.suppress(RunError):  # the reason for the stop matters more than a failed save
        checkpoints.wait()
    saved = checkpoints.steps()
    raise RunError(
        f"stopped at step {step}: loss or gradient was NaN or infinite in all steps since {step - skips + 1} (gradient "
        f"norm {float(metrics['grad_norm'])}, learning rate {float(schedule(step - skips)):.3g}). None of these steps "
        f"changed a parameter; the newest checkpoint is {saved[-1] if saved else 'none'}. Lower optimizer.peak_lr, or "
        "set optimizer.clip_norm or more optimizer.warmup_steps."
    )


@jax.jit
def _are_finite(params: Params) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))


def _save(checkpoints: Checkpoints, state: TrainState, meta: CheckpointMeta) -> None:
    params, rest = to_checkpoint(state)
    if not _are_finite(params):
        raise RunError(
            f"step {meta.step}: a parameter is NaN or infinite, so it is not saved. Lower optimizer.peak_lr."
        )
    checkpoints.save(params, meta, rest)


def _restore(checkpoints: Checkpoints, step: int, state: TrainState, parallel: Jit | Pmap) -> TrainState:
    params, rest = to_checkpoint(abstract(state, parallel.sharding))
    restored = checkpoints.restore(step, params=params, state=rest)
    return from_checkpoint(restored["params"], restored["state"])


def _meta(config: Config, task: Task, step: int, val_score: float | None, best: BestTracker) -> CheckpointMeta:
    return CheckpointMeta(
        step=step,
        model=task.model,
        tokenizer=task.tokenizer,
        labels=task.labels,
        lowercase=config.data.lowercase,
        separator=task.separator,
        hf_config=task.hf_config,
        val_score=val_score,
        training=TrainingMeta(dataclasses.asdict(config), best, task.fingerprint),
    )


def _describe(config: Config, task: Task, state: TrainState, init_note: str) -> str:
    return (
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}, {task.model.config.decoder.dtype}\n"
        f"data: {task.description}; {task.tokenizer.kind} tokenizer, {task.tokenizer.vocab_size:,} ids\n"
        + flops.describe(state.params, state.opt_state, task.model.config, task.tokens_per_step)
        + (f"\n{init_note}" if init_note else "")
    )


def _next_command(workdir: Path, task: str) -> str:
    """Return two lines: the command to try next with the trained run, and others that answer for it."""
    row = TASKS[task]
    program = "python -m transformer_jax"
    command = row.next_command.split()[0]
    others = [name for name in (*row.commands, "evaluate", "attention") if name != command]
    return (
        f"{command.capitalize()}: {program} {row.next_command.format(run_dir=workdir)}\n"
        f"Other commands for this run: {', '.join(others)}."
    )
