"""Part of benchmarks/accelerator.py: decoding GPT-2 at batch 1 and 64 in bfloat16, as benchmarks/decode.py does.

Beside the reference library's `generate` with its static cache, which it compiles on a GPU. A decode step must read
every weight and the KV cache: the bytes, over the bandwidth of a copy measured here, are the least time of a step.
"""

import os
import sys
import tempfile

import decode
import numpy as np
from accelerator_part import Part, start
from worker import Worker

ROUNDS = 3
# Programs that run a whole loop as one CUDA graph, without a launch by the host for each kernel; XLA's default may
# leave loops out. Tried in a process of its own: XLA ends a process that gives it a flag it does not know.
GRAPHS = (
    "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
)


def cache_bytes(model: dict, num_rows: int, length: float) -> float:
    """Bytes of keys and values, in bfloat16, that a step reads: of tokens, not of the slots that are empty yet."""
    return 2 * 2 * model["num_layers"] * model["d_model"] * num_rows * length


def add_share_of_bandwidth(part: Part, figures: dict, weights: int, bandwidth: float, case: tuple) -> dict:
    """Add our milliseconds of a step without the prefill, and the share of the bandwidth that they mean."""
    num_rows, num_prompt, order = case
    num_new = order["num_new"]
    ours = figures["ours"]
    ms = (ours["seconds"] * 1e3 - ours["first_token_ms"]) / (num_new - 1)
    read = weights + cache_bytes(part.shape["model"], num_rows, num_prompt + num_new / 2)
    return figures | {
        "ms_per_step_without_prefill": round(ms, 4),
        "tokens_per_second": round(num_rows / ms * 1e3),
        "bytes_read_per_step": round(read),
        "share_of_bandwidth": round(read / (ms * 1e-3) / bandwidth, 3),
    }


def main():
    part = start()
    shape = part.settings["shape"]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        if not part.torch_python:  # the rival also makes the models
            part.report("failed", "needs torch and transformers, which make the models and are the rival")
            return
        workers = decode.start_workers(folder, decode.RIVALS[:1], part.torch_python, part.device, True, shape)
        part.report("versions", workers["transformers"].hello)
        bandwidth = workers["ours"].ask(model="copy", num_bytes=part.shape["copy_mb"] << 20)["tokens"]
        weights = workers["ours"].hello["num_bytes"]
        part.report("copy_gb_per_second", round(bandwidth / 1e9, 1))
        part.report("weight_bytes", weights)
        for name, case in decode.GPU_CASES.items():
            num_rows, length, order = case
            order = {**order, "num_new": 128 if part.is_gpu else 16}
            rows = random.integers(1, 30000, (num_rows, length)).tolist()
            figures = part.attempt(name, decode.measure, workers, rows, order, ROUNDS)
            if figures:
                case = (num_rows, length, order)
                part.report(name, add_share_of_bandwidth(part, figures, weights, bandwidth, case))
        for worker in workers.values():
            worker.close()
        if part.is_gpu and part.time_left() > 15:
            part.attempt("with_cuda_graphs", with_graphs, part, folder)


def with_graphs(part: Part, folder: str) -> None:
    """Milliseconds of our batch-1 step where loops are CUDA graphs."""
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {GRAPHS}".strip()}
    setup = {"folder": folder, "device": "cuda", "is_half": True}
    worker = Worker(sys.executable, "decode_ours.py", setup, decode.ON_GPU | flags)
    _, length, order = decode.GPU_CASES["gpt2_greedy_1"]
    rows = np.random.default_rng(0).integers(1, 30000, (1, length)).tolist()
    seconds = [worker.ask(rows=rows, **order)["seconds"] for _ in range(1 + ROUNDS)][1:]
    part.report("with_cuda_graphs", {"ms_per_step": round(sorted(seconds)[ROUNDS // 2] / order["num_new"] * 1e3, 3)})
    worker.close()


if __name__ == "__main__":
    main()
