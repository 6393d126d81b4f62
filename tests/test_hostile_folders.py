"""Hostile folders: untrusted files load or are refused in one line, in little time, without any side effect.

The environment variable FUZZ_EXAMPLES sets the number of random changes; `make fuzz` tries 10,000.
"""

import contextlib
import functools
import json
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
from helpers.hostile_contents import DAMAGED_WEIGHTS, DATA, FEW_VALUES, HEADER, NOT_JSON, VALUES, safetensors_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import transformer_jax as tj
from transformer_jax.huggingface import pretrained
from transformer_jax.huggingface.family import as_tuple

FIXTURES = Path(__file__).parent / "fixtures"
SHARDED = "llama_sharded_bf16"
FOLDERS = ["gpt2", "t5", "marian", "bert", "bert_classifier", SHARDED]
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 199))
MAX_CPU_SECONDS = 5.0  # about ten times what the slowest case takes
MAX_NEW_BYTES = 2**29
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = (
    "open os.mkdir os.remove os.rename os.link os.symlink os.truncate os.system os.exec os.posix_spawn "
    "subprocess.Popen socket.connect"
).split()
watched: list[list] = []  # audit events of each `loads_or_refuses` in progress
sys.addaudithook(lambda event, args: watched[-1].append((event, args)) if watched and event in EVENTS else None)


brief = "{!r:.20}".format  # ids of parametrized tests


def copy(name, tmp_path):
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "around" / "folder"))


@pytest.fixture(scope="module", autouse=True)
def copies(tmp_path_factory):
    folders = {name: copy(name, tmp_path_factory.mktemp(name)) for name in FOLDERS}
    with pytest.MonkeyPatch.context() as patch:  # shapes of a model are traced only once
        patch.setattr(pretrained, "parameter_shapes", functools.lru_cache(pretrained.parameter_shapes))
        for folder in folders.values():  # imports and compilation happen here, not in the first test
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


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loads_or_refuses(folder, allowed=None):
    """Return the error line of a folder, "" if it loads. Assert that nothing else happens.

    Only files in `allowed`, by default the folder itself, may be opened.
    """
    before = listing(folder.parent)
    bytes_before = peak_bytes()
    message = ""
    watched.append([])
    start = time.process_time()
    try:
        run = tj.from_pretrained(folder)
        if run.tokenizer:  # some damage shows only in use
            run.tokenizer.decode(run.tokenizer.encode("the cat: 3,14"))
    except tj.UserError as error:
        message = str(error)
        assert message.isprintable() and 20 < len(message) < 300_000, message[:5000]
        assert re.search(r"\.json|\.safetensors|\.spm|\.model|model\.\w+=|coder\.\w+=", message), message
    except BaseException as error:  # a panic of Rust is no Exception
        raise AssertionError(f"{type(error).__name__} instead of a UserError: {error}"[:500]) from error
    finally:
        seconds = time.process_time() - start
        events = watched.pop()
    assert seconds < MAX_CPU_SECONDS
    assert peak_bytes() - bytes_before < MAX_NEW_BYTES
    assert listing(folder.parent) == before
    for event, args in events:
        assert event == "open" and not args[2] & WRITING, (event, args)
        assert Path(args[0]).resolve().is_relative_to(allowed or folder.resolve()), args
    return message


@pytest.mark.parametrize("content", DAMAGED_WEIGHTS.values(), ids=DAMAGED_WEIGHTS)
def test_malformed_weights_are_refused(content, copies):
    with changed(copies["gpt2"] / "model.safetensors", content):
        assert re.search("sound safetensors file|do not fit|0 tensors", loads_or_refuses(copies["gpt2"]))


@pytest.mark.parametrize("dtype, size", [("F8_E4M3", 1), ("F64", 8), ("BOOL", 1), ("I64", 8), ("BF16", 2), ("F16", 2)])
def test_an_output_projection_of_another_dtype_is_untied_or_refused(dtype, size, copies):
    entry = {"dtype": dtype, "shape": [101, 20], "data_offsets": [len(DATA), len(DATA) + 2020 * size]}
    content = safetensors_of(HEADER | {"lm_head.weight": entry}, DATA + bytes(2020 * size))
    with changed(copies["gpt2"] / "model.safetensors", content):
        message = loads_or_refuses(copies["gpt2"])
    assert f"lm_head.weight is of type {dtype}" in message or (not message and dtype in ("F64", "F16", "BF16"))


def test_sizes_that_would_take_long_to_check_are_refused_at_once(copies):
    with changed_config(copies[SHARDED], num_attention_heads=2**31 - 1, num_key_value_heads=3, head_dim=2):
        assert "2147483647 heads" in loads_or_refuses(copies[SHARDED])
    more = {f"a\n{i}": {"dtype": "F32", "shape": [0], "data_offsets": [len(DATA)] * 2} for i in range(5000)}
    with changed(copies["gpt2"] / "model.safetensors", safetensors_of(HEADER | more, DATA)):
        with changed_config(copies["gpt2"], n_layer=5000):
            assert "do not fit" in loads_or_refuses(copies["gpt2"])


STEMS = ["../a", "/etc/a", "a/../b", "a\0b", "a\nb", "\ud800", "x" * 10**5, "nowhere"]
NAMES = [*(f"{stem}.safetensors" for stem in STEMS), "", ".", "..", "config.json"]


@pytest.mark.parametrize("name", NAMES + VALUES, ids=brief)
def test_an_index_must_name_only_files_of_its_folder(name, copies):
    path = copies[SHARDED] / "model.safetensors.index.json"
    sound = json.loads(path.read_text())["weight_map"]
    absent = {"a\n" * 10**4: "model-00001-of-00003.safetensors"}
    for wrong in (name, {"a": name}, sound | {"model.norm.weight": name}, sound | absent):
        with changed(path, json.dumps({"weight_map": wrong})):
            assert loads_or_refuses(copies[SHARDED])


JSON_FILES = {
    "config.json": SHARDED,
    "generation_config.json": SHARDED,
    "model.safetensors.index.json": SHARDED,
    "tokenizer.json": SHARDED,
    "vocab.json": "marian",
    "tokenizer_config.json": "t5",
}


@pytest.mark.parametrize("text", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_is_not_json_is_refused(name, text, copies):
    folder = copies[JSON_FILES[name]]
    with changed(folder / name, text):
        assert name in loads_or_refuses(folder)


@pytest.mark.parametrize("value", FEW_VALUES, ids=brief)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_config_with_any_value_in_any_field_loads_or_is_refused(name, value, copies):
    family = pretrained.FAMILIES[json.loads((copies[name] / "config.json").read_text())["model_type"]]
    names = {name for field in family.fields for name in as_tuple(field.hf_names)}
    for field in sorted(names | {"model_type", "architectures", "eos_token_id", "bad_words_ids", "id2label"}):
        with changed_config(copies[name], **{field: value}):
            loads_or_refuses(copies[name])


FILES = [
    (folder, path.name)
    for folder in FOLDERS
    for path in sorted((FIXTURES / folder).iterdir())
    if path.name not in ("texts.json", "expected.npz")
]
READERS = [  # one file for each piece of code that opens files
    ("gpt2", "config.json"),
    ("gpt2", "generation_config.json"),
    ("gpt2", "model.safetensors"),
    (SHARDED, "model.safetensors.index.json"),
    (SHARDED, "model-00002-of-00003.safetensors"),
    ("gpt2", "tokenizer.json"),
    ("t5", "spiece.model"),
    ("marian", "tokenizer_config.json"),
]
REPLACEMENTS = {
    "a link out of the folder": lambda path, aside: path.symlink_to(aside),
    "a relative link out of the folder": lambda path, aside: path.symlink_to(Path("..", aside.name)),
    "two links": lambda path, aside: (path.with_name("b").symlink_to(aside), path.symlink_to("b")),
    "a link to a device": lambda path, aside: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path, aside: path.symlink_to(path.name),
    "a link to nothing": lambda path, aside: path.symlink_to("nothing"),
    "a folder": lambda path, aside: path.mkdir(),
    "a pipe": lambda path, aside: os.mkfifo(path),
    "an unreadable file": lambda path, aside: (shutil.copy(aside, path), path.chmod(0)),
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
@pytest.mark.parametrize("name, file", READERS)
def test_anything_but_a_regular_file_of_the_folder_is_refused(name, file, kind, tmp_path):
    folder = copy(name, tmp_path)
    aside = (folder / file).rename(folder.parent / "aside")  # sound, but not in the folder
    REPLACEMENTS[kind](folder / file, aside)
    if kind == "an unreadable file" and os.access(folder / file, os.R_OK):
        pytest.skip("root may read everything")
    assert file in loads_or_refuses(folder)


@pytest.mark.parametrize("kept", ["blobs", "private"])
def test_a_snapshot_of_the_hub_may_link_to_its_blobs_and_nowhere_else(kept, tmp_path):
    (tmp_path / "snapshots").mkdir()
    folder = copy("gpt2", tmp_path).rename(tmp_path / "snapshots" / "1a2b")
    shutil.copytree(folder, tmp_path / kept)
    for file in folder.iterdir():
        file.unlink()
        file.symlink_to(Path("..", "..", kept, file.name))
    assert ("link out of the folder" in loads_or_refuses(folder, allowed=tmp_path)) == (kept == "private")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "~nobody_at_all/model", "", "/dev/null", "\ud800"])
def test_an_impossible_folder_name_is_refused(name):
    with pytest.raises(tj.UserError):
        tj.from_pretrained(name)


@pytest.mark.parametrize("name, file", [("t5", "spiece.model"), ("marian", "source.spm"), ("marian", "target.spm")])
def test_damaged_sentencepiece_is_refused(name, file, copies):
    path = copies[name] / file
    start = path.read_bytes()[:50]
    for content in (b"", b"\0", bytes(1000), random.Random(0).randbytes(1000), start):
        with changed(path, content):
            assert file in loads_or_refuses(copies[name])


PANICS = [
    {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}},  # "ab" is no token
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
    """Replace, remove or add a value at a random position in JSON, or copy a value to another position."""
    positions = []
    while isinstance(values, dict | list) and values:
        key = draw(st.sampled_from(sorted(values) if isinstance(values, dict) else range(len(values))))
        positions.append((values, key))
        values = values[key]
    parent, key = draw(st.sampled_from(positions))
    action = draw(st.sampled_from(["replace", "remove", "add", "move"]))
    if action == "remove":
        del parent[key]
        return
    new = draw(st.sampled_from([container[name] for container, name in positions]) if action == "move" else JSON)
    name = draw(st.text()) if action == "add" and isinstance(parent, dict) else key
    parent[name] = json.loads(json.dumps(new))  # a copy: the next change must not affect the original


def change_bytes(draw, content, end):
    """Replace, insert or remove bytes before `end`, or truncate there."""
    begin = draw(st.integers(0, min(end, len(content))))
    num_removed = draw(st.integers(0, 20) | st.just(len(content)))
    return content[:begin] + draw(st.binary(max_size=20)) + content[begin + num_removed :]


@given(data=st.data())
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_a_folder_with_random_changes_loads_or_is_refused(copies, data):
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
