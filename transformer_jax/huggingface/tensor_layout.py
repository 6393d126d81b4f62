"""Tensor layout: which tensor of the files holds which parameters, and the conversion in both directions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from transformer_jax.huggingface.family import Architecture, Family, TensorNames, TensorPart
from transformer_jax.huggingface.files import PretrainedError, TensorFiles, listed
from transformer_jax.nn.layers import num_input_axes

DTYPES = ("F32", "F16", "BF16", "F64")  # of tensors, in the notation of the files; F64 is read as float32
WRAPPERS = ("_orig_mod.", "module.", "model.")  # prefixes of torch.compile, DataParallel and users' own classes
SUFFIXES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}

ParamPath = tuple[str, ...]
ParamShapes = dict[ParamPath, tuple[int, ...]]


class TensorSpec(NamedTuple):
    """A tensor of the files: its shape, and the paths of the parameters that it holds, in order."""

    shape: tuple[int, ...]
    layout: str  # out_in, in_out (kernels), table (an embedding), vector or row
    paths: tuple[ParamPath, ...]


def tensor_specs(family: Family, architecture: Architecture, shapes: ParamShapes) -> dict[str, TensorSpec]:
    """Return every tensor that a model with parameters of these shapes needs, by name."""
    tensor_names = _names_for(family, architecture, shapes)
    parts: dict[str, dict[int, ParamPath]] = {}
    specs: dict[str, TensorSpec] = {}
    for path, shape in shapes.items():
        name, location = _locate(path, tensor_names)
        layout = _layout(path[-1], location)
        parts.setdefault(name, {})[location.part] = path
        specs[name] = TensorSpec(_tensor_shape(path, shape, layout, location.num_parts), layout, ())
    return {
        name: spec._replace(paths=tuple(path for _, path in sorted(parts[name].items())))
        for name, spec in specs.items()
    }


def _names_for(family: Family, architecture: Architecture, shapes: ParamShapes) -> dict[str, str | TensorPart]:
    """The tensor names of a model, which depend on the modules that it has."""
    modules = {path[-2] for path in shapes if len(path) > 1}
    names = {**family.tensor_names, **architecture.tensor_names}
    if "gate" in modules:
        names |= family.gated_names
    if "unembed" in modules:
        names |= architecture.untied_names
    return names


def _locate(path: ParamPath, tensor_names: TensorNames) -> tuple[str, TensorPart]:
    """The name of the tensor that holds the parameter at `path`, and the part of it."""
    layer = next((name[6:] for name in path if name.startswith("block_")), "")
    pattern = "/".join("block_{i}" if name.startswith("block_") else name for name in path)
    module, _, leaf = pattern.rpartition("/")
    is_tensor = pattern in tensor_names  # else the module has a name, and the leaf a suffix
    location = tensor_names[pattern if is_tensor else module]
    if isinstance(location, str):
        location = TensorPart(location)
    name = location.name.replace("{i}", layer)
    return name if is_tensor else f"{name}.{SUFFIXES[leaf]}", location


def _layout(leaf: str, location: TensorPart) -> str:
    if leaf == "kernel" or location.layout == "row":
        return location.layout
    return "table" if leaf == "embedding" else "vector"


def _tensor_shape(path: ParamPath, shape: tuple[int, ...], layout: str, num_parts: int) -> tuple[int, ...]:
    if layout == "table":
        return shape
    if layout in ("vector", "row"):
        size = math.prod(shape) * num_parts
        return (1, size) if layout == "row" else (size,)
    num_in = num_input_axes(path, len(shape))
    fan_in = math.prod(shape[:num_in])
    fan_out = math.prod(shape[num_in:]) * num_parts
    return (fan_out, fan_in) if layout == "out_in" else (fan_in, fan_out)


def to_params(spec: TensorSpec, array: np.ndarray, shapes: ParamShapes) -> Iterator[tuple[ParamPath, np.ndarray]]:
    """Split a tensor of the files into the parameters that it holds."""
    array = array.T if spec.layout == "out_in" else array
    for path, part in zip(spec.paths, np.split(array, len(spec.paths), axis=-1), strict=True):
        yield path, part.reshape(shapes[path])


def to_tensor(spec: TensorSpec, params: dict[ParamPath, np.ndarray]) -> np.ndarray:
    """Join the parameters that a tensor of the files holds into this tensor."""
    if spec.layout in ("out_in", "in_out"):
        fan_in = spec.shape[1] if spec.layout == "out_in" else spec.shape[0]
        joined = np.concatenate([np.asarray(params[path]).reshape(fan_in, -1) for path in spec.paths], axis=-1)
        return np.ascontiguousarray(joined.T if spec.layout == "out_in" else joined)
    joined = np.asarray(params[spec.paths[0]])
    if len(spec.paths) > 1:
        joined = np.concatenate([np.asarray(params[path]).reshape(-1) for path in spec.paths])
    return np.ascontiguousarray(joined.reshape(spec.shape))


def current_names(family: Family, tensors: TensorFiles) -> dict[str, str]:
    """Map the current name of every tensor to its name in the files: an old one, or with the prefix of a wrapper."""
    names = {}
    num_omitted = len(_wrappers(family, list(tensors.entries)))
    for old in tensors.entries:
        new = old[num_omitted:]
        for pattern, replacement in family.renamed:
            new = re.sub(pattern, replacement, new)
        names[old if new != old and new in tensors.entries else new] = old
    return names


def _wrappers(family: Family, names: list[str]) -> str:
    """The prefixes of wrappers, joined, that every name has and that are no part of the family's own names."""
    patterns = [family.tensor_names, *(architecture.tensor_names for architecture in family.architectures.values())]
    locations = [location for names in patterns for location in names.values()]
    roots = {(name if isinstance(name, str) else name.name).split(".")[0] for name in locations}
    omitted = ""
    while True:
        rest = [name[len(omitted) :] for name in names]
        found = [
            prefix
            for prefix in WRAPPERS
            if all(name.startswith(prefix) for name in rest)
            and (prefix[:-1] not in roots or any(name.startswith(prefix * 2) for name in rest))
        ]
        if not found or not rest:
            return omitted
        omitted += found[0]


def name_copies(family: Family, tensors: TensorFiles, names: dict[str, str], is_tied: bool) -> None:
    """Add to `names` the missing names of tensors that the files have under another name of the same storage.

    Raises:
      PretrainedError: two names of one storage hold different values.
    """
    for group in family.same_storage:
        projection = family.output_projection[0]
        present = [name for name in group if name in names and (is_tied or name != projection)]
        if not present:
            continue
        first = present[0]
        for other in present[1:]:
            if other != projection and not are_equal(tensors, names[first], names[other]):
                raise PretrainedError(
                    f"the tensors {names[first]} and {names[other]} differ. {family.model_type!r} has one for both."
                )
        for name in group:
            if name != projection:
                names.setdefault(name, names[first])


def are_equal(tensors: TensorFiles, first: str, second: str) -> bool:
    """Return True if two tensors of the files have the same dtype, shape and values."""
    entries = (tensors.entries[first], tensors.entries[second])
    if len({(entry.shape, entry.dtype) for entry in entries}) > 1 or entries[0].dtype not in DTYPES:
        return False
    return first == second or np.array_equal(tensors.read(first), tensors.read(second))


def check_tensors(family: Family, specs: dict[str, TensorSpec], names: dict[str, str], tensors: TensorFiles) -> None:
    """Raise one PretrainedError that names every tensor that is missing, unknown, or of a wrong shape or dtype."""
    problems = [f"{name} is missing" for name in specs if name not in names and name not in family.optional]
    for new, old in names.items():
        if new not in specs:
            if not any(re.search(pattern, new) for pattern in family.ignored):
                problems.append(f"{old} is unknown")
            continue
        entry = tensors.entries[old]
        shape = specs[new].shape
        if entry.shape != shape:
            problems.append(f"{old} has shape {list(entry.shape)} and not {list(shape)}")
        if entry.dtype not in DTYPES:
            problems.append(f"{old} is of type {entry.dtype} and not {', '.join(DTYPES)}")
    if problems:
        raise PretrainedError(
            f"the tensors do not fit config.json, model_type {family.model_type!r}: {listed(problems)}."
        )
