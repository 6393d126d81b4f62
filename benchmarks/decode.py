"""Decoding speed, compared with the reference library's `generate` and CTranslate2.

    make bench-env                          once: the rivals in their own environment, .bench
    python benchmarks/decode.py             about ten minutes; writes benchmarks/results/decode.json
    python benchmarks/decode.py --device=gpu    the GPU cases, compared with the compiled reference library

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
from worker import TORCH_PYTHON, Worker, torch_python

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", help="one case: " + ", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch_python", default=TORCH_PYTHON)
    args = parser.parse_args()
    cases = CASES if args.device == "cpu" else GPU_CASES
    if args.only and args.only not in cases:
        parser.error(f"--only={args.only}: must be one of {', '.join(cases)}")
    cases = {args.only: cases[args.only]} if args.only else cases
    python = torch_python(parser, args.torch_python)
    rng = np.random.default_rng(0)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = {"folder": folder, "device": {"cpu": "cpu", "gpu": "cuda"}[args.device]}
        rivals = {  # the first one creates the models
            name: Worker(python, "decode_rivals.py", {**setup, "rival": name, "make_models": name == RIVALS[0]}, {})
            for name in (RIVALS if args.device == "cpu" else RIVALS[:1])
        }
        workers = {"ours": Worker(sys.executable, "decode_ours.py", setup, {}), **rivals}
        for name, (num_rows, length, order) in cases.items():
            rows = rng.integers(1, 30000, (num_rows, length)).tolist()
            results[name] = measure(workers, rows, order, args.rounds)
            print(name, json.dumps(results[name]), flush=True)
        bare = {"model": "bare", "rows": [], "num_new": 128, "num_beams": 1}
        bare = [workers["ours"].ask(**bare)["seconds"] for _ in range(1 + args.rounds)][1:]
        results["bare_products_ms"] = round(statistics.median(bare) / 128 * 1e3, 2)
    name = f"decode_{args.only}" if args.only else "decode" if args.device == "cpu" else "decode_gpu"
    print(f"written: {report.save(name, results, rivals[RIVALS[0]].hello)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
