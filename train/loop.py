"""A training run, in order: settings, data, model, restore; then step, log, evaluate, save; then the end."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from transformer_jax.checkpoints.meta import CheckpointMeta
from transformer_jax.checkpoints.store import Checkpoints, abstract
from transformer_jax.errors import RunError
from transformer_jax.models import Model, Params, init_params, merge_params
from transformer_jax.models.adapters import with_adapter
from transformer_jax.models.quantization import quantize_params

from . import flops, resume, run_directory
from .adapters import adapter_spec, first_adapter, is_trained, split_trained
from .calls import Call, choose_steps_per_call, read_calls
from .config import Config
from .early_stopping import best_of
from .evaluation import BrokenOff, breaking_off
from .initialization import InitFrom, load_init_from, load_pretrained_params, sinusoid_note
from .memory import check_training_memory
from .metrics import MetricsLog
from .optimizer import make_optimizer, make_schedule
from .parallel import Jit, Pmap, make_parallel
from .plot import draw_loss
from .saving import Saver
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
      Stopped: SIGTERM, Ctrl-C or SIGHUP arrived, and the state is saved.
    """
    started = time.perf_counter()
    config = config if isinstance(config, Config) else Config.from_dict(config)
    workdir = Path(workdir).expanduser()
    with run_directory.lock(workdir), StopSignals() as stop:
        stop.nothing_to_save = True
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        checkpoints.clean_up()
        meta = resume.last_checkpoint(checkpoints)
        step = meta.step if meta else 0
        changes = resume.changed_fields(resume.trained_config(meta, workdir) if meta else None, config)
        if step >= config.train.num_steps and not (meta and resume.owes_evaluation(meta)):
            print(f"Already trained: step {step} of train.num_steps={config.train.num_steps}.")
            if not (workdir / "loss.png").exists():  # the run was killed while it drew
                draw_loss(workdir)
        else:
            step = _train(config, workdir, checkpoints, meta, changes, stop, started)
            draw_loss(workdir)
            print(f"Trained to step {step}. Loss curve: {workdir / 'loss.png'}")
        print(_next_command(workdir, config.train.task), flush=True)
    return workdir


class _SetUp(NamedTuple):
    """A training run before its first step."""

    config: Config  # with the size of the vocabulary
    task: Task
    parallel: Jit | Pmap
    schedule: optax.Schedule
    calls: Iterator[Call]
    state: TrainState
    init_note: str  # on the initial parameters


def _set_up(config: Config, meta: CheckpointMeta | None) -> _SetUp:
    """Load the data, and build model, optimizer and state of a run that resumes from the checkpoint with `meta`."""
    # Data and model.
    step = meta.step if meta else 0
    num_steps = config.train.num_steps
    init_from = load_init_from(config.train, meta)
    task = load_task(config, init_from)
    if meta and meta.training:
        resume.check_data(meta.training.fingerprint, task.fingerprint)
    config = dataclasses.replace(config, model=resume.with_vocab_size(config.model, task.tokenizer.vocab_size))
    check_training_memory(config, task)
    batches = task.batches(step, num_steps)

    # Optimizer and state.
    optimizer = make_optimizer(config.optimizer, num_steps)
    schedule = make_schedule(config.optimizer, num_steps)
    parallel = build_parallel(config, task.model, task.loss_fn, optimizer)
    state, init_note = init_state(config, task.model, optimizer, init_from)
    steps_per_call = choose_steps_per_call(config, task, state.all_params)
    calls = read_calls(batches, task.num_targets, step, config, steps_per_call)
    return _SetUp(config, task, parallel, schedule, calls, state, init_note)


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
    step = meta.step if meta else 0
    num_steps = config.train.num_steps
    set_up = _set_up(config, meta)
    config, task, parallel, schedule, calls, state, init_note = set_up
    run_directory.write_config(workdir, config, task.model.config)
    owes_evaluation = meta is not None and resume.owes_evaluation(meta)
    log = MetricsLog(workdir, step, num_steps, config.train.tensorboard, task.has_perplexity, owes_evaluation)
    with contextlib.closing(log):
        log.print(_describe(config, task, state, init_note))
        if meta:
            state = _restore(checkpoints, step, state, parallel, changes)
            log.print("\n".join([f"resumed at step {step}", *changes]))
        best = best_of(meta.training.best if meta and meta.training else None, task.best_by)
        patience = config.train.patience * config.train.eval_every
        state = parallel.put(state)
        saver = Saver(checkpoints, log, config, task, step)
        score = None
        if owes_evaluation:
            measured = task.evaluate(parallel.evaluate, eval_params(state))
            score, best = best.score_of(measured), best.after(measured, step)
            log.val(step, measured)
            saver.save(parallel.get(state), step, score, best)

        stop.nothing_to_save = False
        skips = 0  # skipped steps in a row
        call = next(calls, None)
        while call and not stop.signum and (skips or not best.is_stale(step, patience)):
            # Step. The batches of the next call are read while the device works on this one.
            call_started = time.perf_counter()
            state = parallel.train(state, call.batches, call.num_steps)
            step += call.num_steps
            score = None
            done = call
            call = next(calls, None)
            metrics = parallel.get(_step_metrics(state))
            skips = int(metrics["consecutive_skips"])
            if skips >= config.train.max_consecutive_skips:
                break
            log.add_steps(done.num_steps, step, done.num_targets, time.perf_counter() - call_started)
            if log.steps_timed == 1:
                log.print_first_step(time.perf_counter() - started)

            # Log, evaluate, save: not while steps are skipped, because the parameters may be worthless.
            is_due = functools.partial(resume.is_due, step, num_steps)
            if is_due(config.train.log_every):
                log.train(step, metrics, float(schedule(step - 1 - int(metrics["skipped_steps"]))))
            if is_due(config.train.eval_every):
                with contextlib.suppress(BrokenOff):
                    measured = task.evaluate(breaking_off(parallel.evaluate, stop), eval_params(state))
                    log.val(step, measured)
                    if not skips or (step == num_steps and math.isfinite(measured["loss"])):
                        score, best = best.score_of(measured), best.after(measured, step)
            saver.is_due |= is_due(config.checkpoint.save_every) or best.step == step
            if saver.is_due and not skips:
                saver.save(parallel.get(state), step, score, best)

        if skips and score is None:
            if stop.signum and skips < config.train.max_consecutive_skips:
                log.print(f"stopped at step {step}, which was skipped: nothing is saved, {saver.keeps()}")
                raise Stopped(stop.signum)
            raise _diverged(set_up, saver, state, step)
        if step > saver.step:
            saver.save(parallel.get(state), step, score, best)
        saver.finish(score)
        if best.is_stale(step, patience):
            log.print(f"stopped early: the best is {best}, train.patience={config.train.patience} evaluations ago")
        elif stop.signum and (step < num_steps or score is None):
            log.print(f"stopped and saved at step {step}; the same command continues from there")
            raise Stopped(stop.signum)
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
        adapter_dropout=config.adapter.dropout,
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
      The state, and a note: which parameters are pre-trained, or a warning about new ones ("" if none).
    """
    create_params = functools.partial(init_params, model)
    key = jax.random.key(config.train.seed)
    spec = adapter_spec(model, config.adapter)

    def create(params: Params) -> TrainState:
        layers = first_adapter(model, spec, config.adapter, key, params) if spec else {}
        trained, frozen = split_trained(with_adapter(params, layers), config, model)
        frozen = quantize_params(frozen) if config.adapter.int8 else frozen
        return create_state(trained, optimizer, config.train.ema_decay > 0, frozen)

    if init_from.run is None:
        return jax.jit(lambda key: create(create_params(key)))(key), sinusoid_note(model.config)
    params, note = load_pretrained_params(
        init_from, create_params, key, is_trained(config.adapter, model) if spec else lambda name: True
    )
    if config.adapter.int8:  # not in the compiled program, where the numbers would be others than those of tj.quantize
        trained, frozen = split_trained(params, config, model)
        params = merge_params(trained, quantize_params(frozen))
    return jax.jit(create)(params), note


def _step_metrics(state: TrainState) -> dict[str, jax.Array]:
    return {
        "loss_sum": state.accumulator.loss_sum,
        "weight_sum": state.accumulator.weight_sum,
        "grad_norm": state.grad_norm,
        "consecutive_skips": state.consecutive_skips,
        "skipped_steps": state.skipped_steps,
    }


def _diverged(set_up: _SetUp, saver: Saver, state: TrainState, step: int) -> RunError:
    """Return the error of a run that ends at `step` because steps are skipped."""
    metrics = set_up.parallel.get(_step_metrics(state))
    last = step - int(metrics["consecutive_skips"])  # the last step that changed a parameter
    loss_sum, _, _ = set_up.parallel.evaluate(state.all_params, next(iter(set_up.task.eval_batches())))
    return saver.diverged(
        f"stopped at step {step}: loss or gradient was NaN or infinite in all steps since {last + 1} (gradient norm "
        f"{float(metrics['grad_norm'])}, learning rate {float(set_up.schedule(last)):.3g}). None of these steps "
        "changed a parameter or was saved",
        is_worthless=saver.step == last and not math.isfinite(loss_sum),
    )


def _restore(
    checkpoints: Checkpoints, step: int, state: TrainState, parallel: Jit | Pmap, changes: list[str]
) -> TrainState:
    """Restore the state of a checkpoint. Skipped steps are counted afresh if the optimizer is to do better."""
    template = abstract(state, parallel.sharding)
    params, rest = to_checkpoint(template)
    frozen = {"frozen": template.frozen} if template.frozen else {}
    restored = checkpoints.restore(step, params=params, state=rest, **frozen)
    state = from_checkpoint(restored["params"], restored["state"], restored.get("frozen", {}))
    if any(change.startswith("optimizer.") for change in changes):
        state = dataclasses.replace(state, consecutive_skips=jnp.zeros_like(state.consecutive_skips))
    return state


def _describe(config: Config, task: Task, state: TrainState, init_note: str) -> str:
    return (
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}, {task.model.config.decoder.dtype}\n"
        f"data: {task.description}; {task.tokenizer.kind} tokenizer, {task.tokenizer.vocab_size:,} ids\n"
        + flops.describe(state.params, state.frozen, state.opt_state, task.model.config, task.tokens_per_step)
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
