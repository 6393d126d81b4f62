"""Training speed, compared with a PyTorch twin of the same model.

    make bench-env                                    once: PyTorch in its own environment, .bench
    python benchmarks/train.py --shape=small|large    a few minutes; writes benchmarks/results/train_SHAPE.json

Both start from the same weights and take the same batches; first they must compute the same losses over ten optimizer
steps. Then they are timed in turn, one idle while the other works: medians of rounds, and their ratio, which depends
least on the hour and the machine. Exit code 1 if losses differ.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile

import numpy as np
import report
from worker import Worker, torch_python

VOCAB_SIZE = 68
LR = 1e-3
COMPARED_STEPS = 10
SHAPES = {  # nanoGPT's recipes for a CPU and for a GPU: shape, batch size, timed rounds, steps in a round
    "small": ({"num_layers": 4, "d_model": 128, "num_heads": 4, "max_len": 64}, 12, 15, 50),
    "large": ({"num_layers": 6, "d_model": 384, "num_heads": 6, "max_len": 256}, 64, 5, 1),
}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--torch_python", default="", help="default: .bench/bin/python")
    args = parser.parse_args()
    shape, batch_size, rounds, steps = SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as folder:
        batches = np.random.default_rng(0).integers(VOCAB_SIZE, size=(10, batch_size, shape["max_len"] + 1))
        np.save(f"{folder}/batches.npy", batches.astype(np.int32))
        setup = {
            "shape": shape,
            "vocab_size": VOCAB_SIZE,
            "lr": LR,
            "batches": f"{folder}/batches.npy",
            "weights": f"{folder}/weights.npz",
            "threads": len(os.sched_getaffinity(0)),
        }
        ours = Worker(sys.executable, "train_ours.py", setup, {})
        torch = Worker(
            torch_python(parser, args.torch_python), "train_torch.py", setup, HUGE_PAGES
        )  # loads the weights that ours saved
        losses = [worker.ask(do="losses", steps=COMPARED_STEPS) for worker in (ours, torch)]
        difference = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
        print(
            f"loss of step 1 and {COMPARED_STEPS}, ours and PyTorch's: {losses[0][0]:.6f} {losses[1][0]:.6f}, "
            f"{losses[0][-1]:.6f} {losses[1][-1]:.6f}; largest relative difference {difference:.1e}"
        )
        if difference > 1e-4:
            return 1
        tokens = batch_size * shape["max_len"]
        seconds: tuple[list[float], list[float]] = ([], [])
        gflops: tuple[list[float], list[float]] = ([], [])
        for i in range(rounds):
            for worker, s, g in zip((ours, torch), seconds, gflops, strict=True):
                worker.ask(do="losses", steps=1)  # not timed: a virtual machine may have reclaimed the memory meanwhile
                s.append(worker.ask(do="time", steps=steps))
                g.append(worker.ask(do="matmul", rows=tokens))
            print(
                f"round {i + 1}: ours {seconds[0][-1] * 1e3:,.1f} ms, PyTorch {seconds[1][-1] * 1e3:,.1f} ms per step"
            )
        memory = [worker.ask(do="memory") for worker in (ours, torch)]
    medians = [statistics.median(s) for s in seconds]
    flops = tokens * ours.hello["flops_per_token"]
    figures = {"shape": {**shape, "batch_size": batch_size}, "largest_relative_loss_difference": difference}
    for name, median, s, g, peak in zip(("ours", "torch"), medians, seconds, gflops, memory, strict=True):
        figures[name] = {
            "ms_per_step": round(median * 1e3, 2),
            "rounds_ms": [round(x * 1e3, 2) for x in s],
            "tokens_per_second": round(tokens / median),
            "matmul_gflops": round(statistics.median(g)),
            "share_of_matmul_rate": round(flops / median / 1e9 / statistics.median(g), 3),
            "peak_memory_mb": round(peak / 1e6),
        }
    figures["times_as_fast_as_torch"] = round(statistics.median(t / o for o, t in zip(*seconds, strict=True)), 3)
    print(json.dumps(figures, indent=1))
    print(f"written: {report.save(f'train_{args.shape}', figures, torch.hello)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
