"""The synsets in ``meta.mat`` of ImageNet's devkit.

SciPy reads the file, after it has been walked through: what is compressed is unpacked up to a limit, and no array may
say that it has more elements than would fit, since SciPy makes room for what a file says before it looks at the rest.
SciPy also reads on where an array's parts end, whatever length the array gives; so every array must hold just the parts
that its kind has, or arrays could be hidden from the walk.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from tnet.errors import DataError

_MAX_BYTES = 16 * 2**20  # the devkit's own is far below 1 MB
_MAX_ELEMENTS = 1_000_000
_MAX_DEPTH = 8
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _TEXT, _NUMBERS = 1, 2, 4, range(6, 16)  # kinds of arrays; sparse ones and objects are not read
_COMPLEX = 0x800


def read_synsets(path: Path) -> dict[int, tuple[str, str]]:
    """Number, WordNet id and words of the 1000 synsets that are classes (those without children).

    Raises:
        DataError: the file is missing, damaged, too large, or not the devkit's.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"The file {path} cannot be read ({error.strerror}); fetch it again.") from error
    try:
        _check(content)
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = zip(
            *(np.atleast_1d(synsets[name]).tolist() for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")),
            strict=True,
        )
        return {int(number): (str(wnid), str(words)) for number, wnid, words, children in rows if int(children) == 0}
    except Exception as error:  # on a damaged file, SciPy raises nearly every kind there is
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"The file {path} is not the devkit's meta.mat ({reason}); fetch it again.") from error


def _check(content: bytes) -> None:
    """Refuse a file that would take more memory than it should.

    Raises:
        ValueError: it does, or is no MATLAB 5 file.
    """
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    if not content.startswith(b"MATLAB 5.0") or len(content) < _HEADER_BYTES:
        raise ValueError("it is no MATLAB 5 file")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("its byte order is not known")
    room = [_MAX_BYTES, _MAX_ELEMENTS]
    position = _HEADER_BYTES
    while position < len(content):
        kind, size, start, position = _tag(content, position, order)
        body = content[start : start + size]
        if kind == _COMPRESSED:
            body = zlib.decompressobj().decompress(body, room[0] + 1)
            room[0] -= len(body)
            if room[0] < 0:
                raise ValueError(f"it unpacks to more than {_MAX_BYTES:,} bytes")
            kind, size, start, _ = _tag(body, 0, order)
            body = body[start : start + size]
        if kind == _MATRIX:
            _check_matrix(body, order, room, 0)


def _check_matrix(body: bytes, order: str, room: list[int], depth: int) -> None:
    """Hold an array against its kind, and count the elements that it, and those in it, say they have."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it has arrays in arrays deeper than {_MAX_DEPTH}")
    position, parts, needed, kind_of_array, elements, name_bytes = 0, 0, 4, 0, 0, 1
    while position < len(body):
        kind, size, start, position = _tag(body, position, order)
        if kind == _COMPRESSED:
            raise ValueError("it has an array in which something is compressed on its own")
        numbers = struct.unpack_from(f"{order}{size // 4}I", body, start) if parts in (0, 1, 3) else ()
        if parts == 0:
            kind_of_array = _kind_of_array(numbers if size == 8 else ())
        elif parts == 1:
            elements = math.prod(numbers)
            needed = 3 + elements if kind_of_array == _CELL else 4
            _take(room, elements)
        elif kind_of_array == _STRUCT and parts == 3:
            name_bytes = max(1, *numbers[:1])
        elif kind_of_array == _STRUCT and parts == 4:
            needed = 5 + elements * (size // name_bytes)
            _take(room, needed)
        if kind == _MATRIX:
            _check_matrix(body[start : start + size], order, room, depth + 1)
        parts += 1
    if parts not in (0, needed):  # none is how an empty array in another may be written
        raise ValueError(f"it has an array of {parts} parts where there should be {needed}")


def _kind_of_array(flags: tuple[int, ...]) -> int:
    kind = flags[0] & 0xFF if len(flags) == 2 else 0
    if kind not in (_CELL, _STRUCT, _TEXT, *_NUMBERS) or flags[0] & _COMPLEX:
        raise ValueError("it has an array that is neither text, numbers, cells nor a structure")
    return kind


def _take(room: list[int], elements: int) -> None:
    room[1] -= max(1, elements)
    if room[1] < 0:
        raise ValueError(f"its arrays have more than {_MAX_ELEMENTS:,} elements")


def _tag(content: bytes, position: int, order: str) -> tuple[int, int, int, int]:
    """Type, bytes and start of the element here, and where the next one starts."""
    kind, size = struct.unpack_from(f"{order}II", content, position)
    if kind >> 16:  # up to four bytes are stored in the tag itself
        if kind >> 16 > 4:
            raise ValueError("it has a short element of more than four bytes")
        return kind & 0xFFFF, kind >> 16, position + 4, position + 8
    start = position + 8
    if start + size > len(content):
        raise ValueError("it ends too early")
    # Elements start at multiples of 8 bytes, but for compressed ones.
    return kind, size, start, start + size + (0 if kind == _COMPRESSED else -size % 8)
