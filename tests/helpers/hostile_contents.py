"""Hostile contents for the files of a folder: odd JSON values, texts that are not JSON, damaged safetensors files."""

import json
import math
import random
import struct
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures"

LONG_NUMBER = "1" + 5000 * "0"
MANY_LABELS = {str(i): "a" for i in range(1000)}
INTEGERS = [0, 1, 3, -1, 2**31 - 1, 10**9, 10**18, 10**30, 10**400, -(10**400)]
FLOATS = [0.5, 1e-308, 1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", "text", "\ud800\n"]
NESTED = [[], [[]], [7], [None], {}, {"0": "a"}, {"a": []}, {"9" * 5000: "a"}, {"-1": "a"}, MANY_LABELS]
VALUES = [None, True, False, *INTEGERS, *FLOATS, *TEXTS, *NESTED]
FEW_VALUES = [
    *(None, True, -1, 2**31 - 1, 10**400, 1e308, math.nan),
    *("text", [[]], {"a": []}, MANY_LABELS, {"9" * 5000: "a"}),
]

NOT_JSON = {
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "closed lists": "[" * 100_000 + "]" * 100_000,
    "empty": "",
    "Python": "{'a': 1}",
    "a list": "[]",
    "null": "null",
    "a NUL": "\0",
    "truncated": '{"a": ',
    "a long number": f'{{"model_type": {LONG_NUMBER}}}',
    "not UTF-8": b'{"\xff": 1}',
    "UTF-16": "{}".encode("utf-16"),
    "lists in lists": f'{{"extra_ids": {"[" * 900 + "]" * 900}}}',
    "a lone surrogate": '{"extra_ids": "\\ud800"}',
}

SOUND = (FIXTURES / "gpt2" / "model.safetensors").read_bytes()
END_OF_HEADER = 8 + struct.unpack("<Q", SOUND[:8])[0]
HEADER = json.loads(SOUND[8:END_OF_HEADER])
DATA = SOUND[END_OF_HEADER:]


def safetensors_of(header, data=b"", length=None):
    """A safetensors file with this header (bytes, or JSON of a value) that states `length` as the header's length."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def with_entry(begin=0, end=0, **values):
    """The sound file with one entry of its header changed: offsets by `begin` and `end`, other fields by `values`."""
    header = json.loads(json.dumps(HEADER))
    entry = header["transformer.wpe.weight"]
    entry["data_offsets"] = [entry["data_offsets"][0] + begin, entry["data_offsets"][1] + end]
    return safetensors_of(header | {"transformer.wpe.weight": entry | values}, DATA)


DAMAGED_WEIGHTS = {
    "empty": b"",
    "only a length": SOUND[:8],
    "half a length": SOUND[:5],
    "half a header": SOUND[:500],
    "half of the data": SOUND[:20_000],
    "a byte short": SOUND[:-1],
    "a byte long": SOUND + b"\0",
    "a header of 2^63 bytes": safetensors_of(b"{}", length=2**63),
    "a header of 2^64 - 1 bytes": safetensors_of(b"{}", length=2**64 - 1),
    "a header of 90 MB": safetensors_of(b"{}", length=90_000_000),
    "a header of no bytes": safetensors_of(b"", length=0),
    "a header of zeros": safetensors_of(bytes(100)),
    "a deep header": safetensors_of(b"[" * 100_000),
    "no tensors": safetensors_of({}),
    "a deep entry": safetensors_of(b'{"a":' * 100_000),
    "a header that is not UTF-8": safetensors_of(b'{"\xff": {}}'),
    "a list as header": safetensors_of([]),
    "an entry that is a number": safetensors_of({"a": 7}),
    "metadata that are not strings": safetensors_of({"__metadata__": {"a": {"b": 7}}}),
    "a huge shape": with_entry(shape=[2**62, 2**62]),
    "a huge and empty shape": with_entry(shape=[0, 2**62]),
    "a negative shape": with_entry(shape=[-41, -20]),
    "a shape of 10^5 axes": with_entry(shape=[1] * 10**5),
    "a shape of texts": with_entry(shape=["41", "20"]),
    "a long number": SOUND.replace(b"[41,20]", LONG_NUMBER.encode()),
    "an unknown dtype": with_entry(dtype="F128"),
    "a dtype of another size": with_entry(dtype="F16"),
    "a dtype of integers": with_entry(dtype="I32"),
    "no dtype": with_entry(dtype=None),
    "an overlap": with_entry(-4, -4),
    "a hole": with_entry(4, 4),
    "a longer tensor": with_entry(0, 4),
    "offsets reversed": with_entry(2**20, 0),
    "negative offsets": with_entry(-(2**40), -(2**40)),
    "offsets of 2^64": with_entry(2**64, 2**64),
    "offsets that are floats": with_entry(0.5, 0.5),
    "a pickle": b"\x80\x04cposix\nsystem\n(S'true'\ntR.",
    "a name twice": SOUND.replace(b"transformer.h.1.ln_1.bias", b"transformer.h.0.ln_1.bias"),
    "random bytes": random.Random(0).randbytes(5000),
}
