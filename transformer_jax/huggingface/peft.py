"""Adapters of PEFT: adapter_config.json and adapter_model.safetensors, read as untrusted data.

The names of the tensors say which layers are adapted; `target_modules` is never interpreted. A layer that is fused in
the files, such as GPT-2's c_attn, is several layers here: each has lora_A, and its part of lora_B.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from transformer_jax.errors import choose
from transformer_jax.huggingface.family import Family, put
from transformer_jax.huggingface.files import Folder, PretrainedError, TensorFiles, brief
from transformer_jax.huggingface.peft_prompts import PROMPT_TYPES, TENSOR, read_prompt
from transformer_jax.huggingface.pretrained import find_folder
from transformer_jax.huggingface.save import describe_family
from transformer_jax.huggingface.tensor_layout import ParamPath, TensorSpec, tensor_specs, to_params
from transformer_jax.models import Model, Params, Seq2SeqConfig, parameter_shapes, path_names

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Fields that change the computation in ways that are not computed here: refused unless null, false or empty.
REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
KINDS = {  # end of a tensor's name after its module -> its role
    "lora_A.weight": "lora_in",
    "lora_embedding_A": "lora_in",
    "lora_B.weight": "lora_out",
    "lora_embedding_B": "lora_out",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_B.bias": "lora_bias",
    "ia3_l": "ia3",
    "token_adapter.trainable_tokens_delta": "tokens",
    "base_layer.weight": "weight",
    "base_layer.bias": "bias",
    "weight": "weight",
    "bias": "bias",
}
ROLES_OF_PROMPTS = frozenset({"weight", "bias"})  # beside the prompt itself: modules_to_save
_NAME = re.compile(r"base_model\.(?:model\.)?(.+?)\.(" + "|".join(map(re.escape, KINDS)) + ")")


class AdaptedModel(NamedTuple):
    """Model with an adapter: its parameters, some replaced by the adapter's own, and the layers that it adapts."""

    model: Model
    params: Params
    layers: Params  # for the collection "adapters": see nn/adapters.py
    prompt: np.ndarray | None = None  # for models.prefix.trained_prefix; None: it has no soft prompt


def read_adapter(path: str | Path, model: Model, params: Params, hf_config: dict) -> AdaptedModel:
    """Read an adapter for a model: LoRA, DoRA, IA3, or a soft prompt.

    Args:
      path: the adapter's folder, or its name on the hub.
      hf_config: config.json that the model was loaded with, or {}.
    Raises:
      PretrainedError: a file that is malformed or missing, a method that is not computed here, a tensor that does not
        fit the model; the model is of no Hugging Face family.
    """
    folder = find_folder(path)
    if not folder.has(CONFIG):
        raise PretrainedError(f"adapter={str(path)!r}: has no {CONFIG}. Give the folder of an adapter of PEFT.")
    family, architecture = describe_family(model, hf_config)
    config = folder.json(CONFIG)
    kinds = ("LORA", "IA3", *PROMPT_TYPES)
    choose(dict.fromkeys(kinds), str(config.get("peft_type")), f"{CONFIG}: peft_type")
    for name in REFUSED:
        if config.get(name) not in (None, False, {}, []):
            raise PretrainedError(f"{folder.path / CONFIG}: {name}={config[name]!r:.80} is not supported.")
    model_type = str(hf_config.get("model_type"))
    is_prompt = config["peft_type"] in PROMPT_TYPES
    modules = _tensors_by_module(folder, family, ROLES_OF_PROMPTS if is_prompt else frozenset(KINDS.values()))
    prompt = (
        read_prompt(config, _read_array(TensorFiles(folder, WEIGHTS), TENSOR), model, model_type) if is_prompt else None
    )
    model, params = _untie(model, params, family, modules)
    flat = {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    specs = tensor_specs(family, architecture, shapes)
    adapted = _Adapted(config, specs, shapes, flat, {})
    for module, tensors in sorted(modules.items()):
        adapted.add(module, tensors)
    new_params: Params = {}
    for names, leaf in adapted.params.items():
        put(new_params, ".".join(names), leaf)
    return AdaptedModel(model, new_params, adapted.layers, prompt)


def _tensors_by_module(folder: Folder, family: Family, roles: frozenset[str]) -> dict[str, dict[str, np.ndarray]]:
    """Tensors of the adapter by the module that they change, under the current names of the family, and by role.

    Args:
      roles: those that the method has. A soft prompt is of no module, and is left out.
    """
    files = TensorFiles(folder, WEIGHTS)
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(files.entries):
        if name == TENSOR and roles == ROLES_OF_PROMPTS:
            continue
        match = _NAME.fullmatch(name)
        if match is None or KINDS[match[2]] not in roles:
            kind = "soft prompt" if roles == ROLES_OF_PROMPTS else "LoRA or IA3 adapter"
            raise PretrainedError(f"{folder.path / WEIGHTS}: {brief(name)} is no tensor of a {kind}.")
        module, role = match[1], KINDS[match[2]]
        for pattern, replacement in family.renamed:
            module = re.sub(pattern, replacement, module)
        array = _read_array(files, name)
        if modules.setdefault(module, {}).setdefault(role, array) is not array:
            raise PretrainedError(f"{folder.path / WEIGHTS}: has {role} of {brief(module)} twice.")
    return modules


def _read_array(files: TensorFiles, name: str) -> np.ndarray:
    if name not in files.entries:
        raise PretrainedError(f"{WEIGHTS}: has no {name}.")
    array = files.read(name).astype(np.float32)
    if not np.isfinite(array).all():
        raise PretrainedError(f"{WEIGHTS}: {brief(name)} has NaN or infinity in it.")
    return array


def _untie(model: Model, params: Params, family: Family, modules: dict) -> tuple[Model, Params]:
    """Give a model with tied embeddings an output projection of its own, if the adapter changes one side only."""
    config = model.config.decoder
    sides = {name.removesuffix(".weight") for name in family.output_projection}
    changed = [name for name in sides if modules.get(name, {}).keys() - {"tokens", "bias"}]
    if not config.tie_embeddings or not changed:
        return model, params
    untied = dataclasses.replace(config, tie_embeddings=False)
    if isinstance(model.config, Seq2SeqConfig):
        model = model.clone(config=dataclasses.replace(model.config, decoder=untied))
    else:
        model = model.clone(config=untied)
    names = {path_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(parameter_shapes(model))}
    flat = {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    (kernel,) = names - flat.keys()
    (table,) = [leaf for path, leaf in flat.items() if path[-3:] in _tables(kernel) or path[:1] == ("shared",)]
    new: Params = {}
    for path, leaf in [*flat.items(), (kernel, np.ascontiguousarray(np.asarray(table).T))]:
        put(new, ".".join(path), leaf)
    return model, new


def _tables(kernel: ParamPath) -> tuple[ParamPath, ...]:
    return (("embed", "tokens", "embedding"),)


@dataclasses.dataclass
class _Adapted:
    """Parameters and layers of an adapted model, module by module."""

    config: dict
    specs: dict[str, TensorSpec]
    shapes: dict[ParamPath, tuple[int, ...]]
    params: dict[ParamPath, np.ndarray | jax.Array]
    layers: Params

    def add(self, module: str, tensors: dict[str, np.ndarray]) -> None:
        """Add the tensors of one module of the files. Full values come first: LoRA changes those."""
        for role in ("weight", "bias"):
            if role in tensors:
                self._replace(f"{module}.{role}", tensors[role])
        if "tokens" in tensors:
            self._replace_tokens(module, tensors["tokens"])
        if "lora_in" in tensors or "lora_out" in tensors:
            self._add_lora(module, tensors)
        if "ia3" in tensors:
            self._add_ia3(module, tensors["ia3"])

    def _replace(self, name: str, array: np.ndarray) -> None:
        spec = self._spec(name)
        if array.shape != spec.shape:
            raise self._misfit(name, array.shape, spec.shape)
        for path, part in to_params(spec, array, self.shapes):
            self.params[path] = part

    def _replace_tokens(self, module: str, rows: np.ndarray) -> None:
        """Replace the rows of some tokens: `trainable_token_indices` names them, for one table or by table."""
        spec = self._spec(f"{module}.weight")
        named = self.config.get("trainable_token_indices")
        if isinstance(named, dict):
            named = next((ids for name, ids in named.items() if module.endswith(str(name))), None)
        num_rows, width = spec.shape
        ids = named if isinstance(named, list) else []
        if not all(type(i) is int and 0 <= i < num_rows for i in ids) or rows.shape != (len(ids), width):
            raise PretrainedError(
                f"{CONFIG}: trainable_token_indices={named!r:.80} must be a list of ids below {num_rows:,}, one for "
                f"each of the {len(rows)} rows of {brief(module)}."
            )
        (path,) = spec.paths
        table = np.array(self.params[path], np.float32)
        table[ids] = rows
        self.params[path] = table

    def _add_lora(self, module: str, tensors: dict[str, np.ndarray]) -> None:
        if not {"lora_in", "lora_out"} <= tensors.keys():
            raise PretrainedError(f"{WEIGHTS}: {brief(module)} has only one of lora_A and lora_B.")
        spec = self._spec(f"{module}.weight")
        is_table = spec.layout == "table"
        fan_in, fan_out = self._sides(module, spec)
        lora_in, lora_out = tensors["lora_in"].T, tensors["lora_out"].T
        rank = lora_in.shape[-1]
        if lora_in.shape != (fan_in, rank) or lora_out.shape != (rank, fan_out):
            raise self._misfit(module, (*lora_in.shape, *lora_out.shape), (fan_in, rank, rank, fan_out))
        scale = self._scale(module, rank)
        outs = np.split(lora_out, len(spec.paths), axis=1)
        magnitudes: list[np.ndarray | None] = [None] * len(outs)
        if "magnitude" in tensors:
            if is_table or tensors["magnitude"].size != fan_out:
                raise self._misfit(module, tensors["magnitude"].shape, (fan_out,))
            magnitudes = [*np.split(tensors["magnitude"].reshape(-1), len(outs))]
        for path, out, magnitude in zip(spec.paths, outs, magnitudes, strict=True):
            layer = {"lora_in": lora_in, "lora_out": out, "scale": np.array([scale], np.float32)}
            if magnitude is not None:
                kernel = np.asarray(self.params[path], np.float32).reshape(fan_in, -1)
                layer["magnitude"] = magnitude / np.linalg.norm(kernel, axis=0)
            self._put(path, layer)
        if "lora_bias" in tensors:
            bias = self._spec(f"{module}.bias")
            if tensors["lora_bias"].shape != bias.shape:
                raise self._misfit(f"{module}.bias", tensors["lora_bias"].shape, bias.shape)
            for path, part in to_params(bias, scale * tensors["lora_bias"], self.shapes):
                self.params[path] = np.asarray(self.params[path], np.float32) + part

    def _add_ia3(self, module: str, factors: np.ndarray) -> None:
        """[out, 1] scales outputs; [1, in], in the feed-forward part, inputs."""
        spec = self._spec(f"{module}.weight")
        fan_in, fan_out = self._sides(module, spec)
        if spec.layout == "table" or factors.shape not in ((fan_out, 1), (1, fan_in)):
            raise self._misfit(module, factors.shape, (fan_out, 1))
        if factors.shape == (fan_out, 1):
            for path, part in zip(spec.paths, np.split(factors[:, 0], len(spec.paths)), strict=True):
                self._put(path, {"ia3_out": part})
        else:
            for path in spec.paths:
                self._put(path, {"ia3_in": factors[0]})

    def _sides(self, module: str, spec: TensorSpec) -> tuple[int, int]:
        """Number of inputs and of outputs of a module with a kernel or a table."""
        if spec.layout not in ("table", "in_out", "out_in"):
            raise PretrainedError(f"{WEIGHTS}: adapts {brief(module)}, which is no linear layer and no embedding.")
        first, second = spec.shape
        return (second, first) if spec.layout == "out_in" else (first, second)

    def _put(self, path: ParamPath, layer: dict[str, np.ndarray]) -> None:
        for name, array in layer.items():
            put(self.layers, ".".join([*path[:-1], name]), np.ascontiguousarray(array, np.float32))

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise PretrainedError(f"{WEIGHTS}: changes {brief(name)}, which the model does not have.")
        return self.specs[name]

    def _scale(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023), by the module's own rank and alpha."""
        alpha = self._pattern("alpha_pattern", module, self.config.get("lora_alpha", 8))
        declared = self._pattern("rank_pattern", module, self.config.get("r", 8))
        if type(declared) is not int or declared != rank:
            raise PretrainedError(f"{CONFIG}: r={declared!r:.80}, but {brief(module)} has rank {rank} in {WEIGHTS}.")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise PretrainedError(f"{CONFIG}: lora_alpha={alpha!r:.80} must be a number.")
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _pattern(self, field: str, module: str, default: object) -> object:
        """The value of the first pattern that fits the module's name at its end, or the default."""
        patterns = self.config.get(field) or {}
        if not isinstance(patterns, dict):
            raise PretrainedError(f"{CONFIG}: {field}={patterns!r:.80} must be an object.")
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise PretrainedError(f"{CONFIG}: {field}: {pattern!r:.80} is no regular expression.") from error
        return default

    def _misfit(self, name: str, shape: tuple, expected: tuple) -> PretrainedError:
        return PretrainedError(f"{WEIGHTS}: {brief(name)} has shape {list(shape)} and not {list(expected)}.")
