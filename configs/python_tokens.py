"""Tagger for the characters of Python code: keyword, name, number, string, comment, operator or space.

    python -m train --config=configs/python_tokens.py --workdir=runs/python_tokens
    python -m train.evaluate --run_dir=runs/python_tokens --split=test
    echo 'print("hello")  # twice' | python -m transformer_jax tag --run_dir=runs/python_tokens

An example is a few lines of a file, so sometimes nothing shows that they are inside a long string.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "python_tokens"
    config.tokenizer.kind = "byte"
    config.model.max_len = 256
    config.model.num_layers = 3
    config.model.d_model = 96
    config.model.num_heads = 4
    config.model.d_ff = 192
    config.model.norm = "rmsnorm"
    config.model.positions = "rotary"
    config.optimizer.peak_lr = 2e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.task = "tag"
    config.train.batch_size = 16
    config.train.num_buckets = 2
    config.train.num_steps = 600
    config.train.eval_every = 100
    config.checkpoint.save_every = 300
    return config
