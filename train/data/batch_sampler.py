"""The one plan of data order: what makes the batch of a step, from (seed, step) alone.

Of running text, examples are windows of max_len + 1 tokens, because the model predicts tokens[1:] from tokens[:-1];
neighbours share one token and no target. Each epoch cuts the text at another offset and visits the windows in another
order:

    tokens     0 1 2 3 4 5 6 7 8 9      max_len 3, offset 2
    windows        2 3 4 5
                         5 6 7 8        order 1, 0
"""

import dataclasses
import functools

import numpy as np

from transformer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class WindowSampler:
    """Where each training example starts. A pure function of these numbers and the global step, safe in any thread.

    A window is visited at most once in an epoch; the last num_windows % batch_size of its order are left out of it.
    The same for as long as NumPy keeps its generators' streams, which it may change between versions.

    Raises:
      UserError: fewer windows than one batch.
    """

    num_tokens: int
    max_len: int
    batch_size: int
    seed: int

    def __post_init__(self):
        needed = self.batch_size * self.max_len + self.max_len
        if self.num_tokens < needed:
            raise UserError(
                f"train.batch_size={self.batch_size} with model.max_len={self.max_len}: a batch needs {needed} tokens "
                f"(batch_size * max_len + max_len), and the training text has {self.num_tokens}. "
                "Take a smaller train.batch_size or model.max_len, or more text."
            )

    @property
    def num_windows(self) -> int:
        return (self.num_tokens - self.max_len) // self.max_len  # as many at the largest offset as at 0

    @property
    def steps_per_epoch(self) -> int:
        return self.num_windows // self.batch_size

    def starts(self, step: int) -> np.ndarray:
        """The first token of each example of global step `step`: int64 [B]."""
        epoch, step_in_epoch = divmod(int(step), self.steps_per_epoch)
        return _epoch_starts(self, epoch)[step_in_epoch]


@functools.lru_cache(maxsize=2)  # two, because prefetching runs ahead across the end of an epoch
def _epoch_starts(order: WindowSampler, epoch: int) -> np.ndarray:  # [steps_per_epoch, B]
    rng = np.random.default_rng((order.seed, epoch))
    offset = rng.integers(order.max_len)
    windows = rng.permutation(order.num_windows)[: order.steps_per_epoch * order.batch_size]
    starts = (offset + windows * order.max_len).reshape(order.steps_per_epoch, order.batch_size)
    starts.flags.writeable = False  # shared by all who ask
    return starts


MULTIPLE = 4  # lengths of batches are multiples of it


@dataclasses.dataclass(frozen=True)
class LengthBucketSampler:
    """Which examples make the batch of a step, and how many tokens long it is.

    Examples of about one length come together, so that there is little padding and few shapes are compiled: batches
    have `num_buckets` lengths at most, each for about as many tokens. Every epoch has every example exactly once; the
    last batch of a length may have fewer rows than the others.

    Raises:
      UserError: no examples.
    """

    lengths: tuple[int, ...]  # in tokens, at most max_len
    max_len: int
    batch_size: int  # rows in a batch,
    seed: int
    batch_tokens: int = 0  # or, above 0, rows times length at most
    num_devices: int = 1  # divides the rows
    num_buckets: int = 4

    def __post_init__(self):
        if not self.lengths:
            raise UserError("data: there is no example. Give at least one.")

    @functools.cached_property
    def _buckets(self) -> tuple[np.ndarray, np.ndarray]:  # the batch length of each example, and all there are
        lengths = np.sort(self.lengths)
        share = np.cumsum(lengths) / lengths.sum()  # of all tokens
        last = np.searchsorted(share, np.arange(1, self.num_buckets + 1) / self.num_buckets - 1e-9)
        ladder = np.unique(np.minimum(-(-lengths[last] // MULTIPLE) * MULTIPLE, self.max_len))
        return ladder[np.searchsorted(ladder, self.lengths)], np.unique(ladder)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        bucket, ladder = self._buckets
        return int(sum(-(-np.sum(bucket == length) // self.rows(length)) for length in ladder))

    def rows(self, length: int) -> int:
        """Rows of a batch that is `length` tokens long."""
        rows = max(1, self.batch_tokens // int(length)) if self.batch_tokens else self.batch_size
        return max(rows // self.num_devices, 1) * self.num_devices

    @property
    def mean_tokens(self) -> int:
        """Tokens of a batch, padding left out, in the mean."""
        return sum(self.lengths) // self.steps_per_epoch

    @property
    def padding(self) -> float:
        """The share of padding in all batches of an epoch."""
        bucket, ladder = self._buckets
        places = sum(
            -(-np.sum(bucket == length) // self.rows(length)) * self.rows(length) * length for length in ladder
        )
        return float(1 - sum(self.lengths) / places)

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """The examples of global step `step`, at most batch_size of them, and the length of the batch."""
        epoch, step_in_epoch = divmod(int(step), self.steps_per_epoch)
        return self._epoch(epoch)[step_in_epoch]

    def _epoch(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        kept = self.__dict__.setdefault("_epochs", {})  # two, because prefetching runs ahead across the end of an epoch
        if epoch not in kept:
            rng = np.random.default_rng((self.seed, epoch))
            bucket, ladder = self._buckets
            shuffled = rng.permutation(len(self.lengths))
            batches = []
            for length in ladder:
                rows = shuffled[bucket[shuffled] == length]
                batches += [
                    (rows[i : i + self.rows(length)], int(length)) for i in range(0, len(rows), self.rows(length))
                ]
            for old in [old for old in list(kept) if old < epoch - 1]:
                kept.pop(old, None)
            kept[epoch] = [batches[i] for i in rng.permutation(len(batches))]
        return kept[epoch]
