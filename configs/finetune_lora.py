"""LoRA (Hu et al. 2021) on a GPT-2 or a Llama: a small adapter is trained on your own text, in place of the model.

    python -m train --config=configs/finetune_lora.py --workdir=runs/mine --config.train.init_from=gpt2 \
        --config.data.path=my.txt

Only the adapter has gradients and optimizer state: 0.5 % of GPT-2's parameters. The run directory has the model once,
and a checkpoint has the adapter alone. `--config.adapter.kind=dora` or `ia3` trains another kind.
"""

from configs import finetune_gpt2


def get_config():
    config = finetune_gpt2.get_config()
    config.adapter.kind = "lora"
    config.optimizer.peak_lr = 2e-4  # Hu et al. 2021, table 11
    config.optimizer.layer_decay = 1.0
    config.optimizer.weight_decay = 0.01
    return config
