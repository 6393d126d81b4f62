"""A small GPT beside the floor: text whose true entropy is known, so that the loss that is left to win is known.

    python -m train --config=configs/markov_floor.py --workdir=runs/markov --config.data.source=markov
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "markov"
    config.model.max_len = 64
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.num_heads = 4
    config.model.use_bias = False
    config.model.positions = "rotary"
    config.model.norm = "rmsnorm"
    config.model.qk_norm = True
    config.model.zero_init = True
    config.optimizer.name = "muon"
    config.optimizer.muon_steps = 3
    config.optimizer.peak_lr = 6e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.batch_size = 32
    config.train.num_steps = 1000
    config.train.eval_every = 250
    config.checkpoint.save_every = 250
    return config
