"""The attention command: its files, errors, help and labels."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.arrays import close, random_like
from helpers.commands import command

import transformer_jax as tj
from transformer_jax.commands.attention import draw, label
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import CharTokenizer

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
TEXT = "the cat sat"


# The command


def assert_is_picture(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[-8:-4] == b"IEND"
    assert all(300 < int.from_bytes(data[i : i + 4], "big") <= 8000 for i in (16, 20))


def test_the_command_writes_pictures_and_numbers_of_a_run(tmp_path):
    tokenizer = CharTokenizer.train(TEXT)
    config = tj.TransformerConfig(vocab_size=tokenizer.vocab_size, max_len=19, num_layers=2, d_model=10, num_heads=5)
    params = random_like(parameter_shapes(GPT(config)))
    run = tj.Run(GPT(config), params, tokenizer, config, generation_defaults=GenerationDefaults((2,), 0, 1))
    tj.save(run, tmp_path / "run")
    output = tmp_path / "new" / "maps"
    done = command("attention", f"--run_dir={tmp_path / 'run'}", f"--text={TEXT}", f"--output={output}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    names = ["maps.npz", "maps_layer_0.png", "maps_layer_1.png"]
    assert [Path(line).name for line in done.stdout.splitlines()] == names == sorted(os.listdir(output.parent))
    maps, saved = tj.attention_maps(run, TEXT), np.load(output.parent / names[0])
    assert sorted(saved) == ["tokens", "weights"] and saved["tokens"].tolist() == maps.tokens
    close(saved["weights"], maps.weights)
    for name in names[1:]:
        assert_is_picture(output.parent / name)


def test_the_command_draws_three_kinds_of_attention_of_a_seq2seq(tmp_path):
    done = command(
        "attention",
        f"--run_dir={FIXTURES / 'marian'}",
        "--text=The cat sat.",
        "--target=this text",
        f"--output={tmp_path / 'maps'}",
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    pages = ["encoder_0", "encoder_1", "encoder_2", "decoder_0", "decoder_1", "cross_0", "cross_1"]
    assert sorted(os.listdir(tmp_path)) == sorted(["maps.npz", *(f"maps_{page}.png" for page in pages)])
    for page in pages:
        assert_is_picture(tmp_path / f"maps_{page}.png")
    saved = np.load(tmp_path / "maps.npz")
    S, T = len(saved["source_tokens"]), len(saved["target_tokens"])
    assert S != T
    for name, shape in {"encoder": (3, 4, S, S), "decoder": (2, 3, T, T), "cross": (2, 3, T, S)}.items():
        assert saved[name].shape == shape


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--text=a"], "--run_dir: is missing"),
        (["--run_dir=x"], "--text: is missing"),
        (["--run_dir=x", "--text=a", "--output="], "--output: is missing"),
        (["--run_dir=x", "--text=a", "--output=README.md/maps"], "--output=README.md/maps"),
        (["--run_dir=x", "--text=a", "--target"], "target"),
        (["--run_dir=x", "the cat"], "'the cat': belongs to no flag"),
        (["--run_dir=tests/fixtures/gpt2", "--text=a", "--target=a"], "target: a GPT has no decoder"),
        (["--run_dir=tests/fixtures/t5", "--text=a"], "target: a Seq2Seq needs one"),
    ],
)
def test_a_wrong_command_line_is_an_error_of_one_line(flags, words, tmp_path):
    output = [] if any(flag.startswith("--output") for flag in flags) else [f"--output={tmp_path / 'maps'}"]
    done = command("attention", *flags[:1], *output, *flags[1:])
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and words in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_names_the_flags():
    done = command("attention", "--help")
    assert done.returncode == 0
    for flag in ("run_dir", "checkpoint", "text", "target", "output"):
        assert f"  --{flag}" in done.stdout


def test_labels_show_invisible_characters_and_no_token_is_read_as_a_formula(tmp_path):
    assert [label(token) for token in (" cat", "\n", "中", "\ud800", "é", "$x$")] == [
        "␣cat",
        "\\n",
        "\\u4e2d",
        "\\ud800",
        "é",
        "$x$",
    ]
    assert len(label("a" * 99)) == 14
    for heads, rows, columns in ((1, 1, 1), (7, 3, 131)):
        weights = np.full((heads, rows, columns), 1 / columns, np.float32)
        path = tmp_path / f"{heads}.png"
        draw(path, "$a_ \\frac", weights, ["$_{"] * rows, ["中\n"] * columns)
        assert_is_picture(path)
