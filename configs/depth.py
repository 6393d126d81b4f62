"""One dial, the depth: it sets width, heads, learning rates, batch and steps of a character GPT.

    python -m train --config=configs/depth.py:4 --workdir=runs/depth4
    python -m train --config=depth:6 --workdir=runs/depth6 --config.data.source=text --config.data.path=input.txt

A model of depth d is 32 d wide and has d heads. Muon's learning rate stays, since its update has the same effect at any
width; AdamW's, for embeddings and norms, goes by 1 / width. The steps grow with the depth: by the ladder of
scaling_char the best number of training tokens grows far more slowly than the model.
"""

from configs import scaling_char
from transformer_jax.errors import UserError


def get_config(depth="4"):
    if not (depth.isdecimal() and 1 <= int(depth) <= 64):
        raise UserError(f"depth={depth!r}: must be a whole number from 1 to 64, such as depth:4.")
    d = int(depth)
    config = scaling_char.get_config()
    with config.unlocked():
        del config.scaling
    config.model.num_layers = d
    config.model.d_model = 32 * d
    config.model.num_heads = d
    config.optimizer.peak_lr = 6e-3 * 4 / d
    config.optimizer.warmup_steps = 25 * d
    config.train.batch_size = 12
    config.train.num_steps = 250 * d
    return config
