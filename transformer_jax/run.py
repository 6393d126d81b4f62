"""A trained run as plain data: loaded, saved, and asked for logits. What it writes: generation.py."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.checkpoint import CheckpointError, Checkpoints, abstract
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.huggingface.generation_defaults import read_generation_defaults
from transformer_jax.huggingface.pretrained import read_folder, write_folder
from transformer_jax.models import Seq2Seq, Seq2SeqConfig, describe_model, make_model, parameter_shapes
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import Tokenizer, tokenizer_from_dict
from transformer_jax.tokenizers.pretrained import read_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with everything that using it needs."""

    model: Any  # one of models.MODELS
    params: Any
    tokenizer: Tokenizer | None
    config: TransformerConfig | Seq2SeqConfig
    step: int = 0
    generation_defaults: GenerationDefaults = GenerationDefaults()
    name: str = ""  # where it was loaded from
    labels: tuple[str, ...] = ()  # of a classifier, in the order of its logits
    hf_config: dict = dataclasses.field(default_factory=dict)  # config.json and generation_config.json, if it had any
    lowercase: bool = False  # its texts were in small letters
    separator: str = " "  # between the words that it tags; "" where it tags characters

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, for whatever reads or writes text. Raises UserError if the model came without one."""
        if self.tokenizer is None:
            raise UserError(
                f"run: no supported tokenizer found in {self.name or 'this run'} (needs tokenizer.json or spiece.model). "
                "Add one, or pass token ids to tj.logits."
            )
        return self.tokenizer

    def prepare(self, text: str) -> str:
        """A text as those were that the run was trained on."""
        return text.lower() if self.lowercase else text


def load(run_dir: str | Path, checkpoint: str | int = "latest", average: int = 0) -> Run:
    """The run that `python -m train` left in a directory; nothing else is needed.

    Args:
      checkpoint: "latest" sound one, "best" on the validation part, or a step.
      average: above 0, the parameters are the mean of those of so many newest checkpoints instead.
    Raises:
      CheckpointError: no run, no such checkpoint, or none that is sound.
    """
    if not Path(run_dir).expanduser().is_dir():
        raise CheckpointError(f"run_dir={run_dir}: there is no such directory. Give the --workdir of a training run.")
    checkpoints = Checkpoints(run_dir)
    step = checkpoints.find(checkpoint)
    meta = checkpoints.meta(step)
    if "model" not in meta:
        raise CheckpointError(
            f"{run_dir}: was written by an earlier version, which said less of its model. Train anew."
        )
    model = make_model(meta["model"])
    shapes = with_types(parameter_shapes(model), meta.get("types", {}))
    if average:
        step, params = _average(checkpoints, average, shapes)
    else:
        params = checkpoints.restore(step, params=abstract(shapes))["params"]
    tokenizer = tokenizer_from_dict(meta["tokenizer"]) if meta["tokenizer"] else None
    hf_config = meta.get("hf_config", {})
    rules, labels = generation_defaults_of(hf_config, model, tokenizer), tuple(meta.get("labels", ()))
    return Run(
        model, params, tokenizer, model.config, step, rules, str(run_dir), labels, hf_config, **meta.get("texts", {})
    )


def _average(checkpoints: Checkpoints, number: int, shapes: Any) -> tuple[int, Any]:
    """The newest step, and the mean of the parameters of the newest checkpoints. Vaswani et al. 2017, section 6.1."""
    steps = checkpoints.steps()[-number:]
    if len(steps) < number:
        raise CheckpointError(f"average={number}: there are {len(steps)} checkpoints only. Train with checkpoint.keep.")
    for step in steps:
        checkpoints.find(step)  # sound, or an error
    params = [checkpoints.restore(step, params=abstract(shapes))["params"] for step in steps]
    return steps[-1], jax.tree.map(lambda *leaves: sum(leaves) / number, *params)


def read_meta(run_dir: str | Path) -> dict:
    """What the newest sound checkpoint says of itself: configuration, fingerprint of the data, versions, losses."""
    checkpoints = Checkpoints(run_dir)
    return checkpoints.meta(checkpoints.find("latest"))


def open_run(path: str | Path, checkpoint: str | int = "latest") -> Run:
    """A run directory, or else a Hugging Face folder or the name of a model on the hub."""
    is_run = (Path(path).expanduser() / "checkpoints").is_dir()
    return load(path, checkpoint) if is_run else from_pretrained(path)


def from_pretrained(folder: str | Path) -> Run:
    """A model from a Hugging Face folder (config.json, safetensors) or, by name, from the hub.

    GPT-2, Llama, BERT, RoBERTa, T5, BART, Marian. Parameters keep the types of the files; all is computed in float32.

    Raises:
      UserError: no such folder; a model that is not known here; anything malformed, missing or that does not fit.
    """
    read = read_folder(folder)
    generation = read.generation or read.config
    ids = {name: generation.get(f"{name}_token_id") for name in ("pad", "bos", "eos")}
    ids = {name: value[0] if isinstance(value, list) and value else value for name, value in ids.items()}
    ids = {name: value for name, value in ids.items() if type(value) is int}
    tokenizer = read_tokenizer(read.folder.has, read.folder.data, ids)
    hf_config = {"config": read.config, "generation": read.generation}
    rules, labels = generation_defaults_of(hf_config, read.model, tokenizer), _labels(read.config)
    return Run(read.model, read.params, tokenizer, read.model.config, 0, rules, str(folder), labels, hf_config)


def _check_savable(run: Run) -> None:
    if any(leaf.dtype == "int8" for leaf in jax.tree.leaves(run.params)):
        raise UserError("run: has int8 weights, which are for use. Save the run that they were made of.")


def save_pretrained(run: Run, folder: str | Path) -> None:
    """Write a run as a Hugging Face folder, which must be new: what transformers and many others load.

    Raises:
      UserError: no family that is known here has such a model (the message says what is in the way), or the folder
        cannot be made.
    """
    _check_savable(run)
    files = getattr(run.tokenizer, "files", {})
    write_folder(
        folder, run.model, run.params, run.hf_config.get("config", {}), run.hf_config.get("generation", {}), files
    )


def save(run: Run, run_dir: str | Path) -> None:
    """Write a run as a run directory, which must be new: what `load` and the commands want."""
    _check_savable(run)
    checkpoints = Checkpoints(run_dir)
    if checkpoints.steps():
        raise UserError(f"{run_dir}: there is a run already. Give a new directory.")
    leaves = jax.tree_util.tree_leaves_with_path(run.params)
    meta = {
        "step": run.step,
        "val_score": None,
        "model": describe_model(run.model),
        "hf_config": run.hf_config,
        "labels": list(run.labels),
        "texts": {"lowercase": run.lowercase, "separator": run.separator},
        "types": {jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in leaves if leaf.dtype != "float32"},
        "tokenizer": run.tokenizer.to_dict() if run.tokenizer else None,
    }
    checkpoints.save(run.step, run.params, meta)
    checkpoints.wait()


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run directory or of a Hugging Face folder, or a tokenizer.json alone.

    Raises:
      UserError: there is none of a known kind.
    """
    path = Path(path).expanduser()
    if (path / "checkpoints").is_dir():
        tokenizer = tokenizer_from_dict(read_meta(path)["tokenizer"])
    else:
        folder, names = (path.parent, {path.name}) if path.is_file() else (path, None)
        tokenizer = read_tokenizer(
            lambda name: (folder / name).is_file() and (names is None or name in names),
            lambda name: (folder / name).read_bytes(),
            {},
        )
    if tokenizer is None:
        raise UserError(
            f"tokenizer.path={str(path)!r}: there is no tokenizer. Give a file named tokenizer.json, a folder that has "
            "one (or spiece.model), or a run directory."
        )
    return tokenizer


def with_types(shapes: Any, types: dict[str, str]) -> Any:
    """Shapes of parameters, with the types of those that are not float32, by path."""

    def typed(path, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, types.get(jax.tree_util.keystr(path), leaf.dtype))

    return jax.tree_util.tree_map_with_path(typed, shapes)


def _labels(config: dict) -> tuple[str, ...]:
    """The names of labels that config.json has, in order."""
    names = config.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(str(names[number]) for number in sorted(names, key=lambda n: int(n) if n.isdecimal() else 0))


def generation_defaults_of(hf_config: dict, model: Any, tokenizer: Tokenizer | None) -> GenerationDefaults:
    """What a pre-trained model's generation_config.json says, or else the special tokens of the tokenizer."""
    if hf_config:
        decoder = model.config.decoder
        return read_generation_defaults(hf_config["config"], hf_config["generation"], decoder.vocab_size)
    return GenerationDefaults((tokenizer.eos_id,), tokenizer.pad_id, tokenizer.bos_id)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Any, params: Any, args: tuple, kwargs: dict) -> jax.Array:
    return model.apply({"params": params}, *args, **kwargs)


@functools.cache  # one function object for a model: jit tells functions apart by identity, and would compile again
def _extend(model: Any, last_only: bool) -> Callable:
    return lambda params, *args: model.apply({"params": params}, *args, last_only=last_only, method="extend")


def step_function(run: Run, last_only: bool = True) -> jax.tree_util.Partial:
    """`step(tokens, is_token, cache) -> (last logits, cache)`, the parameters being its arguments: for `sampling`.

    With last_only=False it gives the logits at every place: `verify` of speculative decoding.
    """
    return jax.tree_util.Partial(_extend(run.model, last_only), run.params)


def logits(
    run: Run,
    tokens: Any,
    is_token: Any = None,
    target: Any = None,
    *,
    target_is_token: Any = None,
    token_types: Any = None,
) -> jax.Array:
    """What the model answers before anything is chosen.

    Args:
      tokens: [B, T] ints, T at most the context: the text, or the source of a Seq2Seq.
      is_token: [B, T] bool, False for padding; None: no padding.
      target: Seq2Seq: [B, U] ints, the target shifted: it begins with the token that starts one.
      target_is_token: [B, U] bool; token_types: [B, T] ints, for an encoder that has them.
    Returns:
      float32: [B, T, V] (GPT, masked LM; [B, U, V] for a Seq2Seq), [B, T, tags], or [B, classes].
    Raises:
      UserError: shapes that do not fit, ids outside the vocabulary, more tokens than the context.
    """
    is_seq2seq = isinstance(run.model, Seq2Seq)
    if is_seq2seq != (target is not None):
        rule = "needs target, the tokens of the decoder" if is_seq2seq else "has no decoder, so no target"
        raise UserError(f"target: a {type(run.model).__name__} {rule}.")
    sides = (run.config.encoder, run.config.decoder) if is_seq2seq else (run.config,)
    inputs = [_check_ids("tokens", tokens, sides[0].vocab_size)]
    masks = [_check_mask("is_token", is_token, inputs[0])]
    if is_seq2seq:
        inputs.append(_check_ids("target", target, sides[1].vocab_size))
        masks.append(_check_mask("target_is_token", target_is_token, inputs[1]))
    kwargs = {}
    if token_types is not None:
        kwargs["token_types"] = _check_ids("token_types", token_types, max(1, sides[0].num_token_types))
    return _apply(run.model, run.params, (*inputs, *masks), kwargs)


def _check_ids(name: str, tokens: Any, vocab_size: int) -> jax.Array:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise UserError(f"{name}: must be integers [B, T], not {tokens.dtype} {list(tokens.shape)}.")
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise UserError(
            f"{name}: ids must lie between 0 and {vocab_size - 1}, not between {tokens.min()} and {tokens.max()}."
        )
    return jnp.asarray(tokens, jnp.int32)


def _check_mask(name: str, is_token: Any, tokens: jax.Array) -> jax.Array | None:
    if is_token is None:
        return None
    if np.shape(is_token) != tokens.shape:
        raise UserError(
            f"{name}: must be of shape {list(tokens.shape)}, as its tokens, not {list(np.shape(is_token))}."
        )
    return jnp.asarray(is_token, bool)
