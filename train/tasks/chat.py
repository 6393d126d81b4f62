"""Task `chat`: fine-tuning on chats, with the loss on answers only; and its scorer."""

import dataclasses

import numpy as np

from transformer_jax.checkpoints.meta import HuggingFaceConfig
from transformer_jax.models import GPT
from transformer_jax.run import Run, generation_defaults_of
from transformer_jax.tokenizers.files import FileTokenizer

from .. import losses
from ..config import Config
from ..data.batches import tokenizer_sha256
from ..data.chats import chat_tokenizer, chats_split, encode_chats, load_chats, pack_examples, row_length
from ..data.packing import packed_batch
from ..evaluation import evaluate
from ..initialization import InitFrom
from ..metrics import text_metrics
from ..resume import with_vocab_size
from .base import EVAL_TOKENS, Task
from .language_modeling import packed_task
from .scoring import Options, Score, sums_of


def chat(config: Config, init_from: InitFrom) -> Task:
    """Fine-tuning of a GPT on chats, which are packed into rows; targets are the answers with their end tokens.

    The run keeps the chat template, and its texts end at the end tokens.
    """
    init_from.check_model_type(GPT)
    tokenizer = chat_tokenizer(config.data, init_from.tokenizer)
    model = GPT(with_vocab_size(init_from.merge_config(config.model), tokenizer.vocab_size))
    data, end_ids = load_chats(config.data, tokenizer, config.adapter.context(model.config.max_len))
    task = packed_task(config, model, data)
    hf_config, tokenizer = _with_end_ids(init_from.hf_config, model, tokenizer, end_ids)
    fingerprint = task.fingerprint | {"tokenizer_sha256": tokenizer_sha256(tokenizer)}
    return dataclasses.replace(task, hf_config=hf_config, tokenizer=tokenizer, fingerprint=fingerprint)


def _with_end_ids(
    hf_config: HuggingFaceConfig | None, model: GPT, tokenizer: FileTokenizer, end_ids: tuple[int, ...]
) -> tuple[HuggingFaceConfig | None, FileTokenizer]:
    """Configuration files and tokenizer by which texts end at the end tokens of answers, and where they ended before.

    A base model may have learned another end token than the one of the template.
    """
    before = generation_defaults_of(hf_config, model, tokenizer).eos_ids
    if set(end_ids) <= set(before):
        return hf_config, tokenizer
    if hf_config is None:
        return None, tokenizer.changed({"eos": end_ids[0]}, {})
    ids = {"eos_token_id": list(dict.fromkeys((*before, *end_ids)))}
    if hf_config.generation:
        return dataclasses.replace(hf_config, generation=hf_config.generation | ids), tokenizer
    return dataclasses.replace(hf_config, config=hf_config.config | ids), tokenizer


def score(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score a run on chats: loss and perplexity of the tokens of answers."""
    tokenizer = run.text_tokenizer
    assert isinstance(tokenizer, FileTokenizer), "the task trains no other"
    max_len = run.decoder_context
    examples = encode_chats(chats_split(config.data, split), tokenizer, config.data, max_len).examples
    length = row_length(examples, max_len)
    rows = pack_examples(examples, length, tokenizer.pad_id)
    num_rows = max(1, EVAL_TOKENS // length)
    total = len(rows["tokens"])
    batches = (
        packed_batch(rows, np.arange(i, min(i + num_rows, total)), num_rows, tokenizer.pad_id)
        for i in range(0, total, num_rows)
    )
    values = evaluate(sums_of(run.model, losses.causal_lm), run.variables, batches)
    num_targets = sum(int(example.is_target[1:].sum()) for example in examples)
    return Score(values | text_metrics(values["loss"], None) | {"answer_tokens": num_targets})
