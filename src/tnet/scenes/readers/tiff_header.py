"""The directories (IFDs) of a TIFF file: what they say of it, and that they end.

A TIFF is a linked list of directories, which a damaged or malicious file can close into a ring or make endless. They
are walked here, within limits, before any library is let at them; and what kind of TIFF it is shows in their tags.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tnet.scenes.guard import open_file, unreadable

TAG_NEW_SUBFILE = 254
TAG_WIDTH = 256
TAG_HEIGHT = 257
TAG_BITS = 258
TAG_COMPRESSION = 259
TAG_PHOTOMETRIC = 262
TAG_DESCRIPTION = 270
TAG_ORIENTATION = 274
TAG_SAMPLES = 277
TAG_SOFTWARE = 305
TAG_PREDICTOR = 317
TAG_TILE_WIDTH = 322
TAG_SUBIFDS = 330
TAG_SAMPLE_FORMAT = 339
TAG_GEO_KEYS = 34735
TAG_GDAL_NODATA = 42113
# Without these a file would be taken for one of another kind, and read otherwise than it is meant.
_DECISIVE = {
    *(TAG_BITS, TAG_DESCRIPTION, TAG_SUBIFDS, TAG_SAMPLE_FORMAT, TAG_GEO_KEYS),
    *range(TAG_WIDTH, TAG_PHOTOMETRIC + 1),
    *(273, 279, 324, 325, 338, 347),  # where strips and tiles are, what further samples mean, JPEG tables
}

MAX_IFDS = 50_000
"""Most directories that are believed; the planes of a large stack are as many."""

_MAX_TAGS = 4096
_MAX_SUBIFDS = 256
_DESCRIBED_IFDS = 32  # directories whose tags are kept
_TEXT_BYTES = 4096  # of a text, how much is kept
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_DAMAGED = "fetch or save it again, or leave it out"


@dataclass(frozen=True)
class TiffHeader:
    """What the directories of a TIFF say.

    Attributes:
        ifds: tags of the first directories: integers, and texts cut short.
        count: number of directories, those inside others (SubIFDs) not included.
    """

    ifds: tuple[dict[int, tuple[int, ...] | bytes], ...]
    count: int

    @property
    def has_geo_keys(self) -> bool:
        """Whether the first directory is georeferenced."""
        return TAG_GEO_KEYS in self.ifds[0]

    @property
    def is_tiled(self) -> bool:
        """Whether the first directory is stored in tiles."""
        return TAG_TILE_WIDTH in self.ifds[0]

    @property
    def is_pyramidal(self) -> bool:
        """Whether there are directories inside the first, or some that say they are reduced versions."""
        reduced = any(self.number(TAG_NEW_SUBFILE, 0, ifd) & 1 for ifd in range(1, len(self.ifds)))
        return reduced or TAG_SUBIFDS in self.ifds[0]

    @property
    def has_masks(self) -> bool:
        """Whether directories say that they are transparency masks of others."""
        return any(self.number(TAG_NEW_SUBFILE, 0, ifd) & 4 for ifd in range(len(self.ifds)))

    @property
    def is_ome(self) -> bool:
        """Whether the first directory describes an OME-TIFF."""
        text = self.text(TAG_DESCRIPTION)
        return b"<OME" in text or b"openmicroscopy.org" in text

    def number(self, tag: int, default: int, ifd: int = 0) -> int:
        """The first integer of a tag."""
        value = self.ifds[ifd].get(tag)
        return value[0] if isinstance(value, tuple) and value else default

    def numbers(self, tag: int, ifd: int = 0) -> tuple[int, ...]:
        """The integers of a tag."""
        value = self.ifds[ifd].get(tag)
        return value if isinstance(value, tuple) else ()

    def text(self, tag: int) -> bytes:
        """The text of a tag of the first directory, cut short."""
        value = self.ifds[0].get(tag)
        return value if isinstance(value, bytes) else b""


@dataclass
class _Walk:
    path: Path
    stream: IO[bytes]
    size: int
    order: str
    is_big: bool
    seen: set[int] = field(default_factory=set)

    def refuse(self, reason: str) -> Exception:
        return unreadable(self.path, f"as a TIFF it is damaged: {reason}", _DAMAGED)

    def fetch(self, offset: int, count: int) -> bytes:
        self.stream.seek(offset)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.refuse(f"it ends at {self.size:,} bytes, before something at {offset:,}")
        return data

    def ifd(self, offset: int, *, described: bool) -> tuple[dict[int, tuple[int, ...] | bytes], int]:
        """Tags of a directory, and where the next is (0: nowhere)."""
        if offset in self.seen:
            raise self.refuse(f"its directories lead back to the one at {offset:,}")
        self.seen.add(offset)
        if len(self.seen) > MAX_IFDS:
            raise self.refuse(f"it has more than {MAX_IFDS:,} directories")
        count_format, entry_bytes, offset_format = ("Q", 20, "Q") if self.is_big else ("H", 12, "I")
        head = struct.calcsize(self.order + count_format)
        (count,) = struct.unpack(self.order + count_format, self.fetch(offset, head))
        if not 1 <= count <= _MAX_TAGS:
            raise self.refuse(f"the directory at {offset:,} has {count:,} entries, not 1 to {_MAX_TAGS:,}")
        tail = struct.calcsize(self.order + offset_format)
        data = self.fetch(offset + head, count * entry_bytes + tail)
        (following,) = struct.unpack(self.order + offset_format, data[-tail:])
        tags = {}
        if described:
            for start in range(0, count * entry_bytes, entry_bytes):
                code, value = self._tag(data[start : start + entry_bytes])
                if value is not None:
                    tags[code] = value
        return tags, following

    def _tag(self, entry: bytes) -> tuple[int, tuple[int, ...] | bytes | None]:
        value_at = 12 if self.is_big else 8
        code, kind, count = struct.unpack(self.order + ("HHQ" if self.is_big else "HHI"), entry[:value_at])
        inline = entry[value_at:]
        nbytes = _SIZES.get(kind, 0) * count
        if not nbytes:
            return code, None
        wanted = min(nbytes, _TEXT_BYTES)
        if nbytes > len(inline):
            (offset,) = struct.unpack(self.order + ("Q" if self.is_big else "I"), inline)
            if offset + nbytes > self.size:
                if code in _DECISIVE:
                    raise self.refuse(f"tag {code} claims {nbytes:,} bytes at {offset:,}, but it has {self.size:,}")
                return code, None  # a private tag may be broken without the picture being
            inline = self.fetch(offset, wanted)
        if kind in _INTEGERS:
            number = wanted // _SIZES[kind]
            return code, struct.unpack(f"{self.order}{number}{_INTEGERS[kind]}", inline[: number * _SIZES[kind]])
        return code, (inline[:wanted] if kind in (2, 7) else None)


def read_tiff_header(path: Path) -> TiffHeader:
    """Walk the directories of a TIFF or BigTIFF.

    Raises:
        ImageError: it is missing, not a TIFF, cut short, or its directories form a ring or are too many.
    """
    with open_file(path) as stream:
        start = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(order + "H", start[2:4])[0] if order and len(start) >= 8 else 0
        if version not in (42, 43) or (version == 43 and len(start) < 16):
            raise unreadable(path, "it is not a TIFF", _DAMAGED)
        is_big = version == 43
        (offset,) = struct.unpack(order + "Q", start[8:16]) if is_big else struct.unpack(order + "I", start[4:8])
        walk = _Walk(path, stream, os.fstat(stream.fileno()).st_size, order, is_big)
        ifds: list[dict[int, tuple[int, ...] | bytes]] = []
        count = 0
        while offset:
            tags, offset = walk.ifd(offset, described=count < _DESCRIBED_IFDS)
            count += 1
            if count <= _DESCRIBED_IFDS:
                ifds.append(tags)
                _walk_inside(walk, tags)
        if not ifds:
            raise walk.refuse("it has no directory")
        return TiffHeader(tuple(ifds), count)


def _walk_inside(walk: _Walk, tags: dict[int, tuple[int, ...] | bytes]) -> None:
    """Directories inside a directory: each is reached once; what would follow it is not."""
    offsets = tags.get(TAG_SUBIFDS, ())
    if len(offsets) > _MAX_SUBIFDS:
        raise walk.refuse(f"a directory has {len(offsets):,} others inside, over {_MAX_SUBIFDS}")
    for offset in offsets:
        walk.ifd(offset, described=False)
