"""Saving of adapters for PEFT: adapter_config.json and adapter_model.safetensors, which `peft.py` reads, too.

A layer that is fused in the files, such as GPT-2's c_attn, has one pair there. Parts with lora_in in common share it.
Else lora_A of all parts are stacked, and their lora_B are the blocks of a diagonal.
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from transformer_jax.huggingface.files import PretrainedError, brief, listed, new_folder, write_json
from transformer_jax.huggingface.peft import CONFIG, WEIGHTS
from transformer_jax.huggingface.peft_prompts import TENSOR, write_prompt
from transformer_jax.huggingface.save import describe_family
from transformer_jax.huggingface.tensor_layout import ParamPath, TensorSpec, tensor_specs, to_tensor
from transformer_jax.models import (
    GPT,
    Model,
    Params,
    Seq2Seq,
    SequenceClassifier,
    TokenTagger,
    parameter_shapes,
    path_names,
)

Layer = dict[str, np.ndarray]  # of the adapter: see nn/adapters.py
PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """All that the files of an adapter say."""

    model: Model
    params: Params
    layers: Params  # see nn/adapters.py
    whole: tuple[str, ...]  # paths of the parameters that are the adapter's own, in full
    config: dict  # config.json that the model was loaded with, or {}
    base: str  # path or name of the model
    prompt: np.ndarray | None = None  # a trained prefix, as `models.prefix.trained_prefix` takes it


def write_adapter(path: str | Path, saved: SavedAdapter) -> None:
    """Write an adapter as a new folder that PEFT loads; it appears when it is complete.

    Raises:
      PretrainedError: the folder cannot be created, the model is of no Hugging Face family, or no adapter of PEFT can
        express the adapter: LoRA and IA3 together, DoRA in some layers only.
    """
    family, architecture = describe_family(saved.model, saved.config)
    leaves = jax.tree_util.tree_leaves_with_path(parameter_shapes(saved.model))
    shapes = {path_names(path): leaf.shape for path, leaf in leaves}
    writer = _Writer(saved, tensor_specs(family, architecture, shapes))
    if saved.prompt is not None:
        prompt_config, tensor = write_prompt(saved.prompt, saved.model, str(saved.config.get("model_type")))
        writer.add_whole(has_biases=False)
        if writer.token_rows:
            raise PretrainedError(
                "run: its prefix is beside a table of tokens, which PEFT has not. Keep the run directory."
            )
        tensors = {f"base_model.{name}": array for name, array in writer.tensors.items()}
        _write(path, tensors | {TENSOR: tensor}, writer.common() | prompt_config)
        return
    kinds = {name for layer in writer.layers.values() for name in layer}
    is_ia3 = "lora_in" not in kinds
    if not writer.layers or (kinds & {"ia3_in", "ia3_out"} and not is_ia3):
        has = "LoRA and IA3 together" if writer.layers else "no LoRA, DoRA or IA3"
        raise PretrainedError(f"run: its adapter has {has}, which no adapter of PEFT has.")
    for name, spec in sorted(writer.specs.items()):
        parts = [writer.layers.get(path[:-1], {}) for path in spec.paths]
        if name.endswith(".weight") and spec.layout in ("table", "in_out", "out_in") and any(parts):
            module = name.removesuffix(".weight")
            if is_ia3:
                writer.add_ia3(module, spec, parts)
            else:
                writer.add_lora(module, spec, parts)
    adapted = {path[:-1] for spec in writer.targets.values() for path in spec.paths}
    if left_out := writer.layers.keys() - adapted:
        raise PretrainedError(f"run: PEFT has no adapter of {listed(map('/'.join, left_out))}.")
    writer.add_whole(has_biases=not is_ia3)
    _write(path, {PREFIX + name: array for name, array in writer.tensors.items()}, writer.config(is_ia3))


def _write(path: str | Path, tensors: dict[str, np.ndarray], config: dict) -> None:
    with new_folder(path) as temporary:
        contiguous = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        save_file(contiguous, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / CONFIG, config)


class _Writer:
    """Tensors of an adapter by name without PREFIX, and its settings, module by module."""

    def __init__(self, saved: SavedAdapter, specs: dict[str, TensorSpec]):
        self.saved = saved
        self.specs = specs
        leaves = jax.tree_util.tree_leaves_with_path(saved.params)
        self.params = {path_names(path): leaf for path, leaf in leaves}
        self.layers: dict[ParamPath, Layer] = {}
        for p, leaf in jax.tree_util.tree_leaves_with_path(saved.layers):
            *layer, name = path_names(p)
            self.layers.setdefault(tuple(layer), {})[name] = np.asarray(leaf, np.float32)
        self.tensors: dict[str, np.ndarray] = {}
        self.targets: dict[str, TensorSpec] = {}  # adapted modules
        self.ranks: dict[str, int] = {}
        self.alphas: dict[str, float] = {}
        self.inputs_scaled: list[str] = []  # by IA3
        self.modules_to_save: set[str] = set()
        self.token_rows: dict[str, list[int]] = {}
        self.bias = "none"

    def add_lora(self, module: str, spec: TensorSpec, parts: list[Layer]) -> None:
        """Add LoRA or DoRA of a module from that of its parts, {} for a part without."""
        fan_in, fan_out = spec.shape[::-1] if spec.layout == "out_in" else spec.shape
        first = next(part for part in parts if part)
        scale = float(first["scale"][0]) or 1.0
        outs = [part["lora_out"] * (part["scale"] / scale) if part else np.zeros((0, 0)) for part in parts]
        widths = [fan_out // len(parts)] * len(parts)
        if all(part and np.array_equal(part["lora_in"], first["lora_in"]) for part in parts):
            lora_in, lora_out = first["lora_in"], np.concatenate(outs, axis=1)
        else:
            lora_in = np.concatenate([part["lora_in"] for part in parts if part], axis=1)
            rows = [
                np.concatenate(
                    [out if j == i else np.zeros((len(out), width)) for j, width in enumerate(widths)], axis=1
                )
                for i, out in enumerate(outs)
                if parts[i]
            ]
            lora_out = np.concatenate(rows)
        end_in, end_out = ("embedding_A", "embedding_B") if spec.layout == "table" else ("A.weight", "B.weight")
        self.tensors[f"{module}.lora_{end_in}"] = lora_in.T
        self.tensors[f"{module}.lora_{end_out}"] = lora_out.T
        self.targets[module] = spec
        self.ranks[module] = lora_in.shape[1]
        self.alphas[module] = float(str(np.float32(scale * lora_in.shape[1])))  # the short decimal of a float32
        self._add_magnitude(module, spec, parts, fan_in)

    def _add_magnitude(self, module: str, spec: TensorSpec, parts: list[Layer], fan_in: int) -> None:
        is_dora = {"magnitude" in layer for layer in self.layers.values()}
        if is_dora == {False}:
            return
        if len(is_dora) > 1:
            raise PretrainedError("run: its adapter has DoRA in some layers only. PEFT has it in all or in none.")
        if spec.layout == "table":
            raise PretrainedError(f"run: its adapter has DoRA of the embedding {brief(module)}. PEFT has LoRA there.")
        norms = [
            np.linalg.norm(np.asarray(self._param(path), np.float32).reshape(fan_in, -1), axis=0) for path in spec.paths
        ]
        factors = [part.get("magnitude", np.float32(1.0)) for part in parts]
        pairs = zip(norms, factors, strict=True)
        self.tensors[f"{module}.lora_magnitude_vector"] = np.concatenate([norm * factor for norm, factor in pairs])

    def add_ia3(self, module: str, spec: TensorSpec, parts: list[Layer]) -> None:
        """Add the factors of IA3 of a module: of its inputs, or else of its outputs."""
        has_inputs = ["ia3_in" in part for part in parts]
        if any(has_inputs):
            factors = next(part["ia3_in"] for part in parts if "ia3_in" in part)
            is_same = all(has_inputs) and all(np.array_equal(part["ia3_in"], factors) for part in parts)
            if not is_same or any("ia3_out" in part for part in parts):
                raise PretrainedError(f"run: PEFT scales all inputs of {brief(module)} in one way, or its outputs.")
            self.tensors[f"{module}.ia3_l"] = factors[None, :]
            self.inputs_scaled.append(module)
        else:
            width = math.prod(spec.shape) // (spec.shape[1] if spec.layout == "out_in" else spec.shape[0]) // len(parts)
            outs = [part.get("ia3_out", np.ones(width)) for part in parts]
            self.tensors[f"{module}.ia3_l"] = np.concatenate(outs)[:, None]
        self.targets[module] = spec

    def add_whole(self, has_biases: bool) -> None:
        """Add the parameters that the adapter holds in full, by the module of the files that has them.

        Args:
          has_biases: the method of PEFT has biases without the weights of their modules.
        """
        whole = set(self.saved.whole)
        if self.saved.prompt is not None and isinstance(self.saved.model, SequenceClassifier | TokenTagger):
            # PEFT always has the head beside a soft prompt.
            whole |= {"/".join(path) for path in self.params if path[0] != "encoder"}
        names = [name for name, spec in self.specs.items() if {"/".join(path) for path in spec.paths} & whole]
        decoder = self.saved.model.config.decoder
        is_tied = isinstance(self.saved.model, GPT | Seq2Seq) and decoder.tie_embeddings
        for name in names:
            module, _, leaf = name.rpartition(".")
            if module in self.targets:
                self._add_tensor(name, f"{module}.base_layer.{leaf}")
                if leaf == "bias" and self.bias == "none":
                    self.bias = "lora_only"
            elif leaf == "weight" and self.specs[name].layout == "table" and is_tied:
                # Of a tied model, a table in modules_to_save would change one side only; rows of tokens change both.
                self._add_tensor(name, f"{module}.token_adapter.trainable_tokens_delta")
                self.token_rows[module] = list(range(self.specs[name].shape[0]))
            elif leaf == "bias" and has_biases and f"{module}.weight" not in names:
                self._add_tensor(name, name)
                self.bias = "all"
            else:
                self.modules_to_save.add(module)
        for module in sorted(self.modules_to_save):
            for leaf in ("weight", "bias"):
                if f"{module}.{leaf}" in self.specs:
                    self._add_tensor(f"{module}.{leaf}", f"{module}.{leaf}")

    def _add_tensor(self, name: str, new_name: str) -> None:
        spec = self.specs[name]
        self.tensors[new_name] = to_tensor(spec, {path: np.asarray(self._param(path)) for path in spec.paths})

    def _param(self, path: ParamPath) -> np.ndarray | jax.Array:
        if path not in self.params:
            raise PretrainedError(
                f"run: the adapter needs the values of {'/'.join(path)}, which are int8. Save it before tj.quantize, "
                "or train without adapter.int8."
            )
        return self.params[path]

    def common(self) -> dict:
        """Fields of adapter_config.json that all methods have."""
        return {
            "base_model_name_or_path": self.saved.base,
            "modules_to_save": sorted(self.modules_to_save) or None,
            "inference_mode": True,
        }

    def config(self, is_ia3: bool) -> dict:
        """adapter_config.json of LoRA, DoRA or IA3."""
        task_types = {GPT: "CAUSAL_LM", Seq2Seq: "SEQ_2_SEQ_LM"}
        common = self.common() | {
            "peft_type": "IA3" if is_ia3 else "LORA",
            "task_type": task_types.get(type(self.saved.model)),
            "target_modules": sorted(self.targets),
            "fan_in_fan_out": any(spec.layout == "in_out" for spec in self.targets.values()),
        }
        if is_ia3:
            return common | {"feedforward_modules": self.inputs_scaled}
        rank = Counter(self.ranks.values()).most_common(1)[0][0]
        alpha = Counter(self.alphas.values()).most_common(1)[0][0]
        return common | {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {name: value for name, value in self.ranks.items() if value != rank},
            "alpha_pattern": {name: value for name, value in self.alphas.items() if value != alpha},
            "lora_dropout": 0.0,
            "bias": self.bias,
            "use_dora": any(name.endswith("lora_magnitude_vector") for name in self.tensors),
            "trainable_token_indices": self.token_rows or None,
        }
