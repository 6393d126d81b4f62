"""Ladder of small character GPTs for scaling laws: five sizes x four budgets, then a larger run that they predict.

python -m train.scaling --config=configs/scaling_char.py --workdir=runs/scaling
"""

from configs import default, shakespeare_char


def get_config():
    config = shakespeare_char.get_config()
    plain = default.get_config()
    config.data = plain.data
    config.checkpoint = plain.checkpoint
    config.train.eval_every = plain.train.eval_every  # a run of a ladder is evaluated at its end
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
