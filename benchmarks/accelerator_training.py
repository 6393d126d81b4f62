"""Part of benchmarks/accelerator.py: training GPT-2 in bfloat16, beside the reference library under torch.compile.

Batch and rematerialization are searched for ours, the batch for the rival; both take the same first steps, whose losses
are compared; then they are timed in turn. At last the training loop itself, data and logs included.
"""

import json
import math
import statistics
import sys
import tempfile

import accelerator_part
import numpy as np
from accelerator_part import NO_PREALLOCATION, Part
from worker import Worker

LR = 6e-4
COMPARED_STEPS = 3
LOSS_TOLERANCE = 5e-3  # relative: both round activations to bfloat16, in other places


def search_ours(part: Part, worker: Worker, setup: dict) -> dict:
    """Try batches without rematerialization; where memory ends, with it. Returns the fastest: batch, remat, figures.

    A worker that dies of what it tries is replaced, and the last one is ended.
    """
    tried: list[dict] = []

    def attempt(batch: int, remat: str, steps_per_call: int) -> bool:
        nonlocal worker
        order = {"batch": batch, "remat": remat, "steps_per_call": steps_per_call}
        try:
            figures = worker.ask(do="try", seconds=3.0 if part.is_gpu else 0.5, **order)
        except SystemExit as error:
            figures = {"failed": str(error)}
            worker = Worker(sys.executable, "accelerator_ours.py", setup, {})
        tried.append({**order, **figures})
        part.report(f"search/ours/batch {batch}, remat {remat}, {steps_per_call} a call", figures)
        return "ms_per_step" in figures

    batches = part.shape["batches"]
    has_room = True
    for batch in batches:
        if tried and part.time_left(0.33) < 0:
            break
        if has_room or batch < max(row["batch"] for row in tried):
            fits = attempt(batch, "none", 1)
            has_room = has_room and fits
            if not fits and part.time_left(0.33) > 0:
                attempt(batch, "block", 1)
    timed = [row for row in tried if "ms_per_step" in row]
    best = max(timed, key=lambda row: row["tokens_per_second"])
    for remat, steps_per_call in (("none", 8), ("attention", 1)):
        if part.time_left(0.37) > 0:
            attempt(best["batch"], best["remat"] if remat == "none" else remat, steps_per_call)
    worker.close()
    return max((row for row in tried if "ms_per_step" in row), key=lambda row: row["tokens_per_second"])


def search_torch(part: Part, worker: Worker, ours: dict) -> dict:
    """Try the rival's batches, as far as time allows: each is compiled anew. The fastest that fits beside ours."""
    tried: list[dict] = []
    for batch in part.shape["batches"]:
        if tried and part.time_left(0.6) < 0:
            break
        figures = worker.ask(do="try", batch=batch, seconds=3.0 if part.is_gpu else 0.5)
        part.report(f"search/torch/batch {batch}", figures)
        if "ms_per_step" in figures:
            tried.append({"batch": batch, **figures})
    best = max(tried, key=lambda row: row["tokens_per_second"])
    ratio = round(ours["tokens_per_second"] / best["tokens_per_second"], 3)
    part.report("search/times_as_fast_as_torch", ratio)  # of the two searches, for a run that is cut off
    memory = ours["arguments_bytes"] + ours["temporary_bytes"]
    fitting = [row for row in tried if memory + row.get("peak_bytes", 0) < 0.9 * row.get("device_bytes", math.inf)]
    return max(fitting or tried, key=lambda row: row["tokens_per_second"])


def compare(part: Part, ours: Worker, torch: Worker, best: dict) -> None:
    """Losses of the same steps, from the same weights, with the same batches."""
    order = {"remat": best["remat"], "steps_per_call": best["steps_per_call"], "steps": COMPARED_STEPS}
    our_losses = ours.ask(do="losses", **order)
    theirs = torch.ask(do="losses", steps=COMPARED_STEPS)
    difference = max(abs(a - b) / b for a, b in zip(our_losses, theirs["losses"], strict=True))
    figures = {"ours": our_losses, "torch": theirs["losses"], "largest_relative_difference": difference}
    figures |= {"tolerance": LOSS_TOLERANCE, "passed": difference <= LOSS_TOLERANCE}
    part.report("losses", figures)
    part.report("torch_has_causal_attention_without_a_mask", theirs["has_causal_attention"])


def measure_rounds(part: Part, ours: Worker, torch: Worker | None, best: dict, best_torch: dict, rates: dict) -> None:
    """Time both in turn, each with its own best batch. Every round replaces the figures of those before."""
    length = part.shape["model"]["max_len"]
    speeds: dict[str, list[float]] = {"ours": [], "torch": []}
    rounds = 5 if part.is_gpu else 2
    for i in range(rounds):
        if i and part.time_left(0.75) < 0:
            break
        seconds = 2.0 if part.is_gpu else 0.3
        speeds["ours"].append(best["batch"] * length / ours.ask(do="time", seconds=seconds))
        if torch:
            taken = torch.ask(do="time", batch=best_torch["batch"], seconds=seconds)
            speeds["torch"].append(best_torch["batch"] * length / taken)
        speed = statistics.median(speeds["ours"])
        utilization = speed * best["flops_per_token"] / rates["bfloat16_tflops"] / 1e12
        figures = {
            "tokens_per_second": round(speed),
            "model_flops_utilization": round(utilization, 3),  # of the product's rate that was measured here
            "rounds_tokens_per_second": [round(s) for s in speeds["ours"]],
            "memory": ours.ask(do="memory"),
        }
        if torch:
            ratios = [a / b for a, b in zip(speeds["ours"], speeds["torch"], strict=True)]
            figures["torch_tokens_per_second"] = round(statistics.median(speeds["torch"]))
            figures["times_as_fast_as_torch"] = round(statistics.median(ratios), 3)
        part.report("rounds", figures)


def run_loop(part: Part, best: dict) -> None:
    """Tokens a second of the training loop at the same shape: batches from a text, metrics, the log."""
    setup = {"model": part.shape["model"], "best": best, "num_steps": 40, "log_every": 20, "lr": LR}
    worker = Worker(sys.executable, "accelerator_loop.py", setup, {})
    part.report("loop", worker.hello)
    worker.close()


def main():
    part = accelerator_part.start()
    with tempfile.TemporaryDirectory() as folder:
        setup = {"model": part.shape["model"], "lr": LR, "weights": "", "batches": f"{folder}/batches.npy"}
        ours = Worker(sys.executable, "accelerator_ours.py", setup, {})
        rates = ours.ask(do="rates", product=part.shape["product"], copy_mb=part.shape["copy_mb"])
        part.report("rates", rates)
        best = search_ours(part, ours, setup)
        part.report("best", best)
        best_torch: dict = {}
        torch: Worker | None = None
        setup["weights"] = f"{folder}/weights"
        if part.torch_python:
            of_torch = {**setup, "device": {"gpu": "cuda", "cpu": "cpu"}[part.device]}
            torch = part.attempt("torch", Worker, part.torch_python, "accelerator_torch.py", of_torch, {})
        if torch:
            part.report("versions", torch.hello)
            best_torch = part.attempt("search/torch", search_torch, part, torch, best) or {}
            part.report("best_torch_beside_ours", best_torch)
        size = (COMPARED_STEPS, best["batch"], part.shape["model"]["max_len"] + 1)
        tokens = np.random.default_rng(1).integers(part.shape["model"]["vocab_size"], size=size)
        np.save(setup["batches"], tokens.astype(np.int32))
        setup["weights"] = setup["weights"] if best_torch else ""
        ours = Worker(sys.executable, "accelerator_ours.py", setup, NO_PREALLOCATION)
        if best_torch:
            part.attempt("losses", compare, part, ours, torch, best)
        else:
            ours.ask(do="losses", remat=best["remat"], steps_per_call=best["steps_per_call"], steps=1)
        part.attempt("rounds", measure_rounds, part, ours, torch if best_torch else None, best, best_torch, rates)
        for worker in filter(None, (ours, torch)):
            worker.close()
    part.attempt("loop", run_loop, part, best)
    print(json.dumps({"name": "done", "value": True}), flush=True)


if __name__ == "__main__":
    main()
