"""CoNLL and CoNLL-U files: comments, columns, and lines that are no words; words without tokens."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.arrays import random_like

import transformer_jax as tj
from train.config import DataConfig, TokenizerConfig
from train.data.tagged import Sentence, encode_sentence, load_tagged, read_tagged
from transformer_jax.inference.predict import NO_TOKENS, encode_words
from transformer_jax.models import TokenTagger, parameter_shapes
from transformer_jax.tokenizers import train_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"


def read(tmp_path, content, name="a.conll", **fields):
    (tmp_path / name).write_text(content)
    return [(s.words, s.tags) for s in read_tagged(str(tmp_path / name), DataConfig(source="tagged", **fields))]


@pytest.mark.parametrize(
    "content, words",
    [
        ("# id 7c2 domain=en\nJohn _ _ B-P\nruns _ _ O\n\n# id 7c3 domain=en\nMary _ _ B-P\n", "John runs | Mary"),
        ("# id 7c2\tdomain=en\nJohn _ _ B-P\n", "John"),  # MultiCoNER
        ("#\thttp://x [2009]\nEU\tX\tB-O\n# a b\n\n# two\n#\nof\tX\tO\n", None),  # a comment after a word does not fit
        ("#\thttp://x [2009]\nEU\tX\tB-O\n\n# two\n#\nof\tX\tO\n", "EU | of"),
        ("###MEDLINE:953\n\nIL-2 B-D\ngene I-D\n\n###MEDLINE:954\n\nthe O\n", "IL-2 gene | the"),
        ("#begin document (bc/0); part 000\na x y O\n\n#end document\n", "a"),
        ("-DOCSTART- -X- -X- O\n\n# X B-N O\nsale X I-N O\n-DOCSTART- -X- -X- O\nNew X B-N B-L\n", "# sale | New"),
        ("# O\nsale O\n\n#sale O\nB-x O\n\n#1 B-x\n", "# sale | #sale B-x | #1"),
        ("#\tO\nsale\tO\n\n#new\tS-x\n", "# sale | #new"),
        ("a O\n# O\n#b O\n", "a # #b"),
        ("# SYM\nfive NUM\n\na DET\n# SYM\nb SYM\n", "# five | a # b"),
        ("# id=7\nfive NUM\n", "five"),
        ("# text\nfive NUM\n", None),  # a comment, or a word with the tag "text"
        ("#sale O\n", "#sale"),
    ],
)
def test_comments_are_no_words_and_words_that_begin_with_a_hash_stay(tmp_path, content, words):
    if words is None:
        with pytest.raises(
            tj.UserError, match=r"a.conll, line \d: (has \d col|begins with '#', and could be a comment)"
        ):
            read(tmp_path, content)
        return
    assert [sentence for sentence, _ in read(tmp_path, content)] == [part.split() for part in words.split(" | ")]


def test_columns_end_at_tabs_or_at_spaces(tmp_path):
    expected = [(["New York", "is"], ["B-L", "O"])]
    assert read(tmp_path, "New York\tB-L\nis\tO\t\n".replace("O\t", "O")) == expected
    assert read(tmp_path, "New York\t\tB-L \nis\tX\tO\n") == expected
    assert read(tmp_path, "York B-L  \n is  O\n") == [(["York", "is"], ["B-L", "O"])]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.conll", "a X O\nb O\n", "line 2: has 2 columns, and needs 3"),
        ("a.conll", "a O\n\nb X O\n", "line 3: has 3 columns, and needs 2"),
        ("a.conll", "a\tO\nNew York\nb\tO\n", "line 2: has 1 columns, and needs 2"),
        ("a.conll", "a\nb\n", "line 1: has 1 columns, and needs 2"),
        ("a.conll", "a\tO\nb\t\n", "line 2: the tag, in the last column, is empty"),
        ("a.conll", "a\tO\n\tO\n", "line 2: the word is empty"),
        ("a.conll", "1 EU O\n2 is O\n\n1 a O\n", "the first column counts the words of each sentence .1, 2"),
        ("a.conll", "Word\tTag\nEU\tO\nis\tO\n", r"line 1: looks like a header .Word, Tag"),
        ("a.conllu", "x\ta\tb\tX\t_\t_\t_\t_\t_\t_\n", "line 1: id 'x' must be a number such as 3, 3-4 or 3.1"),
        ("a.conllu", "1\ta\tb\tX\t_\t_\t_\t_\t_\n", "line 1: has 9 columns, and needs 10"),
        ("a.conllu", "1\ta\tb\t_\t_\t_\t_\t_\t_\t_\n", "line 1: has no upos"),
        ("a.conllu", "1\t\tb\tX\t_\t_\t_\t_\t_\t_\n", "line 1: the word is empty"),
    ],
)
def test_a_line_that_is_no_word_with_a_tag_is_named(tmp_path, name, content, message):
    with pytest.raises(tj.UserError, match=f"{name}(, |: ){message}") as error:
        read(tmp_path, content, name)
    assert len(str(error.value).splitlines()) == 1


def test_an_underscore_is_a_word_and_a_feature_of_conllu(tmp_path):
    content = "# text = _ a\n1-2\t_a\t_\t_\t_\t_\t_\t_\t_\t_\n1\t_\tb\tX\t_\t_\t_\t_\t_\t_\n1.1\tz" + "\t_" * 8
    content += "\n2\ta b\tb\tY\t_\tF=1\t_\t_\t_\t_\n"
    assert read(tmp_path, content, "a.conllu") == [(["_", "a b"], ["X", "Y"])]
    assert read(tmp_path, content, "a.conllu", label_field="feats") == [(["_", "a b"], ["_", "F=1"])]


def test_one_tag_for_all_words_is_a_warning_and_a_trained_head_keeps_its_order(tmp_path, capsys):
    config = DataConfig(source="tagged", path=str(tmp_path / "a.conll"), val_path=str(tmp_path / "a.conll"))
    arguments = (config, TokenizerConfig(kind="byte"), None, ())
    (tmp_path / "a.conll").write_text("a O\nb O\n")
    load_tagged(*arguments)
    assert "warning: data: all words have the tag 'O'. There is nothing to learn" in capsys.readouterr().err
    (tmp_path / "a.conll").write_text("a O\nb B-x\n")
    assert load_tagged(*arguments).labels == load_tagged(*arguments, ("O", "X")).labels == ("B-x", "O")
    assert load_tagged(*arguments, ("O", "B-x")).labels == ("O", "B-x")


# Words without tokens

WORDS = ["the", "\u200b", "cat", "", "sat", "\u00ad", "\u200b"]


@pytest.fixture(scope="module")
def tagger():
    run = tj.from_pretrained(FIXTURES / "bert")
    model = TokenTagger(run.config, 3)
    params = random_like(parameter_shapes(model))
    return dataclasses.replace(run, model=model, params=params, labels=("B-x", "I-x", "O"), name="")


def test_a_word_without_tokens_gives_its_tag_to_no_other_word(tagger):
    tokens, starts = encode_words(tagger.tokenizer, WORDS, " ")
    assert (starts == NO_TOKENS).tolist() == [False, True, False, True, False, True, True]
    plain, plain_starts = encode_words(tagger.tokenizer, ["the", "cat", "sat"], " ")
    np.testing.assert_array_equal(tokens, plain)
    np.testing.assert_array_equal(starts[starts >= 0], plain_starts)
    sentence = Sentence(WORDS, ["B-x", "I-x", "I-x", "B-x", "O", "B-x", "B-x"])
    _, tag, is_tagged = encode_sentence(tagger.tokenizer, sentence, {"B-x": 0, "I-x": 1, "O": 2})
    assert np.flatnonzero(is_tagged).tolist() == plain_starts.tolist() and tag[is_tagged].tolist() == [0, 1, 2]


def test_every_word_gets_a_tag_and_one_without_tokens_is_outside(tagger, capsys):
    found, plain, nothing, none = tj.tag(tagger, [WORDS, ["the", "cat", "sat"], ["\u200b"], []])
    assert [found[0], found[2], found[4]] == plain and nothing == ["O"] and none == []
    assert [found[i] for i in (1, 3, 5, 6)] == ["O"] * 4
    assert "warning: 5 of 11 words have no token, and get the tag 'O'." in capsys.readouterr().err
    without_o = dataclasses.replace(tagger, labels=("NOUN", "VERB", "DET"))
    assert tj.tag(without_o, [["\u200b"]]) == [["NOUN"]]
    long = ["the", *["cat"] * tagger.config.max_len, "\u200b"]
    assert len(tj.tag(tagger, [long])[0]) == len(long)


@pytest.mark.parametrize("separator", [" ", ""])
def test_words_of_a_tokenizer_with_a_token_for_each_byte_keep_their_tokens(separator):
    tokenizer = train_tokenizer("byte", 0, "")
    tokens, starts = encode_words(tokenizer, ["a", "", "bc"], separator)
    assert starts.tolist() == ([1, 3, 4] if separator else [1, NO_TOKENS, 2])
    assert tokenizer.decode(tokens) == separator.join(["", "a", "", "bc"])
