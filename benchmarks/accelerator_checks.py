"""Part of benchmarks/accelerator.py: is the device right? Attention, dropout, training, decoding, resuming."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from accelerator_part import NO_PREALLOCATION, ROOT, Part, start

from transformer_jax import startup

startup.prepare()

import accelerator_attention  # noqa: E402
import accelerator_platform  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from worker import HERE  # noqa: E402

CPU = {"JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
DEVICE = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", **NO_PREALLOCATION}
LOSS_TOLERANCE = 1e-5  # relative
MOVE_TOLERANCE = 1e-2  # of a parameter's movement over the steps, in norm: AdamW enlarges the smallest gradients
RESUME_TOLERANCE = 1e-4  # relative, of each loss


def child(script: str, setup: dict, environment: dict[str, str]) -> dict:
    """Run a worker to its end and return its only answer."""
    answer = subprocess.run(
        [sys.executable, str(HERE / script)],
        input=json.dumps(setup) + "\n",
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if answer.returncode:
        raise RuntimeError(f"{script}: {answer.stderr.strip()[-400:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def check_products(part: Part) -> None:
    """What a float32 product loses, by default and at the highest precision, in epsilons of float32."""
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((512, 512)).astype(np.float32) for _ in range(2))
    exact = x.astype(np.float64) @ y.astype(np.float64)
    figures = {}
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            out = jax.jit(jnp.matmul)(x, y)
        figures[f"{precision}_eps"] = accelerator_attention.error_in_epsilons(out, exact, "float32")
    part.report("float32_products", {**figures, "tolerance": 100, "passed": figures["highest_eps"] <= 100})


def check_platforms(part: Part, cpu: dict[str, np.ndarray]) -> None:
    """The device's results beside those of a process that has only the CPU."""
    device = accelerator_platform.compute()
    kinds = {kind: [name for name in cpu if name.startswith(f"{kind}/")] for kind in accelerator_platform.RESULTS}
    for kind in ("dropout", "tokens"):
        differing = [name for name in kinds[kind] if not np.array_equal(cpu[name], device[name])]
        part.report(kind, {"compared": len(kinds[kind]), "differing": differing, "passed": not differing})
    errors = {}
    for name in kinds["training"]:
        norm = float(np.linalg.norm(cpu[name])) or 1.0
        errors[name] = float(np.linalg.norm(device[name] - cpu[name])) / norm
    moved = max(error for name, error in errors.items() if "/moved/" in name)
    losses = max(error for name, error in errors.items() if "/moved/" not in name)
    passed = losses <= LOSS_TOLERANCE and moved <= MOVE_TOLERANCE
    tolerance = {"loss": LOSS_TOLERANCE, "moved": MOVE_TOLERANCE}
    part.report(
        "train_step", {"loss_error": losses, "parameter_error": moved, "tolerance": tolerance, "passed": passed}
    )


def check_resume(part: Part, folder: Path) -> None:
    """A run on the CPU, continued on the device and again on the CPU, beside one that never left the CPU."""
    text = folder / "text.txt"
    text.write_text("\n".join(str(n * n) for n in range(4000)))
    losses: dict[str, dict] = {"moved": {}, "stayed": {}}
    # Where the device is a CPU, there and back is one way.
    moved = ((4, CPU), (8, DEVICE), (12, CPU)) if part.is_gpu else ((4, CPU), (12, DEVICE))
    for name, plan in {"moved": moved, "stayed": ((12, CPU),)}.items():
        for num_steps, environment in plan:
            setup = {"text": str(text), "workdir": str(folder / name), "num_steps": num_steps}
            losses[name] = child("accelerator_loop.py", setup, environment)
    pairs = [(losses["moved"][step], loss) for step, loss in losses["stayed"].items()]
    error = max(abs(a - b) / b for a, b in pairs)
    part.report(
        "resume",
        {
            "steps": len(pairs),
            "largest_relative_loss_difference": error,  # another order of the data would show in the second digit
            "tolerance": RESUME_TOLERANCE,
            "passed": error <= RESUME_TOLERANCE and len(pairs) == 12,
        },
    )


def check_lowering(part: Part) -> None:
    """Without a GPU: the programs for one can at least be lowered."""
    if importlib.util.find_spec("pytest"):
        part.report("lowered_for_cuda", child("accelerator_lowering.py", {}, CPU | {"PYTHONPATH": str(ROOT / "tests")}))
    else:
        part.report("lowered_for_cuda", "not tried: needs pytest")


def main():
    part = start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not part.is_gpu:
            part.attempt("lowered_for_cuda", check_lowering, part)
        beside = [  # in processes of their own, while this one compiles
            threading.Thread(target=part.attempt, args=("resume", check_resume, part, folder)),
            threading.Thread(
                target=part.attempt,
                args=("cpu", child, "accelerator_platform.py", {"output": str(folder / "cpu.npz")}, CPU),
            ),
        ]
        for thread in beside:
            thread.start()
        part.attempt("float32_products", check_products, part)
        part.attempt("attention", accelerator_attention.check_backends, part)
        beside[1].join()
        part.attempt("platforms", lambda: check_platforms(part, dict(np.load(folder / "cpu.npz"))))
        beside[0].join()
        part.attempt("attention_ms", accelerator_attention.time_backends, part)  # alone, for its times


if __name__ == "__main__":
    main()
