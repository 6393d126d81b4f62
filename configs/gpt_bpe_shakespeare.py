"""GPT on Shakespeare, 2,000 subwords, about 5 million parameters.

    python -m train --config=configs/gpt_bpe_shakespeare.py --workdir=runs/bpe_shakespeare \
        --config.data.path=input.txt
    python -m transformer_jax sample --run_dir=runs/bpe_shakespeare --checkpoint=best --prompt="ROMEO:"

On the last tenth of the text, a quarter of an hour (750 steps) into the run: perplexity 53.1, 2.25 bits per byte; at
step 1,250: 45.2 and 2.16. It was stopped at 1,345.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "text"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 2000
    config.model.max_len = 128
    config.model.num_layers = 6
    config.model.d_model = 256
    config.model.num_heads = 8
    config.model.d_ff = 1024
    config.model.norm = "rmsnorm"
    config.model.positions = "rotary"
    config.model.qk_norm = "head"
    config.model.feed_forward = "squared_relu"
    config.model.zero_init = True
    config.model.logit_softcap = 15.0
    config.model.qkv_bias = False
    config.model.out_bias = False
    config.model.mlp_bias = False
    config.model.dropout_rate = 0.3
    config.optimizer.name = "muon"
    config.optimizer.muon_lr = 0.02
    config.optimizer.muon_steps = 3
    config.optimizer.peak_lr = 2e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.0
    config.optimizer.final_lr_fraction = 0.0
    config.train.batch_size = 16
    config.train.num_steps = 1500
    config.train.eval_every = 250
    config.checkpoint.save_every = 500
    return config
