"""Scores of a trained run on a split: `score`, by the scorer that the row of its task names."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.errors import UserError
from transformer_jax.inference import predict
from transformer_jax.inference.translate import translate
from transformer_jax.models import Model
from transformer_jax.run import Run

from .. import losses
from ..config import Config
from ..data.batches import Batch, eval_batches, load_corpus
from ..data.entropy import TRUTHS, draw_part
from ..data.labelled import labelled_split
from ..data.pairs import load_split
from ..data.tagged import tagged_split
from ..data.targets import as_labels, single_label, to_index, to_number
from ..entities import entity_f1, has_entities
from ..entropy_floor import floor_of, paired, with_floor
from ..evaluation import evaluate
from ..initialization import InitFrom
from ..metrics import text_metrics
from .base import load_task
from .registry import TASKS

EVAL_ROWS = 32  # windows of running text in a batch


@dataclasses.dataclass(frozen=True)
class Options:
    """Decoding options of a score, and a progress callback."""

    num_beams: int = 5
    length_penalty: float = 1.0
    progress: Callable[[int, int], None] | None = None  # called with the numbers of texts done and of all texts

    def progress_of(self, total: int) -> Callable[[int], None] | None:
        """Progress callback for `total` texts, called with the number of texts done; None if there is none."""
        progress = self.progress
        return None if progress is None else lambda done: progress(done, total)


@dataclasses.dataclass(frozen=True)
class Score:
    """Metrics of a run on a split, and the lines of text that they were computed from."""

    values: dict[str, Any]
    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by the name of their file
    confusion: np.ndarray | None = None  # see `confusions`
    names: tuple[str, ...] = ()  # labels of the confusion matrix, if they differ from those of the run


def score(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score a run on a split, by the scorer of its task; the texts are lower-cased if those of its training were."""
    lowercase = config.data.lowercase or run.lowercase
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, lowercase=lowercase))
    scored: Score = TASKS[config.train.task].load_scorer()(run, config, split, options)
    return scored


def seq2seq(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score translations: sacreBLEU and chrF of detokenised text with signatures (Post 2018), and exact match."""
    pairs = load_split(config.data, split)
    sources = [source for source, _ in pairs]
    references = [target for _, target in pairs]
    hypotheses = translate(
        run,
        sources,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        progress=options.progress_of(len(sources)),
    )
    bleu = BLEU(lowercase=config.data.lowercase)
    chrf = CHRF(lowercase=config.data.lowercase)
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
    """Score a classifier: accuracy, macro-F1 and the confusion matrix; with several labels a text, F1 alone."""
    if run.problem_type == "multi_label_classification":
        return _multi_label(run, config, split, options)
    rows = [single_label(row) for row in labelled_split(config.data, split)]
    references = [label for _, label, where in rows if to_index(label, run.labels, where) >= 0]
    results = predict.classify(run, [text for text, _, _ in rows], progress=options.progress_of(len(rows)))
    guesses = [result.label for result in results if isinstance(result, predict.Classification)]
    confusion = confusions(run.labels, references, guesses)
    values = {"accuracy": float(np.trace(confusion) / len(rows)), "macro_f1": macro_f1(confusion)}
    return Score(values, {"hypotheses": guesses, "references": references}, confusion)


def _multi_label(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score labels of texts that can have several; a line of labels for each text, separated by tabs."""
    rows = labelled_split(config.data, split)
    references = [set(as_labels(labels)) for _, labels, _ in rows]
    for labels, (_, _, where) in zip(references, rows, strict=True):
        for label in sorted(labels):
            to_index(label, run.labels, where)  # refuses an unknown one
    answers = predict.classify(run, [text for text, _, _ in rows], progress=options.progress_of(len(rows)))
    guesses = [set(answer.labels) for answer in answers if isinstance(answer, predict.MultiLabelClassification)]
    lines = {
        name: ["\t".join(label for label in run.labels if label in labels) for labels in sets]
        for name, sets in (("hypotheses", guesses), ("references", references))
    }
    return Score(multi_label_scores(run.labels, references, guesses), lines)


def multi_label_scores(
    names: Sequence[str], references: Sequence[set[str]], guesses: Sequence[set[str]]
) -> dict[str, float]:
    """Micro-F1 of all labels, macro-F1 (0 for a label that never occurs), and the share of texts with all right."""
    pairs = list(zip(references, guesses, strict=True))
    num_right = {name: sum(name in r and name in g for r, g in pairs) for name in names}
    num_both = {name: sum((name in r) + (name in g) for r, g in pairs) for name in names}
    return {
        "micro_f1": 2 * sum(num_right.values()) / max(sum(num_both.values()), 1),
        "macro_f1": float(np.mean([2 * num_right[name] / max(num_both[name], 1) for name in names])),
        "exact_match": float(np.mean([r == g for r, g in pairs])),
    }


def regress(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score a regressor: root mean squared error, mean absolute error and Pearson correlation."""
    rows = [single_label(row) for row in labelled_split(config.data, split)]
    references = np.array([to_number(label, where) for _, label, where in rows])
    answers = predict.classify(run, [text for text, _, _ in rows], progress=options.progress_of(len(rows)))
    guesses = np.array([answer for answer in answers if isinstance(answer, float)])
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
    """Score a tagger: accuracy and macro-F1 of words and, where tags mark entities, their F1."""
    sentences = tagged_split(config.data, split)
    guesses = predict.tag(run, [sentence.words for sentence in sentences], progress=options.progress_of(len(sentences)))
    references = [sentence.tags for sentence in sentences]
    expected = [tag for tags in references for tag in tags]
    guessed = [tag for tags in guesses for tag in tags]
    names = (*run.labels, *sorted(set(expected) - set(run.labels)))  # a tag that training never had is always wrong
    confusion = confusions(names, expected, guessed)
    values = {"accuracy": float(np.trace(confusion) / len(expected)), "macro_f1": macro_f1(confusion)}
    if has_entities(run.labels):
        values["entity_f1"] = entity_f1(references, guesses)
    lines = {"hypotheses": [" ".join(g) for g in guesses], "references": [" ".join(r) for r in references]}
    return Score(values, lines, confusion, names)


def confusions(names: Sequence[str], references: Sequence[str], guesses: Sequence[str]) -> np.ndarray:
    """Confusion matrix, int [labels, labels]: number of examples by true label (row) and guess (column)."""
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, ([index[r] for r in references], [index[g] for g in guesses]), 1)
    return counts


def macro_f1(confusion: np.ndarray) -> float:
    """Macro-F1 of a confusion matrix: mean over labels of 2 TP / (2 TP + FP + FN); 0 for a label that never occurs."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * np.diag(confusion) / np.maximum(both, 1)))


def causal_lm(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score a language model: loss in consecutive windows, perplexity, bits per byte, entropy floor if known."""
    if config.data.documents:
        return validation_metrics(run, config, split, options)
    if split == "test" and config.data.source not in TRUTHS:
        raise UserError("split='test': running text has no test part. Take val, or train.")
    tokenizer = run.text_tokenizer
    corpus = load_corpus(config.data, config.tokenizer, tokenizer)
    if split == "test":
        tokens = tokenizer.encode(draw_part(config.data.source, split, len(corpus.val_tokens)))
    else:
        tokens = corpus.val_tokens if split == "val" else corpus.train_tokens
    loss_fn: Callable = losses.causal_lm
    batches: Callable[[], Iterable[Batch]] = functools.partial(eval_batches, tokens, run.decoder_context, EVAL_ROWS)
    # Not on the training text: a model that has memorized it may be below the floor, and that is no leak.
    if split != "train" and (floor := floor_of(config.data.source, tokenizer)):
        loss_fn = paired(loss_fn)
        batches = with_floor(batches, floor)
    values = evaluate(sums_of(run.model, loss_fn), run.variables, batches())
    return Score(values | text_metrics(values["loss"], corpus.val_bytes_per_token if split == "val" else None))


def validation_metrics(run: Run, config: Config, split: str, options: Options) -> Score:
    """Score by the metrics of training: those of the validation batches of the task."""
    if split != "val":
        raise UserError(f"split={split!r}: this task is measured on the validation part. Take --split=val.")
    own = InitFrom(own_model=run.model, own_labels=run.labels, tokenizer=run.tokenizer, hf_config=run.hf_config)
    own = dataclasses.replace(own, lowercase=run.lowercase)
    task = load_task(config, own)
    return Score(task.evaluate(sums_of(run.model, task.loss_fn), run.variables))


def sums_of(model: Model, loss_fn: Callable) -> Callable:
    """Compiled evaluation step on the variables of a run, which may have a prefix: see `step.eval_step`."""
    return jax.jit(lambda variables, batch: loss_fn(functools.partial(model.apply, variables), batch))
