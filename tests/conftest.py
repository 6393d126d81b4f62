import gc
import os

import pytest

os.environ["TRANSFORMER_JAX_TUNING"] = "off"
# LLVM without its optimizations compiles much faster, and so do XLA's former emitters of loops (JAX 0.12 has them no
# more and pays no heed); what XLA itself rewrites and fuses stays as it is. As users run it: `XLA_FLAGS= pytest`.
FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ.setdefault("XLA_FLAGS", FAST)


# Tracing makes very many objects, and hardly any in cycles: looking for those less often is a tenth of the time.
gc.set_threshold(100_000, 20, 100)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what is imported by now stays, and need not be looked at again


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, a file stays in one process, which compiles once for all its tests."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
