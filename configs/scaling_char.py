"""Ladder of small character GPTs for scaling laws: five sizes x four budgets, then a larger run that they predict.

python -m train.scaling --config=configs/scaling_char.py --workdir=runs/scaling
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.max_len = 64
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
    config.optimizer.warmup_steps = 100  # of num_steps: each run has the same share
    config.optimizer.final_lr_fraction = 0.0
    config.train.num_steps = 2000
    config.train.batch_size = 12
    with config.unlocked():
        config.scaling = {
            "sizes": "1x32,2x64,3x96,4x128,5x160",
            "tokens": "100000,200000,400000,800000",
            "num_seeds": 1,
            "predicted_size": "6x192",
            "predicted_tokens": 1_600_000,
            "num_resamples": 200,
        }
    return config
