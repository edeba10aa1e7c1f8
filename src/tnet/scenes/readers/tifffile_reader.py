"""Tiled, pyramidal and OME TIFF, BigTIFF too, through tifffile: any bands, 8- to 64-bit types, strips or tiles.

tifffile reads the directories and decodes tiles; which tiles, and that they are within limits, is decided here. The
first plane of a stack (times, depths, pages of one size) is read, with all its channels. A tile that is left out of the
file (0 bytes) is ``nodata``, else 0. How samples become channels: :mod:`tnet.scenes.readers.tiff_samples`.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import weakref
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.base import Window
from tnet.scenes.guard import guarded, open_file, unreadable
from tnet.scenes.readers import common
from tnet.scenes.readers import tiff_header as tiff
from tnet.scenes.readers.base import READERS, ImageInfo, Reader, ReaderEntry, ReaderOptions
from tnet.scenes.readers.content import Content
from tnet.scenes.readers.ome import check_ome_xml, ome_spacing_m_yx
from tnet.scenes.readers.tiff_samples import tiff_samples

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_CODED_IMAGES = {7: "JPEG", 33005: "JPEG2000", 34712: "JPEG2000", 50001: "WEBP"}
_READ_AT_ONCE_BYTES = 1 << 24
# Kinds of files whose images tifffile would assemble from other files, or by rules that are not needed here.
_NOT_FOLLOWED = (
    *("lsm", "mmstack", "ndtiff", "fluoview", "stk", "sis", "scn", "ndpi", "bif", "avs", "eer", "philips"),
    *("scanimage", "nih", "mdgel", "indica"),
)
# Damaged files raise our errors; this keeps tifffile's own messages off the terminal if logging is not set up.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tifffile(path: Path, options: ReaderOptions) -> Reader:
    """Open a TIFF."""
    reader = TifffileReader(path, options)
    return common.oriented(reader, reader.header.number(tiff.TAG_ORIENTATION, 1) if options.apply_orientation else 1)


class _Plane(NamedTuple):
    """Positions of the segments (tiles or strips) of one page."""

    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]


class _Level:
    """One stored resolution: pages of the same form, each a plane with one or more samples."""

    def __init__(self, page: TiffPage, planes: list[_Plane | None]) -> None:
        self.page, self.planes = page, planes
        self.height, self.width = page.imagelength, page.imagewidth
        strip_hw = (max(page.rowsperstrip, 1), page.imagewidth)
        self.segment_hw = (page.tilelength, page.tilewidth) if page.is_tiled else strip_hw
        self.grid_yx = (-(-self.height // self.segment_hw[0]), -(-self.width // self.segment_hw[1]))
        self.is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
        self.samples = page.samplesperpixel
        self.channels = self.samples * len(planes)
        assert page.dtype is not None  # checked before
        self.dtype = page.dtype
        # Pages of one image agree on what their samples mean.
        self.meaning = (self.channels, self.dtype, page.bitspersample, 2 if page.photometric == 6 else page.photometric)
        # Rows of these can be fetched without the rest of their strip or tile.
        is_plain = page.compression == page.predictor == page.fillorder == 1
        self.is_raw = is_plain and page.bitspersample == 8 * self.dtype.itemsize
        self.segment_samples = 1 if self.is_planar else self.samples  # per pixel of a segment
        self.segments = self.grid_yx[0] * self.grid_yx[1] * (self.samples if self.is_planar else 1)  # in a plane


class TifffileReader:
    """A TIFF as it is stored, not turned, whose directories have been walked; safe in several threads."""

    thread_safe = True

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        import tifffile

        self._path, self._options = path, options
        self.header = tiff.read_tiff_header(path)
        self._lock = threading.Lock()
        self.bytes_read = self.tiles_read = 0
        with open_file(path) as stream:
            self._size = os.fstat(stream.fileno()).st_size
            flags: dict[str, Any] = {f"is_{kind}": False for kind in _NOT_FOLLOWED}
            with guarded(path), tifffile.TiffFile(stream, name=path.name, _multifile=False, **flags) as file:
                self._describe(file)
            self._descriptor = os.dup(stream.fileno())
        self._closing = weakref.finalize(self, os.close, self._descriptor)

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        common.check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        stored = self._levels[level]
        pixels = np.empty((y1 - y0, x1 - x0, stored.channels), stored.dtype)
        with guarded(self._path):
            for number, plane in enumerate(stored.planes):
                part = pixels[..., number * stored.samples : (number + 1) * stored.samples]
                if plane is None:
                    part[:] = stored.page.nodata
                else:
                    self._fill(stored, plane, box_yxyx, part)
            pixels = self._samples.apply(pixels)
            return self._to_srgb(pixels) if self._to_srgb is not None else pixels

    def close(self) -> None:
        """Release the file."""
        self._closing()
        self._descriptor = -1  # the number may be another file's by now

    def _describe(self, file: TiffFile) -> None:
        path, options = self._path, self._options
        xml = (file.ome_metadata or "") if file.is_ome else ""
        if xml:
            check_ome_xml(path, xml, options.series)
        series = file.series if self.header.at == (0,) else [self._behind_thumbnail(file)]
        common.only_series(path, options, len(series))
        chosen = series[options.series]
        levels = [self._level(each) for each in chosen.levels[: common.MAX_LEVELS]]
        first = levels[0]
        levels = [each for each in levels if each.meaning == first.meaning]
        levels = [levels[number] for number in common.pyramid_of([(each.height, each.width) for each in levels])]
        self._levels = levels
        page = first.page
        is_described = self.header.at != (0,) or page.index == 0
        header = self.header if is_described else tiff.TiffHeader(path, [_tags(page)], 1)
        self._samples = samples = tiff_samples(header, planes=len(first.planes))
        for each in levels:
            each.page.init_decode()
        profile = page.iccprofile if options.apply_icc else None
        is_8_bit_rgb = samples.color == "rgb" and samples.form[1] == np.uint8 and not samples.is_cmyk
        self._to_srgb = common.SrgbTransform(profile) if profile and is_8_bit_rgb else None
        spacing = (ome_spacing_m_yx(xml, options.series) if xml else None) or _aperio_spacing_m_yx(page)
        spacing = spacing or self.header.spacing_m_yx
        stored = common.ratio_levels([(each.height, each.width) for each in levels], halves=page.software == "tnet")
        tile_hw, properties = first.segment_hw, _properties(chosen, page)
        self.info = ImageInfo(stored, *samples.form, spacing, tile_hw=tile_hw, properties=properties)

    def _behind_thumbnail(self, file: TiffFile) -> TiffPageSeries:
        """Return the image that is not in the first directory, with its reduced versions."""
        from tifffile import TiffPage, TiffPageSeries

        index, *inner = self.header.at
        top: Any = file.pages[index]
        others = [page for first in file.pages[:32] for page in (first, *(first.pages or ()))]
        reduced = [page for page in others if isinstance(page, TiffPage) and page.subfiletype & 1]
        reduced.sort(key=lambda page: -page.imagelength * page.imagewidth)
        pages = [top.pages[inner[0]] if inner else top, *reduced]
        found = [TiffPageSeries([page], page.shape, page.dtype, page.axes) for page in pages]
        found[0].levels = found
        return found[0]

    def _level(self, series: TiffPageSeries) -> _Level:
        page = series.keyframe
        self._check_page(page)
        leading = [
            (axis, size)
            for axis, size in zip(series.axes, series.shape, strict=True)  # axes of length 1 may be left out
            if axis not in "YX" and not (axis == "S" and ("S" in page.axes or size == 1))
        ]
        sizes = [size for _, size in leading]
        # The first of each axis but the channels, which become bands; of RGB in several channels the first.
        channels = dict(leading).get("C", 1) if page.samplesperpixel == 1 else 1
        if not 1 <= channels * page.samplesperpixel <= common.MAX_CHANNELS:
            raise unreadable(self._path, f"it has {channels * page.samplesperpixel:,} channels", "choose fewer bands")
        if channels > 1 and (series.is_truncated or int(np.prod(sizes)) != len(series)):
            raise unreadable(self._path, "the planes of its channels are not where its description says")
        planes: list[_Plane | None] = []
        for channel in range(channels):
            index = [channel if axis == "C" and channels > 1 else 0 for axis, _ in leading]
            frame = series[int(np.ravel_multi_index(index, sizes)) if sizes else 0]
            planes.append(None if frame is None else _Plane(tuple(frame.dataoffsets), tuple(frame.databytecounts)))
        level = _Level(page, planes)
        if not level.is_raw:  # rows of uncompressed strips are read one by one, so their size does not matter
            pixel_bytes = level.segment_samples * level.dtype.itemsize
            common.check_block(self._path, level.segment_hw, pixel_bytes, self._options)
        for plane in planes:
            held = min(len(plane.offsets), len(plane.byte_counts)) if plane else level.segments
            if held < level.segments:
                reason = f"it lists {held:,} tiles or strips, but {level.width:,} x {level.height:,} pixels need "
                raise unreadable(self._path, f"{reason}{level.segments:,}")
        return level

    def _check_page(self, page: TiffPage) -> None:
        if min(page.imagelength, page.imagewidth, page.samplesperpixel) < 1 or page.imagedepth != 1:
            shape = f"{page.imagewidth} x {page.imagelength} x {page.imagedepth}"
            raise unreadable(self._path, f"its size is {shape}, of {page.samplesperpixel} samples")
        if page.is_tiled and (min(page.tilelength, page.tilewidth) < 1 or page.tiledepth != 1):
            raise unreadable(self._path, f"its tiles are {page.tilewidth} x {page.tilelength}")
        if page.compression not in tiff.TIFFFILE_COMPRESSIONS:
            name = getattr(page.compression, "name", page.compression)
            reason = f"its compression {name} is not supported by this reader"
            raise unreadable(self._path, reason, "use LZW, Deflate, JPEG or Zstandard, or the reader rasterio")
        if page.dtype is None or page.dtype.kind not in "uifb" or not isinstance(page.bitspersample, int):
            reason = f"its pixels are of type {page.dtype}, {page.bitspersample} bits"
            raise unreadable(self._path, reason, "save it as 8 or 16 bits")

    def _fill(self, level: _Level, plane: _Plane, box_yxyx: Window, out: NDArray[Any]) -> None:
        """Decode the segments that touch a window, one at a time, into ``[height, width, samples]``."""
        y0, x0, y1, x1 = box_yxyx
        (high, wide), (rows, columns) = level.segment_hw, level.grid_yx
        for sample in range(level.samples if level.is_planar else 1):
            target = out[..., sample : sample + 1] if level.is_planar else out
            for row in range(y0 // high, (y1 - 1) // high + 1):
                for column in range(x0 // wide, (x1 - 1) // wide + 1):
                    index = (sample * rows + row) * columns + column
                    top, left = row * high, column * wide
                    part = (max(y0 - top, 0), max(x0 - left, 0), min(y1 - top, high), min(x1 - left, wide))
                    at_y, at_x = max(top - y0, 0), max(left - x0, 0)
                    window = target[at_y : at_y + part[2] - part[0], at_x : at_x + part[3] - part[1]]
                    self._segment(level, plane, index, part, window)

    def _segment(self, level: _Level, plane: _Plane, index: int, part: Window, out: NDArray[Any]) -> None:
        """Part of one tile or strip, in its own pixels."""
        offset, count = plane.offsets[index], plane.byte_counts[index]
        if count == 0:
            out[:] = level.page.nodata
            return
        if level.is_raw:
            self._raw_rows(level, offset, count, part, out)
        else:
            limit = level.segment_hw[0] * level.segment_hw[1] * level.segment_samples * level.dtype.itemsize
            if count > 4 * limit + 65_536:  # no codec makes this of it
                raise unreadable(self._path, f"tile {index} claims {count:,} bytes for {limit:,} of pixels")
            y0, x0, y1, x1 = part
            out[:] = self._decoded(level, self._bytes_at(offset, count), index)[y0:y1, x0:x1]
        with self._lock:
            self.tiles_read += 1

    def _raw_rows(self, level: _Level, offset: int, count: int, part: Window, out: NDArray[Any]) -> None:
        y0, x0, y1, x1 = part
        width, samples = level.segment_hw[1], level.segment_samples
        dtype = level.dtype.newbyteorder(level.page.parent.byteorder)
        row_bytes = width * samples * dtype.itemsize
        if y1 * row_bytes > count:
            raise unreadable(self._path, f"a tile or strip holds {count:,} bytes, not {y1 * row_bytes:,}")
        at_once = max(_READ_AT_ONCE_BYTES // row_bytes, 1)
        for top in range(y0, y1, at_once):
            bottom = min(top + at_once, y1)
            data = self._bytes_at(offset + top * row_bytes, (bottom - top) * row_bytes)
            rows = np.frombuffer(data, dtype).reshape(bottom - top, width, samples)
            out[top - y0 : bottom - y0] = rows[:, x0:x1]

    def _bytes_at(self, offset: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, offset) if offset + count <= self._size else b""
        if len(data) != count:
            raise unreadable(self._path, f"it ends before the {count:,} bytes of a tile or strip at {offset:,}")
        with self._lock:
            self.bytes_read += count
        return data

    def _decoded(self, level: _Level, data: bytes, index: int) -> NDArray[Any]:
        """One segment, ``[height, width, samples]``."""
        page = level.page
        if page.compression in _CODED_IMAGES:
            self._check_coded(level, data, _CODED_IMAGES[page.compression])
        tables = {"jpegtables": page.jpegtables} if page.compression == 7 else {}
        pixels, _, _ = page.decode(data, index, _fullsize=True, **tables)
        if pixels is None or pixels.shape[-1] != level.segment_samples:
            raise unreadable(self._path, f"tile {index} has another form than its directory says")
        return pixels[0]

    def _check_coded(self, level: _Level, data: bytes, name: str) -> None:
        """Compare the size in the header of a coded image with its tile's before it is decoded."""
        from PIL import Image

        Image.init()
        coded = Image.OPEN[name][0](BytesIO(data), "")
        height, width = level.segment_hw
        if coded.width > max(width, 64) or coded.height > max(height, 64):
            reason = f"a tile of {width} x {height} pixels holds an image of {coded.width:,} x {coded.height:,}"
            raise unreadable(self._path, reason)


def _tags(page: TiffPage) -> dict[int, tuple[int, ...] | bytes]:
    texts = {tag.code: tag.value.encode("utf-8", "replace") for tag in page.tags if isinstance(tag.value, str)}
    return {tag.code: texts.get(tag.code) or tuple(np.ravel(tag.value).tolist()) for tag in page.tags}


def _aperio_spacing_m_yx(page: TiffPage) -> tuple[float, float] | None:
    found = re.search(r"\|MPP = (0?\.\d+|\d+\.?\d*)", page.description) if page.is_svs else None
    usable = found is not None and 0 < float(found[1]) < 1e4
    return (1e-6 * float(found[1]), 1e-6 * float(found[1])) if found and usable else None


def _properties(series: TiffPageSeries, page: TiffPage) -> dict[str, str]:
    properties = {"kind": series.kind, "axes": series.axes, "shape": " x ".join(map(str, series.shape))}
    properties["compression"] = str(getattr(page.compression, "name", page.compression))
    properties["bits_per_sample"] = str(page.bitspersample)
    texts = {"name": series.name, "software": page.software, "description": page.description}
    return properties | {name: common.clip_text(text) for name, text in texts.items() if text}


def _score(content: Content) -> int:
    """Good for most TIFFs; a stand-in for slides and georeferenced TIFFs."""
    header = content.tiff
    return 0 if header is None else 4 if content.is_slide or header.has_geo_keys else 5


_LIBRARIES = ("tifffile", "imagecodecs")
READERS.register("tifffile")(ReaderEntry(open_tifffile, _score, _LIBRARIES, _LIBRARIES, extra="ome"))
