"""What a task is made of: everything of a run that is not the same for all runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn
import jax

from transformer_jax.tokenizers import Tokenizer

from ..config import Config
from ..data.batch_sampler import LengthBucketSampler
from ..data.batches import Batch, prefetch

EVAL_TOKENS = 8192  # targets in one evaluation batch, about: enough to be fast, few enough for their logits


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Everything of a run that is not the same for all runs."""

    model: nn.Module
    tokenizer: Tokenizer
    loss_fn: Callable  # see losses.py
    train_batch: Callable[[int], Batch]  # a pure function of the step
    eval_batches: Callable[[], Iterable[Batch]]
    fingerprint: dict[str, str | int]  # equal when the examples are
    description: str
    num_targets: Callable[[Batch], int]
    tokens_per_step: int  # about
    has_one_shape: bool  # of all batches: then several steps may share a call
    bytes_per_token: float | None = None  # turns a loss per token into bits per byte
    has_perplexity: bool = True  # the loss is that of tokens
    best_by: str = "loss"  # the number of an evaluation that says which is the best
    labels: tuple[str, ...] = ()
    separator: str = " "  # between the words that are tagged
    hf_config: dict = dataclasses.field(default_factory=dict)  # of a pre-trained model that it starts from

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps first_step to num_steps - 1, in order, made ahead of time in a thread of their own."""
        return prefetch(self.train_batch, first_step, num_steps)


def by_length(
    config: Config, max_len: int, lengths: list[list[int]], make: Callable[..., Batch]
) -> tuple[LengthBucketSampler, Callable[[int], Batch], Callable[[], Iterator[Batch]]]:
    """The order of training, and the batches of training and of validation.

    Args:
      lengths: of the examples of both parts, in tokens.
      make: (0 for training or 1, examples, length, number of rows) -> batch.
    """
    order = functools.partial(
        LengthBucketSampler, max_len=max_len, num_devices=jax.device_count(), num_buckets=config.train.num_buckets
    )
    rows = {"batch_size": config.train.batch_size, "batch_tokens": config.train.batch_tokens}
    train = order(tuple(lengths[0]), seed=config.train.seed, **rows)
    validation = order(tuple(lengths[1]), seed=0, batch_size=1, batch_tokens=EVAL_TOKENS)

    def batch(part: int, order: LengthBucketSampler, step: int) -> Batch:
        examples, length = order.batch(step)
        return make(part, examples, length, order.rows(length))

    def validate() -> Iterator[Batch]:
        return (batch(1, validation, step) for step in range(validation.steps_per_epoch))

    return train, functools.partial(batch, 0, train), validate
