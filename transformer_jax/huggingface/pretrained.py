"""Pre-trained models: load a Hugging Face folder as a model with parameters, and write one."""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.errors import UserError, choose, missing_package
from transformer_jax.huggingface.families.bart import BART, MARIAN
from transformer_jax.huggingface.families.bert import BERT, ROBERTA
from transformer_jax.huggingface.families.gpt2 import GPT2
from transformer_jax.huggingface.families.llama import LLAMA
from transformer_jax.huggingface.families.t5 import T5
from transformer_jax.huggingface.family import Architecture, Family, get, put, read_config, write_config
from transformer_jax.huggingface.files import (
    Folder,
    PretrainedError,
    TensorFiles,
    new_folder,
    write_json,
    write_tensors,
)
from transformer_jax.huggingface.tensor_layout import (
    DTYPES,
    check_tensors,
    current_names,
    tensor_specs,
    to_params,
    to_tensor,
)
from transformer_jax.models import Model, Params, describe_model, make_model, parameter_shapes, path_names

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, BERT, ROBERTA, T5, BART, MARIAN)}
# Fields of our configuration that config.json need not reproduce: they change no output of the trained model.
NOT_COMPARED = {"init_std", "zero_init", "dropout_rate", "backend", "dtype", "max_len"}
SHARD_BYTES = 5 * 10**9  # largest size of a safetensors file that we write
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.spm"]


class Pretrained(NamedTuple):
    """Contents of a Hugging Face folder."""

    model: Model
    params: Params
    config: dict  # config.json, unchanged
    generation: dict  # generation_config.json, unchanged
    folder: Folder


def find_folder(name: str | Path) -> Folder:
    """Open a folder, or download a model from the hub once by a name such as "gpt2" or "facebook/bart-base".

    Raises:
      PretrainedError: no such folder, and the hub does not have it or cannot be reached.
      UserError: huggingface_hub is not installed.
    """
    try:
        exists = Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # an impossible file name, which Folder reports
        exists = True
    if exists or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)):
        return Folder(name)
    try:
        from huggingface_hub import snapshot_download  # not at import: only a model that is not a folder needs it
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    try:
        return Folder(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except (OSError, ValueError, RuntimeError) as error:  # no connection, no such repository, no permission
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise PretrainedError(f"{name}: no such folder, and the hub did not provide it ({reason}).") from error


def read_folder(name: str | Path) -> Pretrained:
    """Load the model in a folder, parameters in the dtypes of the files.

    Every tensor is read once, the largest first, so that memory never holds much more than the model.

    Raises:
      PretrainedError: no such folder; a file that is malformed, unsupported, missing or does not fit.
    """
    folder = find_folder(name)
    config = folder.json("config.json")
    family = _family(folder, config)
    architecture = _architecture(family, config)
    tensors = TensorFiles(folder)
    names = current_names(family, tensors)
    model = _make_model(family, architecture, config, tensors, names)
    leaves = jax.tree_util.tree_leaves_with_path(parameter_shapes(model))
    shapes = {path_names(path): leaf.shape for path, leaf in leaves}
    specs = tensor_specs(family, architecture, shapes)
    check_tensors(family, specs, names, tensors)
    params: dict = {}
    for tensor_name, spec in sorted(specs.items(), key=lambda item: -np.prod(item[1].shape, dtype=float)):
        is_present = tensor_name in names
        array = tensors.read(names[tensor_name]) if is_present else np.zeros(spec.shape, np.float32)
        if not np.isfinite(array).all():
            file = tensors.entries[names[tensor_name]].file
            raise PretrainedError(f"{file}: {names[tensor_name]} has NaN or infinity in it. Download it again.")
        for path, part in to_params(spec, array, shapes):
            put(params, ".".join(path), jax.device_put(part))
    generation = folder.json("generation_config.json") if folder.has("generation_config.json") else {}
    return Pretrained(model, params, config, generation, folder)


def _family(folder: Folder, config: dict) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise PretrainedError(
            f"{folder.path / 'config.json'}: model_type={model_type!r:.80} is not supported. Known: {known}."
        )
    return FAMILIES[model_type]


def _architecture(family: Family, config: dict) -> Architecture:
    names = config.get("architectures") or [next(iter(family.architectures))]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str):
        raise PretrainedError(f"config.json: architectures={names!r:.80} must be a list of names.")
    return choose(family.architectures, name[:80], "config.json: architectures")


def _make_model(
    family: Family, architecture: Architecture, hf_config: dict, tensors: TensorFiles, names: dict[str, str]
) -> Model:
    """The model that config.json describes; the tensors decide whether embeddings are tied and shared."""
    config = read_config(family, hf_config)
    _check_size(config, tensors)
    tie = "decoder.tie_embeddings" if "decoder" in config else "tie_embeddings"
    if family.output_projection and get(config, tie):
        put(config, tie, _is_tied(family, tensors, names))
    if family.embedding_tables and all(name in names for name in family.embedding_tables):
        # transformers 5 unties all tables together; earlier versions always had one table for both sides.
        put(config, "share_embeddings", _are_equal(tensors, *(names[name] for name in family.embedding_tables)))
    values: dict[str, object] = {"kind": architecture.kind, "config": config}
    labels = hf_config.get("id2label")
    if isinstance(labels, dict) and not all(re.fullmatch("[0-9]{1,9}", number) for number in labels):
        raise PretrainedError("config.json: id2label: must have numbers as names, '0', '1', and so on.")
    if architecture.num_labels_field:
        values[architecture.num_labels_field] = len(labels) if isinstance(labels, dict) else 2
    return make_model(values)


def _check_size(config: dict, tensors: TensorFiles) -> None:
    """Refuse sizes that the files cannot fill, before time and memory are spent on them."""
    num_tensors = len(tensors.entries)
    widest = max((max(entry.shape) for entry in tensors.entries.values() if math.prod(entry.shape) > 1), default=1)
    for side in (config, *(config.get(name, {}) for name in ("encoder", "decoder"))):
        num_layers = side.get("num_layers", 0)
        num_heads = side.get("num_heads", 0)
        if num_layers > num_tensors:
            raise PretrainedError(f"config.json: {num_layers} layers, but the files have only {num_tensors} tensors.")
        if num_heads > widest:
            raise PretrainedError(f"config.json: {num_heads} heads, but no tensor is wider than {widest}.")


def _is_tied(family: Family, tensors: TensorFiles, names: dict[str, str]) -> bool:
    """True if the output projection is the embedding.

    Files that hold a projection although config.json says "tied" may repeat the embedding in it, or (T5 v1.1) hold
    another matrix.
    """
    projection, *embeddings = family.output_projection
    if projection not in names:
        return True
    embedding = next((names[name] for name in embeddings if name in names), None)
    if embedding is None or tensors.entries[embedding].shape != tensors.entries[names[projection]].shape:
        return True  # check_tensors reports what is missing or has a wrong shape, with everything else
    return _are_equal(tensors, names[projection], embedding)


def _are_equal(tensors: TensorFiles, first: str, second: str) -> bool:
    entries = (tensors.entries[first], tensors.entries[second])
    if len({(entry.shape, entry.dtype) for entry in entries}) > 1 or entries[0].dtype not in DTYPES:
        return False
    return np.array_equal(tensors.read(first), tensors.read(second))


def write_folder(
    folder: str | Path, model: Model, params: Params, config: dict, generation: dict, files: dict[str, bytes]
) -> None:
    """Write a model as a Hugging Face folder, which appears when it is complete.

    Args:
      config: config.json that the model was loaded with, or {}.
      generation: generation_config.json that the model was loaded with, or {}.
      files: contents of the tokenizer's files by name.
    Raises:
      PretrainedError: no family has such a model, or the folder cannot be created.
    """
    family, architecture, hf_config = _hf_description(model, config)
    leaves = {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
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
        for name, data in files.items():
            assert name == os.path.basename(name), "a FileTokenizer has files of known names only"
            (temporary / name).write_bytes(data)


def _hf_description(model: Model, config: dict) -> tuple[Family, Architecture, dict]:
    """The first family that has such a model, the architecture, and config.json."""
    described = describe_model(model)
    reasons = []
    for family in [FAMILIES[config["model_type"]]] if config else FAMILIES.values():
        candidates = {name: a for name, a in family.architectures.items() if a.kind == described["kind"]}
        if not candidates:
            continue
        try:
            hf_config = _hf_config(family, described, config)
        except UserError as error:
            reasons.append(str(error))
            continue
        previous = (config.get("architectures") or [None])[0]
        name = previous if previous in candidates else next(iter(candidates))
        hf_config["architectures"] = [name]
        num_labels = described.get(candidates[name].num_labels_field, 0)
        if num_labels and len(hf_config.get("id2label") or {}) != num_labels:
            hf_config["id2label"] = {str(i): f"LABEL_{i}" for i in range(num_labels)}
            hf_config["label2id"] = {f"LABEL_{i}": i for i in range(num_labels)}
        return family, candidates[name], hf_config
    why = " ".join(reasons) or f"None has a {described['kind']}."
    raise PretrainedError(f"no supported Hugging Face family has such a model. {why}")


def _hf_config(family: Family, described: dict, config: dict) -> dict:
    """config.json of the model: the original one if it still describes the model, else a changed copy."""
    ours = make_model(described).config
    candidates = ([dict(config)] if config else []) + [write_config(family, described["config"], config)]
    differing: list[str] = []
    for hf_config in candidates:
        differing = _differing(ours, make_model(described | {"config": read_config(family, hf_config)}).config)
        if not differing:
            return hf_config
    raise PretrainedError(f"{family.model_type} has no {', '.join(differing)}.")


def _differing(ours: Any, restored: Any, path: str = "") -> list[str]:
    """Fields, "name=value", in which the configuration read back from config.json differs from ours."""
    names = []
    for field in dataclasses.fields(ours):
        value = getattr(ours, field.name)
        other = getattr(restored, field.name)
        if dataclasses.is_dataclass(value):
            names += _differing(value, other, f"{field.name}.")
        elif value != other and field.name not in NOT_COMPARED:
            names.append(f"{path}{field.name}={value!r}")
    return names
