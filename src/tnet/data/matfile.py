"""The synsets in ``meta.mat`` of ImageNet's devkit.

SciPy reads the file, after it has been walked through: what is compressed is unpacked up to a limit, and no array may
say that it has more elements than would fit, since SciPy makes room for what a file says before it looks at the rest.
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
    """Count the elements that this array, and those in it, say they have."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it has arrays in arrays deeper than {_MAX_DEPTH}")
    position, part = 0, 0
    while position < len(body):
        kind, size, start, position = _tag(body, position, order)
        if part == 1:  # after the flags: the dimensions
            count = size // 4
            room[1] -= max(1, math.prod(struct.unpack_from(f"{order}{count}I", body, start)))
            if room[1] < 0:
                raise ValueError(f"its arrays have more than {_MAX_ELEMENTS:,} elements")
        if kind == _MATRIX:
            _check_matrix(body[start : start + size], order, room, depth + 1)
        part += 1


def _tag(content: bytes, position: int, order: str) -> tuple[int, int, int, int]:
    """Type, bytes and start of the element here, and where the next one starts."""
    kind, size = struct.unpack_from(f"{order}II", content, position)
    if kind >> 16:  # up to four bytes are stored in the tag itself
        return kind & 0xFFFF, kind >> 16, position + 4, position + 8
    start = position + 8
    if start + size > len(content):
        raise ValueError("it ends too early")
    # Elements start at multiples of 8 bytes, but for compressed ones.
    return kind, size, start, start + size + (0 if kind == _COMPRESSED else -size % 8)
