"""The plain GPT-2 recipe on characters, at the budget of nanoGPT's recipe for a CPU: 2,000 steps of 12 x 64 characters.

    python -m train --config=configs/shakespeare_char.py --workdir=runs/shakespeare --config.data.path=input.txt
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "text"
    config.data.path = "input.txt"
    config.model.max_len = 64
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.use_bias = False
    config.optimizer.peak_lr = 4e-3
    config.optimizer.b2 = 0.99
    config.train.batch_size = 12
    config.train.num_steps = 2000
    return config
