"""Saving of models as Hugging Face folders: config.json, generation_config.json, safetensors."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from transformer_jax.errors import UserError
from transformer_jax.huggingface.families import FAMILIES
from transformer_jax.huggingface.family import Architecture, Family, read_config, write_config
from transformer_jax.huggingface.files import PretrainedError, new_folder, write_json, write_tensors
from transformer_jax.huggingface.tensor_layout import tensor_specs, to_tensor
from transformer_jax.models import Model, Params, describe_model, make_model, path_names

# Fields of our configuration that config.json need not reproduce: they change no output of the trained model.
NOT_COMPARED = {"init_std", "zero_init", "dropout_rate", "backend", "dtype", "max_len"}
SHARD_BYTES = 5 * 10**9  # largest size of a safetensors file that we write


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
