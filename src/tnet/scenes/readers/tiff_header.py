"""The directories (IFDs) of a TIFF file.

They form a linked list, which a damaged or malicious file can close into a ring or make endless: they are walked here,
within limits, before any library opens the file. Their tags decide which reader suits it, and say what its samples mean
(:mod:`tnet.scenes.readers.tiff_samples`).
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tnet.errors import ImageError
from tnet.scenes.guard import open_file, unreadable
from tnet.scenes.readers.ome import METRES

TAG_NEW_SUBFILE, TAG_OLD_SUBFILE, TAG_WIDTH, TAG_HEIGHT = 254, 255, 256, 257
TAG_BITS, TAG_COMPRESSION, TAG_PHOTOMETRIC = 258, 259, 262
TAG_DESCRIPTION, TAG_ORIENTATION, TAG_SAMPLES, TAG_SOFTWARE, TAG_TILE_WIDTH = 270, 274, 277, 305, 322
TAG_X_RESOLUTION, TAG_Y_RESOLUTION, TAG_PLANAR, TAG_RESOLUTION_UNIT, TAG_COLORMAP = 282, 283, 284, 296, 320
TAG_SUBIFDS, TAG_INK_SET, TAG_EXTRA_SAMPLES, TAG_SAMPLE_FORMAT, TAG_GEO_KEYS = 330, 332, 338, 339, 34735
TAG_YCBCR_SUBSAMPLING, TAG_GDAL_NODATA = 530, 42113
# Without these a file would be taken for another kind of TIFF, and decoded differently than intended.
_DECISIVE = {
    *(TAG_BITS, TAG_DESCRIPTION, TAG_COLORMAP, TAG_SUBIFDS, TAG_SAMPLE_FORMAT, TAG_GEO_KEYS),
    *range(TAG_WIDTH, TAG_PHOTOMETRIC + 1),
    *(273, 279, 324, 325, TAG_EXTRA_SAMPLES, 347),  # positions of strips and tiles, extra samples, JPEG tables
}

# None, LZW, JPEG, Deflate, PackBits, JPEG 2000 (but not as YCbCr), LZMA, Zstandard, WebP: those for which damaged or
# malicious tiles are bounded. The library tifffile supports more.
TIFFFILE_COMPRESSIONS = frozenset({1, 5, 7, 8, 32773, 32946, 33005, 34712, 34925, 50000, 50001})
STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RECOMPRESS = "save it with LZW, Deflate, JPEG or Zstandard"
MAX_IFDS = 50_000  # the planes of a large stack are as many
_MAX_TAGS = 4096
_MAX_SUBIFDS = 256
_DESCRIBED_IFDS = 32  # directories whose tags are kept
_TEXT_BYTES = 4096  # kept of each text
_COLORMAP_BYTES = 3 * 65536 * 2  # of 16-bit indices
_REDUCED, _MASK = 1, 4  # kinds of directories
_RGB, _YCBCR = 2, 6
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 5: "II", 13: "I", 16: "Q", 18: "Q"}

_Tags = dict[int, tuple[int, ...] | bytes]


class TiffHeader:
    """Tags (integers, and texts cut short) of the first directories of a TIFF, and of those inside the first one.

    All attributes describe the image itself: the first directory, unless that is a thumbnail of another.
    """

    def __init__(self, path: Path, ifds: Sequence[_Tags], count: int, inner: Sequence[_Tags] = ()) -> None:
        self.path, self.ifds, self.count, self.is_swapped = path, tuple(ifds), count, False
        kinds = [_kind(ifd) for ifd in ifds]
        # Index among the directories, then among those inside the first: where the image is.
        self.at = _main(ifds, inner)
        self.main = (*ifds, *inner)[self.at[0] if len(self.at) == 1 else len(ifds) + self.at[1]]
        self.has_geo_keys = TAG_GEO_KEYS in self.main
        self.is_tiled = TAG_TILE_WIDTH in self.main
        # By directories inside the first, or others that are marked as reduced versions.
        self.is_pyramidal = TAG_SUBIFDS in self.main or any(kind & _REDUCED for kind in kinds[1:])
        sides = [(_number(ifd, TAG_HEIGHT, 0), _number(ifd, TAG_WIDTH, 0)) for ifd in ifds]
        self.masks_hw = {size for size, kind in zip(sides, kinds, strict=True) if kind & _MASK}
        meanings = [_number(ifd, TAG_PHOTOMETRIC, 1) for ifd in (self.main, *ifds)]
        wanted, *meanings = (_RGB if meaning == _YCBCR else meaning for meaning in meanings)
        # Sizes of reduced versions whose samples mean something else.
        self.odd_hw = {size for size, meaning in zip(sides, meanings, strict=True) if meaning != wanted} - self.masks_hw
        description = self.text(TAG_DESCRIPTION)
        self.is_ome = b"<OME" in description or b"openmicroscopy.org" in description
        # Whether a description says how several pages belong together.
        images = re.search(rb"^ImageJ=.*\nimages=0*([2-9]|1\d)", description, re.DOTALL)
        is_described = description.startswith((b"ImageJ=", b'{"shape":'))
        self.is_stack = bool(images) or (is_described and count - sum(map(bool, kinds)) > 1)
        self.pixels = self.number(TAG_WIDTH, 0) * self.number(TAG_HEIGHT, 0)
        self.compression = self.number(TAG_COMPRESSION, 1)
        self.samples = self.number(TAG_SAMPLES, 1)
        self.photometric = self.number(TAG_PHOTOMETRIC, 1)
        self.is_planar = self.number(TAG_PLANAR, 1) == 2 and self.samples > 1
        self.extra = self.numbers(TAG_EXTRA_SAMPLES)
        self.bits = max(self.numbers(TAG_BITS), default=1)

    def number(self, tag: int, default: int, ifd: int | None = None) -> int:
        """Return the first integer of a tag, of the image or of a directory."""
        return _number(self.main if ifd is None else self.ifds[ifd], tag, default)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return all integers of a tag of the image."""
        value = self.main.get(tag)
        return value if isinstance(value, tuple) else ()

    def text(self, tag: int) -> bytes:
        """Return the text of a tag of the image, or of the first directory if it has none, cut short."""
        value = self.main.get(tag, self.ifds[0].get(tag))
        return value if isinstance(value, bytes) else b""

    @property
    def spacing_m_yx(self) -> tuple[float, float] | None:
        """Size of a pixel in metres: by ImageJ's unit, or pixels per centimetre (those per inch are for printing)."""
        unit = re.search(rb"^ImageJ=.*\nunit=([^\n\0]{1,40})", self.text(TAG_DESCRIPTION), re.DOTALL)
        name = unit[1].decode("utf-8", "replace").strip().lower().replace("\\u00b5", "µ") if unit else ""
        per_cm = METRES["cm"] if self.number(TAG_RESOLUTION_UNIT, 2) == 3 else 0.0
        scale = per_cm if name.startswith("in") else METRES.get(name, per_cm)
        pairs = [self.numbers(tag) or (0, 1) for tag in (TAG_Y_RESOLUTION, TAG_X_RESOLUTION)]
        y, x = (scale * pair[1] / (pair[0] or math.inf) for pair in pairs)
        return (y, x) if 1e-11 < y < 1e7 and 1e-11 < x < 1e7 else None


def _number(ifd: _Tags, tag: int, default: int) -> int:
    value = ifd.get(tag)
    return value[0] if isinstance(value, tuple) and value else default


def _kind(ifd: _Tags) -> int:
    """Whether a directory is a reduced version (1) or a mask (4) of another."""
    old = {2: _REDUCED}.get(_number(ifd, TAG_OLD_SUBFILE, 1), 0)
    mask = _MASK if _number(ifd, TAG_PHOTOMETRIC, 1) == 4 else 0
    return (_number(ifd, TAG_NEW_SUBFILE, old) | mask) & (_REDUCED | _MASK)


def _main(ifds: Sequence[_Tags], inner: Sequence[_Tags]) -> tuple[int, ...]:
    """Where the image is: not in a first directory that is marked as reduced, or has a larger one inside."""
    if _kind(ifds[0]):
        for index, ifd in enumerate(ifds):
            if not _kind(ifd):
                return (index,)
    width, height = (_number(ifds[0], tag, 0) for tag in (TAG_WIDTH, TAG_HEIGHT))
    for index, ifd in enumerate(inner):
        if not _kind(ifd) and _number(ifd, TAG_WIDTH, 0) > width and _number(ifd, TAG_HEIGHT, 0) > height:
            return (0, index)
    return (0,)


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

    def walk_inside(self, tags: _Tags, *, described: bool) -> list[_Tags]:
        """Visit the directories inside a directory, but not those that would follow them."""
        offsets = tags.get(TAG_SUBIFDS, ())
        if len(offsets) > _MAX_SUBIFDS:
            raise self.error(f"one has {len(offsets):,} others inside, over {_MAX_SUBIFDS}")
        return [self.ifd(int(offset), described=described)[0] for offset in offsets]

    def _tag(self, entry: bytes) -> tuple[int, tuple[int, ...] | bytes | None]:
        value_at = 12 if self.is_big else 8
        code, kind, count = struct.unpack(self.order + ("HHQ" if self.is_big else "HHI"), entry[:value_at])
        inline = entry[value_at:]
        nbytes = _SIZES.get(kind, 0) * count
        if not nbytes:
            return code, None
        wanted = min(nbytes, _COLORMAP_BYTES if code == TAG_COLORMAP else _TEXT_BYTES)
        if nbytes > len(inline):
            (offset,) = struct.unpack(self.order + ("Q" if self.is_big else "I"), inline)
            if offset + nbytes > self.size:
                if code in _DECISIVE:
                    raise self.error(f"tag {code} claims {nbytes:,} bytes at {offset:,}, but it has {self.size:,}")
                return code, None  # a private tag may be broken while the image is sound
            inline = self.fetch(offset, wanted)
        if kind in _INTEGERS:
            number = wanted // _SIZES[kind]
            return code, struct.unpack(self.order + number * _INTEGERS[kind], inline[: number * _SIZES[kind]])
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
        inner: list[_Tags] = []
        count = 0
        while offset:
            tags, offset = walk.ifd(offset, described=count < _DESCRIBED_IFDS)
            count += 1
            if count <= _DESCRIBED_IFDS:
                ifds.append(tags)
                inside = walk.walk_inside(tags, described=count == 1)
                inner += inside if count == 1 else []
        if not ifds:
            raise walk.error("there are none")
        header = TiffHeader(path, ifds, count, inner)
        header.is_swapped = order == ">" and (is_big or header.bits > 16)  # which not every library reads
        return header
