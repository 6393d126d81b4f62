"""`make demo`: a GPT on Python's own documentation, in subwords, so that its samples are made of words."""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "python_docs"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 4096
    config.model.max_len = 128
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.positions = "rotary"
    config.optimizer.peak_lr = 3e-3
    config.train.batch_size = 8
    config.train.num_steps = 800
    config.train.eval_every = 200
    config.checkpoint.save_every = 200
    return config
