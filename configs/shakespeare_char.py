"""Character GPT on Tiny Shakespeare, the best at the budget of nanoGPT's CPU recipe: 2,000 steps of 12 x 64 characters.

    python -m train --config=configs/shakespeare_char.py --workdir=runs/shakespeare --config.data.path=input.txt

Tiny Shakespeare (the last 10 % for validation), 0.80M parameters: 1.575 nats per character, mean of three seeds, in
113 s on two cores. Without Muon 1.67, without normalized queries and keys 1.65, without rotary positions 1.64; the
other differences from plain GPT-2 (1.76) are within the spread of seeds. BUILD_NOTES.md has the table.
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
    config.model.qkv_bias = False
    config.model.out_bias = False
    config.model.mlp_bias = False
    config.model.positions = "rotary"
    config.model.norm = "rmsnorm"
    config.model.qk_norm = "head"
    config.model.feed_forward = "swiglu"
    config.model.zero_init = True
    config.model.logit_softcap = 15.0
    config.optimizer.name = "muon"
    config.optimizer.muon_lr = 0.03
    config.optimizer.muon_steps = 3
    config.optimizer.peak_lr = 6e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.batch_size = 12
    config.train.num_steps = 2000
    config.train.eval_every = 500
    config.checkpoint.save_every = 500
    return config
