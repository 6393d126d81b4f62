"""Masked language model: a small BERT on Python's documentation.

python -m train --config=configs/bert_mlm_python_docs.py --workdir=runs/bert
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "python_docs"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 2048
    config.model.max_len = 128
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.positions = "rotary"
    config.model.norm = "rmsnorm"
    config.optimizer.name = "muon"
    config.optimizer.peak_lr = 3e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.task = "masked_lm"
    config.train.batch_size = 16
    config.train.num_steps = 1000
    config.train.eval_every = 250
    return config
