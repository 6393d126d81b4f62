"""What a trained run is worth on a split: one function for each task, (run, config, split, options) -> Score."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from train import objectives
from train.config import Config
from train.data.labelled import read_labelled
from train.data.pairs import load_split
from train.data.pipeline import eval_batches, labelled_batch, load_corpus
from train.measure import measure
from train.metrics import bits_per_byte, perplexity
from train.step import eval_step
from transformer_jax.config import UserError
from transformer_jax.generation import translate
from transformer_jax.run import Run

ROWS = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """How to decode."""

    num_beams: int = 5
    length_penalty: float = 1.0
    progress: Callable[[int, int], None] | None = None  # texts done, texts in all


@dataclasses.dataclass(frozen=True)
class Score:
    """Numbers, and the lines that they were made from."""

    values: dict[str, Any]
    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by the name of their file


def seq2seq(run: Run, config: Config, split: str, options: Options) -> Score:
    """sacreBLEU and chrF of detokenised text with their signatures (Post 2018), and the share that is exactly right."""
    pairs = load_split(config.data, split)
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    said = options.progress and (lambda done: options.progress(done, len(sources)))
    hypotheses = translate(
        run, sources, num_beams=options.num_beams, length_penalty=options.length_penalty, progress=said
    )
    bleu, chrf = BLEU(lowercase=config.data.lowercase), CHRF(lowercase=config.data.lowercase)
    values = {
        "bleu": round(bleu.corpus_score(hypotheses, [references]).score, 2),
        "bleu_signature": str(bleu.get_signature()),
        "chrf": round(chrf.corpus_score(hypotheses, [references]).score, 2),
        "chrf_signature": str(chrf.get_signature()),
        "exact_match": round(np.mean([h == r for h, r in zip(hypotheses, references, strict=True)]).item(), 4),
        "num_beams": options.num_beams,
        "length_penalty": options.length_penalty,
    }
    return Score(values, {"sources": sources, "hypotheses": hypotheses, "references": references})


def classify(run: Run, config: Config, split: str, options: Options) -> Score:
    """Accuracy and the mean of the labels' F1."""
    path = {"train": config.data.path, "val": config.data.val_path, "test": config.data.test_path}[split]
    if not path:
        raise UserError(f"data.{split}_path='': the {split} split needs a file. Give it with --path.")
    rows = read_labelled(path, config.data)
    index = {label: i for i, label in enumerate(run.labels)}
    for _, label, where in rows:
        if label not in index:
            raise UserError(f"{where}: label {label!r:.80} is none of the run's ({', '.join(run.labels)}).")
    texts = [run.tokenizer.encode_whole(text)[: run.config.max_len] for text, _, _ in rows]
    labels = np.array([index[label] for _, label, _ in rows], np.int32)
    apply = jax.jit(lambda params, *args: run.model.apply({"params": params}, *args))
    order, guesses = np.argsort([len(tokens) for tokens in texts], kind="stable"), np.zeros(len(texts), np.int32)
    for first in range(0, len(texts), ROWS):
        part = order[first : first + ROWS]
        length = -(-max(len(texts[i]) for i in part) // 16) * 16
        batch = labelled_batch(texts, labels, part, min(length, run.config.max_len), ROWS, run.tokenizer.pad_id)
        guesses[part] = np.argmax(apply(run.params, batch["tokens"], batch["is_token"]), axis=-1)[: len(part)]
    names = [run.labels[i] for i in guesses]
    values = {"accuracy": float(np.mean(guesses == labels)), "macro_f1": macro_f1(labels, guesses, len(run.labels))}
    return Score(values, {"hypotheses": names, "references": [run.labels[i] for i in labels]})


def macro_f1(labels: np.ndarray, guesses: np.ndarray, num_labels: int) -> float:
    """The mean over all labels of 2 TP / (2 TP + FP + FN); 0 for a label that neither has."""
    scores = []
    for label in range(num_labels):
        right = np.sum((labels == label) & (guesses == label))
        scores.append(2 * right / max(1, np.sum(labels == label) + np.sum(guesses == label)))
    return float(np.mean(scores))


def causal_lm(run: Run, config: Config, split: str, options: Options) -> Score:
    """Loss in windows that follow each other, perplexity, and bits per byte."""
    if split == "test":
        raise UserError("split='test': running text has no test part. Take val, or train.")
    corpus = load_corpus(config.data, config.tokenizer, run.tokenizer)
    tokens = corpus.val_tokens if split == "val" else corpus.train_tokens
    evaluate = jax.jit(functools.partial(eval_step, model=run.model, objective=objectives.causal_lm))
    loss = measure(evaluate, run.params, eval_batches(tokens, run.config.max_len, ROWS))["loss"]
    values = {"loss": loss, "perplexity": perplexity(loss)}
    if split == "val":
        values["bits_per_byte"] = bits_per_byte(loss, corpus.val_bytes_per_token)
    return Score(values)


SCORERS = {"causal_lm": causal_lm, "classify": classify, "seq2seq": seq2seq}
