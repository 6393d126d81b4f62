import os

os.environ.setdefault("TRANSFORMER_JAX_TUNING", "off")  # tests and the commands they start leave the machine alone
