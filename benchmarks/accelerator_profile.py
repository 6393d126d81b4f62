"""Part of benchmarks/accelerator.py: where the time of a training step and of a decode step goes."""

import tempfile
from pathlib import Path

import accelerator_ours  # which prepares the process
import accelerator_trace
import jax
import numpy as np
from accelerator_part import Part, start

import transformer_jax as tj
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, init_params
from transformer_jax.run import Run

STEPS = 3
NEW_TOKENS = 32


def traced(action, folder: str) -> Path:
    """Run an action under the profiler, without Python's own calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, profiler_options=options)
    action()
    jax.profiler.stop_trace()
    return Path(folder)


def report(part: Part, title: str, folder: Path, texts: dict[str, str], num_steps: int) -> None:
    """Report a trace's summary, and print it."""
    summary = accelerator_trace.summarize(accelerator_trace.read_kernels(folder, set(texts)), texts, num_steps)
    part.report(title, summary)
    if "failed" not in summary:
        print(accelerator_trace.table(title, summary), flush=True)


def training(part: Part) -> None:
    """Profile steps with the batch and the rematerialization that the search found best, if it ran."""
    best = {"batch": part.shape["batches"][0], "remat": "none"} | part.settings["best"]
    model = part.shape["model"]
    shape = (4, best["batch"], model["max_len"] + 1)
    tokens = np.random.default_rng(0).integers(model["vocab_size"], size=shape).astype(np.int32)
    setup = {"model": model, "lr": 6e-4, "weights": ""}
    step = accelerator_ours.TrainingStep(setup, tokens, best["remat"], 1)
    step.run(2)
    with tempfile.TemporaryDirectory() as folder:
        trace = traced(lambda: step.run(STEPS), folder)
        texts = accelerator_trace.instructions(step.compiled.as_text())
        report(part, f"training step, batch {best['batch']}, remat {best['remat']}", trace, texts, STEPS)


def decoding(part: Part) -> None:
    """Profile greedy decoding at batch 1, with its prefill."""
    config = TransformerConfig(**part.shape["model"])
    model = GPT(config)
    params = jax.jit(lambda key: jax.tree.map(lambda x: x.astype("bfloat16"), init_params(model, key)))(
        jax.random.key(0)
    )
    run = Run(model, params, None, config)
    prompt = np.random.default_rng(0).integers(config.vocab_size, size=(1, 8 if config.max_len < 64 else 32)).tolist()
    num_new = min(NEW_TOKENS, config.max_len // 2)

    def generate():
        tj.generate_tokens(run, prompt, method="greedy", max_new_tokens=num_new)

    generate()
    with tempfile.TemporaryDirectory() as folder:
        trace = traced(generate, folder)
        report(part, f"decode step, batch 1, prefill included, {num_new} tokens", trace, decode_texts(), num_new)


def decode_texts() -> dict[str, str]:
    """Instructions of the prefill and of the decode loop, from the programs that this process holds."""
    programs = jax.devices()[0].client.live_executables()
    modules = {module.name: module for program in programs for module in program.hlo_modules()}
    texts: dict[str, str] = {}
    for name in sorted(modules, key=lambda name: "decode" in name):  # an instruction of both is the loop's
        if "decode" in name or "prefill" in name:
            texts |= accelerator_trace.instructions(modules[name].to_string())
    return texts


def main():
    part = start()
    part.attempt("training step", training, part)
    part.attempt("decode step", decoding, part)


if __name__ == "__main__":
    main()
