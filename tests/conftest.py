"""Settings of every test process: fast compilation, a compilation cache for child processes, slow files first."""

import gc
import os
import shutil
import tempfile

import pytest

os.environ["TRANSFORMER_JAX_TUNING"] = "off"
# LLVM without its optimizations compiles much faster, and so do XLA's former emitters of loops (JAX 0.12 no longer
# has them and ignores the flag); XLA's own rewrites and fusions stay. As users run it: `XLA_FLAGS= pytest`.
FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ.setdefault("XLA_FLAGS", FAST)

import jax  # noqa: E402  the flags above come first; the cache below is for child processes, not for this one

CACHE = "TRANSFORMER_JAX_TEST_CACHE"

# Files that take longest, longest first: with -n 2, the suite ends with short files, which balance. Their tests have
# the marker "slow", and `make test-fast` skips them; the files that stay touch every room.
SLOW_FILES = (
    "test_tasks",
    "test_prefix",
    "test_finetune",
    "test_laws",
    "test_adapters_in_one_batch",
    "test_mutants",
    "test_speculative",
    "test_stop",
    "test_demo",
    "test_resume",
    "test_translate",
    "test_beam_search_rules",
    "test_engine",
    "test_attention_maps",
    "test_adapters",
    "test_session",
    "test_engine_overflow",
    "test_generate_tokens",
    "test_quantization",
    "test_hostile_folders",
    "test_predict",
    "test_step",
    "test_pretrained",
    "test_config_variants",
    "test_compatibility",
    "test_linear_attention",
    "test_packing",
    "test_line_commands",
    "test_generation_config",
    "test_constrained",
    "test_decode_equivalence",
    "test_entropy_floor",
    "test_early_stopping",
    "test_startup",
    "test_attention_command",
    "test_explorer",
    "test_explorer_page",
    "test_kv_cache_rolling",
    "test_attention_blockwise",
    "test_packed_documents",
    "test_devices",
    "test_kv_cache_beams",
    "test_docs",
    "test_seq2seq",
    "test_settings",
    "test_encoder",
    "test_beam_search",
    "test_attention_cpu",
)

# Tracing creates very many objects, and hardly any cycles: fewer collections save a tenth of the time.
gc.set_threshold(100_000, 20, 100)


def pytest_configure(config):
    """One folder of compiled programs for the child processes of all workers, which mostly compile the same ones."""
    if CACHE not in os.environ:  # the first process of the session; workers inherit its environment
        os.environ[CACHE] = tempfile.mkdtemp(prefix="transformer_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[CACHE]
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Slow files first, and marked; the order within a file stays."""
    order = {name: i for i, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.path.stem in order:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # imported modules stay; collections need not visit them again


@pytest.fixture(scope="module")
def compilation_cache():
    """The same folder for this process: for modules that train the same model several times."""
    from jax.experimental.compilation_cache import compilation_cache as cache

    before = jax.config.jax_persistent_cache_min_compile_time_secs
    cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    cache.reset_cache()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, a file stays in one process, which compiles once for all its tests."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
