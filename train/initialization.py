"""Where a run starts from: random values, or a model that was trained before (`train.init_from`)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import Encoder, Seq2SeqConfig, make_model
from transformer_jax.run import Run, generation_defaults_of, open_run
from transformer_jax.tokenizers import BOS_ID, Tokenizer, tokenizer_from_dict

from .resume import with_vocabulary

# Fields of a recipe that say something new of a model that was trained before. All others are as they were.
ITS_OWN = ("dropout_rate", "dtype", "backend", "init_std", "zero_init")
VOCABULARY = (("tokens", "embedding"), ("unembed", "kernel"), ("logit_bias",), ("bias",))
POSITIONS = (("positions", "embedding"),)


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """What there is before the first step."""

    run: Run | None = None  # the model of `train.init_from`
    model: Any = None  # that of the checkpoint to go on from, which stays as it is
    tokenizer: Tokenizer | None = None
    hf_config: dict = dataclasses.field(
        default_factory=dict
    )  # config.json and generation_config.json, if there were any
    resize_vocab: bool = False
    resize_positions: bool = False

    def merged(self, asked: TransformerConfig) -> TransformerConfig:
        """The shape to train: the one that was trained before, with what the recipe may say anew.

        Raises:
          UserError: the recipe asks for something else than what the model is.
        """
        if self.model is not None:
            return self.model.config
        if self.run is None:
            return asked
        if not isinstance(self.run.config, TransformerConfig):
            raise UserError(f"train.init_from: holds a {type(self.run.model).__name__}, which this task cannot train.")
        return self._merged(asked, self.run.config)

    def merged_sides(self, asked: TransformerConfig, vocab_size: int, source_vocab_size: int = 0) -> Seq2SeqConfig:
        """The same for a Seq2Seq, both of whose sides are asked for alike.

        Args:
          vocab_size: that of the tokenizer, for a new model.
          source_vocab_size: that of the source's, where it has one of its own: then embeddings are not shared.
        """
        if self.model is not None:
            return self.model.config
        if self.run is None:
            decoder = with_vocabulary(asked, vocab_size)
            encoder = with_vocabulary(asked, source_vocab_size or vocab_size)
            return Seq2SeqConfig(encoder, decoder, share_embeddings=not source_vocab_size)
        before = self.run.config
        if not isinstance(before, Seq2SeqConfig):
            raise UserError(
                f"train.init_from: holds a {type(self.run.model).__name__}, and this task trains a Seq2Seq."
            )
        sides = (self._merged(asked, side) for side in (before.encoder, before.decoder))
        return Seq2SeqConfig(*sides, before.share_embeddings)

    def start_id(self) -> int:
        """The token that starts a target."""
        return (
            generation_defaults_of(self.hf_config, self.model or self.run.model, self.tokenizer).start_id
            if self.hf_config
            else BOS_ID
        )

    def _merged(self, asked: TransformerConfig, before: TransformerConfig) -> TransformerConfig:
        default, new = TransformerConfig(), {}
        for field in dataclasses.fields(asked):
            value, old = getattr(asked, field.name), getattr(before, field.name)
            may = field.name in ITS_OWN
            may |= field.name == "vocab_size" and self.resize_vocab
            may |= field.name == "max_len" and self.resize_positions
            if value in (getattr(default, field.name), old):
                continue
            if not may:
                raise UserError(_refused(field.name, value, old))
            new[field.name] = value
        return dataclasses.replace(before, **new)

    def check_kind(self, cls: type) -> None:
        """Raises UserError where the parameters that were trained before have no place in a model of this kind."""
        if self.run is None:
            return
        body, wanted = type(self.run.model), cls.__name__
        if (wanted == "GPT") != (body.__name__ == "GPT"):
            raise UserError(f"train.init_from: holds a {body.__name__}, and this train.task trains a {wanted}.")


def find_init_from(init_from: str, meta: dict | None, resize_vocab: bool, resize_positions: bool) -> InitFrom:
    """The start of a run, from its own checkpoint, another model, or nothing.

    Args:
      init_from: a run directory, a Hugging Face folder or the name of a model on the hub; "": none.
      meta: of the run's own checkpoint, which counts alone where there is one.
    """
    if meta:
        return InitFrom(
            None, make_model(meta["model"]), tokenizer_from_dict(meta["tokenizer"]), meta.get("hf_config", {})
        )
    if not init_from:
        return InitFrom()
    run = open_run(init_from)
    return InitFrom(run, None, run.tokenizer, run.hf_config, resize_vocab, resize_positions)


def load_pretrained_params(init_from: InitFrom, params: Any) -> tuple[Any, str]:
    """Initial parameters, those that were trained before in their places; and a line that says what is new.

    Everything is float32 from here on. Where vocabulary or positions are resized, the rows that both have are kept.

    Raises:
      UserError: a parameter has another shape than before.
    """
    if init_from.run is None:
        return params, ""
    before = {"encoder": init_from.run.params} if isinstance(init_from.run.model, Encoder) else init_from.run.params
    before = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(before)}
    new = []

    def take(path, leaf):
        names = _names(path)
        old = before.pop(names, None)
        if old is None:
            new.append("/".join(names))
            return leaf
        if old.shape == leaf.shape:
            return jnp.asarray(old, jnp.float32)
        resized = (VOCABULARY if init_from.resize_vocab else ()) + (POSITIONS if init_from.resize_positions else ())
        if any(names[-len(one) :] == one for one in resized):
            both = tuple(slice(min(a, b)) for a, b in zip(old.shape, leaf.shape, strict=True))
            return leaf.at[both].set(jnp.asarray(old[both], jnp.float32))
        if names[-2:] == ("out", "kernel") or names[-2:] == ("out", "bias"):  # a head for other labels
            new.append("/".join(names))
            return leaf
        raise UserError(f"train.init_from: {'/'.join(names)} has shape {list(old.shape)}, and not {list(leaf.shape)}.")

    params = jax.tree_util.tree_map_with_path(take, params)
    said = f"new, with random values: {', '.join(new)}" if new else "nothing is new"
    left = f"; not taken: {', '.join(sorted('/'.join(names) for names in before))}" if before else ""
    return params, f"started from {init_from.run.name}; {said}{left}"


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _refused(name: str, value: Any, old: Any) -> str:
    resize = {"vocab_size": "train.resize_vocab=True", "max_len": "train.resize_positions=True"}.get(name)
    fix = f"Set {resize} to resize it, or leave it out." if resize else "Leave it out."
    return f"model.{name}={value!r}: the model of train.init_from has {old!r}. {fix}"
