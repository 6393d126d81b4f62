"""Supervised fine-tuning (SFT) of a chat model on your own chats, by LoRA; the loss is on answers only.

    python -m train --config=configs/chat_sft.py --workdir=runs/my_chat \
        --config.train.init_from=HuggingFaceTB/SmolLM2-135M-Instruct --config.data.path=chats.jsonl
    python -m transformer_jax chat --run_dir=runs/my_chat

A chat a line: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}. Full
fine-tuning: `--config.adapter.kind= --config.adapter.where= --config.optimizer.peak_lr=2e-5`. A base without a chat
template gets one by `--config.data.chat_template=FILE.jinja`. See docs/chat.md.
"""

from configs import finetune_lora


def get_config():
    config = finetune_lora.get_config()
    config.data.source = "chat"
    config.data.max_chat_tokens = 1024
    config.train.task = "chat"
    config.train.init_from = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.train.batch_size = 8
    config.adapter.where = "all-linear"
    return config
