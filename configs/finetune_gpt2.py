"""Fine-tune a GPT-2 (or a Llama, or a run of your own) on your own text.

    python -m train --config=configs/finetune_gpt2.py --workdir=runs/mine --config.train.init_from=gpt2 \
        --config.data.path=my.txt

`init_from` is a Hugging Face folder, the name of a model on the hub, or a run directory. Shape and tokenizer come from
that model; leave the fields under `model` unset.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "text"
    config.train.init_from = "gpt2"
    config.optimizer.peak_lr = 5e-5
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.warmup_steps = 50
    config.optimizer.final_lr_fraction = 0.0
    config.optimizer.layer_decay = 0.9
    config.train.batch_size = 4
    config.train.num_steps = 500
    config.train.eval_every = 100
    config.checkpoint.save_every = 100
    return config
