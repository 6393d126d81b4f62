"""Decoding speed, compared with the reference library's `generate` and CTranslate2.

    make bench-env                          once: the rivals in their own environment, .bench
    python benchmarks/decode.py             about ten minutes; writes benchmarks/results/decode.json
    python benchmarks/decode.py --device=gpu    the GPU cases, compared with the compiled reference library
    python benchmarks/decode.py --cases=gpu --shape=tiny    the code of the GPU cases on a CPU: not for its figures

GPT-2's shape (124M parameters), prompts of 32 tokens, 128 new ones; Marian's (6 + 6 layers, width 512, 32,000 ids),
sources of 24 tokens, 32 new ones. float32 on a CPU, bfloat16 on a GPU. All have the same random weights and the same
prompts, and take turns: medians of rounds, with prefill, without compilation. Their tokens are compared first, and
sequences that differ are counted (two best tokens may be equal up to rounding).
"""

import argparse
import json
import statistics
import sys
import tempfile

import numpy as np
import report
from worker import Worker, torch_python

RIVALS = ("transformers", "ctranslate2")
GPT2 = {"model": "gpt2", "num_new": 128}
CASES = {  # name: (rows, tokens in each, order)
    "gpt2_greedy_1": (1, 32, {**GPT2, "num_beams": 1}),
    "gpt2_greedy_8": (8, 32, {**GPT2, "num_beams": 1}),
    "gpt2_beam4_1": (1, 32, {**GPT2, "num_beams": 4}),
    "gpt2_beam4_8": (8, 32, {**GPT2, "num_beams": 4}),
    "marian_beam4_16": (16, 24, {"model": "marian", "num_new": 32, "num_beams": 4}),
}
GPU_CASES = {"gpt2_greedy_1": CASES["gpt2_greedy_1"], "gpt2_greedy_64": (64, 32, {**GPT2, "num_beams": 1})}
SHAPES = {"gpt2": {}, "tiny": {"n_layer": 2, "n_embd": 48, "n_head": 3}}  # as the reference library names them
ON_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # leaves the rival its memory


def measure(workers: dict[str, Worker], rows: list[list[int]], order: dict, rounds: int) -> dict:
    """Time one case: seconds of each worker, medians, and our speed relative to each rival."""
    first = {name: worker.ask(rows=rows, **order) for name, worker in workers.items()}
    seconds = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.ask(rows=rows, **order)["seconds"])
    one_token = {
        name: [worker.ask(rows=rows, **{**order, "num_new": 1})["seconds"] for _ in range(1 + rounds)][1:]
        for name, worker in workers.items()
    }
    ours = seconds["ours"]
    figures = {"first_call_less_later_s": round(first["ours"]["seconds"] - statistics.median(ours), 2)}
    for name, taken in seconds.items():
        figures[name] = {
            "seconds": round(statistics.median(taken), 3),
            "ms_per_step": round(statistics.median(taken) / order["num_new"] * 1e3, 2),
            "first_token_ms": round(statistics.median(one_token[name]) * 1e3, 1),
            "rounds_s": [round(s, 3) for s in taken],
        }
        if name != "ours":
            pairs = zip(taken, ours, strict=True)
            figures[f"times_as_fast_as_{name}"] = round(statistics.median(t / o for t, o in pairs), 3)
            same = sum(a == b for a, b in zip(first[name]["tokens"], first["ours"]["tokens"], strict=True))
            figures[f"texts_as_{name}"] = f"{same} of {len(rows)}"
    return figures


def start_workers(
    folder: str, rivals: tuple[str, ...], python: str, device: str, is_half: bool, shape: str
) -> dict[str, Worker]:
    """Start ours and the rivals, of which the first makes the models."""
    setup = {"folder": folder, "device": {"cpu": "cpu", "gpu": "cuda"}[device], "is_half": is_half}
    of_rivals = {**setup, "rivals": rivals, "shape": SHAPES[shape]}
    started = {
        name: Worker(python, "decode_rivals.py", {**of_rivals, "rival": name, "make_models": name == rivals[0]}, {})
        for name in rivals
    }
    return {"ours": Worker(sys.executable, "decode_ours.py", setup, ON_GPU if device == "gpu" else {}), **started}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--cases", choices=("cpu", "gpu"), help="default: those of --device; of a GPU: in bfloat16")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--only", help="one case: " + ", ".join(CASES | GPU_CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--torch_python", default="", help="default: .bench/bin/python, or this Python if that is missing"
    )
    args = parser.parse_args()
    is_half = (args.cases or args.device) == "gpu"
    cases = GPU_CASES if is_half else CASES
    if args.only and args.only not in cases:
        parser.error(f"--only={args.only}: must be one of {', '.join(cases)}")
    cases = {args.only: cases[args.only]} if args.only else cases
    python = torch_python(parser, args.torch_python)
    rivals = RIVALS[:1] if is_half else RIVALS
    rng = np.random.default_rng(0)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        workers = start_workers(folder, rivals, python, args.device, is_half, args.shape)
        for name, (num_rows, length, order) in cases.items():
            rows = rng.integers(1, 30000, (num_rows, length)).tolist()
            results[name] = measure(workers, rows, order, args.rounds)
            print(name, json.dumps(results[name]), flush=True)
        bare = {"model": "bare", "rows": [], "num_new": 128, "num_beams": 1}
        bare = [workers["ours"].ask(**bare)["seconds"] for _ in range(1 + args.rounds)][1:]
        results["bare_products_ms"] = round(statistics.median(bare) / 128 * 1e3, 2)
    name = "_".join(filter(None, ("decode", is_half and args.device, args.shape.replace("gpt2", ""), args.only)))
    print(f"written: {report.save(name, results, workers[RIVALS[0]].hello)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
