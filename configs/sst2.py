"""Sentiment classifier for film reviews, from scratch: SST-2 (Socher et al. 2013), a small encoder.

    python -m train --config=configs/sst2.py --workdir=runs/sst2 \
        --config.data.path=train.tsv --config.data.val_path=dev.tsv
    python -m train.evaluate --run_dir=runs/sst2 --split=val
    python -m transformer_jax classify --run_dir=runs/sst2 <reviews.txt

About a minute on two cores. Accuracy on dev 78 to 81 %, depending on the seed; naive Bayes reaches 81.0
(benchmarks/tasks.py). Each line is a text, a tab and a label; with a header, name its columns in data.text_field and
data.label_field.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "labelled"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 4000
    config.model.max_len = 128
    config.model.num_layers = 1
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.d_ff = 256
    config.model.norm = "rmsnorm"
    config.model.positions = "rotary"
    config.model.dropout_rate = 0.5
    config.optimizer.peak_lr = 1e-3
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.final_lr_fraction = 0.0
    config.train.task = "classify"
    config.train.pooling = "max"
    config.train.batch_size = 64
    config.train.token_dropout = 0.3
    config.train.num_steps = 500
    config.train.eval_every = 250
    config.checkpoint.save_every = 500
    return config
