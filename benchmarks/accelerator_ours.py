"""Worker of benchmarks/accelerator_training.py: our training step at GPT-2's shape; protocol: train_torch.py."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup

startup.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import rates  # noqa: E402

import transformer_jax as tj  # noqa: E402
from train import flops, loop  # noqa: E402
from train.config import Config  # noqa: E402
from train.initialization import InitFrom  # noqa: E402
from train.losses import causal_lm  # noqa: E402
from train.optimizer import make_optimizer  # noqa: E402
from transformer_jax.models import GPT  # noqa: E402


class TrainingStep:
    """Our compiled training step, as `python -m train` runs it: donation, chunked loss, steps that share a call.

    Args:
      setup: `model`, a TransformerConfig as a dict; `weights`, a Hugging Face folder, or "" for random ones; `lr`.
      batches: tokens [n, B, T + 1], which are repeated; the last ones may be repeated to fill a call.
      steps_per_call: steps that one call of the compiled program can take.
    """

    def __init__(self, setup: dict, batches: np.ndarray, remat: str, steps_per_call: int):
        self.batches = batches
        self.config = Config.from_dict(
            {
                "model": setup["model"],
                "optimizer": {"peak_lr": setup["lr"], "schedule": "constant", "warmup_steps": 0},
                "train": {"batch_size": batches.shape[1], "remat": remat, "log_every": 1},
            }
        )
        model = GPT(self.config.model)
        optimizer = make_optimizer(self.config.optimizer, self.config.train.num_steps)
        self._parallel = loop.build_parallel(self.config, model, causal_lm, optimizer)
        params = tj.from_pretrained(setup["weights"]).params if setup["weights"] else None
        state = loop.init_state(self.config, model, optimizer, InitFrom())[0]
        self.state = self._parallel.put(state if params is None else state.replace(params=params))
        self.flops_per_token = flops.flops_per_token(self.state.params, self.config.model)
        self.steps_per_call = steps_per_call
        self._done = 0
        began = time.perf_counter()
        lowered = self._parallel._train.lower(self.state, self._next_batches(), np.int32(1))  # of the same jit
        self.has_cudnn = "fmha" in lowered.as_text()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - began

    def _next_batches(self) -> dict[str, jax.Array]:
        """The next call's batches, on the device; the copy goes on while the device works."""
        tokens = self.batches[(self._done + np.arange(self.steps_per_call)) % len(self.batches)]
        return jax.device_put(
            {"tokens": tokens, "is_token": np.ones(tokens.shape, bool)}, self._parallel._rows_of_steps
        )

    def run(self, n: int) -> float:
        """Take n steps (a multiple of `steps_per_call`, or 1) and wait. Returns the last step's loss."""
        taken = min(n, self.steps_per_call)
        for _ in range(n // taken):
            self.state = self.compiled(self.state, self._next_batches(), np.int32(taken))
            self._done += taken
        return float(self.state.accumulator.loss_sum / self.state.accumulator.weight_sum)

    def seconds(self, at_least: float, least_steps: int = 4) -> float:
        """Seconds of a step: enough steps to fill `at_least` seconds, after one call that is not timed."""
        self.run(self.steps_per_call)
        began = time.perf_counter()
        steps = 0
        while steps < least_steps or time.perf_counter() - began < at_least:
            self.run(self.steps_per_call)
            steps += self.steps_per_call
        return (time.perf_counter() - began) / steps

    def memory(self) -> dict[str, int | None]:
        """Bytes: as the compiler plans them, and the most that the process has had on the device so far."""
        analysis = self.compiled.memory_analysis()
        stats = jax.devices()[0].memory_stats() or {}
        return {
            "arguments_bytes": analysis.argument_size_in_bytes,  # donated: the results take their place
            "temporary_bytes": analysis.temp_size_in_bytes,
            "peak_bytes_in_use": stats.get("peak_bytes_in_use"),
            "bytes_limit": stats.get("bytes_limit"),
        }


def try_step(setup: dict, order: dict) -> tuple[TrainingStep | None, dict]:
    """Build and time a step; out of memory is an answer, by the plan of the compiler or by the device."""
    random = np.random.default_rng(0)
    batches = random.integers(setup["model"]["vocab_size"], size=(4, order["batch"], setup["model"]["max_len"] + 1))
    try:
        step = TrainingStep(setup, batches.astype(np.int32), order["remat"], order["steps_per_call"])
        memory = step.memory()
        planned = memory["arguments_bytes"] + memory["temporary_bytes"]
        if memory["bytes_limit"] and planned > memory["bytes_limit"]:
            return None, {"out_of_memory": f"the compiler plans {planned / 1e9:.1f} GB", **memory}
        seconds = step.seconds(order["seconds"])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, {"out_of_memory": str(error)[:200]}
    tokens = order["batch"] * setup["model"]["max_len"]
    return step, {
        "tokens_per_second": round(tokens / seconds),
        "ms_per_step": round(seconds * 1e3, 2),
        "compile_seconds": round(step.compile_seconds, 1),
        "has_cudnn_attention": step.has_cudnn,
        **step.memory(),
    }


def main():
    setup = json.loads(sys.stdin.readline())
    step: TrainingStep | None = None

    def answer(value):
        print(json.dumps(value), flush=True)

    answer({})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "rates":
            answer(
                {
                    "bfloat16_tflops": round(rates.product_tflops(order["product"]), 3),
                    "copy_gb_per_second": round(rates.copy_bandwidth(order["copy_mb"] << 20) / 1e9, 1),
                }
            )
        elif order["do"] == "try":
            step = None  # frees the memory of the one before
            step, figures = try_step(setup, order)
            answer(figures | ({"flops_per_token": step.flops_per_token} if step else {}))
        elif order["do"] == "losses":  # of a fresh step with the given batches, from the given weights
            step = None
            step = TrainingStep(setup, np.load(setup["batches"]), order["remat"], order["steps_per_call"])
            answer([step.run(1) for _ in range(order["steps"])])
        elif order["do"] == "time":
            answer(step.seconds(order["seconds"]))
        elif order["do"] == "memory":
            answer(step.memory())


if __name__ == "__main__":
    main()
