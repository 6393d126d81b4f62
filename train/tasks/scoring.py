"""What a trained run is worth on a split: one function for each task, (run, config, split, options) -> Score."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.errors import UserError
from transformer_jax.inference import predict
from transformer_jax.inference.translate import translate
from transformer_jax.run import Run

from .. import losses
from ..config import Config
from ..data.batches import eval_batches, load_corpus
from ..data.entropy import TRUTHS, draw_part
from ..data.labelled import labelled_split, to_index, to_number
from ..data.pairs import load_split
from ..data.tagged import entity_f1, tagged_split
from ..entropy_floor import floor_of, paired, with_floor
from ..evaluation import evaluate
from ..initialization import InitFrom
from ..metrics import bits_per_byte, perplexity
from ..step import eval_step
from .registry import load_task

ROWS = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """How to decode."""

    num_beams: int = 5
    length_penalty: float = 1.0
    progress: Callable[[int, int], None] | None = None  # texts done, texts in all

    def of(self, total: int) -> Callable[[int], None] | None:
        """What is told how many of `total` texts are done."""
        return self.progress and (lambda done: self.progress(done, total))


@dataclasses.dataclass(frozen=True)
class Score:
    """Numbers, and the lines that they were made from."""

    values: dict[str, Any]
    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by the name of their file
    confusion: np.ndarray | None = None  # how often each label was taken for each
    names: tuple[str, ...] = ()  # of its rows and columns, where they are others than the run's labels


def seq2seq(run: Run, config: Config, split: str, options: Options) -> Score:
    """sacreBLEU and chrF of detokenised text with their signatures (Post 2018), and the share that is exactly right."""
    pairs = load_split(config.data, split)
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    hypotheses = translate(
        run,
        sources,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        progress=options.of(len(sources)),
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
    """Accuracy, the mean of the labels' F1, and who is taken for whom."""
    rows = labelled_split(config.data, split)
    references = [label for _, label, where in rows if to_index(label, run.labels, where) >= 0]
    answers = predict.classify(run, [text for text, _, _ in rows], progress=options.of(len(rows)))
    guesses = [answer.label for answer in answers]
    confusion = confusions(run.labels, references, guesses)
    values = {"accuracy": float(np.trace(confusion) / len(rows)), "macro_f1": macro_f1(confusion)}
    return Score(values, {"hypotheses": guesses, "references": references}, confusion)


def regress(run: Run, config: Config, split: str, options: Options) -> Score:
    """Errors, and how well numbers and guesses go together."""
    rows = labelled_split(config.data, split)
    references = np.array([to_number(label, where) for _, label, where in rows])
    guesses = np.array(predict.classify(run, [text for text, _, _ in rows], progress=options.of(len(rows))))
    errors = guesses - references
    values = {
        "root_mean_squared_error": float(np.sqrt(np.mean(errors**2))),
        "mean_absolute_error": float(np.mean(np.abs(errors))),
    }
    if np.std(references) > 0 and np.std(guesses) > 0:  # else there is no correlation
        values["pearson"] = float(np.corrcoef(references, guesses)[0, 1])
    lines = {"hypotheses": [f"{x:.6g}" for x in guesses], "references": [f"{x:.6g}" for x in references]}
    return Score(values, lines)


def tag(run: Run, config: Config, split: str, options: Options) -> Score:
    """The share of words that have their tag and, where tags are B-, I- and O, the F1 of entities."""
    sentences = tagged_split(config.data, split)
    guesses = predict.tag(run, [sentence.words for sentence in sentences], progress=options.of(len(sentences)))
    references = [sentence.tags for sentence in sentences]
    words, guessed = ([tag for tags in side for tag in tags] for side in (references, guesses))
    names = (*run.labels, *sorted(set(words) - set(run.labels)))  # a tag that training never had is always wrong
    confusion = confusions(names, words, guessed)
    values = {"accuracy": float(np.trace(confusion) / len(words)), "macro_f1": macro_f1(confusion)}
    if any(label.startswith("B-") for label in run.labels):
        values["entity_f1"] = entity_f1(references, guesses)
    lines = {"hypotheses": [" ".join(g) for g in guesses], "references": [" ".join(r) for r in references]}
    return Score(values, lines, confusion, names)


def confusions(names: Sequence[str], references: Sequence[str], guesses: Sequence[str]) -> np.ndarray:
    """How often each label (row) was taken for each (column): int [labels, labels]."""
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, ([index[r] for r in references], [index[g] for g in guesses]), 1)
    return counts


def macro_f1(confusion: np.ndarray) -> float:
    """The mean over all labels of 2 TP / (2 TP + FP + FN); 0 for a label that neither side has."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion) / np.maximum(both, 1)))


def causal_lm(run: Run, config: Config, split: str, options: Options) -> Score:
    """Loss in windows that follow each other, perplexity, bits per byte, and the floor where it is known."""
    if config.data.documents:
        return gaps(run, config, split, options)
    if split == "test" and config.data.source not in TRUTHS:
        raise UserError("split='test': running text has no test part. Take val, or train.")
    corpus = load_corpus(config.data, config.tokenizer, run.tokenizer)
    if split == "test":
        tokens = run.tokenizer.encode(draw_part(config.data.source, split, len(corpus.val_tokens)))
    else:
        tokens = corpus.val_tokens if split == "val" else corpus.train_tokens
    loss_fn, batches = losses.causal_lm, functools.partial(eval_batches, tokens, run.config.max_len, ROWS)
    # Not of what the model was trained on: to know that by heart is no leak.
    if split != "train" and (floor := floor_of(config.data.source, run.tokenizer)):
        loss_fn, batches = paired(loss_fn), with_floor(batches, floor)
    values = evaluate(jax.jit(functools.partial(eval_step, model=run.model, loss_fn=loss_fn)), run.params, batches())
    loss = values["loss"]
    values |= {"perplexity": perplexity(loss)}
    if split == "val":
        values["bits_per_byte"] = bits_per_byte(loss, corpus.val_bytes_per_token)
    return Score(values)


def gaps(run: Run, config: Config, split: str, options: Options) -> Score:
    """What training measures of the validation text: loss and share of right tokens in its gaps, or of documents."""
    if split != "val":
        raise UserError(f"split={split!r}: this task is measured on the validation part. Take --split=val.")
    task = load_task(config, InitFrom(model=run.model, tokenizer=run.tokenizer, hf_config=run.hf_config), None)
    evaluate = jax.jit(functools.partial(eval_step, model=run.model, loss_fn=task.loss_fn))
    values = evaluate(evaluate, run.params, task.eval_batches())
    if task.bytes_per_token:
        values |= {"perplexity": perplexity(values["loss"])}
        values |= {"bits_per_byte": bits_per_byte(values["loss"], task.bytes_per_token)}
    return Score(values)


SCORERS = {
    "causal_lm": causal_lm,
    "masked_lm": gaps,
    "spans": gaps,
    "classify": classify,
    "regress": regress,
    "tag": tag,
    "seq2seq": seq2seq,
}
