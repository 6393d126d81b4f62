"""Lines of text that people bring: one reader for every source of data, every line command and stdin."""

import ast
import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.chats import CASES, bot, case_tokenizer, user
from helpers.commands import ROOT
from helpers.text_files import NASTY, SEPARATORS, fuzzed, slow_lines, write

import transformer_jax as tj
from train.config import Config, DataConfig
from train.data.labelled import read_labelled
from train.data.pairs import load_split
from train.data.python_tokens import tags_of
from train.data.sources import load_documents
from train.data.tagged import read_tagged
from train.initialization import InitFrom
from train.tasks.base import load_task
from train.tasks.registry import TASKS
from transformer_jax.lines import decode, decode_pieces, one_line, read_file, split_lines

# The reader


def test_the_lines_of_fuzzed_bytes_are_those_of_a_loop_over_bytes():
    for number in range(1000):
        data = fuzzed(number).encode()
        lines = split_lines(decode(data))
        assert lines == slow_lines(data)
        assert len(lines) == data.count(b"\n") + (data not in (b"", b"\xef\xbb\xbf") and not data.endswith(b"\n"))


def pieces_of(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


def test_bytes_that_come_in_pieces_are_decoded_as_the_whole():
    for number in range(300):
        data = fuzzed(number).encode()
        for size in (1, 2, 3, 7):
            pieces = list(decode_pieces(pieces_of(data, size)))
            assert "".join(pieces) == decode(data) and "" not in pieces


def test_a_bad_byte_in_a_later_piece_is_named_by_its_offset_and_line():
    for data in (b"\xef\xbb\xbfone\r\ntwo\n\xe4\xb8three", b"one\ntwo\nthr\xe4", b"\r\n\n\r\xff"):
        with pytest.raises(tj.UserError) as whole:
            decode(data, "a.txt")
        for size in (1, 2, 3, 7):
            with pytest.raises(tj.UserError) as error:
                list(decode_pieces(pieces_of(data, size), "a.txt"))
            assert str(error.value).split("If it is")[0] == str(whole.value).split("If it is")[0]


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("a.tsv", "Häuser\n".encode("utf-16"), ["a.tsv' is UTF-16,", "iconv -f UTF-16 -t UTF-8", ".utf8.tsv"]),
        ("a.txt", "four words of text\n".encode("utf-16-le"), ["UTF-16LE,", "iconv -f UTF-16LE "]),
        ("a.txt", "four words of text\n".encode("utf-16-be"), ["UTF-16BE,", "iconv -f UTF-16BE "]),
        ("a.txt", "ab\n".encode("utf-32"), ["UTF-32,", "iconv -f UTF-32 "]),
        ("a b.csv", b"one\nH\xe4user", ["byte 0xe4 at offset 5, in line 2", "Latin-1", "ISO-8859-1", "a b.csv' >"]),
        ("a.txt", b"\x93quoted\x94", ["byte 0x93 at offset 0, in line 1", "iconv -f WINDOWS-1252 "]),
        ("a.txt.gz", gzip.compress(b"\xe4", mtime=0), ["gunzip -c", "a.txt.gz | iconv -f ISO-8859-1", "a.utf8.txt"]),
        ("a.txt", gzip.compress(b"text", mtime=0), ["compressed", ".gz"]),
        ("a.txt", b"\x89PNG\0\xff", ["byte 0x89", "binary"]),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-9], ["a.txt.gz' cannot be read"]),
        ("a.txt.gz", b"no gzip", ["a.txt.gz' cannot be read"]),
    ],
)
def test_another_encoding_is_named_with_the_command_that_converts(tmp_path, name, data, words):
    with pytest.raises(tj.UserError) as error:
        read_file(str(write(tmp_path / name, data)))
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_conversion_that_an_error_shows_makes_the_file_readable(tmp_path):
    for name, pack in (("a b.tsv", bytes), ("c.txt.gz", gzip.compress)):
        for encoding in ("utf-16", "latin-1"):
            with pytest.raises(tj.UserError) as error:
                read_file(str(write(tmp_path / name, pack("Häuser\r\n".encode(encoding)))))
            shown = str(error.value).rpartition(": ")[2]
            subprocess.run(shown, shell=True, check=True)  # noqa: S602 - our own text
            assert read_file(str(tmp_path / name.replace(".", ".utf8.", 1).removesuffix(".gz"))) == "Häuser\n"


def test_zeros_in_a_text_do_not_make_it_utf_16():
    for text in ("a\0", "a\0b\0c\0d\0e\0", "\0" * 40, "a\0" * 3 + "b" * 40):
        assert decode(text.encode()) == text


def test_an_answer_is_one_line_for_every_reader():
    answer = one_line(f"a{SEPARATORS}\nb\ud800")
    assert answer == f"a{' ' * 10}b\ufffd" and len(answer.splitlines()) == 1


# Twins of a file: \r\n, a byte order mark, .gz


def rows(kind):
    """A text with characters that end no line, and a label, for each of 13 examples: as a file of this kind."""
    texts = [f"{NASTY} {i}" for i in range(13)]
    labels = ["red", "blue"] * 7
    pairs = list(zip(texts, labels, strict=False))
    if kind == "txt":
        return "\n".join(texts) + "\n"
    if kind == "csv":
        return "".join(f'"{text}, ""\n{i}",{label}\n' for i, (text, label) in enumerate(pairs))
    if kind == "tsv":
        return "".join(f'"{text}\t{label}\n' for text, label in pairs)
    if kind == "jsonl":
        keys = [{"text": text, "label": label, "source": text, "target": label} for text, label in pairs]
        keys = [row | {"messages": [user(row["label"]), bot(row["text"])]} for row in keys]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in keys)
    if kind == "conll":
        return "".join(f"{text.replace(' ', '_')}\tB-{label}\nb{NASTY} O\n\n" for text, label in pairs)
    assert kind == "conllu"
    return "".join(f"1\t{text}\t_\t{label}\t_\t_\t_\t_\t_\t_\n\n" for text, label in pairs)


GENERATED = {  # sources that read no file of the user's
    *("python_docs", "python_source", "markov", "hmm", "grammar", "dates", "copy", "reverse", "sort", "languages"),
    *("python_tokens", "tfds"),
}
FILES = {  # the endings of data.path and, of a pair, of data.target_path
    "text": [("txt", "")],
    "parallel": [("txt", "txt"), ("tsv", ""), ("jsonl", "")],
    "labelled": [("tsv", ""), ("csv", ""), ("jsonl", "")],
    "tagged": [("conll", ""), ("conllu", "")],
    "chat": [("jsonl", "")],
}
CHAT_TOKENIZER = case_tokenizer(CASES["chatml"])
TWINS = {
    "crlf": lambda data: data.replace(b"\n", b"\r\n"),
    "bom": lambda data: b"\xef\xbb\xbf" + data,
    "gz": gzip.compress,
    "all": lambda data: gzip.compress(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")),
}
READERS = [  # every source that a row of the registry names, so that a new one must have its files above
    (task, source, endings)
    for task, row in TASKS.items()
    for source in row.sources
    if source not in GENERATED
    for endings in FILES[source]
]


def task_of(task, source, endings, folder, twin=bytes, **data):
    """The task that trains on the files of `rows`, in a twin of each."""
    paths = {}
    for field, ending in zip(("path", "target_path"), endings, strict=True):
        if ending:
            content = twin(rows(ending).encode())
            name = f"{field}.{ending}" + (".gz" if content.startswith(b"\x1f\x8b") else "")
            paths[field] = str(write(folder / name, content))
    validation = {f"val_{field}": path for field, path in paths.items()} if source in ("parallel", "tagged") else {}
    config = {
        "data": {"source": source, **paths, **validation, **data},
        "model": {"num_layers": 1, "d_model": 10, "num_heads": 2, "max_len": 29},
        "train": {"task": task, "batch_size": 3},
    }
    if task == "regress":  # which needs numbers
        for path in paths.values():
            opened = gzip.decompress if path.endswith(".gz") else bytes
            numbers = opened(Path(path).read_bytes()).replace(b"red", b"1.5").replace(b"blue", b"-2")
            write(Path(path), gzip.compress(numbers) if path.endswith(".gz") else numbers)
    return load_task(Config.from_dict(config), InitFrom(tokenizer=CHAT_TOKENIZER if task == "chat" else None))


@pytest.mark.parametrize("task, source, endings", READERS)
def test_twins_of_a_file_give_the_same_examples_to_the_token(task, source, endings, tmp_path):
    for data in ({}, {"documents": "lines"}) if task == "causal_lm" else ({},):
        clean = task_of(task, source, endings, tmp_path / "clean", **data)
        for name, twin in TWINS.items():
            other = task_of(task, source, endings, tmp_path / name, twin, **data)
            assert other.fingerprint == clean.fingerprint, name
            batches = [[t.train_batch(1), *t.eval_batches()] for t in (clean, other)]
            for batch, same in zip(*batches, strict=True):
                for key in batch:
                    np.testing.assert_array_equal(batch[key], same[key])


# Sources, each with a fault that it had


def test_a_document_is_a_line_and_no_part_of_one(tmp_path):
    path = str(write(tmp_path / "a.txt", rows("txt")))
    train, validation = load_documents(DataConfig(source="text", path=path, documents="lines"))
    assert sorted(train + validation) == sorted(f"{NASTY} {i}" for i in range(13))


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_labelled_texts_keep_characters_that_end_no_line(tmp_path, kind):
    content = "\ufeff" + rows(kind).replace("\n", "\r\n")
    found = read_labelled(str(write(tmp_path / f"a.{kind}", content)), DataConfig(source="labelled"))
    texts = [f"{NASTY} {i}" for i in range(13)]
    wanted = {"tsv": ['"' + t for t in texts], "csv": [f'{t}, "\n{i}' for i, t in enumerate(texts)], "jsonl": texts}
    assert [text for text, _, _ in found] == wanted[kind]
    lines = [int(where.rpartition(" ")[2]) for _, _, where in found]
    assert lines == list(range(1, 27, 2) if kind == "csv" else range(1, 14))  # where a row begins


def test_a_header_after_a_byte_order_mark_names_its_first_column(tmp_path):
    path = str(write(tmp_path / "a.csv", "\ufefftext,label\r\ngood,a\r\n"))
    config = DataConfig(source="labelled", text_field="text", label_field="label")
    assert read_labelled(path, config) == [("good", "a", f"{path}, line 2")]
    with pytest.raises(tj.UserError, match="line 1: has no column 'label'. It has: text, a.nb[.]$"):
        read_labelled(str(write(tmp_path / "b.csv", 'text,"a\nb"\ngood,a\n')), config)


def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    long = "word " * 60_000
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        path = str(write(tmp_path / f"a.{kind}", f"{long}{separator}a\n"))
        assert read_labelled(path, DataConfig(source="labelled"))[0][0] == long


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", 'a,x\n"b\nb",x\n"c,x\nd,x\n', "a.csv, line 4: has a quote that is never closed"),
        ("a.csv", 'a,x\n"b\nb",x\nc\n', "a.csv, line 4: has 1 columns"),
        ("a.tsv", "a\tx\n\nb\tx\n", "a.tsv, line 2: has 1 columns"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "\\ud83d", "label": "x"}', r"line 2: has half .*\\ud83d"),
        ("a.jsonl", '{"text": "a", "label": "\\udc00"}', r"line 1: has half of a surrogate pair, \\udc00"),
        ("a.tsv", "", "a.tsv: is empty"),
    ],
)
def test_a_broken_table_is_reported_with_the_line_where_its_row_begins(tmp_path, name, content, message):
    with pytest.raises(tj.UserError, match=message) as error:
        read_labelled(str(write(tmp_path / name, content)), DataConfig(source="labelled"))
    assert len(str(error.value).splitlines()) == 1


def test_pairs_have_no_carriage_return_and_no_byte_order_mark(tmp_path):
    path = str(write(tmp_path / "a.en", f"\ufeffa cat\r\n{NASTY}\r\n"))
    target_path = str(write(tmp_path / "a.de", "eine Katze\r\nein Hund"))
    config = DataConfig(source="parallel", path=path, target_path=target_path)
    assert load_split(config, "train") == [("a cat", "eine Katze"), (NASTY, "ein Hund")]
    path = str(write(tmp_path / "b.jsonl", '{"source": "\\ud800", "target": "a"}\n'))
    with pytest.raises(tj.UserError, match="b.jsonl, line 1: has half of a surrogate pair"):
        load_split(DataConfig(source="parallel", path=path), "train")


def test_columns_of_tagged_words_are_split_at_tabs_and_spaces_only(tmp_path):
    path = str(write(tmp_path / "a.conll", "\ufeff10\xa0000\u2028x  _ B-n\r\nof _ O \r\n\r\nfin _ O\r\n"))
    first, second = read_tagged(path, DataConfig(source="tagged"))
    assert (first.words, first.tags, second.words) == (["10\xa0000\u2028x", "of"], ["B-n", "O"], ["fin"])


def test_a_form_feed_in_code_does_not_shift_the_tags_after_it():
    assert tags_of("a = 1\n\f\nb = 2\n")[8:] == tags_of("a = 1\n\n\nb = 2\n")[8:]


# The rule


def test_text_that_people_bring_is_read_and_split_in_one_module_only():
    others = {  # of Python's own code, of a message, of the system
        "python_tokens.py": {"io.StringIO", "tokenize.open"},
        "sources.py": {"read_bytes"},
        "cli.py": {"str(error).splitlines", "os.open"},
        "token_files.py": {"os.open", "os.fdopen"},
    }
    offenders = []
    folders = ("transformer_jax/commands", "train/data")
    for path in [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.rpartition(".")[2] in ("splitlines", "read_text", "read_bytes", "readlines", "open", "StringIO"):
                offenders += [f"{path.name}: {name}"] if name not in others.get(path.name, ()) else []
    assert offenders == []
