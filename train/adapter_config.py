"""Settings of an adapter that is trained; and of patterns, which choose parameters or layers by their names."""

import dataclasses
import re

from transformer_jax.errors import UserError, choose
from transformer_jax.schema import setting


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Adapter that is trained in place of the parameters of a pre-trained model."""

    kind: str = setting(
        "",
        "lora | dora | ia3 | prefix | prompt: trained in place of the parameters of train.init_from; empty: no adapter",
    )
    rank: int = setting(8, "kind=lora, dora: rank of the change of a kernel")
    alpha: float = setting(16.0, "kind=lora, dora: the change is multiplied by alpha / rank")
    rslora: bool = setting(False, "kind=lora, dora: multiply by alpha / sqrt(rank) instead (Kalajdzievski 2023)")
    num_tokens: int = setting(20, "kind=prefix, prompt: number of tokens, none of a text, that are before every text")
    where: str = setting(
        "",
        "linear layers to adapt: attention, all-linear (both in the blocks) or regular expressions of their names, "
        "separated by commas; empty: attention; for ia3 key, value and the second feed-forward layer",
    )
    dropout: float = setting(0.0, "kind=lora, dora: share of the inputs of the adapter that are dropped in training")
    full: str = setting(
        "",
        "parameters that are trained in full beside the adapter: regular expressions of their names; the head of a "
        "classifier or tagger always is",
    )
    int8: bool = setting(False, "the frozen kernels and embeddings are int8: a quarter of their memory")

    def __post_init__(self):
        if self.kind:
            from transformer_jax.models.adapters import KINDS  # here, since it loads JAX, and --help need not

            choose(KINDS, self.kind, "adapter.kind")
        if self.rank < 1:
            raise UserError(f"adapter.rank={self.rank}: must be at least 1. Take 8.")
        if self.num_tokens < 1:
            raise UserError(f"adapter.num_tokens={self.num_tokens}: must be at least 1. Take 20.")
        if self.alpha <= 0:
            raise UserError(f"adapter.alpha={self.alpha}: must be above 0. Take 16.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"adapter.dropout={self.dropout}: must be at least 0 and below 1. Take 0.1.")
        check_patterns("adapter.where", self.where)
        check_patterns("adapter.full", self.full)

    def context(self, max_len: int) -> int:
        """Most tokens of a text in a context of `max_len`, after those of a prefix. Raises UserError if it has none."""
        num_tokens = self.num_tokens if self.kind in ("prefix", "prompt") else 0
        if num_tokens and num_tokens >= max_len - 1:
            rule = f"leaves no room for a text in the context of {max_len} tokens"
            raise UserError(f"adapter.num_tokens={num_tokens}: {rule}. Take {max(1, max_len // 2)} or fewer.")
        return max_len - num_tokens


def check_patterns(name: str, patterns: str) -> None:
    """Check regular expressions with commas between them. Raises UserError that names the first that is none."""
    for pattern in patterns.split(",") if patterns else ():
        if not pattern:
            raise UserError(f"{name}={patterns!r}: has an empty pattern, which fits all names. Remove a comma.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{name}: {pattern!r} is not a regular expression ({error}).") from error
