"""Task: model, loss, batches and metrics of a run; `load_task` builds the one that `train.task` names."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from transformer_jax.checkpoints.meta import HuggingFaceConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.models import Model, Params
from transformer_jax.run import read_meta
from transformer_jax.tokenizers import Tokenizer

from ..config import Config, TokenizerConfig
from ..data.batch_sampler import LengthBucketSampler
from ..data.batches import Batch, prefetch
from ..evaluation import evaluate
from ..initialization import InitFrom
from ..metrics import text_metrics
from .registry import TASKS, TaskRow, tasks_reading

EVAL_TOKENS = 8192  # targets in an evaluation batch, about: enough to be fast, few enough for their logits


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Model, tokenizer, loss, batches and metrics of a run."""

    model: Model
    tokenizer: Tokenizer
    loss_fn: Callable  # see losses.py
    train_batch: Callable[[int], Batch]  # a pure function of the step
    eval_batches: Callable[[], Iterable[Batch]]
    fingerprint: dict[str, str | int]  # equal for equal examples
    description: str
    num_targets: Callable[[Batch], int]
    tokens_per_step: int  # approximate
    has_one_shape: bool  # all batches have one shape, so that several steps may share a call
    bytes_per_token: float | None = None  # converts a loss per token to bits per byte
    has_perplexity: bool = True  # the loss is per token
    counts: tuple[str, ...] = ()  # metrics that loss_fn counts besides the loss
    best_by: str = "loss"  # the metric that chooses the best checkpoint, one of `metrics`; set by `load_task`
    labels: tuple[str, ...] = ()
    problem_type: str = ""  # of a classification head: one of models.PROBLEM_TYPES
    separator: str = " "  # between the words of a tagged sentence
    lowercase: bool = False  # True: all texts are lower-cased
    hf_config: HuggingFaceConfig | None = None  # None: that of the pre-trained model, if there is one

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of an evaluation that `train.best_by` can choose from."""
        names = ("loss", *self.counts)
        if self.has_perplexity:
            names += ("perplexity",)
        if self.bytes_per_token is not None:
            names += ("bits_per_byte",)
        return names

    def evaluate(self, eval_step: Callable, params: Params) -> dict[str, float]:
        """Metrics of the whole validation split, `loss` first; `eval_step` as for `evaluation.evaluate`."""
        values = evaluate(eval_step, params, self.eval_batches())
        return values | text_metrics(values["loss"], self.bytes_per_token) if self.has_perplexity else values

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Training batches of steps first_step to num_steps - 1, in order, prefetched in a thread."""
        return prefetch(self.train_batch, first_step, num_steps)


def load_task(config: Config, init_from: InitFrom) -> Task:
    """Build the task that `train.task` names.

    Raises:
      UserError: an unknown task or data source, a metric of `train.best_by` that this run does not measure, a
        tokenizer beside that of `train.init_from`, texts of mixed case for a vocabulary of lower case, or data that the
        source refuses.
    """
    row: TaskRow = choose(TASKS, config.train.task, "train.task")
    choose(dict.fromkeys(row.sources), config.data.source, "data.source")
    _check_tokenizer(config.tokenizer, init_from)
    config, lowercase = _inherit_lowercase(config, init_from)
    task: Task = row.load_builder()(config, init_from)
    description = task.description + (", lower-cased" if lowercase else "")
    best_by = config.train.best_by or next(name for name in row.best_by if name in task.metrics)
    if best_by not in task.metrics:
        raise UserError(
            f"train.best_by={best_by!r}: must be a metric that train.task={config.train.task!r} measures in this run. "
            f"Take one of: {', '.join(task.metrics)}."
        )
    return dataclasses.replace(
        task,
        best_by=best_by,
        hf_config=task.hf_config or init_from.hf_config,
        lowercase=lowercase,
        description=description,
    )


def _inherit_lowercase(config: Config, init_from: InitFrom) -> tuple[Config, bool]:
    """Lower-case the texts if the initial model has learned such texts: the settings, and `data.lowercase` of these.

    Raises:
      UserError: a task that cannot, or a vocabulary of lower case for texts of mixed case.
    """
    lowercase = config.data.lowercase or init_from.lowercase
    is_read = config.train.task in tasks_reading("data.lowercase")
    if init_from.lowercase and not is_read:
        raise UserError(
            f"train.init_from: its model has learned lower-cased texts, which train.task={config.train.task!r} cannot "
            f"make. Take one of the tasks {', '.join(tasks_reading('data.lowercase'))}, or another model."
        )
    path = Path(config.tokenizer.path).expanduser()
    is_new_run = config.tokenizer.path and init_from.model is None  # a resumed run has its tokenizer
    if is_new_run and (path / "checkpoints").is_dir() and read_meta(path).lowercase and not lowercase:
        fix = "Set data.lowercase=True." if is_read else "Take another tokenizer."
        raise UserError(f"tokenizer.path={config.tokenizer.path!r}: has learned lower-cased texts. {fix}")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, lowercase=lowercase)), lowercase


def _check_tokenizer(config: TokenizerConfig, init_from: InitFrom) -> None:
    """Refuse settings of a new tokenizer where the model of `train.init_from` has one."""
    if init_from.run is None or init_from.tokenizer is None:
        return
    default = TokenizerConfig()
    for name in ("kind", "vocab_size", "path", "separate"):
        value = getattr(config, name)
        if value != getattr(default, name):
            raise UserError(
                f"tokenizer.{name}={value!r}: the model of train.init_from has a tokenizer, which is used as it is. "
                f"Take {getattr(default, name)!r}."
            )


class BucketedBatches(NamedTuple):
    """Training and validation batches of examples that are sorted into buckets by length."""

    sampler: LengthBucketSampler  # of the training batches
    train_batch: Callable[[int], Batch]
    eval_batches: Callable[[], Iterator[Batch]]


def bucket_by_length(
    config: Config,
    max_len: int,
    train_lengths: Sequence[int],
    val_lengths: Sequence[int],
    make_batch: Callable[[int, np.ndarray, int, int], Batch],
) -> BucketedBatches:
    """Batch examples by length, for training and for validation.

    Args:
      train_lengths, val_lengths: tokens of each example.
      make_batch: (0 for training or 1 for validation, indices of examples, length, number of rows) -> batch.
    """
    sampler = functools.partial(LengthBucketSampler, max_len=max_len, num_buckets=config.train.num_buckets)
    train_sampler = sampler(
        tuple(train_lengths),
        batch_size=config.train.batch_size,
        batch_tokens=config.train.batch_tokens,
        seed=config.train.seed,
        num_devices=jax.device_count() * config.train.accumulation,  # both divide the rows
    )
    val_sampler = sampler(
        tuple(val_lengths), batch_size=1, batch_tokens=EVAL_TOKENS, seed=0, num_devices=jax.device_count()
    )

    def batch(part: int, sampler: LengthBucketSampler, step: int) -> Batch:
        examples, length = sampler.batch(step)
        return make_batch(part, examples, length, sampler.rows(length))

    def eval_batches() -> Iterator[Batch]:
        return (batch(1, val_sampler, step) for step in range(val_sampler.steps_per_epoch))

    return BucketedBatches(train_sampler, functools.partial(batch, 0, train_sampler), eval_batches)
