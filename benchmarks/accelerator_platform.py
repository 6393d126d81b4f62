"""Worker of benchmarks/accelerator_checks.py: results that must not depend on the platform, as arrays.

It runs once on the device and once in a process that has only the CPU, in float32 at the highest precision of
products: NVIDIA's GPUs may round the factors of a float32 product to ten bits (TF32). Weights come from numpy, since
random normal numbers may differ in their last bit between platforms.
"""

import functools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_jax import startup

startup.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

import transformer_jax as tj  # noqa: E402
from train import loop  # noqa: E402
from train.config import Config  # noqa: E402
from train.initialization import InitFrom  # noqa: E402
from train.losses import causal_lm  # noqa: E402
from train.optimizer import make_optimizer  # noqa: E402
from transformer_jax.config import TransformerConfig  # noqa: E402
from transformer_jax.models import GPT, Model, Params, Seq2Seq, Seq2SeqConfig, parameter_shapes  # noqa: E402
from transformer_jax.nn.dropout import keep_mask  # noqa: E402
from transformer_jax.run import Run  # noqa: E402
from transformer_jax.sampling import GenerationDefaults  # noqa: E402

SMALL = dict(vocab_size=97, max_len=64, num_layers=2, d_model=48, num_heads=3)
NUM_STEPS = 3


def numpy_params(model: Model, std: float) -> Params:
    """Weights from numpy's generator: norms start at 1, everything else is drawn."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        drawn = std * random.standard_normal(leaf.shape).astype(np.float32)
        return 1 + drawn if path[-1].key == "scale" else drawn

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(model))


def flat(params: Params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def training() -> dict[str, np.ndarray]:
    """Three steps of AdamW with dropout: losses, gradient norms, and how far each parameter moved.

    Without biases of queries and keys: the keys' gradient is 0 but for rounding, and AdamW would make steps of that.
    """
    model = SMALL | {"dropout_rate": 0.1, "qkv_bias": False}
    config = Config.from_dict(
        {
            "model": model,
            "optimizer": {"schedule": "constant", "warmup_steps": 0},
            "train": {"batch_size": 8, "log_every": 1},
        }
    )
    gpt = GPT(config.model)
    optimizer = make_optimizer(config.optimizer, NUM_STEPS)
    parallel = loop.build_parallel(config, gpt, causal_lm, optimizer)
    params = numpy_params(gpt, 0.05)
    state = loop.init_state(config, gpt, optimizer, InitFrom())[0].replace(
        params=jax.tree.map(jax.numpy.asarray, params)
    )
    state = parallel.put(state)
    tokens = np.random.default_rng(1).integers(SMALL["vocab_size"], size=(NUM_STEPS, 8, SMALL["max_len"] + 1))
    results = {}
    for i in range(NUM_STEPS):
        batch = tokens[i : i + 1].astype(np.int32)
        state = parallel.train(state, {"tokens": batch, "is_token": np.ones(batch.shape, bool)}, 1)
        loss = state.accumulator.loss_sum / state.accumulator.weight_sum
        results[f"loss/{i}"] = np.asarray(loss)
        results[f"grad_norm/{i}"] = np.asarray(state.grad_norm)
    before = flat(params)
    return results | {f"moved/{name}": x - before[name] for name, x in flat(state.params).items()}


def tokens() -> dict[str, np.ndarray]:
    """Greedy tokens of a GPT, and those of four beams of a Seq2Seq; weights so large that no two ids are near."""
    decoder = TransformerConfig(**SMALL)
    random = np.random.default_rng(2)
    prompts = [random.integers(SMALL["vocab_size"], size=n).tolist() for n in (5, 11, 7)]
    results = {}
    for name, model in {"gpt": GPT(decoder), "seq2seq": Seq2Seq(Seq2SeqConfig(decoder, decoder))}.items():
        params = jax.tree.map(jax.numpy.asarray, numpy_params(model, 0.3))
        defaults = GenerationDefaults() if name == "gpt" else GenerationDefaults(start_id=1, eos_ids=(2,))
        run = Run(model, params, None, model.config, generation_defaults=defaults)
        how = {"method": "greedy"} if name == "gpt" else {"method": "beam", "num_beams": 4}
        completions = tj.generate_tokens(run, prompts, max_new_tokens=23, **how)
        results |= {f"{name}/{i}": np.array(c.tokens) for i, c in enumerate(completions)}
    return results


def dropout() -> dict[str, np.ndarray]:
    """Masks for some keys and shapes, and random bits themselves."""
    shapes = ((3, 7, 11), (2, 5, 64, 64), (1000,))
    mask = jax.jit(keep_mask, static_argnums=(1, 2))
    masks = {f"{i}/{shape}": np.asarray(mask(jax.random.key(i), 0.3, shape)) for i in range(3) for shape in shapes}
    return masks | {"bits": np.asarray(jax.random.bits(jax.random.key(5), (1000,)))}


RESULTS = {"dropout": dropout, "training": training, "tokens": tokens}


def compute() -> dict[str, np.ndarray]:
    """All results, as "training/loss/0" and so on."""
    with jax.default_matmul_precision("highest"):
        return {f"{kind}/{name}": x for kind, function in RESULTS.items() for name, x in function().items()}


if __name__ == "__main__":
    print = functools.partial(print, flush=True)
    setup = json.loads(sys.stdin.readline())
    np.savez(setup["output"], **compute())
    print(json.dumps({"platform": jax.default_backend()}))
