"""Text arguments of the public functions: a string has one answer, a sequence has a list, another type one line."""

import ast
import dataclasses
import inspect
import typing
from pathlib import Path

import numpy as np
import pytest
from helpers.arrays import random_like

import transformer_jax as tj
from transformer_jax.config import TransformerConfig
from transformer_jax.inference import generate, predict, score, translate
from transformer_jax.models import GPT, Seq2Seq, Seq2SeqConfig, SequenceClassifier, TokenTagger, parameter_shapes
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import train_tokenizer

CONFIG = TransformerConfig(vocab_size=259, max_len=13, num_layers=1, d_model=10, num_heads=2)
MODELS = {
    "classify": SequenceClassifier(CONFIG, 3),
    "regress": SequenceClassifier(CONFIG, 1),
    "tag": TokenTagger(CONFIG, 3),
    "gpt": GPT(CONFIG),
    "seq2seq": Seq2Seq(Seq2SeqConfig(CONFIG, CONFIG)),
}


@pytest.fixture(scope="module")
def runs():
    """Runs with random parameters and a tokenizer of bytes."""
    tokenizer = train_tokenizer("byte", 0, "")
    defaults = GenerationDefaults((tokenizer.eos_id,), 0, 1)
    return {
        name: tj.Run(model, random_like(parameter_shapes(model)), tokenizer, model.config, generation_defaults=defaults)
        for name, model in MODELS.items()
    }


SHORT = tj.GenerationConfig(max_new_tokens=2, method="greedy")
CALLS = {
    "classify": ("classify", lambda run, texts: tj.classify(run, texts, batch_size=2)),
    "regress": ("regress", lambda run, texts: tj.classify(run, texts, batch_size=2)),
    "tag": ("tag", lambda run, texts: tj.tag(run, texts, batch_size=2)),
    "score": ("gpt", lambda run, texts: tj.score(run, texts, batch_size=2)),
    "score_targets": ("seq2seq", lambda run, texts: tj.score(run, texts, texts, batch_size=2)),
    "translate": ("seq2seq", lambda run, texts: tj.translate(run, texts, num_beams=1, max_new_tokens=2, batch_size=2)),
    "generate": ("gpt", lambda run, texts: tj.generate(run, texts, max_new_tokens=2, method="greedy")),
    "complete": ("gpt", lambda run, texts: tj.complete(run, texts, SHORT)),
}
calls = pytest.mark.parametrize("name", CALLS)


def same(found, expected):
    """Equal texts and tokens, close numbers."""
    assert type(found) is type(expected)
    if isinstance(found, tj.Completion):
        same(dataclasses.astuple(found), dataclasses.astuple(expected))
    elif isinstance(found, list | tuple):
        for part, other in zip(found, expected, strict=True):
            same(part, other)
    elif isinstance(found, float | np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    else:
        assert found == expected


@calls
def test_a_string_has_one_answer_and_a_sequence_a_list_of_them(runs, name):
    kind, call = CALLS[name]
    run, given = runs[kind], ["bad film", "so"]
    answers = call(run, given)
    assert isinstance(answers, list) and len(answers) == 2
    for text, answer in zip(given, answers, strict=True):
        same(call(run, text), answer)
    for sequence in (tuple(given), np.array(given)):
        for answer, other in zip(call(run, sequence), answers, strict=True):
            same(answer, other)
    assert call(run, []) == []


class Prompts:
    """Iterable, and no sequence."""

    def __iter__(self):
        return iter(["a"])


@calls
@pytest.mark.parametrize(
    "wrong, message",
    [
        (None, ": must be a string or a list of strings, not of type NoneType."),
        (7, ": must be a string or a list of strings, not of type int."),
        (b"bad", ": must be a string or a list of strings, not of type bytes."),
        ({"bad": 1}, ": must be a string or a list of strings, not of type dict."),
        ((text for text in ["bad"]), "not of type generator. Take list(...) of it."),
        ({"bad"}, "not of type set. Take list(...) of it."),
        (Prompts(), "not of type Prompts. Take list(...) of it."),
        (["a", None], "[1]: must be a string"),
        (["a", b"b"], "[1]: must be a string"),
        ([3], "[0]: must be a string"),
        (np.array([["a"]]), ": must be a list of strings, not an array of shape [1, 1]."),
        (np.array([1.5]), "[0]: must be a string"),
    ],
    ids=lambda value: type(value).__name__,  # the text of a generator has its address, and workers compare ids
)
def test_an_argument_of_another_type_is_refused_in_one_line(runs, name, wrong, message):
    kind, call = CALLS[name]
    with pytest.raises(tj.UserError) as error:
        call(runs[kind], wrong)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_list_of_strings_is_several_sentences_and_a_list_in_it_a_split_one(runs):
    run = runs["tag"]
    split = ["Anna", "lives"]
    alone = tj.tag(run, "Anna lives")
    assert len(alone) == 2 and all(isinstance(tag, str) for tag in alone)
    assert tj.tag(run, [split]) == tj.tag(run, [tuple(split)]) == tj.tag(run, ["Anna lives"]) == [alone]
    assert tj.tag(run, split) == [tj.tag(run, "Anna"), tj.tag(run, "lives")]
    assert [len(tags) for tags in tj.tag(run, ["a b c", split, "d"])] == [3, 2, 1]
    with pytest.raises(tj.UserError, match=r"sentences\[1\]\[0\]: must be a string, not of type list."):
        tj.tag(run, ["a", [["b"]]])


def test_one_source_has_one_target(runs):
    run = runs["seq2seq"]
    together, alone = tj.score(run, ["ab"], ["cd"])[0], tj.score(run, "ab", "cd")
    assert alone.num_tokens == 3 and alone.log_probability == pytest.approx(together.log_probability, rel=1e-5)
    for given in (("ab", ["cd"]), (["ab"], "cd")):
        with pytest.raises(tj.UserError, match="targets: must be a string where texts is one, and else a list."):
            tj.score(run, *given)
    with pytest.raises(tj.UserError, match=r"targets\[0\]: must be a string, not of type NoneType."):
        tj.score(run, ["ab"], [None])
    for given in ((runs["gpt"], "ab", "cd"), (run, "ab"), (run, ["ab"], ["c", "d"])):
        with pytest.raises(tj.UserError, match="targets: a Seq2Seq needs one for each text, and a GPT takes none."):
            tj.score(*given)


def test_several_samples_of_one_prompt_are_a_list(runs):
    config = tj.GenerationConfig(max_new_tokens=2, num_samples=3)
    found = tj.complete(runs["gpt"], "ab", config)
    assert [one.tokens for one in found] == [one.tokens for one in tj.complete(runs["gpt"], ["ab"], config)]
    assert len(found) == 3 == len(tj.generate(runs["gpt"], "ab", max_new_tokens=2, num_samples=3))


@pytest.mark.parametrize("wrong", [["a", "b"], None, b"ab"], ids=str)
def test_functions_of_one_text_refuse_anything_else(runs, wrong):
    run = runs["gpt"]
    uses = (
        lambda: tj.stream(run, wrong),
        lambda: tj.prompt_text(run, wrong),
        lambda: tj.benchmark(run, wrong, SHORT),
        lambda: tj.attention_maps(run, wrong),
    )
    for use in uses:
        with pytest.raises(tj.UserError, match=f"(prompt|text): must be a string, not of type {type(wrong).__name__}."):
            use()
    with pytest.raises(tj.UserError, match="tokens: must be int|text: must be a string or|must be integers"):
        tj.Session(run).extend(wrong) or tj.generate_tokens(run, wrong)


def test_type_checkers_see_every_public_name_and_one_answer_for_a_string():
    tree = ast.parse(Path(tj.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == {name: f"transformer_jax.{module}" for name, module in tj._MODULES.items()}
    assert len(tj.__all__) == len(set(tj.__all__)) and seen.keys() < set(tj.__all__)
    for function in (predict.classify, predict.tag, score.score, translate.translate, generate.complete):
        one, several = typing.get_overloads(function)
        assert next(iter(list(inspect.signature(one).parameters.values())[1:])).annotation is str
        assert inspect.signature(several).return_annotation.__origin__ is list
        assert inspect.signature(one).return_annotation != inspect.signature(several).return_annotation
