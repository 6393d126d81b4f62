"""GPT on the standard library's code, 4,096 subwords, packed documents: no file attends to another.

    python -m train --config=configs/gpt_bpe_python_source.py --workdir=runs/python_source
    python -m transformer_jax sample --run_dir=runs/python_source --prompt="def main("

Files are packed into rows; the loss counts only targets within a file.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "python_source"
    config.data.documents = "files"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 4096
    config.model.max_len = 256
    config.model.num_layers = 4
    config.model.d_model = 256
    config.model.num_heads = 8
    config.model.d_ff = 1024
    config.model.norm = "rmsnorm"
    config.model.positions = "rotary"
    config.model.qkv_bias = False
    config.model.out_bias = False
    config.model.mlp_bias = False
    config.optimizer.name = "muon"
    config.optimizer.peak_lr = 2e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.batch_size = 16
    config.train.num_steps = 1000
    config.train.eval_every = 250
    config.checkpoint.save_every = 250
    return config
