"""What a trained run is worth on a split: one function for each task, (run, config, split, options) -> Score."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from train import objectives
from train.config import Config
from train.data.entropy import TRUTHS, draw_part
from train.data.labelled import labelled_split
from train.data.pairs import load_split
from train.data.pipeline import eval_batches, labelled_batch, load_corpus, tagged_batch
from train.data.tagged import encode_sentence, entity_f1, read_tagged
from train.floor import floor_of, paired, with_floor
from train.measure import measure
from train.metrics import bits_per_byte, perplexity
from train.start import Start
from train.step import eval_step
from train.tasks import load_task
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
    rows = labelled_split(config.data, split)
    index = {label: i for i, label in enumerate(run.labels)}
    for _, label, where in rows:
        if label not in index:
            raise UserError(f"{where}: label {label!r:.80} is none of the run's ({', '.join(run.labels)}).")
    texts = [run.tokenizer.encode_whole(text)[: run.config.max_len] for text, _, _ in rows]
    labels = np.array([index[label] for _, label, _ in rows], np.int32)
    apply = jax.jit(lambda params, *args: run.model.apply({"params": params}, *args))
    guesses = np.zeros(len(texts), np.int32)
    for part, length in _by_length([len(tokens) for tokens in texts], run.config.max_len):
        batch = labelled_batch(texts, labels, part, length, ROWS, run.tokenizer.pad_id)
        guesses[part] = np.argmax(apply(run.params, batch["tokens"], batch["is_token"]), axis=-1)[: len(part)]
    names = [run.labels[i] for i in guesses]
    values = {"accuracy": float(np.mean(guesses == labels)), "macro_f1": macro_f1(labels, guesses, len(run.labels))}
    return Score(values, {"hypotheses": names, "references": [run.labels[i] for i in labels]})


def tag(run: Run, config: Config, split: str, options: Options) -> Score:
    """The share of words that have their tag and, where tags are B-, I- and O, the F1 of entities."""
    path = {"train": config.data.path, "val": config.data.val_path, "test": config.data.test_path}[split]
    sentences = read_tagged(path, config.data)
    index = {label: i for i, label in enumerate(run.labels)}
    if unknown := next((s for s in sentences if set(s.tags) - set(index)), None):
        raise UserError(f"{unknown.where}: has a tag that is none of the run's ({', '.join(run.labels)}).")
    encoded = [encode_sentence(run.tokenizer, sentence, index) for sentence in sentences]
    encoded = [tuple(array[: run.config.max_len] for array in sentence) for sentence in encoded]
    apply = jax.jit(lambda params, *args: run.model.apply({"params": params}, *args))
    guesses = [[] for _ in encoded]
    for part, length in _by_length([len(sentence[0]) for sentence in encoded], run.config.max_len):
        batch = tagged_batch(encoded, part, length, ROWS, run.tokenizer.pad_id)
        best = np.argmax(apply(run.params, batch["tokens"], batch["is_token"]), axis=-1)
        for row, i in enumerate(part):
            found = [run.labels[t] for t in best[row][batch["is_tagged"][row]]]
            guesses[i] = found + ["O"] * (len(sentences[i].words) - len(found))  # words beyond the context have no tag
    references = [sentence.tags for sentence in sentences]
    right = [r == g for rs, gs in zip(references, guesses, strict=True) for r, g in zip(rs, gs, strict=True)]
    values = {"accuracy": float(np.mean(right))}
    if any(label.startswith("B-") for label in run.labels):
        values["entity_f1"] = entity_f1(references, guesses)
    return Score(
        values, {"hypotheses": [" ".join(g) for g in guesses], "references": [" ".join(r) for r in references]}
    )


def _by_length(lengths: list[int], max_len: int) -> Iterator[tuple[np.ndarray, int]]:
    """ROWS examples of about one length at a time, and a length that holds them, one of few."""
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), ROWS):
        part = order[first : first + ROWS]
        yield part, min(-(-max(lengths[i] for i in part) // 16) * 16, max_len)


def macro_f1(labels: np.ndarray, guesses: np.ndarray, num_labels: int) -> float:
    """The mean over all labels of 2 TP / (2 TP + FP + FN); 0 for a label that neither has."""
    scores = []
    for label in range(num_labels):
        right = np.sum((labels == label) & (guesses == label))
        scores.append(2 * right / max(1, np.sum(labels == label) + np.sum(guesses == label)))
    return float(np.mean(scores))


def causal_lm(run: Run, config: Config, split: str, options: Options) -> Score:
    """Loss in windows that follow each other, perplexity, bits per byte, and the floor where it is known."""
    if split == "test" and config.data.source not in TRUTHS:
        raise UserError("split='test': running text has no test part. Take val, or train.")
    corpus = load_corpus(config.data, config.tokenizer, run.tokenizer)
    if split == "test":
        tokens = run.tokenizer.encode(draw_part(config.data.source, split, len(corpus.val_tokens)))
    else:
        tokens = corpus.val_tokens if split == "val" else corpus.train_tokens
    objective, batches = objectives.causal_lm, functools.partial(eval_batches, tokens, run.config.max_len, ROWS)
    # Not of what the model was trained on: to know that by heart is no leak.
    if split != "train" and (floor := floor_of(config.data.source, run.tokenizer)):
        objective, batches = paired(objective), with_floor(batches, floor)
    values = measure(jax.jit(functools.partial(eval_step, model=run.model, objective=objective)), run.params, batches())
    loss = values["loss"]
    values |= {"perplexity": perplexity(loss)}
    if split == "val":
        values["bits_per_byte"] = bits_per_byte(loss, corpus.val_bytes_per_token)
    return Score(values)


def gaps(run: Run, config: Config, split: str, options: Options) -> Score:
    """Loss and share of right tokens in the gaps of the validation text, the same that training measures."""
    if split != "val":
        raise UserError(f"split={split!r}: gaps are measured in the validation part. Take --split=val.")
    task = load_task(config, Start(model=run.model, tokenizer=run.tokenizer, origin=run.origin), None)
    evaluate = jax.jit(functools.partial(eval_step, model=run.model, objective=task.objective))
    return Score(measure(evaluate, run.params, task.eval_batches()))


SCORERS = {
    "causal_lm": causal_lm, "masked_lm": gaps, "spans": gaps, "classify": classify, "tag": tag, "seq2seq": seq2seq,
}  # fmt: skip
