"""Training recipes: one short file each, with its command, cost and score. `default.py` has every field."""

import sys

# Recipes say `from configs import default`. Installed, this package is transformer_jax.recipes, and they still may.
sys.modules.setdefault("configs", sys.modules[__name__])
