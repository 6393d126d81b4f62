"""Text files and their settings, for the tests of sources and of what is made from them."""

import random

from hypothesis import settings

from train.config import DataConfig
from train.data.sources import load_text

TEXT = "First line.\u2028\n\tZweite Zeile: Füchse, 狐.\n" * 11

SEPARATORS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # at which str.splitlines cuts, and no line ends
NASTY = "one" + "x".join(SEPARATORS) + "two"
PIECES = [*SEPARATORS, "a", "bc", " ", "\t", "\n", "\n", "\r\n", "\r\n", "\0", "\ufeff", "é", "😀", '"', ","]

lightly = settings(max_examples=60, deadline=None, database=None)


def text_config(path, val_fraction=0.1):
    return DataConfig(source="text", path=str(path), val_fraction=val_fraction)


def parts_of(config):
    """The training and the validation split of a running text."""
    train, validation = load_text(config).splits()
    return "".join(train), "".join(validation)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fuzzed(number):
    """A text of up to 23 separators, words and other characters; half of them end without a line end."""
    draw = random.Random(number)
    return "".join(draw.choices(PIECES, k=draw.randrange(24)))


def slow_lines(data):
    """Lines of UTF-8 bytes, byte by byte."""
    lines, line = [], bytearray()
    for byte in data.removeprefix(b"\xef\xbb\xbf"):
        if byte != 0x0A:
            line.append(byte)
            continue
        lines.append(bytes(line[:-1] if line.endswith(b"\r") else line).decode())
        line = bytearray()
    return [*lines, line.decode()] if line else lines
