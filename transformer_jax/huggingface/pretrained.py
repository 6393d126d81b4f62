"""A folder of Hugging Face's to a model and back."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, choose
from transformer_jax.huggingface.families.bart import BART, MARIAN
from transformer_jax.huggingface.families.bert import BERT, ROBERTA
from transformer_jax.huggingface.families.gpt2 import GPT2
from transformer_jax.huggingface.families.llama import LLAMA
from transformer_jax.huggingface.families.t5 import T5
from transformer_jax.huggingface.family import (
    TYPES,
    Architecture,
    Family,
    check_tensors,
    get,
    layout,
    put,
    read_config,
    their_names,
    to_ours,
    to_theirs,
    write_config,
)
from transformer_jax.huggingface.files import Folder, PretrainedError, Tensors, new_folder, write_json, write_tensors
from transformer_jax.models import describe_model, make_model, parameter_shapes

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, BERT, ROBERTA, T5, BART, MARIAN)}
NO_PART_OF_THE_FUNCTION = {"init_std", "zero_init", "dropout_rate", "backend", "dtype", "max_len"}
SHARD_BYTES = 5 * 10**9  # of tensors in a file that we write
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.spm"]


class Pretrained(NamedTuple):
    """What a folder holds."""

    model: Any
    params: Any
    config: dict  # config.json as it was
    generation: dict  # generation_config.json as it was
    folder: Folder


def find_folder(name: str | Path) -> Folder:
    """The folder, or for a name such as "gpt2" or "facebook/bart-base" the hub's, downloaded once.

    Raises:
      PretrainedError: there is no such folder, and the hub has or gives none.
    """
    try:
        is_there = Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a name that no file can have: Folder says it
        is_there = True
    if is_there or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)):
        return Folder(name)
    from huggingface_hub import snapshot_download  # here: only what is not on this machine needs it

    try:
        return Folder(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except (OSError, ValueError, RuntimeError) as error:  # no connection, no such repository, no permission
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise PretrainedError(f"{name}: there is no such folder, and the hub did not give one ({reason}).") from error


def read_folder(name: str | Path) -> Pretrained:
    """The model in a folder, its parameters in the types of the files.

    Every tensor is read once, the largest first, so that at no time much more than the model is in memory.

    Raises:
      PretrainedError: no such folder; anything in it that is malformed, unknown, missing or does not fit.
    """
    folder = find_folder(name)
    config = folder.json("config.json")
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise PretrainedError(
            f"{folder.path / 'config.json'}: model_type={name!r:.80} is not known. Known: {', '.join(FAMILIES)}."
        )
    family = FAMILIES[name]
    architecture = _architecture(family, config)
    tensors = Tensors(folder)
    names = their_names(family, tensors)
    model = _make_model(family, architecture, config, tensors, names)
    shapes = _shapes(model)
    needed = layout(family.names | architecture.names, shapes)
    check_tensors(family, needed, names, tensors)
    params: dict = {}
    for new, tensor in sorted(needed.items(), key=lambda item: -np.prod(item[1].shape, dtype=float)):
        array = tensors.read(names[new]) if new in names else np.zeros(tensor.shape, np.float32)
        for path, part in to_ours(tensor, array, shapes):
            put(params, ".".join(path), jax.device_put(part))
    generation = folder.json("generation_config.json") if folder.has("generation_config.json") else {}
    return Pretrained(model, params, config, generation, folder)


def _shapes(model: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of the parameters by path. One layer is traced for all, as tracing takes tens of milliseconds a layer."""
    shapes = {}
    traced = parameter_shapes(model.clone(config=_one_layer(model.config)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(traced):
        names = _names(path)
        side = getattr(model.config, names[0], model.config)
        for i in range(side.num_layers if "block_0" in names else 1):
            shapes[tuple(f"block_{i}" if name == "block_0" else name for name in names)] = leaf.shape
    return shapes


def _one_layer(config: Any) -> Any:
    if isinstance(config, TransformerConfig):
        return dataclasses.replace(config, num_layers=1)
    sides = {name: _one_layer(getattr(config, name)) for name in ("encoder", "decoder")}
    return dataclasses.replace(config, **sides)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _architecture(family: Family, config: dict) -> Architecture:
    names = config.get("architectures") or [next(iter(family.architectures))]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str):
        raise PretrainedError(f"config.json: architectures={names!r:.80} must be a list of names.")
    return choose(family.architectures, name[:80], "config.json: architectures")


def _make_model(family: Family, architecture: Architecture, config: dict, tensors: Tensors, names: dict) -> Any:
    ours = read_config(family, config)
    widest = max((max(entry.shape) for entry in tensors.entries.values() if math.prod(entry.shape) > 1), default=1)
    for side in (ours, *(ours.get(name, {}) for name in ("encoder", "decoder"))):
        if side.get("num_layers", 0) > len(tensors.entries):  # before so many are made
            raise PretrainedError(
                f"config.json: {side['num_layers']} layers, and the files have {len(tensors.entries)} tensors in all."
            )
        if side.get("num_heads", 0) > widest:  # before all its divisors are looked for
            raise PretrainedError(f"config.json: {side['num_heads']} heads, and no tensor is wider than {widest}.")
    tie = "decoder.tie_embeddings" if "decoder" in ours else "tie_embeddings"
    if family.head and get(ours, tie):
        put(ours, tie, _is_tied(family, tensors, names))
    if family.tables and all(name in names for name in family.tables):
        # transformers 5 unties all of them together; before, the two sides always had one table.
        put(ours, "share_embeddings", _are_equal(tensors, *(names[name] for name in family.tables)))
    values = {"kind": architecture.kind, "config": ours}
    labels = config.get("id2label")
    if isinstance(labels, dict) and not all(re.fullmatch("[0-9]{1,9}", number) for number in labels):
        raise PretrainedError("config.json: id2label: must have numbers as names, '0', '1', and so on.")
    if architecture.labels:
        values[architecture.labels] = len(labels) if isinstance(labels, dict) else 2
    return make_model(values)


def _is_tied(family: Family, tensors: Tensors, names: dict) -> bool:
    """Files that hold an output projection besides may repeat the embedding in it, or (T5 v1.1) say something else."""
    head, *embeddings = family.head
    if head not in names:
        return True
    embedding = next((names[name] for name in embeddings if name in names), None)
    if embedding is None or tensors.entries[embedding].shape != tensors.entries[names[head]].shape:
        return True  # what is missing or misshapen is told with all the rest
    return _are_equal(tensors, names[head], embedding)


def _are_equal(tensors: Tensors, one: str, other: str) -> bool:
    entries = tensors.entries[one], tensors.entries[other]
    if len({entry[1:] for entry in entries}) > 1 or entries[0].dtype not in TYPES:
        return False
    return np.array_equal(tensors.read(one), tensors.read(other))


def write_folder(
    folder: str | Path, model: Any, params: Any, config: dict, generation: dict, files: dict[str, bytes]
) -> None:
    """Save a model as a Hugging Face folder, which appears when it is complete.

    Args:
      config, generation: config.json and generation_config.json that the model was loaded with, or {}.
      files: those of its tokenizer.
    Raises:
      PretrainedError: no family has such a model, or the folder cannot be made.
    """
    family, architecture, config = _describe(model, config)
    leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    types = {str(leaf.dtype) for leaf in leaves.values()}
    config["dtype" if "dtype" in config else "torch_dtype"] = types.pop() if len(types) == 1 else "float32"
    needed = layout(family.names | architecture.names, {path: leaf.shape for path, leaf in leaves.items()})
    with new_folder(folder) as temporary:
        tensors = {name: to_theirs(needed[name], leaves) for name in sorted(needed)}
        tensors |= {name: tensors[other] for name, other in family.copies if other in tensors}
        write_tensors(temporary, tensors, SHARD_BYTES)
        write_json(temporary / "config.json", config)
        if generation:
            write_json(temporary / "generation_config.json", generation)
        for name, data in files.items():
            (temporary / name).write_bytes(data)


def _describe(model: Any, config: dict) -> tuple[Family, Architecture, dict]:
    """The family that can say what the model is, and how it says it."""
    described, reasons = describe_model(model), []
    for family in [FAMILIES[config["model_type"]]] if config else FAMILIES.values():
        candidates = {name: a for name, a in family.architectures.items() if a.kind == described["kind"]}
        if not candidates:
            continue
        try:
            written = _say(family, described, config)
        except UserError as error:
            reasons.append(str(error))
            continue
        named = (config.get("architectures") or [None])[0]
        name = named if named in candidates else next(iter(candidates))
        written["architectures"] = [name]
        number = described.get(candidates[name].labels, 0)
        if number and len(written.get("id2label") or {}) != number:
            written["id2label"] = {str(i): f"LABEL_{i}" for i in range(number)}
            written["label2id"] = {f"LABEL_{i}": i for i in range(number)}
        return family, candidates[name], written
    why = " ".join(reasons) or f"None has a {described['kind']}."
    raise PretrainedError(f"no Hugging Face family that is known here has such a model. {why}")


def _say(family: Family, described: dict, config: dict) -> dict:
    """config.json for the model: the one that it came with, if that still says what it is."""
    ours = make_model(described).config
    candidates = ([dict(config)] if config else []) + [write_config(family, described["config"], config)]
    for written in candidates:
        differing = _differing(ours, make_model(described | {"config": read_config(family, written)}).config)
        if not differing:
            return written
    raise PretrainedError(f"{family.model_type} has no {', '.join(differing)}.")


def _differing(ours: Any, again: Any, path: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(ours):
        one, two = getattr(ours, field.name), getattr(again, field.name)
        if dataclasses.is_dataclass(one):
            names += _differing(one, two, f"{field.name}.")
        elif one != two and field.name not in NO_PART_OF_THE_FUNCTION:
            names.append(f"{path}{field.name}={one!r}")
    return names
