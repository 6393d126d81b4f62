"""The demo's recipe, trained for fewer steps than `make demo` does: what it samples has to be words."""

import re

import transformer_jax as tj
from configs.demo import get_config
from train.config import Config
from train.data.sources import load_text, split_text
from train.loop import run


def test_at_least_nine_of_ten_words_that_the_demo_samples_occur_in_its_training_text(tmp_path):
    recipe = get_config()
    recipe.train.num_steps = 300
    recipe.train.eval_every = recipe.checkpoint.save_every = 300
    run(recipe, tmp_path / "demo")

    config = Config.from_dict(recipe)
    training_text, _ = split_text(load_text(config.data), config.data.val_fraction)
    known = set(re.findall(r"[^\W\d_]+", training_text))
    trained = tj.load(tmp_path / "demo")
    texts = tj.generate(
        trained, "The for statement", max_new_tokens=150, temperature=0.7, top_k=40, seed=1, num_samples=3
    )
    words = re.findall(r"[^\W\d_]+", " ".join(texts))
    unknown = [word for word in words if word not in known]
    assert len(words) > 100
    assert len(unknown) <= 0.1 * len(words), unknown
