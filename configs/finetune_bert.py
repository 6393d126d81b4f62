"""Text classifier fine-tuned from a BERT (or RoBERTa), with a new head on its first token (Devlin et al. 2019, 4.1).

    python -m train --config=configs/finetune_bert.py --workdir=runs/sentiment \
        --config.train.init_from=bert-base-uncased --config.data.path=train.tsv --config.data.val_path=dev.tsv

Each line of the files is a text, a tab and a label; .csv and .jsonl work as well.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "labelled"
    config.train.task = "classify"
    config.train.init_from = "bert-base-uncased"
    config.optimizer.peak_lr = 5e-5
    config.optimizer.schedule = "warmup_linear"
    config.optimizer.warmup_steps = 100
    config.optimizer.final_lr_fraction = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.layer_decay = 0.9
    config.train.batch_size = 32
    config.train.num_steps = 2000
    config.train.eval_every = 200
    config.checkpoint.save_every = 200
    return config
