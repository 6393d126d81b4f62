"""Prompt tuning (Lester et al. 2021) of a GPT-2 or a Llama: vectors before every text are trained on your own text.

    python -m train --config=configs/finetune_prompt.py --workdir=runs/mine --config.train.init_from=gpt2 \
        --config.data.path=my.txt

Of GPT-2 it trains 15,360 numbers: 20 vectors, which take 20 positions of the context. They begin as the embeddings of
random tokens. `--config.adapter.kind=prefix` trains keys and values of every layer instead (Li & Liang 2021).
"""

from configs import finetune_lora


def get_config():
    config = finetune_lora.get_config()
    config.adapter.kind = "prompt"
    config.adapter.num_tokens = 20
    config.optimizer.peak_lr = 0.03
    config.optimizer.weight_decay = 0.0
    return config
