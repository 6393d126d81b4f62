"""Every field with its default, locked. The fields and their meanings: `train/config.py`, or `train --help`."""

import ml_collections

from transformer_jax import import_training
from transformer_jax.schema import config_fields


def get_config() -> ml_collections.ConfigDict:
    """The default configuration; recipes change a few fields of it."""
    sections: dict[str, dict] = {}
    for name, field in config_fields(import_training("config").Config).items():
        section, leaf = name.split(".")
        sections.setdefault(section, {})[leaf] = field.default
    return ml_collections.ConfigDict(sections).lock()
