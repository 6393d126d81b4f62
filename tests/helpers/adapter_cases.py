"""Adapters that PEFT wrote (tests/fixtures/adapters), their bases, and both together."""

import functools
import json
from pathlib import Path

import transformer_jax as tj

FIXTURES = Path(__file__).parents[1] / "fixtures"
CASES = sorted(path.name for path in (FIXTURES / "adapters").iterdir())
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def config_of(folder):
    """The settings of an adapter in a folder."""
    return json.loads((folder / CONFIG).read_text())


@functools.cache
def base_of(case):
    name = Path(config_of(FIXTURES / "adapters" / case)["base_model_name_or_path"]).name
    square = FIXTURES / "adapter_bases" / name  # as many layers on both sides: PEFT's prefixes need that
    return tj.from_pretrained(square if square.exists() else FIXTURES / name)


@functools.cache
def run_of(case):
    return tj.load_adapter(base_of(case), FIXTURES / "adapters" / case)
