"""Small character GPT on any text; by default Python's documentation.

python -m train --config=configs/gpt_char.py --workdir=runs/a --config.data.source=text --config.data.path=my.txt
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.max_len = 128
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 4
    config.optimizer.peak_lr = 3e-3
    config.train.batch_size = 16
    config.train.num_steps = 2000
    return config
