import os

os.environ["TRANSFORMER_JAX_TUNING"] = "off"
# LLVM without its optimizations compiles much faster; what XLA itself rewrites and fuses stays as it is.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
