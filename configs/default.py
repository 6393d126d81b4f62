"""Every field with its default, locked. The fields and their meanings: `train/config.py`, or --help."""

import ml_collections

from train.config import Config
from transformer_jax.schema import config_fields


def get_config() -> ml_collections.ConfigDict:
    """The default configuration; recipes change a few fields of it."""
    sections = {}
    for name, field in config_fields(Config).items():
        section, leaf = name.split(".")
        sections.setdefault(section, {})[leaf] = field.default
    return ml_collections.ConfigDict(sections).lock()
