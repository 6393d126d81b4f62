"""Classifiers and taggers trained from scratch, compared with a baseline computed here on the same data.

    python benchmarks/tasks.py sst2 --data=FOLDER --seeds=3       FOLDER: holds the files of the recipe
    python benchmarks/tasks.py languages

Trains the recipe once per seed, scores its last checkpoint on the validation split, and writes
benchmarks/results/NAME.json: every seed, their mean, the baseline, and the seconds of each training.

Baselines: for texts naive Bayes (words, or character n-grams up to 3 for names; add-one smoothing); for tags the most
frequent tag of each word in training, or of all words for an unknown word. For atis_pos also the consistency of the
treebank.
"""

import argparse
import importlib
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import report

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from train.config import Config  # noqa: E402  (from this checkout)
from train.data.labelled import labelled_split  # noqa: E402
from train.data.tagged import tagged_split  # noqa: E402
from train.entities import entity_f1  # noqa: E402


def words(text: str) -> list[str]:
    """Split a text at spaces, lower-cased."""
    return text.lower().split()


def ngrams(text: str) -> list[str]:
    """List all character n-grams up to 3, with the ends of the text marked."""
    marked = f"^{text}$"
    return [marked[i : i + n] for n in (1, 2, 3) for i in range(len(marked) - n + 1)]


def naive_bayes(config, features) -> float:
    """Accuracy of naive Bayes with add-one smoothing."""
    counts: dict[str, Counter] = defaultdict(Counter)
    labels: Counter[str] = Counter()
    for text, label, _ in labelled_split(config, "train"):
        labels[label] += 1
        counts[label].update(features(text))
    known = {feature for counter in counts.values() for feature in counter}
    totals = {label: counts[label].total() + len(known) for label in labels}

    def guess(text):
        seen = [feature for feature in features(text) if feature in known]
        return max(
            labels,
            key=lambda label: (
                math.log(labels[label])
                + sum(math.log((counts[label][feature] + 1) / totals[label]) for feature in seen)
            ),
        )

    return statistics.mean(guess(text) == label for text, label, _ in labelled_split(config, "val"))


def frequent_tags(config) -> tuple[list[list[str]], list[list[str]]]:
    """Most-frequent-tag baseline: the reference tags of the validation split, and each word's usual tag in training."""
    counts: dict[str, Counter] = defaultdict(Counter)
    all_words: Counter[str] = Counter()
    for sentence in tagged_split(config, "train"):
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word][tag] += 1
            all_words[tag] += 1
    usual = all_words.most_common(1)[0][0]
    best = {word: counter.most_common(1)[0][0] for word, counter in counts.items()}
    sentences = tagged_split(config, "val")
    return [s.tags for s in sentences], [[best.get(word, usual) for word in s.words] for s in sentences]


def tag_accuracy(config) -> float:
    """Share of the validation words that have their most frequent tag."""
    pairs = [pair for tags in zip(*frequent_tags(config), strict=True) for pair in zip(*tags, strict=True)]
    return statistics.mean(right == guess for right, guess in pairs)


def self_agreement(config, reach: int = 4) -> tuple[float, int]:
    """Consistency of the annotation: share of words in a known context that have its usual tag; number of such words.

    A context is a word with `reach` words on either side. No tagger can do much better: it would have to predict when
    the annotators disagreed with themselves.
    """
    usual: dict[tuple[str, ...], Counter] = defaultdict(Counter)

    def contexts(sentence):
        ends = [""] * reach
        padded = [*ends, *sentence.words, *ends]
        return zip(
            (tuple(padded[i : i + 2 * reach + 1]) for i in range(len(sentence.words))), sentence.tags, strict=True
        )

    for sentence in tagged_split(config, "train"):
        for context, tag in contexts(sentence):
            usual[context][tag] += 1
    known = [pair for sentence in tagged_split(config, "val") for pair in contexts(sentence) if pair[0] in usual]
    return statistics.mean(usual[context].most_common(1)[0][0] == tag for context, tag in known), len(known)


TASKS = {  # files of the recipe, the metric, the baseline
    "sst2": ({"path": "train.tsv", "val_path": "dev.tsv"}, "accuracy", lambda config: naive_bayes(config, words)),
    "languages": ({}, "accuracy", lambda config: naive_bayes(config, ngrams)),
    "atis_pos": (
        {"path": "en_atis-ud-train.conllu.gz", "val_path": "en_atis-ud-dev.conllu.gz"},
        "accuracy",
        tag_accuracy,
    ),
    "wnut17_ner": (
        {"path": "wnut17train.conll", "val_path": "emerging.dev.conll"},
        "entity_f1",
        lambda config: entity_f1(*frequent_tags(config)),
    ),
    "python_tokens": ({}, "accuracy", tag_accuracy),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", default=".", help="folder with the files of the recipe")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    files, metric, baseline = TASKS[args.task]
    config = importlib.import_module(f"configs.{args.task}").get_config()
    paths = {field: str(Path(args.data).absolute() / file) for field, file in files.items()}
    config.data.update(paths)
    figures = {"metric": metric, "baseline": round(baseline(Config.from_dict(config).data), 4), "seeds": []}
    if args.task == "atis_pos":
        share, number = self_agreement(Config.from_dict(config).data)
        figures |= {"self_agreement": round(share, 4), "of_words": number}
    print(f"baseline {figures['baseline']:.4f}", flush=True)
    for seed in range(args.seeds):
        workdir = ROOT / "runs" / f"{args.task}_seed{seed}"
        began = time.perf_counter()
        flags = [f"--config.data.{field}={path}" for field, path in paths.items()]
        command = [sys.executable, "-m", "train", f"--config=configs/{args.task}.py", f"--workdir={workdir}"]
        command += [f"--config.train.seed={seed}", *flags]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - began
        # The last checkpoint, because the best one was chosen on the split that is scored here.
        command = [sys.executable, "-m", "train.evaluate", f"--run_dir={workdir}", "--checkpoint=latest"]
        score = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(score.stdout)
        parameters = int(re.search(r"model: ([\d,]+) parameters", done.stdout)[1].replace(",", ""))
        one = {"seed": seed, metric: round(result[metric], 4), "step": result["step"], "seconds": round(seconds)}
        figures |= {"parameters": parameters, "seeds": [*figures["seeds"], one]}
        print(json.dumps(one), flush=True)
    figures["mean"] = round(statistics.mean(one[metric] for one in figures["seeds"]), 4)
    print(f"mean {figures['mean']:.4f}, baseline {figures['baseline']:.4f}: {report.save(args.task, figures)}")


if __name__ == "__main__":
    main()
