"""Small GPT on texts of known entropy, so that the distance to the best possible loss is known. Nothing is downloaded.

    python -m train --config=configs/markov_floor.py --workdir=runs/markov
    python -m train --config=configs/markov_floor.py --workdir=runs/hmm --config.data.source=hmm
    python -m train --config=configs/markov_floor.py --workdir=runs/grammar --config.data.source=grammar

0.10M parameters, 1,000 steps of 32 x 64 characters, 66 to 75 s on two shared cores. Validation loss in nats per
character, and the entropy floor, the lowest possible loss with the same context (train/data/entropy.py):

    markov   2.2568, floor 2.2534, 0.1 % above it      a chain of 27 characters
    hmm      2.0591, floor 2.0513, 0.4 % above it      8 hidden states; the best bigram model: 2.27
    grammar  1.7358, floor 1.7318, 0.2 % above it      bracketed arithmetic; the best bigram model: 1.97

A loss that is significantly below the floor is reported as a leak (train/entropy_floor.py).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "markov"
    config.model.max_len = 64
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.num_heads = 4
    config.model.qkv_bias = False
    config.model.out_bias = False
    config.model.mlp_bias = False
    config.model.positions = "rotary"
    config.model.norm = "rmsnorm"
    config.model.qk_norm = "head"
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
