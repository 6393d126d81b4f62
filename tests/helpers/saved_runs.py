"""Runs to be saved as Hugging Face folders: every fixture, heads with other labels, runs of one's own of every kind."""

import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp

import transformer_jax as tj
from helpers.arrays import random_like
from transformer_jax.models import (
    GPT,
    Encoder,
    MaskedLM,
    Seq2Seq,
    Seq2SeqConfig,
    SequenceClassifier,
    TokenTagger,
    parameter_shapes,
)
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import train_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDERS = "gpt2 llama llama3 llama_sharded_bf16 bert bert_classifier roberta t5 t5_v1_1 bart marian".split()
OLD = ["gpt2_old", "bert_old"]
TRAINED_ON = "the cat sät on a mat, 狐 and €5 😀 dogs ran over GREEN hills. It's 'ΣΑΣ'\n" * 3
TEXTS = [
    "",
    "the cat",
    " ran over  dogs \n\n a mat\t",
    "It's GREEN, ΟΔΟΣ",
    "</s> the <pad><s> cat <mask>",
    "naïve 🙂 İstanbul\r\nﬁ \u2581",
    "x" * 150,
]
SIZES = dict(max_len=37, num_layers=2, d_model=20, num_heads=2, d_ff=29)
BERT = SIZES | dict(norm_placement="post", embed_norm=True, norm_epsilon=1e-12)
LLAMA = (
    SIZES
    | dict(norm="rmsnorm", positions="rotary", feed_forward="swiglu", num_kv_heads=1, tie_embeddings=False)
    | dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False)
)
BART = SIZES | dict(norm_placement="post", embed_norm=True, position_offset=2)
T5 = (
    SIZES
    | dict(norm="rmsnorm", positions="t5", attention_scale=1.0, feed_forward="relu", norm_epsilon=1e-6)
    | (dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False))
)


@functools.cache
def tokenizer_of(kind):
    return train_tokenizer(kind, 560 if kind == "wordpiece" else 300, TRAINED_ON)


def seq2seq(values):
    decoder = values | ({"scale_logits": True} if values["positions"] == "t5" else {"logit_bias": True})
    return Seq2Seq(Seq2SeqConfig(tj.TransformerConfig(**values), tj.TransformerConfig(**decoder)))


def own_run(kind, values, make=GPT, num_more=0, **fields):
    """A run of one's own, with random parameters and a trained tokenizer of `kind`."""
    tokenizer = tokenizer_of(kind)
    values = {"positions": "learned", "vocab_size": tokenizer.vocab_size + num_more} | values
    model = seq2seq(values) if make is Seq2Seq else make(tj.TransformerConfig(**values))
    defaults = GenerationDefaults((tokenizer.eos_id,), tokenizer.pad_id, tokenizer.bos_id)
    params = random_like(parameter_shapes(model))
    return tj.Run(model, params, tokenizer, model.config, generation_defaults=defaults, **fields)


def with_head(folder, make, **fields):
    """The model of a fixture with a new head."""
    run = tj.from_pretrained(FIXTURES / folder)
    model = make(run.config)
    params = random_like(parameter_shapes(model)) | {"encoder": run.params["encoder"]}
    fields = {"problem_type": ""} | fields
    return dataclasses.replace(run, model=model, params=params, **fields)


def classifier(num_labels, pooling="first"):
    return lambda config: SequenceClassifier(config, num_labels, pooling)


def tagger(num_labels):
    return lambda config: TokenTagger(config, num_labels)


COLOURS = ("blue", "green", "red")
TAGS = ("X", "B-A", "I-A", "B-Ö", "O")
MULTI = "multi_label_classification"
RUNS = {folder: functools.partial(tj.from_pretrained, FIXTURES / folder) for folder in (*FOLDERS, *OLD)} | {
    "three_other_labels": lambda: with_head("bert_classifier", classifier(3), labels=COLOURS),
    "two_labels": lambda: with_head("bert_classifier", classifier(2), labels=COLOURS[:2]),
    "seven_labels": lambda: with_head("roberta", classifier(7), labels=tuple("gfedcba")),
    "several_labels": lambda: with_head("bert_classifier", classifier(5), labels=TAGS, problem_type=MULTI),
    "regression": lambda: with_head("bert_classifier", classifier(1), labels=(), problem_type="regression"),
    "one_label": lambda: with_head("roberta", classifier(1), labels=("spam",), problem_type=MULTI),
    "tags": lambda: with_head("bert_classifier", tagger(5), labels=TAGS),
    "tags_roberta": lambda: with_head("roberta", tagger(2), labels=("O", "B-A"), separator=""),
    "own_gpt_char": lambda: own_run("char", SIZES | {"feed_forward": "gelu_tanh"}),
    "own_gpt_byte": lambda: own_run("byte", SIZES),
    "own_gpt_bpe": lambda: own_run("bpe", LLAMA),
    "own_gpt_wordpiece": lambda: own_run("wordpiece", SIZES | {"feed_forward": "relu"}, num_more=3),
    "own_gpt_unigram": lambda: own_run("unigram", LLAMA | {"rope_scaling": "linear", "rope_factor": 2.0}),
    "own_encoder": lambda: own_run("unigram", BERT, Encoder),
    "own_masked_lm": lambda: own_run("wordpiece", BERT, MaskedLM, num_more=1),
    "own_masked_lm_char": lambda: own_run("char", BERT | {"num_token_types": 2}, MaskedLM, num_more=1),
    "own_classifier": lambda: own_run("bpe", BERT, classifier(3), labels=COLOURS),
    "own_classifier_of_several": lambda: own_run("byte", BERT, classifier(5), labels=TAGS, problem_type=MULTI),
    "own_regressor": lambda: own_run("unigram", BERT, classifier(1), problem_type="regression"),
    "own_tagger": lambda: own_run("bpe", BERT, tagger(5), labels=TAGS),
    "own_tagger_of_characters": lambda: own_run("char", BERT, tagger(2), labels=("O", "B-A"), separator=""),
    "own_bart": lambda: own_run("bpe", BART, Seq2Seq, lowercase=True),
    "own_t5": lambda: own_run("wordpiece", T5, Seq2Seq),
    "lower_cased_bart": lambda: dataclasses.replace(tj.from_pretrained(FIXTURES / "bart"), lowercase=True),
    "bfloat16": lambda: in_bfloat16(own_run("bpe", LLAMA)),
    "without_tokenizer": lambda: dataclasses.replace(
        own_run("byte", SIZES), tokenizer=None, generation_defaults=GenerationDefaults()
    ),
}


def in_bfloat16(run):
    import jax

    return dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), run.params))


def encode(run, text):
    """The ids of a text as the model of a run reads it."""
    tokenizer = run.tokenizer
    if isinstance(run.model, GPT):
        return tokenizer.encode(text)
    if run.model.reads_source:
        return tokenizer.encode_source(run.prepare(text))
    if isinstance(run.model, TokenTagger) and run.separator and text:  # as before every word
        return tokenizer.encode_whole(text if text.startswith(run.separator) else run.separator + text)
    return tokenizer.encode_whole(text)
