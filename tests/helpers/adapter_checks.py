"""Checks of several adapters in one batch, on one linear layer, and of an int8 kernel below one."""

import dataclasses
import importlib

import jax
import numpy as np

from helpers.fresh_models import normal


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The part of a run that chooses adapters."""

    adapter_rows: tuple[int, ...]


def adapter_rows():
    """Sequences with beams, each with the adapter of its text after sorting, give what each gives alone."""
    layer, whole = (importlib.import_module(f"transformer_jax.{name}.adapters") for name in ("nn", "models"))
    of_texts = importlib.import_module("transformer_jax.inference.adapter_names").of_texts
    kernel, x = normal(0, 7, 5), normal(1, 6, 3, 7)  # three texts with two beams
    lora = {"lora_in": normal(2, 7, 2), "lora_out": normal(3, 2, 5), "scale": np.full(1, 0.5, np.float32)}
    dora = {"lora_in": normal(4, 7, 3), "lora_out": normal(5, 3, 5), "scale": np.full(1, 2.0, np.float32)}
    dora["magnitude"] = 1.0 + normal(6, 5)
    layers = [{}, lora, dora, {"ia3_out": normal(7, 5), "ia3_in": normal(8, 7)}]

    def compute(adapter, x):
        rows = len(x)
        flat = layer.scale_inputs(adapter, x.reshape(-1, 7), rows)
        y = layer.add_low_rank(adapter, flat, flat @ kernel, kernel, rows)
        return np.asarray(layer.scale_outputs(adapter, y, rows)).reshape(rows, 3, 5)

    stacked = whole.stack([{"layer": adapter} for adapter in layers])
    for order in ([2, 0, 3], [1, 3, 0]):
        chosen = of_texts(Chosen((0, 1, 2, 3)), order).adapter_rows
        mixed = compute(whole.with_rows(stacked, chosen)["layer"], x)
        for row in range(6):
            alone = compute(layers[order[row // 2]], x)[row]
            np.testing.assert_allclose(mixed[row], alone, rtol=1e-4, atol=1e-5)


def int8_base():
    """An int8 kernel with several axes: its product, and the gradient of the inputs, are those of the kernel."""
    quantization = importlib.import_module("transformer_jax.nn.quantization")
    quantize = importlib.import_module("transformer_jax.models.quantization").quantize_params
    kernel, x = normal(0, 3, 5, 7), normal(1, 131, 15)
    small = quantization.Int8(**quantize({"out": {"kernel": kernel}})["out"]["kernel"])
    for rows in (x, x[:2]):
        y, pull_back = jax.vjp(lambda x: quantization.matmul(x, small), rows)
        np.testing.assert_allclose(y, rows @ kernel.reshape(15, 7), rtol=0, atol=0.3)
        np.testing.assert_allclose(pull_back(y)[0], y @ kernel.reshape(15, 7).T, rtol=0, atol=0.6)
