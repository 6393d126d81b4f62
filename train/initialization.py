"""Initial parameters of a run: random values, or a pre-trained model (`train.init_from`)."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.checkpoints.meta import CheckpointMeta, HuggingFaceConfig
from transformer_jax.config import NO_LIMIT, TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import Encoder, Model, Params, Seq2SeqConfig, SequenceClassifier, TokenTagger, path_names
from transformer_jax.pretrained import open_run
from transformer_jax.run import Run, generation_defaults_of, merge_adapter
from transformer_jax.tokenizers import BOS_ID, Tokenizer

from .config import TrainConfig
from .resume import with_vocab_size

Name = tuple[str, ...]  # of a parameter: "stack", "block_0", "norm", "scale"

# Model fields that a recipe may override when it starts from a pre-trained model. All others stay as they were.
MAY_OVERRIDE = ("dropout_rate", "dtype", "backend", "init_std", "zero_init")
UNLIMITED_LEN = 512  # longest training text of a pre-trained model that has no longest one (T5), as T5 was trained
# Ends of the names of the parameters that have an axis of the vocabulary, or of the positions.
VOCABULARY = (("tokens", "embedding"), ("unembed", "kernel"), ("logit_bias",), ("bias",))
POSITIONS = (("positions", "embedding"),)


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Initial model and tokenizer of a run: pre-trained, from the run's own checkpoint, or none (random values)."""

    run: Run | None = None  # the pre-trained model of `train.init_from`
    own_model: Model | None = None  # the model of the run's own checkpoint; its configuration is not changed
    own_labels: tuple[str, ...] = ()  # the labels of the run's own checkpoint
    own_problem_type: str = ""  # that of its classification head
    tokenizer: Tokenizer | None = None
    hf_config: HuggingFaceConfig | None = None  # None: not from a Hugging Face folder
    resize_vocab: bool = False
    resize_positions: bool = False
    lowercase: bool = False  # True: the model has learned lower-cased texts
    separator: str | None = None  # between the words that the model tags; None: it is no tagger

    @property
    def model(self) -> Model | None:
        """The model to start from; None: random values."""
        return self.own_model or (self.run.model if self.run else None)

    @property
    def problem_type(self) -> str:
        """Problem type of the labels that the model has; "": it has none."""
        return self.own_problem_type or (self.run.problem_type if self.run and self.run.labels else "")

    def merge_config(self, recipe: TransformerConfig) -> TransformerConfig:
        """Merge the recipe's model configuration into the pre-trained one; return the configuration to train.

        Raises:
          UserError: the recipe sets a field that the pre-trained model has fixed to another value.
        """
        if self.model is None:
            return recipe
        config = self.model.config
        if not isinstance(config, TransformerConfig):
            raise UserError(f"train.init_from: holds a {type(self.model).__name__}, which this task cannot train.")
        return config if self.own_model else self._merge(recipe, config)

    def merge_seq2seq_config(
        self, recipe: TransformerConfig, vocab_size: int, source_vocab_size: int = 0
    ) -> Seq2SeqConfig:
        """Merge the recipe's model configuration into both sides of a Seq2Seq; see `merge_config`.

        Args:
          vocab_size: that of the tokenizer, for a new model.
          source_vocab_size: that of the source tokenizer, if it is separate: then embeddings are not shared.
        """
        if self.model is None:
            decoder = with_vocab_size(recipe, vocab_size)
            encoder = with_vocab_size(recipe, source_vocab_size or vocab_size)
            return Seq2SeqConfig(encoder, decoder, share_embeddings=not source_vocab_size)
        pretrained = self.model.config
        if not isinstance(pretrained, Seq2SeqConfig):
            raise UserError(f"train.init_from: holds a {type(self.model).__name__}, and this task trains a Seq2Seq.")
        if self.own_model:
            return pretrained
        encoder = self._merge(recipe, pretrained.encoder)
        decoder = self._merge(recipe, pretrained.decoder)
        return Seq2SeqConfig(encoder, decoder, pretrained.share_embeddings)

    def pooling(self, recipe: str) -> str:
        """Pooling of a classification head: the recipe's, or that of the trained head if the recipe has the default."""
        if isinstance(self.model, SequenceClassifier) and recipe == TrainConfig.pooling:
            return self.model.pooling
        return recipe

    def word_separator(self, of_data: str, longest_word: int) -> str:
        """Separator between the words to tag: that of the data, or "" if the model has learned to tag characters.

        Args:
          longest_word: characters of the longest word of the data.
        Raises:
          UserError: the model tags characters and the data has words, or the other way round.
        """
        if self.separator in (None, of_data):
            return of_data
        if of_data == "":
            raise UserError("train.init_from: its model tags words, and this data.source has characters to tag.")
        if longest_word > 1:
            raise UserError(
                "train.init_from: its model tags characters, without spaces between them, and data.path has longer "
                "words. Give a character a line, or take a model that tags words."
            )
        return ""

    def decoder_start_id(self) -> int:
        """Return the token id that starts every target."""
        if self.hf_config is None or self.model is None:
            return BOS_ID
        return generation_defaults_of(self.hf_config, self.model, self.tokenizer).start_id

    def _merge(self, recipe: TransformerConfig, pretrained: TransformerConfig) -> TransformerConfig:
        default = TransformerConfig()
        overrides = {}
        for field in dataclasses.fields(recipe):
            value = getattr(recipe, field.name)
            old = getattr(pretrained, field.name)
            if value in (getattr(default, field.name), old):
                continue
            may_override = field.name in MAY_OVERRIDE
            may_override |= field.name == "vocab_size" and self.resize_vocab
            may_override |= field.name == "max_len" and (self.resize_positions or pretrained.max_len == NO_LIMIT)
            if not may_override:
                raise UserError(_override_error(field.name, value, old))
            overrides[field.name] = value
        if pretrained.max_len == NO_LIMIT:  # no parameter has this size, so that the recipe may choose it
            overrides["max_len"] = recipe.max_len if recipe.max_len != default.max_len else UNLIMITED_LEN
        return dataclasses.replace(pretrained, **overrides)

    def check_model_type(self, task_model: type) -> None:
        """Check that the pre-trained parameters fit a model of this type (GPT or not). Raises UserError."""
        if self.run is None:
            return
        pretrained = type(self.run.model).__name__
        trained = task_model.__name__
        if (trained == "GPT") != (pretrained == "GPT"):
            raise UserError(f"train.init_from: holds a {pretrained}, and this train.task trains a {trained}.")


def load_init_from(config: TrainConfig, meta: CheckpointMeta | None) -> InitFrom:
    """Load the initial model of a run: that of its own checkpoint, a pre-trained one, or none.

    Args:
      config: `init_from` is a run directory, a Hugging Face folder or the name of a model on the hub; "": neither.
      meta: of the run's own checkpoint. If there is one, `init_from` is not read.
    """
    if meta:
        return InitFrom(
            own_model=meta.model,
            own_labels=meta.labels,
            own_problem_type=meta.problem_type,
            tokenizer=meta.tokenizer,
            hf_config=meta.hf_config,
            lowercase=meta.lowercase,
            separator=meta.separator if isinstance(meta.model, TokenTagger) else None,
        )
    if not config.init_from:
        return InitFrom()
    run = merge_adapter(open_run(config.init_from))
    if run.prefix:
        raise UserError(
            f"train.init_from={config.init_from!r}: has a trained prefix, which cannot be merged into the model. Start "
            "from the model that it was trained for."
        )
    return InitFrom(
        run=run,
        tokenizer=run.tokenizer,
        hf_config=run.hf_config,
        resize_vocab=config.resize_vocab,
        resize_positions=config.resize_positions,
        lowercase=run.lowercase,
        separator=run.separator if isinstance(run.model, TokenTagger) else None,
    )


def load_pretrained_params(
    init_from: InitFrom,
    create: Callable[[jax.Array], Params],
    key: jax.Array,
    is_trained: Callable[[str], bool] = lambda name: True,
) -> tuple[Params, str]:
    """Return the pre-trained parameters, as float32; those that the pre-trained model lacks get random values.

    If vocabulary or positions are resized, the rows that both shapes share are copied. Random values are computed for
    new and resized parameters only: compiling all of them takes seconds.

    Args:
      create: creates all parameters at random from `key`.
      is_trained: tells for the name of a parameter; one that is not trained must be pre-trained.
    Returns:
      The parameters, and a line that lists which of them are new and which pre-trained ones were not used.
    Raises:
      UserError: a parameter has another shape than the pre-trained one, or would stay at random values.
    """
    assert init_from.run is not None, "the caller asks for the parameters of a pre-trained model"
    of_run = init_from.run.params
    pretrained = _by_name({"encoder": of_run} if isinstance(init_from.run.model, Encoder) else of_run)
    shapes = jax.eval_shape(create, key)
    fits = {name: _fit(name, leaf, pretrained, init_from) for name, leaf in _by_name(shapes).items()}
    untrained = ["/".join(name) for name, fit in fits.items() if fit != "equal" and not is_trained("/".join(name))]
    if untrained:
        raise UserError(
            f"adapter.kind: {', '.join(untrained):.300} would keep random values: train.init_from does not have "
            "them in this shape. Name them in adapter.full, to train them beside the adapter."
        )
    random = _create_some(create, key, {name for name, fit in fits.items() if fit != "equal"})

    def load(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path_names(path)
        if fits[name] == "new":
            return random[name]
        old = pretrained[name]
        if fits[name] == "equal":
            return jnp.asarray(old, jnp.float32)
        shared = tuple(slice(min(a, b)) for a, b in zip(old.shape, leaf.shape, strict=True))
        return random[name].at[shared].set(jnp.asarray(old[shared], jnp.float32))

    params = jax.tree_util.tree_map_with_path(load, shapes)
    new = ["/".join(name) for name, fit in fits.items() if fit == "new"]
    note = f"new, with random values: {', '.join(new)}" if new else "no new parameters"
    if unused := pretrained.keys() - fits.keys():
        note += f"; not used: {', '.join(sorted(map('/'.join, unused)))}"
    return params, f"started from {init_from.run.name}; {note}"


def _by_name(params: Params) -> dict[Name, Any]:
    """Leaves of a tree of parameters by their names."""
    return {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _fit(name: Name, leaf: jax.ShapeDtypeStruct, pretrained: dict[Name, jax.Array], init_from: InitFrom) -> str:
    """Classify a parameter: "equal" in shape to the pre-trained one, "resized", or "new".

    Raises:
      UserError: it has another shape, and may be neither resized nor new.
    """
    if name not in pretrained:
        return "new"
    old = pretrained[name]
    if old.shape == leaf.shape:
        return "equal"
    resizable = (VOCABULARY if init_from.resize_vocab else ()) + (POSITIONS if init_from.resize_positions else ())
    if any(name[-len(end) :] == end for end in resizable):
        return "resized"
    if name[-2:] in (("out", "kernel"), ("out", "bias")):  # a head for other labels
        return "new"
    raise UserError(f"train.init_from: {'/'.join(name)} has shape {list(old.shape)}, and not {list(leaf.shape)}.")


def _create_some(
    create: Callable[[jax.Array], Params], key: jax.Array, names: Collection[Name]
) -> dict[Name, jax.Array]:
    """Create the parameters of these names as `create` does, without the others; for no names nothing is compiled."""
    if not names:
        return {}
    return jax.jit(lambda key: {name: leaf for name, leaf in _by_name(create(key)).items() if name in names})(key)


def _override_error(name: str, value: object, old: object) -> str:
    resize = {"vocab_size": "train.resize_vocab=True", "max_len": "train.resize_positions=True"}.get(name)
    fix = f"Set {resize} to resize it, or omit it." if resize else "Omit it."
    return f"model.{name}={value!r}: the model of train.init_from has {old!r}. {fix}"


def sinusoid_note(config: TransformerConfig | Seq2SeqConfig) -> str:
    """Warning that sinusoids hide the embeddings of a new model, or "" if they do not.

    A sinusoid has numbers of root mean square 0.7. Embeddings of 0.02 are lost in it, and the model learns worse than
    without positions; the paper multiplies them by sqrt(D). Vaswani et al. 2017, section 3.4.
    """
    for side in (config.encoder, config.decoder):
        if side.positions == "sinusoidal" and not side.scale_embeddings and side.init_std < 0.07:
            return (
                f"note: positions=sinusoidal adds numbers of size 0.7 to embeddings of size {side.init_std:g}, "
                "which hides the tokens; set model.scale_embeddings=True"
            )
    return ""
