"""Settings of a ladder: the sizes and budgets of its runs, and of the run that it predicts."""

import dataclasses
import itertools
import re
from typing import NamedTuple

from transformer_jax.errors import UserError
from transformer_jax.schema import check_32_bits, config_fields, from_dict, setting

from ..config import Config

NOT_READ = ("train.log_every", "train.eval_every", "train.best_by", "train.patience", "train.tensorboard")


class Run(NamedTuple):
    """Run of a ladder: a size, a budget, a seed."""

    num_layers: int
    d_model: int
    tokens: int  # budget; the run takes as many whole batches as fit
    seed: int

    @property
    def size(self) -> str:
        """The size as in the settings: 4x128."""
        return f"{self.num_layers}x{self.d_model}"


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """Ladder: every size is trained with every budget and seed."""

    sizes: str = setting("1x32,2x64,3x96,4x128,5x160", "sizes of the ladder: layers x width")
    tokens: str = setting("100000,200000,400000,800000", "budgets of the ladder: training tokens")
    num_seeds: int = setting(1, "seeds of each size and budget, from train.seed on")
    predicted_size: str = setting("6x192", "size of a larger run, predicted from the ladder and then made; empty: none")
    predicted_tokens: int = setting(1_600_000, "training tokens of the larger run")
    num_resamples: int = setting(200, "bootstrap resamples of the runs, from which intervals come")

    def __post_init__(self):
        check_32_bits(self, "scaling.")
        if len(set(self.all_sizes)) < 3:
            raise UserError(f"scaling.sizes={self.sizes!r}: a fit needs at least 3 sizes. Take 1x32,2x64,4x128.")
        if len(set(self.all_tokens)) < 3:
            raise UserError(
                f"scaling.tokens={self.tokens!r}: a fit needs at least 3 budgets. Take 100000,200000,400000."
            )
        if self.predicted_size:
            _size("scaling.predicted_size", self.predicted_size)
        for name in ("num_seeds", "predicted_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"scaling.{name}={getattr(self, name)}: must be at least 1.")
        if self.num_resamples < 20:
            raise UserError(f"scaling.num_resamples={self.num_resamples}: an interval needs at least 20. Take 200.")

    @property
    def all_sizes(self) -> list[tuple[int, int]]:
        """Layers and width of each size."""
        return [_size("scaling.sizes", text) for text in self.sizes.split(",")]

    @property
    def all_tokens(self) -> list[int]:
        """The budgets."""
        for text in self.tokens.split(","):
            if not re.fullmatch(r"\s*[1-9]\d{0,11}\s*", text):
                raise UserError(f"scaling.tokens: {text!r:.80} is no number of tokens. Write 100000,200000,400000.")
        return [int(text) for text in self.tokens.split(",")]

    def ladder(self, first_seed: int) -> list[Run]:
        """Runs of the ladder, size by size: a size is compiled once."""
        seeds = range(first_seed, first_seed + self.num_seeds)
        parts = itertools.product(dict.fromkeys(self.all_sizes), seeds, dict.fromkeys(self.all_tokens))
        return [Run(layers, width, tokens, seed) for (layers, width), seed, tokens in parts]

    def predicted(self, first_seed: int) -> list[Run]:
        """The larger runs, one a seed; none if there is nothing to predict."""
        if not self.predicted_size:
            return []
        size = _size("scaling.predicted_size", self.predicted_size)
        return [Run(*size, self.predicted_tokens, first_seed + i) for i in range(self.num_seeds)]


@dataclasses.dataclass(frozen=True)
class LadderConfig(Config):
    """Settings of a training run, which give all that sizes and budgets do not; and those of the ladder."""

    scaling: ScalingConfig = dataclasses.field(default_factory=ScalingConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.train.task != "causal_lm" or self.data.documents or self.train.init_from:
            raise UserError(
                "config: a ladder trains GPTs from random parameters on running text. Take train.task='causal_lm', and "
                "neither data.documents nor train.init_from."
            )
        for name, field in config_fields(Config).items():
            section, leaf = name.split(".")
            value = getattr(getattr(self, section), leaf)
            if (name in NOT_READ or section == "checkpoint") and value != field.default:
                raise UserError(
                    f"{name}={value!r}: a ladder does not read it: each run is evaluated once, at its end, and none is "
                    f"kept. Take {field.default!r}."
                )
        for run in [*self.scaling.ladder(0), *self.scaling.predicted(0)]:
            self.of_run(run)

    def of_run(self, run: Run) -> Config:
        """Settings of a run: heads as wide as in the recipe, and AdamW's learning rate by 1 / width.

        Muon's learning rate stays: its update has the same effect at any width.

        Raises:
          UserError: a width that the recipe's heads do not divide.
        """
        model = self.model
        num_heads = run.d_model // model.head_dim
        group = model.num_heads // model.num_kv_heads
        if run.d_model % (model.head_dim * group):
            raise UserError(
                f"scaling: the width of {run.size} must be a multiple of {model.head_dim * group}, the width of the "
                f"{group} heads that share keys (model.head_dim={model.head_dim})."
            )
        of_size = dataclasses.replace(
            model,
            num_layers=run.num_layers,
            d_model=run.d_model,
            d_ff=0,
            num_heads=num_heads,
            num_kv_heads=num_heads // group,
        )
        peak_lr = self.optimizer.peak_lr * model.d_model / run.d_model
        num_steps = max(1, run.tokens // (self.train.batch_size * model.max_len))
        return Config(
            model=of_size,
            tokenizer=self.tokenizer,
            data=self.data,
            optimizer=dataclasses.replace(self.optimizer, peak_lr=peak_lr),
            train=dataclasses.replace(
                self.train, seed=run.seed, num_steps=num_steps, log_every=num_steps, eval_every=num_steps
            ),
            checkpoint=dataclasses.replace(self.checkpoint, save_every=num_steps),
        )

    @classmethod
    def from_dict(cls, values: object) -> "LadderConfig":
        """Build from a ConfigDict or a nested dict. Raises UserError for an unknown field or an invalid value."""
        return from_dict(cls, values)


def _size(name: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*([1-9]\d{0,3})x([1-9]\d{0,5})\s*", text)
    if not found:
        raise UserError(f"{name}: {text!r:.80} is no size. Write layers x width, such as 4x128.")
    return int(found[1]), int(found[2])
