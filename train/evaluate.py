"""Evaluate command: `transformer-jax evaluate --run_dir=runs/NAME --split=test` writes scores and predictions."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import ADAPTER_MEANING, HELP_FLAGS, parse_flags, report_errors, required, show_help
from transformer_jax.files import make_subfolder, write_text
from transformer_jax.lines import one_line

EXAMPLE = "python -m transformer_jax evaluate --run_dir=runs/multi30k --split=test"

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of a training run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (on validation) | latest | a step")
_ADAPTER = flags.DEFINE_string("adapter", "", ADAPTER_MEANING)
_AVERAGE = flags.DEFINE_integer("average", 0, "Instead of --checkpoint: average this number of newest checkpoints.")
_SPLIT = flags.DEFINE_enum("split", "val", ["train", "val", "test"], "train | val | test")
_PATH = flags.DEFINE_string("path", "", "File of the split; empty: the one in the config of the run.")
_TARGET_PATH = flags.DEFINE_string("target_path", "", "File of its translations, line by line.")
_NUM_BEAMS = flags.DEFINE_integer("num_beams", 5, "seq2seq: number of beams; 1: greedy.")
_LENGTH_PENALTY = flags.DEFINE_float("length_penalty", 1.0, "seq2seq: exponent of the length penalty, Wu et al. 2016.")


def main(argv: list[str]) -> None:
    """Parse the flags, load the run, score the split, save the scores."""
    if HELP_FLAGS & set(argv):
        show_help(f"Score a trained run on a split.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    run_dir = required(_RUN_DIR, EXAMPLE)

    startup.prepare()
    import transformer_jax as tj  # here, so that errors above are reported before JAX is loaded

    from .data.pairs import SPLITS
    from .plot import draw_confusion
    from .resume import trained_config
    from .tasks.scoring import Options, score

    run = tj.load(run_dir, _CHECKPOINT.value, average=_AVERAGE.value)
    run = tj.merge_adapter(tj.load_adapter(run, _ADAPTER.value)) if _ADAPTER.value else run
    config = trained_config(tj.read_meta(run_dir), run_dir)
    given = zip(SPLITS[_SPLIT.value], (_PATH.value, _TARGET_PATH.value), strict=True)
    paths: dict[str, Any] = {field: path for field, path in given if path}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **paths))

    def progress(done, total):
        print(f"\r{done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    scored = score(run, config, _SPLIT.value, Options(_NUM_BEAMS.value, _LENGTH_PENALTY.value, progress))
    folder = make_subfolder(Path(run_dir).expanduser(), "evaluation", _SPLIT.value)
    average = {"average_of": _AVERAGE.value} if _AVERAGE.value else {}
    result = {"split": _SPLIT.value, "step": run.step, **average, **scored.values}
    write_text(folder / "scores.json", json.dumps(result, indent=1) + "\n")
    for name, lines in scored.lines.items():
        write_text(folder / f"{name}.txt", "".join(f"{one_line(line)}\n" for line in lines))
    if scored.confusion is not None:
        draw_confusion(scored.confusion, scored.names or run.labels, folder / "confusion.png")
    print(json.dumps(result, indent=1))
    print(f"{folder}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(report_errors(main, sys.argv))
