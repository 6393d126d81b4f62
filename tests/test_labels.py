"""Labelled texts: headers, columns in another order, labels of JSON, and numbers to predict."""

import numpy as np
import pytest

import transformer_jax as tj
from train.config import DataConfig, TokenizerConfig
from train.data.batches import labelled_batch
from train.data.labelled import load_labelled, read_labelled
from train.data.pairs import load_split

ROWS = [f"message {i},{'ab'[i % 2]}" for i in range(20)]


def path_of(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    return str(tmp_path / name)


def load(tmp_path, name, content, are_numbers=False, **fields):
    config = DataConfig(source="labelled", path=path_of(tmp_path, name, content), val_fraction=0.2, **fields)
    return load_labelled(config, TokenizerConfig(kind="byte"), None, are_numbers=are_numbers)


def json_lines(labels):
    return "".join(f'{{"text": "text {i}", "label": {label}}}\n' for i, label in enumerate(labels))


@pytest.mark.parametrize(
    "name, content, fields",
    [
        ("a.csv", "text,label\n" + "\n".join(ROWS), ("text", "label")),
        ("bom.csv", "\ufeffText,Label\r\n" + "\r\n".join(ROWS), ("Text", "Label")),
        ("a.tsv", "text\tlabel\n" + "\n".join(ROWS).replace(",", "\t"), ("text", "label")),
        ("a.csv", "label,text\na,one\nb,two\na,three\n", ("text", "label")),
        ("a.csv", ",review,sentiment\n0,one,a\n1,two,b\n2,three,a\n", ("review", "sentiment")),
        ("a.csv", "utterance,intent\none,a\ntwo,b\n", ("utterance", "intent")),
        ("a.csv", "id,comment_text,toxic\n7,one,0\n8,two,1\n9,three,0\n", ("comment_text", "toxic")),
        ("a.tsv", "Satz\tSterne\nsehr gut\t5\nnicht gut\t1.5\n", ("Satz", "Sterne")),
    ],
)
def test_a_header_without_the_settings_is_refused_with_them(tmp_path, name, content, fields):
    with pytest.raises(tj.UserError, match=f"{name}, line 1: looks like a header .*would be read as an ex") as error:
        load(tmp_path, name, content)
    assert f"data.text_field={fields[0]!r} and data.label_field={fields[1]!r}" in str(error.value)
    texts = read_labelled(str(tmp_path / name), DataConfig(text_field=fields[0], label_field=fields[1]))
    assert len(texts) == len(content.splitlines()) - 1


def test_a_first_line_that_only_resembles_a_header_is_an_example(tmp_path, capsys):
    for first in ("text,a", "what a text,label", "message,b"):
        rows = read_labelled(path_of(tmp_path, "a.csv", "\n".join([first, *ROWS])), DataConfig())
        assert len(rows) == 21 and ",".join(rows[0][:2]) == first
    assert capsys.readouterr().err == ""
    load(tmp_path, "a.csv", "\n".join(["Satz,Klasse", *ROWS * 5]))
    assert "a.csv, line 1: label 'Klasse' occurs only here. If the line is a header, set " in capsys.readouterr().err


@pytest.mark.parametrize("given, missing", [("text_field", "label_field"), ("label_field", "text_field")])
def test_one_of_the_two_column_settings_alone_asks_for_the_other(tmp_path, given, missing):
    content = "\n".join(["text,label", *ROWS])
    with pytest.raises(tj.UserError, match=rf"data.{missing}='': data.{given}='text' says .* It has: text, label"):
        load(tmp_path, "a.csv", content, **{given: "text"})
    with pytest.raises(tj.UserError, match="data.label_field='text': is data.text_field, too"):
        load(tmp_path, "a.csv", content, text_field="text", label_field="text")
    with pytest.raises(tj.UserError, match="line 1: has 2 columns 'x'"):
        load(tmp_path, "a.csv", "x,x\na,b\n", text_field="x", label_field="label")
    with pytest.raises(tj.UserError, match="line 2: has 3 columns; each line must have 2"):
        load(tmp_path, "a.csv", "text,label\n0,one,a\n", text_field="text", label_field="label")


@pytest.mark.parametrize(
    "rows, text, label",
    [
        ([f"{'ham' if i % 3 else 'spam'}\tmessage number {i}" for i in range(20)], 2, 1),
        ([f"{i % 2 + 0.5}\tmessage number {i}" for i in range(5)], 2, 1),
        ([f"{i}\tmessage number {i}\t{'ab'[i % 2]}" for i in range(5)], 2, 1),
    ],
)
def test_a_label_before_the_text_is_refused_and_both_columns_are_named(tmp_path, rows, text, label):
    with pytest.raises(
        tj.UserError, match=rf"column {text} looks like the text \(such as 'message number 0'\)"
    ) as error:
        load(tmp_path, "a.tsv", "\n".join(rows))
    assert f"column {label} " in str(error.value) and "data.text_field and data.label_field" in str(error.value)


def test_repeated_texts_with_numbers_are_in_the_right_order(tmp_path):
    content = "\n".join(f"{'ab'[i % 2]}\t{i / 7}" for i in range(20))
    assert len(load(tmp_path, "a.tsv", content, are_numbers=True).train) == 16


@pytest.mark.parametrize("label", ["null", '""', '" \\t"', "NaN", "-Infinity", "1e999", "[]", '{"a": 1}'])
def test_a_value_that_is_no_label_is_refused_with_its_line(tmp_path, label):
    with pytest.raises(tj.UserError, match="a.jsonl, line 2: 'label'=") as error:
        load(tmp_path, "a.jsonl", json_lines(['"a"', label, '"b"']))
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_label_of_a_table_is_refused_with_its_line(tmp_path):
    for row in ("one,", "one, "):
        with pytest.raises(tj.UserError, match="a.csv, line 2: the label is empty"):
            load(tmp_path, "a.csv", f"zero,a\n{row}\ntwo,b\n")


def test_labels_of_one_value_are_one_class(tmp_path):
    assert load(tmp_path, "a.jsonl", json_lines(["1", "1.0", "2", "0"] * 3)).labels == ("0", "1", "2")
    assert load(tmp_path, "a.jsonl", json_lines(["true", "false"] * 3)).labels == ("false", "true")
    assert load(tmp_path, "a.csv", "a,x \nb, x\nc,y\nd,y\ne,x\nf,y\n").labels == ("x", "y")
    for mixed, words in (("1", "a string in line 1 and a number in line 4"), ("true", "and true or false in line 4")):
        with pytest.raises(tj.UserError, match=f"'label' is .*{words}"):
            load(tmp_path, "a.jsonl", json_lines(['"1"', '"2"', '"1"', mixed]))


def test_labels_that_nothing_can_be_learned_from_are_refused(tmp_path, capsys):
    with pytest.raises(tj.UserError, match="all 8 texts to train on have the label 'a', and a classifier needs two"):
        load(tmp_path, "a.tsv", "".join(f"text {i}\ta\n" for i in range(10)))
    with pytest.raises(tj.UserError, match="each of the 8 texts to train on has a label of its own .*text_field"):
        load(tmp_path, "a.jsonl", json_lines([f'"another {i}"' for i in range(10)]))
    with pytest.raises(tj.UserError, match="Take train.task=regress to predict numbers"):
        load(tmp_path, "a.tsv", "".join(f"text {i}\t{i / 7}\n" for i in range(10)))
    val_path = path_of(tmp_path, "val.jsonl", json_lines(['"another 7"']))
    load(tmp_path, "a.jsonl", json_lines([f'"another {min(i, 7)}"' for i in range(10)]), val_path=val_path)
    assert "10 texts to train on have 8 labels" in capsys.readouterr().err


# Numbers


@pytest.mark.parametrize(
    "number",
    ["1e300", "1e400", "-2e12", "inf", "-inf", "nan", "1,5", "0x10", "１２", "1_000", "1e", "true", "٣", "1 000"],
)
def test_a_number_that_is_none_or_too_large_is_refused_with_its_line(tmp_path, number):
    with pytest.raises(tj.UserError, match=f"a.tsv, line 2: {number!r} must be "):
        load(tmp_path, "a.tsv", f"one\t1.5\ntwo\t{number}\nthree\t.5\nfour\t-1E+3\n", are_numbers=True)


def test_numbers_far_from_one_are_learned_with_a_warning(tmp_path, capsys):
    targets = [target for _, target in load(tmp_path, "a.tsv", "a\t-1.5\nb\t1e0\nc\t.25\nd\t2.\n", True).train]
    assert set(targets) <= {-1.5, 1.0, 0.25, 2.0} and capsys.readouterr().err == ""
    load(tmp_path, "a.tsv", "".join(f"a house {i}\t{250_000 + 1000 * i}\n" for i in range(10)), True)
    warning = capsys.readouterr().err
    assert "the numbers to learn have mean 2.5" in warning and len(warning.splitlines()) == 1
    load(tmp_path, "a.tsv", "a\t3\nb\t3\nc\t3\n", True)
    assert "all numbers to learn are 3." in capsys.readouterr().err


def test_a_batch_has_the_numbers_to_predict_and_not_their_whole_parts():
    labels = np.array([-1.75, 0.5, 3.25], np.float32)
    batch = labelled_batch([np.arange(5)] * 3, labels, np.array([2, 0]), 7, 3, 0)
    assert batch["label"].tolist() == [3.25, -1.75, 0.0]


# Pairs


def test_a_header_over_pairs_is_refused(tmp_path):
    config = DataConfig(source="parallel", path=path_of(tmp_path, "a.tsv", "source\ttarget\na cat\teine Katze\n"))
    with pytest.raises(tj.UserError, match=r"a.tsv, line 1: looks like a header \(source, target\)"):
        load_split(config, "train")
    files = {"path": path_of(tmp_path, "a.en", "en\na cat\n"), "target_path": path_of(tmp_path, "a.de", "de\nKatze\n")}
    with pytest.raises(tj.UserError, match=r"a.de, line 1: looks like a header \(en, de\)"):
        load_split(DataConfig(source="parallel", **files), "train")
    config = DataConfig(source="parallel", path=path_of(tmp_path, "a.tsv", "input\tEingabe\na cat\teine Katze\n"))
    assert len(load_split(config, "train")) == 2
