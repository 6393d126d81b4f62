"""Translation, English to German, WMT 2014 through TFDS: the base Transformer of Vaswani et al. 2017, for accelerators.

    python -m train --config=configs/wmt14_en_de.py --workdir=runs/wmt14 --config.data.tfds_dir=tfds
    python -m train.evaluate --run_dir=runs/wmt14 --split=test --average=5 --num_beams=4 --length_penalty=0.6

65 million parameters, 100,000 steps of about 25,000 target tokens: about 12 hours on eight GPUs of 2017. The paper
reports 27.3 BLEU on newstest2014 (tokenized; sacreBLEU gives a little less). Not run here: it needs the download and an
accelerator.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "tfds"
    config.data.path = "wmt14_translate/de-en"
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 37000
    config.model.max_len = 256
    config.model.num_layers = 6
    config.model.d_model = 512
    config.model.num_heads = 8
    config.model.d_ff = 2048
    config.model.dropout_rate = 0.1
    config.model.dtype = "bfloat16"
    config.optimizer.peak_lr = 7e-4
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_steps = 4000
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.0
    config.train.task = "seq2seq"
    config.train.batch_tokens = 32768
    config.train.num_buckets = 8
    config.train.label_smoothing = 0.1
    config.train.num_steps = 100_000
    config.train.log_every = 500
    config.train.eval_every = 5000
    config.checkpoint.save_every = 2500
    config.checkpoint.keep = 8
    return config
