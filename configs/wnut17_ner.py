"""Named-entity tagger for tweets, from scratch: WNUT 2017 (Derczynski et al. 2017), a small encoder.

    python -m train --config=configs/wnut17_ner.py --workdir=runs/wnut17 \
        --config.data.path=wnut17train.conll --config.data.val_path=emerging.dev.conll
    python -m train.evaluate --run_dir=runs/wnut17 --split=val
    python -m transformer_jax tag --run_dir=runs/wnut17 <tweets.txt

Entity F1 on dev 14.7 %, in two minutes on two cores; the most frequent tag of each word reaches 9.6. Few of the names
in dev occur in training.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "tagged"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 4000
    config.model.max_len = 256
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.d_ff = 256
    config.model.norm = "rmsnorm"
    config.model.positions = "rotary"
    config.model.dropout_rate = 0.4
    config.optimizer.peak_lr = 2e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.task = "tag"
    config.train.batch_tokens = 2048
    config.train.num_buckets = 3
    config.train.num_steps = 1000
    config.train.eval_every = 100
    config.checkpoint.save_every = 1000
    return config
