"""Pre-trained models: load a Hugging Face folder as a model with parameters. Writing one: save.py."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from transformer_jax.errors import choose, missing_package
from transformer_jax.huggingface.families import FAMILIES
from transformer_jax.huggingface.family import (
    Architecture,
    Family,
    checked,
    get,
    put,
    read_config,
    warn_of_unknown_fields,
)
from transformer_jax.huggingface.files import Folder, PretrainedError, TensorFiles, brief
from transformer_jax.huggingface.tensor_layout import (
    ParamShapes,
    TensorSpec,
    are_equal,
    check_tensors,
    current_names,
    name_copies,
    tensor_specs,
    to_params,
)
from transformer_jax.models import Model, Params, make_model, parameter_shapes, path_names

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.spm", "merges.txt", "vocab.txt", "*.jinja"]


class Pretrained(NamedTuple):
    """Contents of a Hugging Face folder."""

    model: Model
    params: Params
    config: dict  # config.json, unchanged
    generation: dict  # generation_config.json, unchanged
    folder: Folder
    labels: tuple[str, ...]  # of a head, in the order of its logits


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


class Described(NamedTuple):
    """Model that config.json and the headers of the tensors describe; no tensor is read but to compare two tables."""

    model: Model
    config: dict  # config.json, unchanged
    tensors: TensorFiles
    names: dict[str, str]  # current name of a tensor -> its name in the files
    shapes: ParamShapes
    specs: dict[str, TensorSpec]
    labels: tuple[str, ...]  # of a head, in the order of its logits


def describe_folder(folder: Folder) -> Described:
    """Read the description of the model in a folder, and check that every tensor is there.

    Raises:
      PretrainedError: a file that is malformed, unsupported, missing or does not fit.
    """
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
    labels = read_labels(config) if architecture.num_labels_field else ()
    return Described(model, config, tensors, names, shapes, specs, labels)


def read_folder(name: str | Path) -> Pretrained:
    """Load the model in a folder, parameters in the dtypes of the files.

    Every tensor is read once, the largest first, so that memory never holds much more than the model.

    Raises:
      PretrainedError: no such folder; a file that is malformed, unsupported, missing or does not fit.
    """
    folder = find_folder(name)
    if folder.has("adapter_config.json") and not folder.has("config.json"):
        base = brief(repr(folder.json("adapter_config.json").get("base_model_name_or_path")))
        raise PretrainedError(
            f"{folder.path}: holds an adapter, not a model. Load its base {base} with adapter={str(name)!r}."
        )
    model, config, tensors, names, shapes, specs, labels = describe_folder(folder)
    warn_of_unknown_fields(_family(folder, config), config)
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
    return Pretrained(model, params, config, generation, folder, labels)


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
    is_tied = bool(get(config, tie))
    tables = family.embedding_tables
    embeddings = family.output_projection[1:]
    if tables and all(name in names for name in tables) and not are_equal(tensors, *(names[name] for name in tables)):
        # transformers 5 unties all tables together; earlier versions always had one table for both sides.
        put(config, "share_embeddings", False)
        embeddings = tables[1:]
        _check_shared(family, tensors, names, is_tied)
    else:
        name_copies(family, tensors, names, is_tied)
        if tables and all(name in names for name in tables):
            put(config, "share_embeddings", True)
    if family.output_projection and is_tied:
        put(config, tie, _is_tied(family.output_projection[0], embeddings, tensors, names))
    values: dict[str, object] = {"kind": architecture.kind, "config": config}
    if architecture.num_labels_field:
        values[architecture.num_labels_field] = len(read_labels(hf_config))
    return make_model(values)


def read_labels(hf_config: dict) -> tuple[str, ...]:
    """Read the label names of a head, in the order of its logits: those of `id2label`, or as many as `num_labels`.

    Without either there are two, as in the reference library.
    """
    names = hf_config.get("id2label")
    if names is None:
        num_labels = checked("num_labels", hf_config.get("num_labels", 2), int)
        if not 1 <= num_labels < 10**6:
            raise PretrainedError(f"config.json: num_labels={num_labels} must be from 1 to below a million.")
        return tuple(f"LABEL_{i}" for i in range(num_labels))
    numbers = {str(i): i for i in range(len(names))} if isinstance(names, dict) else {}
    if not numbers or names.keys() != numbers.keys() or not all(type(name) in (str, int) for name in names.values()):
        raise PretrainedError(
            f"config.json: id2label={names!r:.80} must map the numbers '0', '1', and so on, each of them, to names."
        )
    return tuple(str(names[number]) for number in numbers)


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


def _check_shared(family: Family, tensors: TensorFiles, names: dict[str, str], is_tied: bool) -> None:
    """Refuse a third table, of the output projection alone, beside different ones of the encoder and the decoder."""
    projection, shared, *_ = family.output_projection
    decoder = family.embedding_tables[1]
    if (
        is_tied
        and projection not in names
        and shared in names
        and not are_equal(tensors, names[shared], names[decoder])
    ):
        raise PretrainedError(
            f"the tensors {names[shared]} and {names[decoder]} differ, and there is no {projection}. "
            "The output projection must be one of the decoder's own, or its embedding."
        )


def _is_tied(projection: str, embeddings: tuple[str, ...], tensors: TensorFiles, names: dict[str, str]) -> bool:
    """True if the output projection is the embedding.

    Files that hold a projection although config.json says "tied" may repeat the embedding in it, or (T5 v1.1) hold
    another matrix.
    """
    if projection not in names:
        return True
    embedding = next((names[name] for name in embeddings if name in names), None)
    if embedding is None or tensors.entries[embedding].shape != tensors.entries[names[projection]].shape:
        return True  # check_tensors reports what is missing or has a wrong shape, with everything else
    return are_equal(tensors, names[projection], embedding)
