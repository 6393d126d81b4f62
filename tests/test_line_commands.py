"""Line commands: classify, tag, score, translate and sample give one answer for each line of their input."""

import gzip
import json
import re
import subprocess
import sys

import pytest
from helpers.arrays import random_like
from helpers.commands import ROOT, assert_is_one_error, command
from helpers.text_files import fuzzed, slow_lines, write

import transformer_jax as tj
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, SequenceClassifier, TokenTagger
from transformer_jax.models import parameter_shapes as shapes
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import train_tokenizer

COMMANDS = [("classify", "classify"), ("classify", "regress"), ("tag", "words"), ("tag", "characters")]
COMMANDS += [("score", "gpt"), ("score", "seq2seq"), ("translate", "seq2seq")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Saved runs with random parameters, whose labels and texts contain line ends."""
    config = TransformerConfig(vocab_size=259, max_len=11, num_layers=1, d_model=10, num_heads=2)
    labels = ("x\ny", "z\u2028\r")
    models = {
        "classify": SequenceClassifier(config, 2),
        "regress": SequenceClassifier(config, 1),
        "words": TokenTagger(config, 2),
        "characters": TokenTagger(config, 2),
        "gpt": GPT(config),
        "seq2seq": Seq2Seq(Seq2SeqConfig(config, config)),
    }
    tokenizer = train_tokenizer("byte", 0, "")
    folder = tmp_path_factory.mktemp("runs")
    for name, model in models.items():
        options = {"labels": labels if name in ("classify", "words", "characters") else ()}
        options["separator"] = "" if name == "characters" else " "
        defaults = GenerationDefaults((tokenizer.eos_id,), 0, 1)
        run = tj.Run(model, random_like(shapes(model)), tokenizer, config, generation_defaults=defaults, **options)
        if name == "seq2seq":
            run = tj.Run(model, random_like(shapes(model)), tokenizer, model.config, generation_defaults=defaults)
        tj.save(run, folder / name)
    return folder


def answers(name, run, stdin, *flags):
    """Answers of a line command: its lines, or for `tag` the sentences that an empty line ends."""
    done = command(name, f"--run_dir={run}", "--checkpoint=latest", *flags, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == len(done.stdout.splitlines()) and done.stdout[-1:] in ("", "\n")
    return re.findall(r"(?:.+\n)*\n" if name == "tag" else r".*\n", done.stdout)


@pytest.mark.parametrize("name, kind", COMMANDS)
def test_each_line_of_a_thousand_fuzzed_inputs_gets_one_answer(runs, name, kind):
    inputs = [slow_lines(fuzzed(number).encode()) for number in range(1000)]
    lines = [line for lines in inputs for line in lines]
    if (name, kind) == ("score", "seq2seq"):
        lines = [line.replace("\t", " ") + "\tz" for line in lines]
    stdin = "".join(f"{line}\r\n" for line in lines)
    assert len(lines) > 2500
    assert len(answers(name, runs / kind, stdin, *(["--num_beams=1"] if name == "translate" else []))) == len(lines)


@pytest.mark.parametrize("name, kind", COMMANDS)
def test_answers_number_the_lines_of_stdin_empty_ones_too(runs, name, kind):
    tab = "\tz" if (name, kind) == ("score", "seq2seq") else ""
    for stdin, num_lines in (
        ("", 0),
        ("\ufeff", 0),
        ("the cat\u2028sat down~\nthe dog\x0cran~\n", 2),
        ("the cat~\r\nthe dog~", 2),
        ("\0~\nw~\n", 2),
        ("w" * 2**16 + "~\n", 1),
    ):
        assert len(answers(name, runs / kind, stdin.replace("~", tab))) == num_lines
    if not tab:
        empty, _ = answers(name, runs / kind, "\n\n")
        assert empty == {"score": "0.0000\t0\t1.0000\n"}.get(name, "\n")


@pytest.mark.parametrize("name, kind", COMMANDS)
def test_a_byte_order_mark_and_carriage_returns_change_no_answer(runs, name, kind):
    stdin = "the cat\tz\nthe dog\tz\n"
    assert answers(name, runs / kind, "\ufeff" + stdin.replace("\n", "\r\n")) == answers(name, runs / kind, stdin)


def test_stdin_in_another_encoding_is_one_error_with_its_conversion(runs):
    words = [sys.executable, "-m", "transformer_jax", "classify", f"--run_dir={runs / 'classify'}"]
    for data, message in (
        (b"caf\xe9\n", "stdin is not UTF-8: byte 0xe9 at offset 3, in line 1. If it is Latin-1: "),
        ("café\n".encode("utf-16"), "stdin is UTF-16, and must be UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 FILE |"),
    ):
        done = subprocess.run(words, cwd=ROOT, input=data, capture_output=True)
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        assert_is_one_error(done, message)


def test_prompts_are_lines_too_from_a_file_its_gz_and_stdin(runs, tmp_path):
    content = "\ufeffa\u2028b\r\nc\rd\x0ce\r\n"
    plain, packed = write(tmp_path / "p.txt", content), write(tmp_path / "p.txt.gz", gzip.compress(content.encode()))
    for path, stdin in ((plain, ""), (packed, ""), ("-", content), ("-", "a\u2028b\nc\rd\x0ce")):
        words = ("--output=jsonl", f"--prompts_file={path}", "--max_new_tokens=1", "--method=greedy")
        done = command("sample", f"--run_dir={runs / 'gpt'}", *words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["a\u2028b", "c\rd\x0ce"]


def test_a_lone_carriage_return_ends_no_line_that_is_typed(runs):
    words = ("--interactive", "--max_new_tokens=1", "--method=greedy")
    done = command("sample", f"--run_dir={runs / 'gpt'}", *words, stdin="a\rb\r\nc\n")
    assert done.returncode == 0 and done.stderr.count("> ") == 3, done.stderr
