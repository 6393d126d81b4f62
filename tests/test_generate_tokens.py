"""Token ids in, token ids out; the frames and files on the way of a token; numbers that compile nothing."""

import builtins
import dataclasses
import functools
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.arrays import close
from helpers.commands import command
from helpers.runs import CONTEXT, make_run

import transformer_jax as tj
from transformer_jax.errors import UserError
from transformer_jax.models import GPT
from transformer_jax.nn import attention
from transformer_jax.sampling.spec import METHODS

FIXTURES = Path(__file__).parent / "fixtures"
PACKAGE = Path(tj.__file__).parent
TEXTS = ["the cat", "狐"]
SETTINGS = {
    "sample": {"temperature": 0.8, "top_k": 7, "seed": 3, "num_samples": 3},
    "greedy": {"method": "greedy", "presence_penalty": 0.7},
    "beam": {"method": "beam", "num_beams": 3, "num_samples": 2, "repetition_penalty": 1.3},
    "prompt lookup": {"prompt_lookup": 1, "logit_bias": {104: 5.5, 107: 5.5}},
    "past the context": {"on_overflow": "re-prefill", "max_new_tokens": CONTEXT},
}


@functools.cache
def encoded():
    """(tokens, is_token) of TEXTS with padding before, within and after them, ids that no model has among it."""
    tokens, is_token = np.full((2, 13), 9999), np.zeros((2, 13), bool)
    for row, (text, places) in enumerate(zip(TEXTS, ((1, 2, 4, 5, 6, 7, 11), (0, 2, 12)), strict=True)):
        tokens[row, places] = make_run("byte").tokenizer.encode(text)
        is_token[row, places] = True
    return tokens, is_token


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_give_the_completions_of_their_text_with_and_without_a_tokenizer(name):
    run, settings = make_run("byte"), {"max_new_tokens": 11} | SETTINGS[name]
    expected = tj.complete(run, TEXTS, tj.GenerationConfig(**settings), num_top=2, seeds=[3, 5])
    assert len({one.tokens for one in expected}) > 1
    found = tj.generate_tokens(run, *encoded(), num_top=2, seeds=[3, 5], **settings)
    assert found == [dataclasses.replace(one, prompt="") for one in expected]
    rows = [tokens[is_token].tolist() for tokens, is_token in zip(*encoded(), strict=True)]
    nameless = tj.generate_tokens(dataclasses.replace(run, tokenizer=None), rows, num_top=2, seeds=[3, 5], **settings)
    assert nameless == [dataclasses.replace(one, prompt="", text="") for one in expected]


@pytest.mark.parametrize("settings", [{"method": "greedy"}, {"method": "beam", "num_samples": 2}], ids=str)
def test_the_ids_of_sources_give_the_targets_of_their_text(settings):
    run = tj.from_pretrained(FIXTURES / "bart")
    expected = tj.complete(run, ["the cat sat", "this"], tj.GenerationConfig(max_new_tokens=7, **settings))
    sources = [run.tokenizer.encode_source(text) for text in ("the cat sat", "this")]
    found = tj.generate_tokens(run, sources, max_new_tokens=7, **settings)
    assert found == [dataclasses.replace(one, prompt="") for one in expected]


def test_the_score_of_a_beam_is_its_log_probability_by_the_length_penalty():
    settings = dict(method="beam", num_samples=3, length_penalty=0.7, max_new_tokens=5)
    completions = tj.generate_tokens(make_run("byte"), *encoded(), **settings)
    close(
        [one.score for one in completions], [one.log_prob / ((5 + len(one.tokens)) / 6) ** 0.7 for one in completions]
    )
    assert tj.generate_tokens(make_run("byte"), [[3]], max_new_tokens=1)[0].score is None


@pytest.mark.parametrize(
    "given, message",
    [
        (([[5, 259]],), "tokens: ids of sequence 0 must lie between 0 and 258, not between 5 and 259."),
        (([[5], [-1]],), "tokens: ids of sequence 1 must lie between 0 and 258, not between -1 and -1."),
        (([[5], []],), "tokens: sequence 1 has no token."),
        (([[5, 7]], [[False, False]]), "tokens: sequence 0 has no token."),
        (([[5.0]],), "tokens: sequence 0 must be integers [T], not float64 [1]."),
        (([5, 7],), "tokens: sequence 0 must be integers [T], not int64 []."),
        (([[5, 7]], [[True]]), "is_token: sequence 0 must be bool [2] as its tokens, not bool [1]."),
        (([[5, 7]], [[1, 0]]), "is_token: sequence 0 must be bool [2] as its tokens, not int64 [2]."),
        (([[5, 7]], [[True, True]] * 2), "is_token: 2 sequences, and tokens has 1."),
    ],
    ids=str,
)
def test_wrong_ids_are_refused_in_one_line(given, message):
    with pytest.raises(UserError) as error:
        tj.generate_tokens(make_run("byte"), *given)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value",
    [("stop", ["a"]), ("bad_words", ["a"]), ("choices", ["a"]), ("regex", "a"), ("suppress", ["a"])]
    + [("logit_bias", {"a": 1.0})],
)
def test_a_setting_that_is_text_is_refused_without_a_tokenizer(name, value):
    run = dataclasses.replace(make_run("byte"), tokenizer=None)
    with pytest.raises(UserError, match=f"{name}=.*is text, and the run has no tokenizer"):
        tj.generate_tokens(run, [[5]], **{name: value})


def test_other_numbers_compile_nothing(caplog):
    run = make_run("byte")
    sample, beam = dict(max_new_tokens=5, num_samples=2), dict(max_new_tokens=5, method="beam", num_groups=2)
    num_compiled = []
    for i in range(11):
        x = (i + 1) / 11
        numbers = dict(repetition_penalty=1 + x, presence_penalty=x, frequency_penalty=-x, suppress=[i, 3])
        numbers |= dict(temperature=1 + x, top_k=1 + 28 * i, top_p=x / 2, min_p=x / 99, typical_p=1 - x / 2)
        with caplog.at_level("WARNING"), jax.log_compiles():
            caplog.clear()
            tj.generate(run, "the cat", **sample, **numbers, seed=i, min_new_tokens=1 + i % 5, logit_bias={i: x})
            tj.generate(run, "the cat", **beam, length_penalty=x, diversity=x, repetition_penalty=1 + x, seed=i)
        num_compiled.append(sum("Compiling" in record.getMessage() for record in caplog.records))
    assert num_compiled[0] > 0 and num_compiled[1:] == [0] * 10


def frames():
    """Frames of this package in the current stack, (file, function), the outermost first."""
    stack = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
    return [(file.relative_to(PACKAGE).as_posix(), name) for file, name in stack if file.is_relative_to(PACKAGE)]


def recording(function, stacks):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        stacks.append(frames())
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("name", ["sample", "beam", "prompt lookup"])
def test_at_most_five_frames_lead_from_generate_to_the_model(name, monkeypatch):
    stacks = []
    monkeypatch.setattr(GPT, "extend", recording(GPT.extend, stacks))
    run = make_run("bpe", vocab_size=281)  # of a size of its own, so that it is traced here
    tj.generate(run, TEXTS, max_new_tokens=13, **SETTINGS[name])
    assert all(stack[0] == ("inference/generate.py", "generate") for stack in stacks)
    assert len(stacks) >= 2 and max(map(len, stacks)) <= 5, stacks


def test_at_most_fourteen_files_lead_from_the_command_to_the_formula_and_back(monkeypatch):
    stacks, chosen, printed = [], [], []
    monkeypatch.setattr(attention, "attention_scores", recording(attention.attention_scores, stacks))
    monkeypatch.setitem(METHODS, "sample", recording(METHODS["sample"], chosen))
    monkeypatch.setattr(builtins, "print", recording(print, printed))
    flags = (
        "--prompt=the cat",
        "--max_new_tokens=13",
        "--top_k=3",
        "--min_p=0.01",
        "--typical_p=0.9",
    )  # no other test has these three
    assert command("sample", f"--run_dir={FIXTURES / 'gpt2'}", *flags).returncode == 0
    decoding = [stack for stack in stacks if ("sampling/decode.py", "decode_step") in stack]
    assert decoding and chosen and printed
    files = {file for stack in decoding + chosen + printed for file, _ in stack}
    assert len(files) <= 14, sorted(files)
    assert {"commands/sample.py", "sampling/decode.py", "nn/attention.py"} <= files
