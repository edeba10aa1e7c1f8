"""Minimal reader of ``meta.mat`` of ImageNet's devkit: one structure array in MATLAB's format, version 5.

``scipy.io.loadmat`` allocates what a damaged or hostile file claims before it reads the rest. This reader only slices
the file and what it decompresses to, both of limited size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tnet.errors import DataError
from tnet.files import check_regular

_MAX_BYTES = 16 * 2**20  # the devkit's own is far below 1 MB
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15  # types of data elements
_STRUCT, _CHAR = 2, 4  # classes of arrays
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_FIELDS = ("ILSVRC2012_ID", "WNID", "words", "num_children")


def read_synsets(path: Path) -> dict[int, tuple[str, str]]:
    """Return WordNet id and words of the 1000 synsets that are classes (those without children) by number.

    Raises:
        DataError: the file is missing, damaged, too large, or not the devkit's.
    """
    try:
        check_regular(path)
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); download it again") from error
    try:
        rows = [[_value(row[field], order) for field in _FIELDS] for order, row in _struct_rows(content)]
        synsets = {int(number): (str(wnid), str(words)) for number, wnid, words, children in rows if not int(children)}
        if not synsets:
            raise ValueError("it has no synsets")
    except (ValueError, KeyError, IndexError, OverflowError, struct.error, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not the devkit's meta.mat ({reason}); download it again") from error
    return synsets


def _struct_rows(content: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield byte order and fields (as the bytes of arrays) of each element of the structure arrays in a file."""
    if len(content) > _MAX_BYTES or not content.startswith(b"MATLAB 5.0") or len(content) < _HEADER_BYTES:
        raise ValueError(f"it is not a MATLAB 5 file of up to {_MAX_BYTES:,} bytes")
    order = {b"IM": "<", b"MI": ">"}[content[126:128]]
    room = _MAX_BYTES
    for kind, body in _elements(content[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(body, room + 1)
            room -= len(unpacked)
            if room < 0:
                raise ValueError(f"it decompresses to more than {_MAX_BYTES:,} bytes")
            kind, body = next(_elements(unpacked, order), (0, b""))
        parts = [part for _, part in _elements(body, order)] if kind == _MATRIX else []
        if len(parts) < 5 or parts[0][0 if order == "<" else 3] != _STRUCT:
            continue
        (length,) = struct.unpack(f"{order}I", parts[3])
        if not 1 <= length <= 64 or not parts[4]:
            raise ValueError("its structure has no fields")
        names = [parts[4][at : at + length].split(b"\0")[0].decode("ascii") for at in range(0, len(parts[4]), length)]
        for at in range(5, len(parts) - len(names) + 1, len(names)):
            yield order, dict(zip(names, parts[at : at + len(names)], strict=True))


def _value(array: bytes, order: str) -> str | float:
    """Return a text, or a single number, from the bytes of an array."""
    (_, flags), _, _, (kind, data) = _elements(array, order)
    if flags[0 if order == "<" else 3] == _CHAR:
        encoding = _ENCODINGS[kind]
        return data.decode(f"{encoding}-{'le' if order == '<' else 'be'}" if encoding == "utf-16" else encoding)
    return float(np.frombuffer(data, dtype=order + _DTYPES[kind])[0])


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of the data elements that follow one another."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        if kind >> 16:  # up to four bytes are stored in the tag itself
            kind, size, start = kind & 0xFFFF, min(kind >> 16, 4), at + 4
            at += 8
        else:  # elements start at multiples of 8 bytes, except after compressed ones
            at = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("it ends too early")
        yield kind, content[start : start + size]
