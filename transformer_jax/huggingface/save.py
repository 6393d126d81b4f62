"""Saving of models as Hugging Face folders: config.json, generation_config.json, safetensors."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import UserError
from transformer_jax.huggingface.families import FAMILIES
from transformer_jax.huggingface.family import Architecture, Family, as_tuple, read_config, write_config
from transformer_jax.huggingface.files import Folder, PretrainedError, new_folder, write_json, write_tensors
from transformer_jax.huggingface.generation_defaults import write_generation_defaults
from transformer_jax.huggingface.pretrained import describe_folder
from transformer_jax.huggingface.tensor_layout import tensor_specs, to_tensor
from transformer_jax.models import (
    Model,
    Params,
    SentenceEmbedder,
    SequenceClassifier,
    describe_model,
    make_model,
    path_names,
)
from transformer_jax.sampling import GenerationDefaults

# Fields of our configuration that config.json need not reproduce: they change no output of the trained model.
NOT_COMPARED = {"init_std", "zero_init", "backend", "dtype"}
SHARD_BYTES = 5 * 10**9  # largest size of a safetensors file that we write
# Settings of a head that is replaced by another.
_HEAD_FIELDS = ("classifier_dropout", "problem_type", "sentence_transformers", "sbert_ce_default_activation_function")
_NUMBERS_OF_LABELS = ("num_labels", "_num_labels")  # in old files; id2label has as many names


class SavedModel(NamedTuple):
    """All that the files of a Hugging Face folder say about a model."""

    model: Model
    params: Params
    config: dict  # config.json that the model was loaded with, or {}
    generation: dict  # generation_config.json that the model was loaded with, or {}
    labels: tuple[str, ...] = ()  # of a classifier or tagger, in the order of its logits
    problem_type: str = ""  # of a classifier; "": as `config` has it
    defaults: GenerationDefaults = GenerationDefaults()
    bos_id: int = -1  # -1: there is none
    has_pad: bool = True  # False: without a tokenizer, the id of padding is not known
    files: dict[str, bytes] = {}  # contents of the tokenizer's files by name


def write_folder(folder: str | Path, saved: SavedModel, check: Callable[[Folder], None]) -> None:
    """Write a model as a Hugging Face folder, which appears when it is complete.

    The description of the model is read back first, and must be the one that was saved.

    Args:
      check: called with the complete folder, before it appears under its name.
    Raises:
      PretrainedError: no family has such a model, or the folder cannot be created.
    """
    saved = _with_token_types(saved)
    _check_head(saved)
    family, architecture, hf_config = _hf_description(saved)
    hf_config, generation = write_generation_defaults(
        saved.defaults, hf_config, saved.generation, saved.model, saved.bos_id, not saved.config
    )
    leaves = {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved.params)}
    dtypes = {str(leaf.dtype) for leaf in leaves.values()}
    hf_config["dtype" if "dtype" in hf_config else "torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    specs = tensor_specs(family, architecture, {path: leaf.shape for path, leaf in leaves.items()})
    with new_folder(folder) as temporary:
        tensors = {name: to_tensor(specs[name], leaves) for name in sorted(specs)}
        tensors |= {copy: tensors[name] for copy, name in family.copies if name in tensors}
        write_tensors(temporary, tensors, SHARD_BYTES)
        write_json(temporary / "config.json", hf_config)
        if generation:
            write_json(temporary / "generation_config.json", generation)
        for name, data in saved.files.items():
            assert name == os.path.basename(name), "a tokenizer has files of known names only"
            (temporary / name).write_bytes(data)
        written = Folder(temporary)
        _check_read_back(family, saved.model, describe_folder(written).model)
        check(written)


def _with_token_types(saved: SavedModel) -> SavedModel:
    """The model with a token type, of zeros, if it is an encoder without any: BERT always adds one."""
    description = describe_model(saved.model)
    if description["kind"] not in ("encoder", "masked_lm", "classifier", "tagger"):
        return saved
    if description["config"]["num_token_types"]:
        return saved
    description["config"]["num_token_types"] = 1
    is_body = description["kind"] == "encoder"
    body = saved.params if is_body else saved.params["encoder"]
    tokens = body["embed"]["tokens"]["embedding"]
    types = {"embedding": jnp.zeros((1, tokens.shape[1]), tokens.dtype)}
    body = body | {"embed": body["embed"] | {"types": types}}
    params = body if is_body else saved.params | {"encoder": body}
    return saved._replace(model=make_model(description), params=params)


def _check_head(saved: SavedModel) -> None:
    """Refuse a head that no family has, and labels that are not those of the head."""
    model = saved.model
    if isinstance(model, SentenceEmbedder):
        raise PretrainedError(
            "run: no supported Hugging Face family has a SentenceEmbedder. Keep the run directory (tj.save), or save "
            "its encoder: tj.Run(Encoder(config), params['encoder'], tokenizer, config)."
        )
    if isinstance(model, SequenceClassifier) and model.pooling != "first":
        raise PretrainedError(
            f"pooling={model.pooling!r}: the families bert and roberta pool the first token, and have no other. Train "
            "with train.pooling=first, or keep the run directory (tj.save)."
        )
    number = getattr(model, "num_classes", getattr(model, "num_tags", 0))
    if saved.labels and number and len(saved.labels) != number:
        raise PretrainedError(f"labels: must be as many as the model has, {number}, and not {len(saved.labels)}.")
    if len(set(saved.labels)) < len(saved.labels):
        raise PretrainedError("labels: must differ, since label2id of config.json has each name once. Rename one.")


def describe_family(model: Model, config: dict) -> tuple[Family, Architecture]:
    """Find the family and the architecture whose tensor names a model has.

    Args:
      config: config.json that the model was loaded with, or {}: the first family that has such a model.
    Raises:
      PretrainedError: no family has.
    """
    described = describe_model(model)
    named = (config.get("architectures") or [None])[0]
    for family in [FAMILIES[config["model_type"]]] if config else FAMILIES.values():
        candidates = {name: a for name, a in family.architectures.items() if a.kind == described["kind"]}
        if candidates and _has_model(family, described, config):
            return family, candidates[named if named in candidates else next(iter(candidates))]
    raise PretrainedError(f"no supported Hugging Face family has such a {type(model).__name__}.")


def _has_model(family: Family, described: dict, config: dict) -> bool:
    try:
        _hf_config(family, described, config)
    except UserError:
        return False
    return True


def _hf_description(saved: SavedModel) -> tuple[Family, Architecture, dict]:
    """The first family that has such a model, the architecture, and config.json."""
    config = saved.config
    described = describe_model(saved.model)
    reasons = []
    for family in [FAMILIES[config["model_type"]]] if config else FAMILIES.values():
        candidates = {name: a for name, a in family.architectures.items() if a.kind == described["kind"]}
        if not candidates:
            continue
        try:
            hf_config = _hf_config(family, described, config)
            _check_pad(family, saved)
        except UserError as error:
            reasons.append(str(error))
            continue
        previous = (config.get("architectures") or [None])[0]
        # Of those with the same head the first: it names no other head, which would be missing in the files.
        same = candidates.get(previous, next(iter(candidates.values())))
        name = next(name for name, architecture in candidates.items() if architecture == same)
        hf_config["architectures"] = [name]
        if not config and "pad_token_id" in family.required:
            hf_config["pad_token_id"] = family.required["pad_token_id"]
        if name != previous:
            hf_config = {field: value for field, value in hf_config.items() if field not in _HEAD_FIELDS}
        _put_labels(hf_config, described.get(candidates[name].num_labels_field, 0), saved)
        return family, candidates[name], hf_config
    model_type = f"the family {config['model_type']}, which it was loaded from," if config else ""
    why = " ".join(reasons) or f"None has a {described['kind']}."
    raise PretrainedError(
        f"no supported Hugging Face family has such a model. {model_type}{why} Or keep the run directory (tj.save)."
    )


def _check_pad(family: Family, saved: SavedModel) -> None:
    """Refuse another padding id than the only one that a family has: RoBERTa counts positions from it."""
    pad_id = family.required.get("pad_token_id", saved.defaults.pad_id)
    if saved.has_pad and pad_id != saved.defaults.pad_id:
        raise PretrainedError(f"pad_id={saved.defaults.pad_id}: {family.model_type} has {pad_id} only.")


def _put_labels(hf_config: dict, num_labels: int, saved: SavedModel) -> None:
    """Write the names of the labels and the problem type into config.json."""
    if not num_labels:
        return
    for field in _NUMBERS_OF_LABELS:
        hf_config.pop(field, None)
    names = saved.labels or tuple(f"LABEL_{i}" for i in range(num_labels))
    before = hf_config.get("id2label")
    is_same = isinstance(before, dict) and [before.get(str(i)) for i in range(len(before))] == list(names)
    if (saved.labels and not is_same) or len(before or {}) != num_labels:
        hf_config["id2label"] = {str(i): name for i, name in enumerate(names)}
        hf_config["label2id"] = {name: i for i, name in enumerate(names)}
    if saved.problem_type:
        hf_config["problem_type"] = saved.problem_type


def _hf_config(family: Family, described: dict, config: dict) -> dict:
    """config.json of the model: the original one if it still describes the model, else a changed copy."""
    ours = make_model(described).config
    candidates = ([dict(config)] if config else []) + [write_config(family, described["config"], config)]
    differing: list[str] = []
    for hf_config in candidates:
        restored = make_model(described | {"config": read_config(family, hf_config)}).config
        differing = _differing(family, ours, restored)
        if not differing:
            return hf_config
    raise PretrainedError(f"{family.model_type} has no {', '.join(differing)}.")


def _check_read_back(family: Family, ours: Model, restored: Model) -> None:
    """Refuse a model that would be read back as another one."""
    differing = _differing(family, ours.config, restored.config)
    of_restored = describe_model(restored)
    for name, value in describe_model(ours).items():
        if name != "config" and (name not in of_restored or of_restored[name] != value):
            differing.append(f"{name}={value!r}")
    if differing:
        raise PretrainedError(
            f"{family.model_type} has no {', '.join(differing)}: it would be read back as another model. Keep the run "
            "directory (tj.save)."
        )


def _differing(family: Family, ours: Any, restored: Any, path: str = "") -> list[str]:
    """Fields, "name=value", in which the configuration read back from config.json differs from ours."""
    has_limit = any("max_len" in name for field in family.fields if field.hf_names for name in as_tuple(field.names))
    names = []
    for field in dataclasses.fields(ours):
        value = getattr(ours, field.name)
        other = getattr(restored, field.name)
        if dataclasses.is_dataclass(value):
            names += _differing(family, value, other, f"{field.name}.")
        elif value != other and field.name not in NOT_COMPARED and (field.name != "max_len" or has_limit):
            names.append(f"{path}{field.name}={value!r}")
    return names
