"""The directories (IFDs) of a TIFF file.

They form a linked list, which a damaged or malicious file can close into a ring or make endless: they are walked here,
within limits, before any library opens the file. Their tags decide which reader suits it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tnet.errors import ImageError
from tnet.scenes.guard import open_file, unreadable

TAG_NEW_SUBFILE, TAG_WIDTH, TAG_HEIGHT, TAG_BITS, TAG_COMPRESSION, TAG_PHOTOMETRIC = 254, 256, 257, 258, 259, 262
TAG_DESCRIPTION, TAG_ORIENTATION, TAG_SAMPLES, TAG_SOFTWARE, TAG_TILE_WIDTH = 270, 274, 277, 305, 322
TAG_SUBIFDS, TAG_SAMPLE_FORMAT, TAG_GEO_KEYS, TAG_GDAL_NODATA = 330, 339, 34735, 42113
# Without these a file would be taken for another kind of TIFF, and decoded differently than intended.
_DECISIVE = {
    *(TAG_BITS, TAG_DESCRIPTION, TAG_SUBIFDS, TAG_SAMPLE_FORMAT, TAG_GEO_KEYS),
    *range(TAG_WIDTH, TAG_PHOTOMETRIC + 1),
    *(273, 279, 324, 325, 338, 347),  # positions of strips and tiles, extra samples, JPEG tables
}

# None, LZW, JPEG, Deflate, PackBits, JPEG 2000 (but not as YCbCr), LZMA, Zstandard, WebP: those for which damaged or
# malicious tiles are bounded. The library tifffile supports more.
TIFFFILE_COMPRESSIONS = frozenset({1, 5, 7, 8, 32773, 32946, 33005, 34712, 34925, 50000, 50001})
MAX_IFDS = 50_000  # the planes of a large stack are as many
_MAX_TAGS = 4096
_MAX_SUBIFDS = 256
_DESCRIBED_IFDS = 32  # directories whose tags are kept
_TEXT_BYTES = 4096  # kept of each text
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

_Tags = dict[int, tuple[int, ...] | bytes]


class TiffHeader:
    """Tags (integers, and texts cut short) of the first ``count`` directories of a TIFF, without SubIFDs."""

    def __init__(self, ifds: Sequence[_Tags], count: int) -> None:
        self.ifds = tuple(ifds)
        self.count = count
        subfiles = [self.number(TAG_NEW_SUBFILE, 0, index) for index in range(len(ifds))]
        self.has_geo_keys = TAG_GEO_KEYS in ifds[0]
        self.is_tiled = TAG_TILE_WIDTH in ifds[0]
        # By directories inside the first, or others that are marked as reduced versions.
        self.is_pyramidal = TAG_SUBIFDS in ifds[0] or any(subfile & 1 for subfile in subfiles[1:])
        # Pixels may be marked as missing, by a value or by a mask.
        self.has_nodata = TAG_GDAL_NODATA in ifds[0] or any(subfile & 4 for subfile in subfiles)
        description = self.text(TAG_DESCRIPTION)
        self.is_ome = b"<OME" in description or b"openmicroscopy.org" in description
        self.pixels = self.number(TAG_WIDTH, 0) * self.number(TAG_HEIGHT, 0)
        self.compression = self.number(TAG_COMPRESSION, 1)
        self.samples = self.number(TAG_SAMPLES, 1)
        bits = ifds[0].get(TAG_BITS)
        self.bits = max(bits) if isinstance(bits, tuple) and bits else 1
        self.suits_tifffile = self.is_ome or self.compression in TIFFFILE_COMPRESSIONS

    def number(self, tag: int, default: int, ifd: int = 0) -> int:
        """Return the first integer of a tag."""
        value = self.ifds[ifd].get(tag)
        return value[0] if isinstance(value, tuple) and value else default

    def text(self, tag: int) -> bytes:
        """Return the text of a tag of the first directory, cut short."""
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

    def error(self, reason: str) -> ImageError:
        return unreadable(self.path, f"its TIFF directories are damaged: {reason}")

    def fetch(self, offset: int, count: int) -> bytes:
        self.stream.seek(offset)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.error(f"it ends at {self.size:,} bytes, before something at {offset:,}")
        return data

    def ifd(self, offset: int, *, described: bool) -> tuple[_Tags, int]:
        """Read the tags of a directory, and the offset of the next (0 for none)."""
        if offset in self.seen:
            raise self.error(f"they lead back to the one at {offset:,}")
        self.seen.add(offset)
        if len(self.seen) > MAX_IFDS:
            raise self.error(f"there are more than {MAX_IFDS:,}")
        count_format, entry_bytes, offset_format = ("Q", 20, "Q") if self.is_big else ("H", 12, "I")
        head = struct.calcsize(self.order + count_format)
        (count,) = struct.unpack(self.order + count_format, self.fetch(offset, head))
        if not 1 <= count <= _MAX_TAGS:
            raise self.error(f"the one at {offset:,} has {count:,} entries, not 1 to {_MAX_TAGS:,}")
        tail = struct.calcsize(self.order + offset_format)
        data = self.fetch(offset + head, count * entry_bytes + tail)
        (following,) = struct.unpack(self.order + offset_format, data[-tail:])
        tags = {}
        for start in range(0, count * entry_bytes, entry_bytes) if described else ():
            code, value = self._tag(data[start : start + entry_bytes])
            if value is not None:
                tags[code] = value
        return tags, following

    def walk_inside(self, tags: _Tags) -> None:
        """Visit the directories inside a directory, but not those that would follow them."""
        offsets = tags.get(TAG_SUBIFDS, ())
        if len(offsets) > _MAX_SUBIFDS:
            raise self.error(f"one has {len(offsets):,} others inside, over {_MAX_SUBIFDS}")
        for offset in offsets:
            self.ifd(offset, described=False)

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
                    raise self.error(f"tag {code} claims {nbytes:,} bytes at {offset:,}, but it has {self.size:,}")
                return code, None  # a private tag may be broken while the image is sound
            inline = self.fetch(offset, wanted)
        if kind in _INTEGERS:
            number = wanted // _SIZES[kind]
            return code, struct.unpack(f"{self.order}{number}{_INTEGERS[kind]}", inline[: number * _SIZES[kind]])
        return code, (inline[:wanted] if kind in (2, 7) else None)


def read_tiff_header(path: Path) -> TiffHeader:
    """Walk the directories of a TIFF or BigTIFF; raises ``ImageError`` if they are damaged or too many."""
    with open_file(path) as stream:
        start = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(order + "H", start[2:4])[0] if order and len(start) >= 8 else 0
        if version not in (42, 43) or (version == 43 and len(start) < 16):
            raise unreadable(path, "it is not a TIFF")
        is_big = version == 43
        (offset,) = struct.unpack(order + "Q", start[8:16]) if is_big else struct.unpack(order + "I", start[4:8])
        walk = _Walk(path, stream, os.fstat(stream.fileno()).st_size, order, is_big)
        ifds: list[_Tags] = []
        count = 0
        while offset:
            tags, offset = walk.ifd(offset, described=count < _DESCRIBED_IFDS)
            count += 1
            if count <= _DESCRIBED_IFDS:
                ifds.append(tags)
                walk.walk_inside(tags)
        if not ifds:
            raise walk.error("there are none")
        return TiffHeader(ifds, count)
