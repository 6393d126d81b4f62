"""Span corruption: a small T5 on Python's documentation learns to generate the missing spans.

python -m train --config=configs/t5_spans.py --workdir=runs/spans
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "python_docs"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 2048
    config.model.max_len = 128
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.positions = "t5"
    config.model.norm = "rmsnorm"
    config.optimizer.name = "muon"
    config.optimizer.peak_lr = 3e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.task = "spans"
    config.train.batch_size = 16
    config.train.num_steps = 1000
    config.train.eval_every = 250
    return config
