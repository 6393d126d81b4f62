"""The commands of `python -m transformer_jax`, one short module each."""
