"""Every setting of a training run: name, type, default and meaning, once.

`configs/default.py` makes the ConfigDict that recipes and the command line change; `loop.run` turns it
back into these frozen dataclasses, which check it.
"""

import dataclasses
import re

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.schema import from_dict, setting


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is split."""

    source: str = setting(
        "python_docs",
        "text: python_docs | python_source | text | tfds; of known entropy: markov | hmm | grammar; "
        "pairs: parallel | dates | copy | reverse | sort | tfds; labelled texts: labelled | languages | tfds; "
        "tagged words: tagged | python_tokens | tfds",
    )
    path: str = setting(
        "",
        "source=text: a file, a folder or a glob, .gz too; tfds: a name such as glue/sst2; else the file to train on",
    )
    documents: str = setting(
        "", "task=causal_lm: files | lines: each is a text of its own, packed into rows; empty: one running text"
    )
    target_path: str = setting(
        "", "source=parallel: its translation, line by line; empty: both are in one .tsv or .jsonl"
    )
    val_path: str = setting("", "the same for validation; source=labelled: empty for a share of the examples")
    val_target_path: str = setting("", "source=parallel: its translation")
    test_path: str = setting("", "the same for `python -m train.evaluate --split=test`")
    test_target_path: str = setting("", "source=parallel: its translation")
    mask_fraction: float = setting(0.15, "task=masked_lm, spans: share of the tokens that is hidden")
    lowercase: bool = setting(False, "task=seq2seq: all in small letters")
    source_language: str = setting("en", "source=dates: a code that CLDR knows; tfds: the field of one language")
    target_language: str = setting("de", "source=dates, tfds: another")
    text_field: str = setting("", "source=labelled: the column with the text; empty: the first, and no header; tfds")
    label_field: str = setting(
        "", "source=labelled: the column with the label; empty: the last, and no header; .conllu: upos; tfds"
    )
    tfds_dir: str = setting("", "source=tfds: where its datasets are kept; empty: where TFDS keeps them")
    train_split: str = setting("train", "source=tfds: the split to train on; TFDS can cut them, say train[:90%]")
    val_split: str = setting("validation", "source=tfds: the split to validate on")
    test_split: str = setting("test", "source=tfds: the split for --split=test")
    val_fraction: float = setting(0.1, "share of the characters, at the end of the text, kept for validation")

    def __post_init__(self):
        choose(dict.fromkeys(("", "files", "lines")), self.documents, "data.documents")
        if not 0 < self.mask_fraction < 1:
            raise UserError(f"data.mask_fraction={self.mask_fraction}: must lie between 0 and 1. Take 0.15.")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: must lie between 0 and 1. Take 0.1.")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: str = setting("char", "char | byte | bpe | wordpiece | unigram")
    vocab_size: int = setting(4096, "for bpe, wordpiece and unigram: ids in all, special ones included")
    path: str = setting("", "instead: a tokenizer.json, or a folder or run that has a tokenizer")
    separate: bool = setting(False, "task=seq2seq: source and target each have a tokenizer of their own")
    dropout: float = setting(
        0.0, "kind=bpe, tasks on examples: share of the merges left out by chance, in up to 16 versions of each example"
    )

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise UserError(f"tokenizer.dropout={self.dropout}: must be at least 0 and below 1. Take 0.1.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = setting("adamw", "adamw | muon (matrices by Muon, the rest by AdamW)")
    peak_lr: float = setting(1e-3, "largest learning rate (AdamW's, also beside Muon)")
    muon_lr: float = setting(0.02, "largest learning rate of Muon, for the matrices")
    muon_steps: int = setting(5, "Newton-Schulz steps of Muon; each costs about three products of the matrix")
    schedule: str = setting("warmup_cosine", "warmup_cosine | warmup_linear | constant")
    warmup_steps: int = setting(100, "steps of rising from 0 to the peak; at most half of num_steps")
    final_lr_fraction: float = setting(0.1, "learning rate at the last step, as a share of the peak")
    b1: float = setting(0.9, "AdamW: decay of the mean of the gradients")
    b2: float = setting(0.95, "AdamW: decay of the mean of their squares")
    weight_decay: float = setting(0.1, "on kernels and embeddings, never on biases or norms")
    freeze: str = setting("", "parameters that stay as they are: patterns of their names, with commas between them")
    layer_decay: float = setting(1.0, "learning rate of a layer, as a share of that of the layer above it")
    clip_norm: float = setting(1.0, "largest global norm of the gradient; 0: never clip")

    def __post_init__(self):
        for name in ("peak_lr", "muon_lr"):
            if getattr(self, name) <= 0:
                raise UserError(f"optimizer.{name}={getattr(self, name)}: must be above 0.")
        for name in ("weight_decay", "clip_norm", "warmup_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name}={getattr(self, name)}: must not be negative.")
        if not 1 <= self.muon_steps <= 10:
            raise UserError(f"optimizer.muon_steps={self.muon_steps}: must lie between 1 and 10. Take 5 or 3.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name}={getattr(self, name)}: must be at least 0 and below 1.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer_decay={self.layer_decay}: must be above 0 and at most 1. Take 0.9.")
        for pattern in filter(None, self.freeze.split(",")):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"optimizer.freeze: {pattern!r} is no pattern ({error}).") from error
        if not 0 <= self.final_lr_fraction <= 1:
            raise UserError(f"optimizer.final_lr_fraction={self.final_lr_fraction}: must lie between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training run itself."""

    task: str = setting("causal_lm", "causal_lm | masked_lm | spans | classify | regress | tag | seq2seq")
    init_from: str = setting("", "start from a run directory, a Hugging Face folder or the name of a model on the hub")
    resize_vocab: bool = setting(False, "init_from: the model may get another number of token ids")
    resize_positions: bool = setting(False, "init_from: the model may get another max_len")
    seed: int = setting(0, "of initial values, data order and dropout")
    num_steps: int = setting(2000, "optimizer steps in all")
    batch_size: int = setting(16, "sequences in one optimizer step, over all devices and micro-batches")
    batch_tokens: int = setting(
        0, "instead of batch_size: tokens in the rows of a batch, padding and each side included"
    )
    num_buckets: int = setting(4, "lengths of batches, at most: each is compiled once, more of them need less padding")
    label_smoothing: float = setting(0.0, "task=seq2seq: share of each target that is spread over the vocabulary")
    pooling: str = setting("first", "task=classify, regress: first | mean | max | attention: a text's vector")
    token_dropout: float = setting(
        0.0, "task=classify, regress: share of a text's tokens that are left out, others in each epoch"
    )
    accumulation: int = setting(1, "micro-batches that one step's batch is computed in, one after the other")
    parallel: str = setting("jit", "jit | pmap: how a step is spread over the devices")
    steps_per_call: int = setting(0, "steps in one call of the compiled program; 0: up to 10 when steps are short")
    log_every: int = setting(50, "steps between lines of training loss (their mean)")
    eval_every: int = setting(250, "steps between passes over the whole validation split")
    best_by: str = setting(
        "", "number of an evaluation that says which is the best; empty: as the task wants, else loss"
    )
    patience: int = setting(0, "evaluations without a better one after which to stop early; 0: never")
    ema_decay: float = setting(0.0, "use an exponential moving average of the parameters, say 0.999; 0: the parameters")
    max_consecutive_skips: int = setting(
        10, "steps in a row with NaN or infinity (each is skipped) after which to stop"
    )
    tensorboard: bool = setting(True, "write TensorBoard files beside metrics.jsonl")

    def __post_init__(self):
        names = (
            "num_steps",
            "batch_size",
            "num_buckets",
            "accumulation",
            "log_every",
            "eval_every",
            "max_consecutive_skips",
        )
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: must be at least 1.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"train.label_smoothing={self.label_smoothing}: must be at least 0 and below 1. Take 0.1.")
        if not 0 <= self.token_dropout < 1:
            raise UserError(f"train.token_dropout={self.token_dropout}: must be at least 0 and below 1. Take 0.3.")
        if self.token_dropout and self.task not in ("classify", "regress"):
            raise UserError(
                f"train.token_dropout={self.token_dropout}: leaves nothing out where train.task={self.task!r}, only in "
                "classify and regress. Take 0."
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay={self.ema_decay}: must be at least 0 and below 1. Take 0.999.")
        if self.patience < 0:
            raise UserError(f"train.patience={self.patience}: must be 0 (never stop early) or more.")
        if self.batch_tokens < 0:
            raise UserError(f"train.batch_tokens={self.batch_tokens}: must be 0 (use batch_size) or more.")
        if self.steps_per_call < 0:
            raise UserError(f"train.steps_per_call={self.steps_per_call}: must be 0 (choose) or more.")
        if self.seed < 0:
            raise UserError(f"train.seed={self.seed}: must not be negative.")
        if self.batch_size % self.accumulation:
            raise UserError(f"train.accumulation={self.accumulation}: must divide train.batch_size={self.batch_size}.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    save_every: int = setting(250, "steps between checkpoints; the last step is always saved")
    keep: int = setting(3, "newest checkpoints kept; the best on validation is kept besides")

    def __post_init__(self):
        for name in ("save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"checkpoint.{name}={getattr(self, name)}: must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole training run."""

    model: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self):
        if self.tokenizer.dropout and self.train.task in ("causal_lm", "masked_lm", "spans"):
            raise UserError(
                f"tokenizer.dropout={self.tokenizer.dropout}: is for classify, regress, tag and seq2seq, not for "
                f"train.task={self.train.task!r}. Take 0."
            )

    @classmethod
    def from_dict(cls, values) -> "Config":
        """From a ConfigDict or a plain nested dict. Raises UserError for whatever does not fit."""
        return from_dict(cls, values)
