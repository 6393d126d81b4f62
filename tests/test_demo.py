"""The demo's recipe, trained for fewer steps than `make demo` does: what it samples has to be words."""

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.text_files import parts_of

import transformer_jax as tj
from configs.demo import get_config
from train.config import Config

ROOT = Path(__file__).parents[1]


def test_at_least_nine_of_ten_words_that_the_demo_samples_occur_in_its_training_text(tmp_path):
    fewer = [f"--config.{name}=100" for name in ("train.num_steps", "train.eval_every", "checkpoint.save_every")]
    command = [sys.executable, "-m", "train", "--config=configs/demo.py", f"--workdir={tmp_path / 'demo'}", *fewer]
    fast = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # worth compiling for
    subprocess.run(command, cwd=ROOT, env=fast, check=True, capture_output=True, timeout=300)

    config = Config.from_dict(get_config())
    training_text, _ = parts_of(config.data)
    known = set(re.findall(r"[^\W\d_]+", training_text))
    trained = tj.load(tmp_path / "demo")
    texts = tj.generate(
        trained,
        "The for statement",
        max_new_tokens=150,
        temperature=0.7,
        top_k=40,
        seed=1,
        num_samples=3,
        on_overflow="re-prefill",
    )
    words = re.findall(r"[^\W\d_]+", " ".join(texts))
    unknown = [word for word in words if word not in known]
    assert len(words) > 100
    assert len(unknown) <= 0.1 * len(words), unknown
