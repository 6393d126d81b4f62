"""Memory and time of the start of training on a large text: first start, and second start with its token file.

    python benchmarks/corpus.py                  a text of 1 GB, byte and bpe: ten minutes or more; prints a table
    python benchmarks/corpus.py --gigabytes=0.1  a tenth of it

The text is Python's documentation, its lines shuffled again and again. A tiny GPT trains for one step, in a process of
its own. Memory is the peak of resident memory above that of the imports; pages of the mapped file count.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from train.config import DataConfig  # noqa: E402
from train.data.sources import load_text  # noqa: E402

TINY = {"num_layers": 1, "d_model": 64, "num_heads": 2, "max_len": 64}
# Without the evaluation, which reads the whole validation split.
PROGRAM = """
import sys
import train.loop, train.tasks.base
train.tasks.base.evaluate = lambda *args: {"loss": 1.0}
if len(sys.argv) > 1:
    import json
    train.loop.run(json.loads(sys.argv[1]), sys.argv[2])
"""


def write_text(path: Path, num_bytes: int) -> None:
    """Write a text of about `num_bytes` bytes: the lines of the documentation in one random order after another."""
    lines = "".join(load_text(DataConfig()).pieces()).splitlines(keepends=True)
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            draw.shuffle(lines)
            file.writelines(lines)


def run(*arguments: str) -> tuple[float, str]:
    """Run PROGRAM with `arguments`. Returns its peak of resident memory in MB, and what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if child.returncode:
        raise SystemExit(f"failed: {printed}")
    return usage.ru_maxrss / 1e3, printed


def main() -> None:
    """Make the text, start training twice for each kind of tokenizer, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--kinds", default="byte,bpe")
    args = parser.parse_args()
    imports, _ = run()
    print("tokenizer  start   first step (s)   memory above imports (MB)")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "a.txt")
        write_text(text, int(args.gigabytes * 1e9))
        for kind in args.kinds.split(","):
            for start in ("first", "second"):
                data = {"source": "text", "path": str(text), "cache_dir": f"{folder}/cache"}
                config = {"model": TINY, "data": data, "tokenizer": {"kind": kind}, "train": {"num_steps": 1}}
                peak, printed = run(json.dumps(config), f"{folder}/{kind}-{start}")
                seconds = re.search(r"first step ([\d.]+) s after", printed)
                assert seconds, printed
                print(f"{kind:<9}  {start:<6}  {seconds[1]:>14}   {peak - imports:>25,.0f}", flush=True)


if __name__ == "__main__":
    main()
