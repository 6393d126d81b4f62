"""Ladder of training runs: a compiled program for each size, and a line of runs.jsonl for each run that is done."""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from transformer_jax.errors import RunError, UserError
from transformer_jax.files import read_regular, write_text
from transformer_jax.models import init_params, parameter_shapes
from transformer_jax.schema import config_fields, from_dict

from ..calls import choose_steps_per_call, read_calls
from ..config import Config
from ..flops import count_params, flops_per_token
from ..initialization import load_init_from
from ..loop import build_parallel
from ..memory import check_training_memory
from ..optimizer import StretchedState, stretched_optimizer
from ..resume import check_data, with_vocab_size
from ..state import TrainState, create_state, eval_params
from ..tasks.base import Task, load_task
from .config import LadderConfig, Run

RUNS = "runs.jsonl"


@dataclasses.dataclass(frozen=True)
class Done:
    """Run that is done: its cost and its loss."""

    num_layers: int
    d_model: int
    tokens: int  # budget, as in the settings
    seed: int
    num_params: int  # N
    num_targets: int  # D: tokens that were predicted in training
    flops: float  # C: of training
    loss: float  # on validation, in nats per token
    floor: float  # entropy floor of the same text, in nats per token; 0: not known
    seconds: float

    @property
    def run(self) -> Run:
        """The run in the settings."""
        return Run(self.num_layers, self.d_model, self.tokens, self.seed)


class Size:
    """Size of a ladder: data, model and compiled programs, which its runs share, of any budget and seed.

    Dropout, if there is any, has the keys of the first seed in all of them.
    """

    def __init__(self, config: LadderConfig, run: Run):
        self.name = run.size
        self._ladder = config
        self._tasks: dict[int, Task] = {}  # by seed, which the order of the data depends on
        self._config = config.of_run(run)
        task = self.task(run)
        resolved = with_vocab_size(self._config.model, task.tokenizer.vocab_size)
        self._config = dataclasses.replace(self._config, model=resolved)
        check_training_memory(self._config, task)
        optimizer = stretched_optimizer(self._config.optimizer, config.train.num_steps)
        self._parallel = build_parallel(self._config, task.model, task.loss_fn, optimizer)

        def first_state(key: jax.Array, num_steps: jax.Array) -> TrainState:
            state = create_state(init_params(task.model, key), optimizer, config.train.ema_decay > 0)
            assert isinstance(state.opt_state, StretchedState)
            return dataclasses.replace(state, opt_state=state.opt_state._replace(num_steps=num_steps))

        self._first_state = jax.jit(first_state)

    def task(self, run: Run) -> Task:
        """Data and model of a run of this size."""
        if run.seed not in self._tasks:
            config = self._ladder.of_run(run)
            self._tasks[run.seed] = load_task(config, load_init_from(config.train, None))
        return self._tasks[run.seed]

    def cost(self, run: Run) -> tuple[int, int]:
        """Parameters N and training tokens D of a run of this size, known before it is made."""
        config = self._ladder.of_run(run)
        targets = config.train.num_steps * config.train.batch_size * config.model.max_len
        return count_params(parameter_shapes(self.task(run).model)), targets

    def train(self, run: Run) -> Done:
        """Train a run of this size from random parameters, and evaluate it.

        Raises:
          RunError: it diverges.
        """
        started = time.perf_counter()
        config = dataclasses.replace(self._ladder.of_run(run), model=self._config.model)
        task = self.task(run)
        num_steps = config.train.num_steps
        state = self._parallel.put(self._first_state(jax.random.key(run.seed), jnp.int32(num_steps)))
        num_targets = 0
        steps_per_call = choose_steps_per_call(config, task, state.params)
        for call in read_calls(task.batches(0, num_steps), task.num_targets, 0, config, steps_per_call):
            state = self._parallel.train(state, call.batches, call.num_steps)
            num_targets += call.num_targets
        if int(self._parallel.get(state.consecutive_skips)):
            raise RunError(
                f"{run.size} with {run.tokens:,} tokens, seed {run.seed}: diverged. All runs before it are kept; "
                "take a smaller optimizer.peak_lr or muon_lr, in another workdir."
            )
        params = self._parallel.get(state.params)
        values = task.evaluate(self._parallel.evaluate, eval_params(state))
        flops = float(flops_per_token(params, task.model.config)) * num_targets
        floor = values["floor"] if "floor" in values else 0.0
        seconds = round(time.perf_counter() - started, 2)
        return Done(*run, count_params(params), num_targets, flops, values["loss"], floor, seconds)


def read_done(workdir: Path) -> list[Done]:
    """Read the runs that are done; a last line that was cut off counts as none.

    Raises:
      UserError: runs.jsonl has a line of another kind.
    """
    path = workdir / RUNS
    if not path.exists():
        return []
    lines = read_regular(path).decode(errors="replace").split("\n")[:-1]
    try:
        return [from_dict(Done, json.loads(line)) for line in lines]
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: is not the list of runs of a ladder ({error}). Take another workdir.") from error


def train_ladder(
    config: LadderConfig, workdir: Path, runs: Sequence[Run], size: Size | None = None
) -> Iterator[tuple[Done, bool]]:
    """Train the runs that are not done yet, in order.

    Args:
      size: of the first run, if it is loaded already.
    Yields:
      each run, with True if it was done before. It is kept in `workdir` before it is yielded.
    Raises:
      UserError: the data is not that of the runs in `workdir`.
      RunError: a run diverges.
    """
    done = read_done(workdir)
    by_run = {one.run: one for one in done}
    for run in runs:
        if run in by_run:
            yield by_run[run], True
            continue
        if size is None or size.name != run.size:
            size = Size(config, run)
        _check_data(workdir, size.task(run).fingerprint)
        result = size.train(run)
        done.append(result)
        write_text(workdir / RUNS, "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in done))
        yield result, False


def check_settings(workdir: Path, config: LadderConfig) -> None:
    """Refuse settings of training that differ from those of the runs in `workdir`; keep them if there are none yet.

    Raises:
      UserError: names the first setting that differs. Sizes, budgets and seeds of the ladder may change.
    """
    path = workdir / "config.json"
    if not path.exists():
        write_text(path, json.dumps(dataclasses.asdict(config), indent=1) + "\n")
        return
    try:
        before = LadderConfig.from_dict(json.loads(read_regular(path)))
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: has no settings of a ladder ({error}). Take another workdir.") from error
    for name in config_fields(Config):
        section, field = name.split(".")
        old, new = (getattr(getattr(settings, section), field) for settings in (before, config))
        if old != new and name not in ("data.path", "data.cache_dir"):  # of a path, the content is compared
            raise UserError(
                f"{name}={new!r}: the runs in this workdir were trained with {old!r}. Take that, or another workdir; "
                "only the fields of scaling may change."
            )


def _check_data(workdir: Path, fingerprint: dict[str, str | int]) -> None:
    """Refuse data that differs from that of the first run of the ladder."""
    path = workdir / "data.json"
    if path.exists():
        check_data(json.loads(read_regular(path)), fingerprint)
    else:
        write_text(path, json.dumps(fingerprint, indent=1) + "\n")
