"""Checkpoints of arrays that are not those of a model, and metadata edited by hand."""

import hashlib
import json

import numpy as np

from transformer_jax.checkpoints.meta import CheckpointMeta
from transformer_jax.checkpoints.store import Checkpoints, abstract
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT

MODEL = GPT(TransformerConfig(vocab_size=11, max_len=7, num_layers=1, d_model=6, num_heads=2))

STEPS = (5, 10, 15)
SEAL = "sha256.json"


def meta_of(step, val_score=None):
    return CheckpointMeta(step, MODEL, None, val_score=val_score)


def save(checkpoints, step, val_score=None):
    """A checkpoint whose only array has the step as its numbers."""
    checkpoints.save({"kernel": np.full(3, step, np.float32)}, meta_of(step, val_score))
    checkpoints.wait()


def save_steps(run_dir):
    """Save checkpoints of STEPS, of which 10 is the best. Returns the run directory."""
    checkpoints = Checkpoints(run_dir)
    for step, score in zip(STEPS, (-2.5, -1.5, -2.0), strict=True):
        save(checkpoints, step, score)
    return run_dir


def kernel(checkpoints, step):
    template = abstract({"kernel": np.zeros(3, np.float32)})
    return checkpoints.restore(step, params=template)["params"]["kernel"].tolist()


def rewrite_meta(run_dir, change):
    """Replace the metadata of the newest checkpoint by `change` of them, under a seal that fits."""
    folder = run_dir / "checkpoints" / str(Checkpoints(run_dir).steps()[-1])
    file = folder / "meta" / "metadata"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    seal = folder / SEAL
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "meta/metadata": digest}))
