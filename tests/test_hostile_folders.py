"""Folders of strangers: whatever is in them, they load or are refused in one line, at once, and nothing else happens.

FUZZ_EXAMPLES says how many random changes are tried; `make fuzz` tries 10,000.
"""

import contextlib
import functools
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import transformer_jax as tj
from transformer_jax.huggingface import pretrained

FIXTURES = Path(__file__).parent / "fixtures"
SHARDED = "llama_sharded_bf16"
FOLDERS = ["gpt2", "t5", "marian", "bert", "bert_classifier", SHARDED]
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 300))
MOST_SECONDS, MOST_MEMORY = 5.0, 2**29  # on a machine with other work; alone it is a tenth
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = (
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
)
VALUES = [
    None,
    True,
    False,
    0,
    1,
    3,
    -1,
    2**31 - 1,
    10**9,
    10**18,
    10**30,
    10**400,
    -(10**400),
    0.5,
    1e-308,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "text",
    "\ud800\n",
    [],
    [[]],
    [7],
    [None],
    {},
    {"0": "a"},
    {"a": []},
    {"9" * 5000: "a"},
    {"-1": "a"},
    {str(i): "a" for i in range(1000)},
]
ODD = [None, True, -1, 2**31 - 1, 10**400, 1e308, math.nan, "text", [[]], {"a": []}, VALUES[-1], VALUES[-3]]
LONG = "1" + 5000 * "0"
NO_JSON = {
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "closed lists": "[" * 100_000 + "]" * 100_000,
    "nothing": "",
    "no JSON": "{'a': 1}",
    "a list": "[]",
    "null": "null",
    "a NUL": "\0",
    "half of it": '{"a": ',
    "a long number": f'{{"model_type": {LONG}}}',
    "no UTF-8": b'{"\xff": 1}',
    "UTF-16": "{}".encode("utf-16"),
    "lists in lists": f'{{"extra_ids": {"[" * 900 + "]" * 900}}}',
    "half a character": '{"extra_ids": "\\ud800"}',
}
watched: list[list] = []  # events of each `loads_or_refuses` that runs
sys.addaudithook(lambda event, args: watched[-1].append((event, args)) if watched and event in EVENTS else None)


brief = "{!r:.20}".format


def copy(name, tmp_path):
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "around" / "folder"))


@pytest.fixture(scope="module", autouse=True)
def copies(tmp_path_factory):
    folders = {name: copy(name, tmp_path_factory.mktemp(name)) for name in FOLDERS}
    with pytest.MonkeyPatch.context() as patch:  # shapes are traced once for a model
        patch.setattr(pretrained, "parameter_shapes", functools.lru_cache(pretrained.parameter_shapes))
        for folder in folders.values():  # all that is imported and compiled at the first use
            tj.from_pretrained(folder)
        yield folders


@contextlib.contextmanager
def changed(path, content):
    before = path.read_bytes()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        yield
    finally:
        path.write_bytes(before)


def changed_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        pretrained.put(config, name, value)
    return changed(folder / "config.json", json.dumps(config))


def listing(folder):
    paths = [os.path.join(where, name) for where, *names in os.walk(folder) for name in sum(names, [])]
    return {path: (os.lstat(path).st_mode, os.lstat(path).st_size, os.lstat(path).st_mtime_ns) for path in paths}


def loads_or_refuses(folder, beside=None):
    """The one line that a folder is refused with, or "" where it loads; it asserts that nothing else happens."""
    before, memory, message = listing(folder.parent), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
    watched.append([])
    start = time.monotonic()
    try:
        run = tj.from_pretrained(folder)
        if run.tokenizer:  # what is found out only when it is used
            run.tokenizer.decode(run.tokenizer.encode("the cat: 3,14"))
    except tj.UserError as error:
        message = str(error)
        assert message.isprintable() and 20 < len(message) < 300_000, message[:5000]
        assert re.search(r"\.json|\.safetensors|\.spm|\.model|model\.\w+=|coder\.\w+=", message), message
    except BaseException as error:  # a panic of Rust is no Exception
        raise AssertionError(f"{type(error).__name__} is no answer: {error}"[:500]) from error
    finally:
        seconds, events = time.monotonic() - start, watched.pop()
    assert seconds < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MOST_MEMORY
    assert listing(folder.parent) == before
    for event, args in events:
        assert event == "open" and not args[2] & WRITING, (event, args)
        assert Path(args[0]).resolve().is_relative_to(beside or folder.resolve()), args
    return message


WHOLE = (FIXTURES / "gpt2" / "model.safetensors").read_bytes()
END = 8 + struct.unpack("<Q", WHOLE[:8])[0]
HEADER, DATA = json.loads(WHOLE[8:END]), WHOLE[END:]


def file_of(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def with_entry(begin=0, end=0, **values):
    header = json.loads(json.dumps(HEADER))
    entry = header["transformer.wpe.weight"]
    entry["data_offsets"] = [entry["data_offsets"][0] + begin, entry["data_offsets"][1] + end]
    return file_of(header | {"transformer.wpe.weight": entry | values}, DATA)


WEIGHTS = {
    "empty": b"",
    "only a length": WHOLE[:8],
    "half a length": WHOLE[:5],
    "half a header": WHOLE[:500],
    "half of the data": WHOLE[:20_000],
    "a byte short": WHOLE[:-1],
    "a byte long": WHOLE + b"\0",
    "a header of 2^63 bytes": file_of(b"{}", length=2**63),
    "one of 2^64 - 1": file_of(b"{}", length=2**64 - 1),
    "a header of 90 MB": file_of(b"{}", length=90_000_000),
    "a header of nothing": file_of(b"", length=0),
    "a header of zeros": file_of(bytes(100)),
    "a deep header": file_of(b"[" * 100_000),
    "no tensors": file_of({}),
    "a deep entry": file_of(b'{"a":' * 100_000),
    "a header not of UTF-8": file_of(b'{"\xff": {}}'),
    "a list as header": file_of([]),
    "an entry that is a number": file_of({"a": 7}),
    "metadata that are no strings": file_of({"__metadata__": {"a": {"b": 7}}}),
    "a huge shape": with_entry(shape=[2**62, 2**62]),
    "a huge and empty shape": with_entry(shape=[0, 2**62]),
    "a negative shape": with_entry(shape=[-41, -20]),
    "a shape of 10^5 axes": with_entry(shape=[1] * 10**5),
    "a shape of words": with_entry(shape=["41", "20"]),
    "a long number": WHOLE.replace(b"[41,20]", LONG.encode()),
    "an unknown type": with_entry(dtype="F128"),
    "a type of another size": with_entry(dtype="F16"),
    "a type of integers": with_entry(dtype="I32"),
    "no type": with_entry(dtype=None),
    "an overlap": with_entry(-4, -4),
    "a hole": with_entry(4, 4),
    "too much": with_entry(0, 4),
    "offsets reversed": with_entry(2**20, 0),
    "negative offsets": with_entry(-(2**40), -(2**40)),
    "offsets of 2^64": with_entry(2**64, 2**64),
    "offsets that are floats": with_entry(0.5, 0.5),
    "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    "a name twice": WHOLE.replace(b"transformer.h.1.ln_1.bias", b"transformer.h.0.ln_1.bias"),
    "random bytes": random.Random(0).randbytes(5000),
}


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_malformed_weights_are_refused(content, copies):
    with changed(copies["gpt2"] / "model.safetensors", content):
        assert re.search("sound safetensors file|do not fit|0 tensors", loads_or_refuses(copies["gpt2"]))


@pytest.mark.parametrize("dtype, size", [("F8_E4M3", 1), ("F64", 8), ("BOOL", 1), ("I64", 8), ("BF16", 2), ("F16", 2)])
def test_an_output_projection_of_another_type_is_one_of_its_own_or_refused(dtype, size, copies):
    entry = {"dtype": dtype, "shape": [101, 20], "data_offsets": [len(DATA), len(DATA) + 2020 * size]}
    content = file_of(HEADER | {"lm_head.weight": entry}, DATA + bytes(2020 * size))
    with changed(copies["gpt2"] / "model.safetensors", content):
        message = loads_or_refuses(copies["gpt2"])
    assert f"lm_head.weight is of type {dtype}" in message or (not message and "F16" in dtype)


def test_what_would_be_long_to_look_at_is_refused_before(copies):
    with changed_config(copies[SHARDED], num_attention_heads=2**31 - 1, num_key_value_heads=3, head_dim=2):
        assert "2147483647 heads" in loads_or_refuses(copies[SHARDED])
    more = {f"a\n{i}": {"dtype": "F32", "shape": [0], "data_offsets": [len(DATA)] * 2} for i in range(5000)}
    with changed(copies["gpt2"] / "model.safetensors", file_of(HEADER | more, DATA)):
        with changed_config(copies["gpt2"], n_layer=5000):
            assert "do not fit" in loads_or_refuses(copies["gpt2"])


NAMES = [
    "../a.safetensors",
    "/etc/a.safetensors",
    "",
    ".",
    "..",
    "a/../b.safetensors",
    "a\0b.safetensors",
    "config.json",
    "a\nb.safetensors",
    "\ud800.safetensors",
    "x" * 10**5 + ".safetensors",
    "nowhere.safetensors",
]


@pytest.mark.parametrize("name", NAMES + VALUES, ids=brief)
def test_an_index_names_files_of_its_folder_only(name, copies):
    path = copies[SHARDED] / "model.safetensors.index.json"
    right = json.loads(path.read_text())["weight_map"]
    absent = {"a\n" * 10**4: "model-00001-of-00003.safetensors"}
    for wrong in (name, {"a": name}, right | {"model.norm.weight": name}, right | absent):
        with changed(path, json.dumps({"weight_map": wrong})):
            assert loads_or_refuses(copies[SHARDED])


TEXTS = {
    "config.json": SHARDED,
    "generation_config.json": SHARDED,
    "model.safetensors.index.json": SHARDED,
    "tokenizer.json": SHARDED,
    "vocab.json": "marian",
    "tokenizer_config.json": "t5",
}


@pytest.mark.parametrize("text", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_json_is_refused(name, text, copies):
    folder = copies[TEXTS[name]]
    with changed(folder / name, text):
        assert name in loads_or_refuses(folder)


@pytest.mark.parametrize("value", ODD, ids=brief)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_config_with_any_value_in_any_field_loads_or_is_refused(name, value, copies):
    family = pretrained.FAMILIES[json.loads((copies[name] / "config.json").read_text())["model_type"]]
    names = {one for field in family.fields for one in ([field.theirs] if type(field.theirs) is str else field.theirs)}
    for field in sorted(names | {"model_type", "architectures", "eos_token_id", "bad_words_ids", "id2label"}):
        with changed_config(copies[name], **{field: value}):
            loads_or_refuses(copies[name])


FILES = [
    (folder, path.name)
    for folder in FOLDERS
    for path in sorted((FIXTURES / folder).iterdir())
    if path.name not in ("texts.json", "expected.npz")
]
INSTEAD = {
    "a link out of the folder": lambda path, aside: path.symlink_to(aside),
    "a relative one": lambda path, aside: path.symlink_to(Path("..", aside.name)),
    "two links": lambda path, aside: (path.with_name("b").symlink_to(aside), path.symlink_to("b")),
    "a link to a device": lambda path, aside: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path, aside: path.symlink_to(path.name),
    "a link to nothing": lambda path, aside: path.symlink_to("nothing"),
    "a folder": lambda path, aside: path.mkdir(),
    "a pipe": lambda path, aside: os.mkfifo(path),
    "what may not be read": lambda path, aside: (shutil.copy(aside, path), path.chmod(0)),
}


@pytest.mark.parametrize("what", INSTEAD)
@pytest.mark.parametrize("name, file", FILES)
def test_anything_but_a_file_of_the_folder_is_refused(name, file, what, tmp_path):
    folder = copy(name, tmp_path)
    aside = (folder / file).rename(folder.parent / "aside")  # sound, but not in the folder
    INSTEAD[what](folder / file, aside)
    if what == "what may not be read" and os.access(folder / file, os.R_OK):
        pytest.skip("root may read everything")
    assert file in loads_or_refuses(folder)


@pytest.mark.parametrize("kept", ["blobs", "private"])
def test_in_the_cache_of_the_hub_files_lie_in_blobs_and_nowhere_else(kept, tmp_path):
    (tmp_path / "snapshots").mkdir()
    folder = copy("gpt2", tmp_path).rename(tmp_path / "snapshots" / "1a2b")
    shutil.copytree(folder, tmp_path / kept)
    for file in folder.iterdir():
        file.unlink()
        file.symlink_to(Path("..", "..", kept, file.name))
    assert ("link out of the folder" in loads_or_refuses(folder, beside=tmp_path)) == (kept == "private")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "~nobody_at_all/model", "", "/dev/null", "\ud800"])
def test_a_folder_that_cannot_be_is_refused(name):
    with pytest.raises(tj.UserError):
        tj.from_pretrained(name)


@pytest.mark.parametrize("name, file", [("t5", "spiece.model"), ("marian", "source.spm"), ("marian", "target.spm")])
def test_damaged_sentencepiece_is_refused(name, file, copies):
    path = copies[name] / file
    whole = path.read_bytes()
    for content in (b"", b"\0", bytes(1000), random.Random(0).randbytes(1000), whole[:50]):
        with changed(path, content):
            assert file in loads_or_refuses(copies[name])


PANICS = [
    {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}},  # merged, they are no token
    {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 2**32 - 1}}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAA="}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
]


@pytest.mark.parametrize("values", PANICS, ids=brief)
def test_a_panic_of_rust_is_one_error(values, copies):
    path = copies["gpt2"] / "tokenizer.json"
    with changed(path, json.dumps(json.loads(path.read_text()) | values)):
        assert "tokenizer files tokenizer.json" in loads_or_refuses(copies["gpt2"])


JSON = st.recursive(
    st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def change_value(draw, values):
    """Replace, remove or add something somewhere in JSON, or put a part of it elsewhere."""
    places = []
    while isinstance(values, dict | list) and values:
        key = draw(st.sampled_from(sorted(values) if isinstance(values, dict) else range(len(values))))
        places.append((values, key))
        values = values[key]
    where, key = draw(st.sampled_from(places))
    what = draw(st.sampled_from(["replace", "remove", "add", "move"]))
    if what == "remove":
        del where[key]
        return
    new = draw(st.sampled_from([place[name] for place, name in places]) if what == "move" else JSON)
    name = draw(st.text()) if what == "add" and isinstance(where, dict) else key
    where[name] = json.loads(json.dumps(new))  # a copy, as it may be changed next


def change_bytes(draw, content, end):
    """Replace, insert or leave out something before `end`, or cut there."""
    at = draw(st.integers(0, min(end, len(content))))
    num_out = draw(st.integers(0, 20) | st.just(len(content)))
    return content[:at] + draw(st.binary(max_size=20)) + content[at + num_out :]


@given(data=st.data())
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_a_folder_with_anything_changed_loads_or_is_refused(copies, data):
    folder, file = data.draw(st.sampled_from(FILES))
    content = (copies[folder] / file).read_bytes()
    values = json.loads(content) if file.endswith(".json") and data.draw(st.integers(0, 3)) else None
    end = 8 + struct.unpack("<Q", content[:8])[0] if file.endswith(".safetensors") else len(content)
    for _ in range(data.draw(st.integers(1, 3))):
        if values:
            change_value(data.draw, values)
        elif values is None:
            content = change_bytes(data.draw, content, end)
    with changed(copies[folder] / file, content if values is None else json.dumps(values)):
        loads_or_refuses(copies[folder])
