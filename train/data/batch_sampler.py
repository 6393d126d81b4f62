"""Batch samplers: which examples make the batch of a step, as a function of (seed, step) alone.

For running text, examples are windows of max_len + 1 tokens, because the model predicts tokens[1:] from tokens[:-1];
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
    """Sampler of windows of running text. A pure function of these numbers and the global step, safe in any thread.

    A window is visited at most once in an epoch; the last num_windows % batch_size windows of its order are skipped.
    The order stays the same as long as NumPy keeps the streams of its generators, which it may change between versions.

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
        return (self.num_tokens - self.max_len) // self.max_len  # the same number at every offset

    @property
    def steps_per_epoch(self) -> int:
        return self.num_windows // self.batch_size

    def starts(self, step: int) -> np.ndarray:
        """Index of the first token of each example of global step `step`: int64 [B]."""
        epoch, step_in_epoch = divmod(int(step), self.steps_per_epoch)
        return _epoch_starts(self, epoch)[step_in_epoch]


@functools.lru_cache(maxsize=2)  # two, because prefetching runs ahead across the end of an epoch
def _epoch_starts(sampler: WindowSampler, epoch: int) -> np.ndarray:  # [steps_per_epoch, B]
    rng = np.random.default_rng((sampler.seed, epoch))
    offset = rng.integers(sampler.max_len)
    windows = rng.permutation(sampler.num_windows)[: sampler.steps_per_epoch * sampler.batch_size]
    windows *= sampler.max_len  # in place: the order of a large text is large itself
    windows += offset
    starts = windows.reshape(sampler.steps_per_epoch, sampler.batch_size)
    starts.flags.writeable = False  # the cache shares it among all callers
    return starts


BUCKET_MULTIPLE = 4  # bucket lengths are multiples of it


@dataclasses.dataclass(frozen=True)
class LengthBucketSampler:
    """Sampler of examples of similar length: little padding, and few shapes to compile.

    Batches have at most `num_buckets` lengths, each for about the same number of tokens. Every epoch has every example
    exactly once; the last batch of a bucket may have fewer rows than the others.

    Raises:
      UserError: no examples.
    """

    lengths: tuple[int, ...]  # of the examples, in tokens, at most max_len
    max_len: int
    batch_size: int  # rows in a batch, unless batch_tokens is set
    seed: int
    batch_tokens: int = 0  # above 0: largest product of rows and length of a batch
    num_devices: int = 1  # divides the number of rows
    num_buckets: int = 4

    def __post_init__(self):
        if not self.lengths:
            raise UserError("data: there is no example. Give at least one.")

    @functools.cached_property
    def _buckets(self) -> tuple[np.ndarray, np.ndarray]:  # the bucket length of each example, and all bucket lengths
        lengths = np.sort(self.lengths)
        token_share = np.cumsum(lengths) / lengths.sum()
        last = np.searchsorted(token_share, np.arange(1, self.num_buckets + 1) / self.num_buckets - 1e-9)
        rounded = -(-lengths[last] // BUCKET_MULTIPLE) * BUCKET_MULTIPLE
        bucket_lengths = np.unique(np.minimum(rounded, self.max_len))
        return bucket_lengths[np.searchsorted(bucket_lengths, self.lengths)], bucket_lengths

    def _num_batches(self, length: int) -> int:
        """Batches of one bucket in an epoch."""
        bucket, _ = self._buckets
        return int(-(-np.sum(bucket == length) // self.rows(length)))

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        _, bucket_lengths = self._buckets
        return sum(self._num_batches(length) for length in bucket_lengths)

    def rows(self, length: int) -> int:
        """Number of rows of a batch that is `length` tokens long."""
        rows = max(1, self.batch_tokens // int(length)) if self.batch_tokens else self.batch_size
        return max(rows // self.num_devices, 1) * self.num_devices

    @property
    def mean_tokens(self) -> int:
        """Mean number of tokens of a batch, without padding."""
        return sum(self.lengths) // self.steps_per_epoch

    @property
    def padding(self) -> float:
        """Share of padding among all positions of an epoch's batches."""
        _, bucket_lengths = self._buckets
        positions = sum(self._num_batches(length) * self.rows(length) * length for length in bucket_lengths)
        return float(1 - sum(self.lengths) / positions)

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Indices of the examples of global step `step`, at most batch_size of them, and the length of the batch."""
        epoch, step_in_epoch = divmod(int(step), self.steps_per_epoch)
        return self._epoch(epoch)[step_in_epoch]

    @functools.cached_property
    def _recent_epochs(self) -> dict[int, list[tuple[np.ndarray, int]]]:
        return {}  # at most two, because prefetching runs ahead across the end of an epoch

    def _epoch(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        recent = self._recent_epochs
        if epoch not in recent:
            rng = np.random.default_rng((self.seed, epoch))
            bucket, bucket_lengths = self._buckets
            shuffled = rng.permutation(len(self.lengths))
            batches = []
            for length in bucket_lengths:
                examples = shuffled[bucket[shuffled] == length]
                num_rows = self.rows(length)
                batches += [(examples[i : i + num_rows], int(length)) for i in range(0, len(examples), num_rows)]
            for old in [old for old in list(recent) if old < epoch - 1]:
                recent.pop(old, None)
            recent[epoch] = [batches[i] for i in rng.permutation(len(batches))]
        return recent[epoch]
