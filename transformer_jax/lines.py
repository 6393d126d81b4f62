"""Lines of text that people bring, in files and on stdin: UTF-8; a line ends at \\n or \\r\\n and nowhere else.

A byte order mark at the start is omitted. A lone \\r, a form feed, U+0085 and U+2028 are characters of a line.
"""

import codecs
import gzip
import itertools
import os
import re
import shlex
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from transformer_jax.errors import UserError

BYTE_ORDER_MARKS = {  # the longer ones first, since UTF-32 begins as UTF-16 does
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
PIECE_BYTES = 2**20  # of a file that is read in pieces
# A .gz may hold text of 256 MB, or of 200 times its own size. Normal text has 3 times, and a bomb has 1,000 times.
MAX_GZIP_BYTES = 2**28
MAX_GZIP_RATIO = 200
LINE_BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")  # at all of these, some program ends a line
LONE_SURROGATES = re.compile("[\ud800-\udfff]")  # which UTF-8 cannot encode


def read_file(file: str) -> str:
    """Read the text of a file, .gz too; see `decode`. Raises UserError: it cannot be read, or is a damaged .gz."""
    return decode(read_bytes(file), file)


def read_stdin() -> str:
    """Read the text of stdin to its end; see `decode`. Raises UserError: it is closed."""
    if sys.stdin is None:
        raise UserError("stdin: is closed. Give a file, <FILE, or a pipe.")
    return decode(sys.stdin.buffer.read())


def read_bytes(file: str) -> bytes:
    """Read a file; one that ends in .gz is decompressed. Raises UserError: it cannot be read, or is a damaged .gz."""
    return b"".join(read_pieces(file))


def read_pieces(file: str) -> Iterator[bytes]:
    """Read a file in pieces of PIECE_BYTES bytes; see `read_bytes`.

    A file that a user names may be a pipe, such as /dev/stdin or that of a process substitution; a device is refused.

    Raises:
      UserError: it cannot be read; a damaged .gz, or one of more than MAX_GZIP_RATIO times its size.
    """
    try:
        with open(file, "rb") as raw:
            _check_is_no_device(raw, file)
            if not file.endswith(".gz"):
                while piece := raw.read(PIECE_BYTES):
                    yield piece
                return
            room = max(MAX_GZIP_BYTES, MAX_GZIP_RATIO * os.fstat(raw.fileno()).st_size)
            with gzip.open(raw) as stream:
                while piece := stream.read(PIECE_BYTES):
                    room -= len(piece)
                    if room < 0:
                        raise UserError(
                            f"{file!r}: holds more than {MAX_GZIP_RATIO} times its size, and {MAX_GZIP_BYTES >> 20} "
                            "MB. If that is right, decompress it before: gunzip -k FILE.gz."
                        )
                    yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file!r} cannot be read: {error}. Fix or remove the file.") from error


def _check_is_no_device(stream: BinaryIO, file: str) -> None:
    """Refuse devices, of which some never end, except a terminal and the empty one."""
    status = os.fstat(stream.fileno())
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    if is_device and not stream.isatty() and status.st_rdev != os.stat(os.devnull).st_rdev:
        raise UserError(f"{file!r}: is a device. Give a file.")


def decode(data: bytes, file: str = "") -> str:
    """Decode UTF-8, without a byte order mark at its start; each \\r\\n becomes \\n.

    Args:
      file: for messages; "": stdin.
    Raises:
      UserError: another encoding. The message names it, the byte and its line, and the command that converts it.
    """
    return "".join(decode_pieces([data], file))


def decode_pieces(pieces: Iterable[bytes], file: str = "") -> Iterator[str]:
    """Decode UTF-8 that comes in pieces, cut anywhere; see `decode`. No piece of the text is empty."""
    name = repr(file) if file else "stdin"
    offset = 0  # of `data` in the file
    num_lines = 0  # before `data`
    rest = b""  # of the last piece: the first bytes of a character or a line end
    for piece, following in itertools.pairwise(itertools.chain(pieces, (None,))):
        assert piece is not None, "only the last is"
        data = rest + piece
        if offset == 0 and (encoding := _utf16_or_utf32(data)):
            raise UserError(f"{name} is {encoding}, and must be UTF-8. {_conversion(encoding, file)}")
        try:
            text, num_bytes = codecs.utf_8_decode(data, "strict", following is None)
        except UnicodeDecodeError as error:
            i = error.start
            line = num_lines + data.count(b"\n", 0, i) + 1
            raise UserError(
                f"{name} is not UTF-8: byte 0x{data[i]:02x} at offset {offset + i}, in line {line}. "
                f"{_advice(data, file)}"
            ) from error
        if text.endswith("\r") and following is not None:
            text = text[:-1]
            num_bytes -= 1
        rest = data[num_bytes:]
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += num_bytes
        if following is not None:
            num_lines += data.count(b"\n", 0, num_bytes)
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        if text:
            yield text


def split_lines(text: str) -> list[str]:
    """Split a decoded text into its lines, without their ends. The last line counts with and without a \\n."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def one_line(text: str) -> str:
    """Make a text one line for every program that may read it: a space for each line break, U+FFFD for half a pair."""
    return LONE_SURROGATES.sub("\ufffd", LINE_BREAKS.sub(" ", text))


def check_is_text(text: str, where: str) -> None:
    """Raise UserError if a string, such as one of JSON, has half of a surrogate pair."""
    if found := LONE_SURROGATES.search(text):
        raise UserError(f"{where}: has half of a surrogate pair, \\u{ord(found[0]):x}, which is no text. Fix the line.")


def _utf16_or_utf32(data: bytes) -> str:
    """Name of the encoding by its byte order mark, or by the zeros of Latin letters in UTF-16 without one; else ""."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if len(data) >= 16:
        zeros = [data[start:4096:2].count(0) / len(data[start:4096:2]) for start in (0, 1)]
        if max(zeros) > 0.8 and min(zeros) == 0:
            return "UTF-16LE" if zeros[1] else "UTF-16BE"
    return ""


def _advice(data: bytes, file: str) -> str:
    if data.startswith(b"\x1f\x8b"):
        return "It is compressed: " + ("let its name end in .gz." if file else "decompress it, gunzip -c FILE.gz | ...")
    if b"\0" in data:
        return "It has zero bytes, as binary data has. Give a text."
    if re.search(b"[\x80-\x9f]", data):  # control characters in Latin-1, quotes and dashes in Windows-1252
        return f"If it is Windows-1252: {_conversion('WINDOWS-1252', file)}"
    return f"If it is Latin-1: {_conversion('ISO-8859-1', file)}"


def _conversion(encoding: str, file: str) -> str:
    """Command that converts a file, or stdin, to UTF-8."""
    convert = f"iconv -f {encoding} -t UTF-8"
    if not file:
        return f"Convert it: {convert} FILE | ..."
    stem, ending = os.path.splitext(file.removesuffix(".gz"))
    target = shlex.quote(f"{stem}.utf8{ending}")
    if file.endswith(".gz"):
        return f"Convert it: gunzip -c {shlex.quote(file)} | {convert} >{target}"
    return f"Convert it: {convert} {shlex.quote(file)} >{target}"
