"""Settings of a training run: name, type, default and meaning of each, written once.

`configs/default.py` makes the ConfigDict that recipes and the command line change; `loop.run` turns it
back into these frozen dataclasses, which check it.
"""

import dataclasses

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.schema import check_32_bits, config_fields, from_dict, setting

from .adapter_config import AdapterConfig, check_patterns
from .ignored_settings import check_settings_are_read
from .tasks.registry import TASKS


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data source of a run, and its training, validation and test splits."""

    source: str = setting(
        "python_docs",
        "text: python_docs | python_source | text | tfds; of known entropy: markov | hmm | grammar; "
        "pairs: parallel | dates | copy | reverse | sort | tfds; labelled texts: labelled | languages | tfds; "
        "tagged words: tagged | python_tokens | tfds; chats: chat",
    )
    path: str = setting(
        "", "source=text: a file, a folder or a glob, .gz too; tfds: a name such as glue/sst2; else the training file"
    )
    documents: str = setting("", "files | lines: each is a document, packed into rows; empty: one running text")
    target_path: str = setting(
        "", "source=parallel: translation of data.path, line by line; empty: both are in one .tsv or .jsonl"
    )
    val_path: str = setting(
        "", "validation file; source=labelled, chat: empty for a share (val_fraction) of the training examples"
    )
    val_target_path: str = setting("", "source=parallel: translation of data.val_path")
    test_path: str = setting("", "test file, for `python -m train.evaluate --split=test`")
    test_target_path: str = setting("", "source=parallel: translation of data.test_path")
    mask_fraction: float = setting(0.15, "share of the tokens that are masked")
    lowercase: bool = setting(False, "convert all texts to lower case, as a run of train.init_from did")
    source_language: str = setting(
        "en", "source=dates: a language code of CLDR; tfds: the field of the source language"
    )
    target_language: str = setting(
        "de", "source=dates: a language code of CLDR; tfds: the field of the target language"
    )
    text_field: str = setting(
        "", "source=labelled: column of the text; empty: the first one, without a header; tfds: field of the text"
    )
    label_field: str = setting(
        "", "source=labelled: column of the label; empty: the last one, without a header; .conllu: upos; tfds: a field"
    )
    label_separator: str = setting(
        "", "source=labelled: separates the labels of a text that has several, such as ;  empty: one label a text"
    )
    chat_template: str = setting(
        "", "source=chat: file of a chat template, in place of the one of train.init_from; the run keeps it"
    )
    max_chat_tokens: int = setting(
        0, "source=chat: longest chat; of a longer one the first tokens are kept; 0: as many as the model reads"
    )
    cache_dir: str = setting(
        "", "folder for the tokens of texts of more than 32 million characters; empty: ~/.cache/transformer_jax/tokens"
    )
    tfds_dir: str = setting("", "source=tfds: folder of prepared datasets; empty: the default of TFDS")
    train_split: str = setting("train", "source=tfds: training split; TFDS can slice one, such as train[:90%]")
    val_split: str = setting("validation", "source=tfds: validation split")
    test_split: str = setting("test", "source=tfds: test split, for --split=test")
    val_fraction: float = setting(
        0.1, "share for validation: characters at the end of the text, or random documents or examples"
    )

    def __post_init__(self):
        choose(dict.fromkeys(("", "files", "lines")), self.documents, "data.documents")
        if not 0 < self.mask_fraction < 1:
            raise UserError(f"data.mask_fraction={self.mask_fraction}: must lie between 0 and 1. Take 0.15.")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction={self.val_fraction}: must lie between 0 and 1. Take 0.1.")
        if self.max_chat_tokens < 0 or self.max_chat_tokens == 1:
            raise UserError(f"data.max_chat_tokens={self.max_chat_tokens}: must be 0 (as many as fit), or at least 2.")
        if self.documents == "lines" and self.source == "tfds":
            raise UserError("data.documents='lines': each example of data.source='tfds' is a document. Take 'files'.")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer: its kind and vocabulary size, or the path of a trained one."""

    kind: str = setting("char", "char | byte | bpe | wordpiece | unigram")
    vocab_size: int = setting(4096, "kind=bpe, wordpiece, unigram: number of token ids, special ones included")
    path: str = setting(
        "", "in place of kind and vocab_size: a tokenizer.json, or a folder or run directory with a tokenizer"
    )
    separate: bool = setting(False, "train one tokenizer for the source and one for the target")
    dropout: float = setting(0.0, "kind=bpe: share of merges omitted at random, in up to 16 versions of each example")

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise UserError(f"tokenizer.dropout={self.dropout}: must be at least 0 and below 1. Take 0.1.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: str = setting("adamw", "adamw | muon (Muon for matrices, AdamW for all other parameters)")
    peak_lr: float = setting(1e-3, "peak learning rate of AdamW, with muon too")
    muon_lr: float = setting(0.02, "name=muon: peak learning rate of the matrices")
    muon_steps: int = setting(5, "name=muon: Newton-Schulz steps; each costs about three products of the matrix")
    schedule: str = setting("warmup_cosine", "warmup_cosine | warmup_linear | constant")
    warmup_steps: int = setting(100, "steps from 0 to the peak; at most half of num_steps")
    final_lr_fraction: float = setting(
        0.1, "warmup_cosine, warmup_linear: learning rate at the last step, as a share of the peak"
    )
    b1: float = setting(0.9, "AdamW: decay of the first moment, the mean of the gradients")
    b2: float = setting(0.95, "AdamW: decay of the second moment, the mean of their squares")
    weight_decay: float = setting(0.1, "on kernels and embeddings, never on biases or norms")
    freeze: str = setting(
        "", "parameters that are not trained: regular expressions of their names, separated by commas"
    )
    layer_decay: float = setting(1.0, "learning rate of a layer, as a share of the learning rate of the layer above")
    clip_norm: float = setting(1.0, "maximum global norm of the gradient; 0: no clipping")

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
        check_patterns("optimizer.freeze", self.freeze)
        if not 0 <= self.final_lr_fraction <= 1:
            raise UserError(f"optimizer.final_lr_fraction={self.final_lr_fraction}: must lie between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training loop: task, batches, evaluation and early stopping."""

    task: str = setting("causal_lm", " | ".join(TASKS))
    init_from: str = setting(
        "", "pre-trained model: a run directory, a Hugging Face folder or the name of a model on the hub"
    )
    resize_vocab: bool = setting(False, "init_from: allow another vocabulary size than that of the loaded model")
    resize_positions: bool = setting(False, "init_from: allow another max_len than that of the loaded model")
    seed: int = setting(0, "random seed of initial parameters, data order and dropout")
    num_steps: int = setting(2000, "total number of optimizer steps")
    batch_size: int = setting(16, "sequences in one optimizer step, over all devices and micro-batches")
    batch_tokens: int = setting(0, "in place of batch_size: tokens in a batch on each side, padding included")
    num_buckets: int = setting(4, "maximum number of batch lengths; each is compiled once, more need less padding")
    label_smoothing: float = setting(0.0, "share of each target that is spread evenly over the vocabulary")
    pooling: str = setting("first", "first | mean | max | attention: pooling of a text's activations")
    token_dropout: float = setting(0.0, "share of a text's tokens that are masked out, chosen again at every step")
    accumulation: int = setting(1, "gradient accumulation: number of micro-batches in one step")
    remat: str = setting(
        "none",
        "none | block | attention: what is computed again for the gradient, in place of kept in memory: all inside a "
        "block, or attention's scores and weights",
    )
    parallel: str = setting("jit", "jit | pmap: data parallelism over the devices")
    steps_per_call: int = setting(0, "steps in one call of the compiled program; 0: up to 10 when steps are short")
    log_every: int = setting(50, "steps between logs of the mean training loss")
    eval_every: int = setting(250, "steps between evaluations of the whole validation split")
    best_by: str = setting(
        "", "validation metric that chooses the best checkpoint, such as loss or accuracy; empty: the task's own"
    )
    patience: int = setting(0, "early stopping: evaluations without a new best before the run stops; 0: never")
    ema_decay: float = setting(
        0.0, "decay of an exponential moving average of the parameters, such as 0.999; 0: no average"
    )
    max_consecutive_skips: int = setting(
        10, "stop after this many skipped steps in a row; a step with NaN or infinity is skipped"
    )
    tensorboard: bool = setting(True, "write TensorBoard files next to metrics.jsonl")

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
        choose(dict.fromkeys(("none", "block", "attention")), self.remat, "train.remat")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"train.label_smoothing={self.label_smoothing}: must be at least 0 and below 1. Take 0.1.")
        if not 0 <= self.token_dropout < 1:
            raise UserError(f"train.token_dropout={self.token_dropout}: must be at least 0 and below 1. Take 0.3.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay={self.ema_decay}: must be at least 0 and below 1. Take 0.999.")
        if self.patience < 0:
            raise UserError(f"train.patience={self.patience}: must be 0 (never stop early) or more.")
        if self.batch_tokens < 0:
            raise UserError(f"train.batch_tokens={self.batch_tokens}: must be 0 (use batch_size) or more.")
        if not 0 <= self.steps_per_call <= 1_000:
            raise UserError(f"train.steps_per_call={self.steps_per_call}: must be 0 (choose), or 1 to 1,000.")
        if self.num_buckets > 1_000:
            raise UserError(f"train.num_buckets={self.num_buckets}: must be at most 1,000. Each is compiled once.")
        if self.seed < 0:
            raise UserError(f"train.seed={self.seed}: must not be negative.")
        if not self.batch_tokens and self.batch_size % self.accumulation:
            raise UserError(f"train.accumulation={self.accumulation}: must divide train.batch_size={self.batch_size}.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: how often to save, and how many to keep."""

    save_every: int = setting(250, "steps between checkpoints; the last step is always saved")
    keep: int = setting(3, "number of newest checkpoints to keep; the best on validation is kept too")

    def __post_init__(self):
        for name in ("save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"checkpoint.{name}={getattr(self, name)}: must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Config:
    """Complete configuration of a training run."""

    model: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self):
        for section in ("tokenizer", "optimizer", "adapter", "train", "checkpoint"):
            check_32_bits(getattr(self, section), f"{section}.")
        fields = config_fields(Config)
        settings = {}
        for name in fields:
            section, field = name.split(".")
            settings[name] = getattr(getattr(self, section), field)
        check_settings_are_read(settings, {name: field.default for name, field in fields.items()})

    @classmethod
    def from_dict(cls, values: object) -> "Config":
        """Build from a ConfigDict or a nested dict. Raises UserError for an unknown field or an invalid value."""
        if cls is Config and hasattr(values, "items") and "scaling" in dict(values.items()):
            raise UserError("scaling: is a section of a ladder. Run it by train.scaling, or take another recipe.")
        return from_dict(cls, values)
