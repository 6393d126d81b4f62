"""Files and settings of tokenizers, read as the reference library reads them; untrusted ones that grow a text."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_jax as tj
from transformer_jax.run import open_tokenizer
from transformer_jax.tokenizers import tokenizer_from_dict
from transformer_jax.tokenizers.token_bytes import settled_text

FIXTURES = Path(__file__).parent / "fixtures"
CASES = json.loads((FIXTURES / "tokenizer_cases.json").read_text())


def folder_of(case, tmp_path):
    """Write the folder of a case; tests/fixtures/tokenizer_cases.py describes it."""
    folder = Path(shutil.copytree(FIXTURES / case["base"], tmp_path / "folder"))
    for name in case.get("removed", []):
        (folder / name).unlink()
    path = folder / "tokenizer_config.json"
    if "config" in case:
        changes = case["config"]
        values = json.loads(path.read_text()) | (changes or {})
        kept = {name: value for name, value in values.items() if value is not None or name not in (changes or {})}
        path.write_text(json.dumps(kept)) if changes is not None else path.unlink()
    if "json" in case:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | case["json"]))
    for name, text in case.get("files", {}).items():
        (folder / name).write_bytes(base64.b64decode(text) if name.endswith(".model") else text.encode())
    return folder


@pytest.mark.parametrize("name", CASES)
def test_files_and_settings_give_the_ids_and_texts_of_the_reference_library(name, tmp_path):
    tokenizer = open_tokenizer(folder_of(CASES[name], tmp_path))
    for text, ids, decoded in CASES[name]["rows"]:
        assert tokenizer.encode(text, allow_special=True).tolist() == ids, text
        assert tokenizer.decode(ids) == decoded


KINDS = [
    "vocab.json of roberta",
    "vocab.json of no class",
    "vocab.txt of no class",
    "tokenizer.model",
    "bert of no class",
]


@pytest.mark.parametrize("name", KINDS)
def test_files_are_kept_in_checkpoints_and_written_again(name, tmp_path):
    case = CASES[name]
    folder = folder_of(case, tmp_path)
    run = tj.from_pretrained(folder)
    again = tokenizer_from_dict(json.loads(json.dumps(run.tokenizer.to_dict())))
    tj.save_pretrained(run, tmp_path / "back")
    (tmp_path / "back" / "config.json").unlink()  # the class is written where config.json had implied it
    for tokenizer in (run.tokenizer, again, open_tokenizer(tmp_path / "back")):
        for text, ids, _ in case["rows"]:
            assert tokenizer.encode(text, allow_special=True).tolist() == ids, text
    for file in [*case.get("files", {}), *run.tokenizer.required_files]:
        assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes()


def test_a_tokenizer_of_no_class_stays_one_beside_a_model_of_another_family(tmp_path):
    shutil.copy(FIXTURES / "bert" / "tokenizer.json", tmp_path / "tokenizer.json")
    files = open_tokenizer(tmp_path / "tokenizer.json").files
    assert json.loads(files["tokenizer_config.json"]) == {"tokenizer_class": "PreTrainedTokenizerFast"}


def test_named_special_tokens_have_the_ids_of_the_model(tmp_path):
    case = {"base": "bert", "config": {"pad_token": "[SEP]", "mask_token": {"content": "[new]", "lstrip": True}}}
    tokenizer = open_tokenizer(folder_of(case, tmp_path))
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.vocab_size) == (3, 109, 110)
    assert tokenizer.token_name(109) == "[new]" and tokenizer.decode([4, 109]) == ""


@pytest.mark.parametrize("base", ["t5", "marian"])
def test_settled_text_is_never_taken_back_where_spaces_are_cleaned_up(base, tmp_path):
    tokenizer = open_tokenizer(folder_of({"base": base, "config": {"clean_up_tokenization_spaces": True}}, tmp_path))
    text = "I like it , and they do n't ? It 's 're , ' x ' . . ' s"
    ids = tokenizer.encode_target(text)
    whole = tokenizer.decode(ids)
    assert whole != text
    parts = [settled_text(tokenizer, ids[:n]) for n in range(len(ids) + 1)]
    assert all(whole.startswith(part) for part in parts)
    assert len(set(parts)) > len(parts) // 3  # and most of it is settled early


SETTINGS = {
    "do_lower_case": ({"do_lower_case": "no"}, "do_lower_case='no': must be true or false"),
    "cls_token": ({"cls_token": 7}, "cls_token=7: must be a token"),
    "cls_token of no text": ({"cls_token": {"content": ""}}, "must be a token"),
    "added_tokens_decoder": ({"added_tokens_decoder": {"x": "[new]"}}, "must map ids to tokens"),
    "tokenizer_class": ({"tokenizer_class": ["BertTokenizer"]}, "must be the name of a class"),
    "special tokens": ({"additional_special_tokens": "[new]"}, "must be a list of tokens"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_another_type_are_refused_in_one_line(name, tmp_path):
    values, message = SETTINGS[name]
    with pytest.raises(tj.UserError, match=message) as error:
        open_tokenizer(folder_of({"base": "bert", "config": values}, tmp_path))
    assert "tokenizer_config.json" in str(error.value) and "\n" not in str(error.value)


MALFORMED = {
    "merges.txt": ("a b c", "merges.txt: line 1 is 'a b c'"),
    "vocab.json": ('{"a": -1}', "vocab.json: must map tokens to ids"),
    "vocab.txt": ("a\nb\n", r"vocab.txt: has no unknown token, such as \[UNK\]"),
    "tokenizer.model": (b"\x0a\xff", "tokenizer.model"),
}


@pytest.mark.parametrize("file", MALFORMED)
def test_malformed_vocabulary_files_are_refused_in_one_line(file, tmp_path):
    content, message = MALFORMED[file]
    name = {"merges.txt": "vocab.json"}.get(file, file)
    folder = folder_of(CASES[name], tmp_path)
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(tj.UserError, match=message) as error:
        open_tokenizer(folder)
    assert "\n" not in str(error.value)


UNREADABLE = {  # files of a folder, the class that it names, and what the message says
    ("sentencepiece.bpe.model",): ("XLMRobertaTokenizer", "has sentencepiece.bpe.model, needs spiece.model, or "),
    ("merges.txt",): ("GPT2Tokenizer", "has merges.txt, needs vocab.json, or tokenizer.json"),
    ("vocab.json",): (
        "GPT2Tokenizer",
        "has vocab.json, needs source.spm and target.spm, or merges.txt, or tokenizer.json",
    ),
    ("vocab.txt",): ("OtherTokenizer", "has vocab.txt, needs tokenizer_class=BertTokenizer in tokenizer_config.json"),
    ("tokenizer.model",): ("GemmaTokenizer", "has tokenizer.model, needs tokenizer_class=LlamaTokenizer in"),
    (): ("BertTokenizer", r"\(needs spiece.model, or tokenizer.model, or vocab.txt, or tokenizer.json\)"),
}


@pytest.mark.parametrize("files", UNREADABLE)
def test_the_error_for_an_unsupported_tokenizer_names_its_files_and_the_missing(files, tmp_path):
    name, message = UNREADABLE[files]
    folder = folder_of({"base": "bert", "config": {"tokenizer_class": name}, "removed": ["tokenizer.json"]}, tmp_path)
    for file in files:
        (folder / file).write_text("[UNK]")
    run = tj.from_pretrained(folder)
    with pytest.raises(tj.UserError, match=f"no supported tokenizer found in .*{message}"):
        _ = run.text_tokenizer


# Untrusted tokenizers


def replace(content, pattern=None):
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def sequence(*steps):
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def repeated(times):
    special = {"<s>": {"id": "<s>", "ids": [0] * times, "tokens": ["<s>"] * times}}
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}


TEN = replace("a" * 10)
HOSTILE = {
    "nested Replace": sequence(*[TEN] * 20),
    "sequences of Replace": sequence(*[{"type": "Sequence", "normalizers": [TEN, TEN]}] * 10),
    "few Replace": sequence(TEN, TEN, TEN, TEN),
    "Replace by regex": sequence(*[replace("aa", {"Regex": "a"})] * 30),
    "Replace of nothing": sequence(*[replace("aaa", {"Regex": ""})] * 15),
    "Prepend": sequence(*[{"type": "Prepend", "prepend": "a" * 1000}, TEN, TEN]),
    "ByteLevel": sequence(*[{"type": "ByteLevel"}] * 40),
    "Unicode and back": sequence(*[replace("\ufdfa"), {"type": "NFKC"}, replace("a", {"Regex": "."})] * 20),
    "a long replacement": sequence(replace("a" * 2_000_000)),
    "a long template": {"post_processor": repeated(10**6)},
    "nested templates": {"post_processor": {"type": "Sequence", "processors": [repeated(800)] * 2}},
    "a decoder": {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, *[replace("a" * 100)] * 6]}},
    "a long token": {
        "added_tokens": [
            {"id": 101, "content": "a" * 20_000, "special": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ]
    },  # fmt: skip
}
IN_LITTLE_MEMORY = """
import json, resource, sys
from transformer_jax.errors import UserError
from transformer_jax.run import open_tokenizer
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
for folder in sys.argv[1:]:
    try:
        ids = open_tokenizer(folder).encode("a cat " * 300)
        print("ids", len(ids))
    except UserError as error:
        print(error)
"""


def test_tokenizers_that_grow_a_text_are_refused_before_memory_ends(tmp_path):
    classes = ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "GPT2Tokenizer"})
    folders = []
    for i, config in enumerate(classes):  # also where the class does not use what is hostile
        for j, parts in enumerate(HOSTILE.values()):
            (tmp_path / f"{i}_{j}").mkdir()
            folders.append(folder_of({"base": "gpt2", "config": config, "json": parts}, tmp_path / f"{i}_{j}"))
    code = [sys.executable, "-c", IN_LITTLE_MEMORY, *folders]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(folders), done.stderr[-2000:]
    for i, (name, line) in enumerate(zip(list(HOSTILE) * 2, lines, strict=True)):
        # A growth that is measured with each text, and of which the class leaves nothing.
        is_harmless = name in ("few Replace", "Prepend") and i >= len(HOSTILE)
        assert line.startswith("tokenizer.json: ") != is_harmless, (name, line)


def test_tokenizers_in_use_are_neither_refused_nor_measured(tmp_path):
    albert = sequence(
        *(replace('"', {"String": quotes}) for quotes in ("``", "''")),
        *({"type": name} for name in ("NFKD", "StripAccents", "Lowercase")),
        replace(" ", {"Regex": " {2,}"}),
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = open_tokenizer(folder_of({"base": "gpt2", "config": config, "json": albert}, tmp_path))
    assert tokenizer.decode(tokenizer.encode("A  Café " * 30_000)) == "a cafe " * 30_000
