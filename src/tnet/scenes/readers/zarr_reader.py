"""OME-Zarr folders, 0.4 (Zarr v2) and 0.5 (Zarr v3), and plain Zarr arrays of two or three axes.

``series`` chooses among several multiscale images of one group, or of the groups ``0``, ``1``, ... that bioformats2raw
writes. The first time and depth are read, with all channels; three of 8 bits are RGB, unless the display settings
(``omero``) give them other colours. Downsamples and spacing follow from the scale transforms; the corners of all levels
coincide, whatever translations say. A chunk without a file is the fill value, as Zarr defines it; a missing array
description is an error, and so is a level with files of which none is a chunk (another separator, for one). Only files
inside the folder are read, also where links lead elsewhere, with the codecs that Zarr itself defines.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.base import Window
from tnet.scenes.guard import check_inside, guarded, unreadable
from tnet.scenes.readers.base import READERS, Color, ImageInfo, ReaderEntry, ReaderOptions, StoredLevel, stamp_of
from tnet.scenes.readers.common import MAX_CHANNELS, MAX_LEVELS, check_block, check_window, clip_text, only_series
from tnet.scenes.readers.content import Content
from tnet.scenes.readers.ome import METRES

if TYPE_CHECKING:
    from zarr import Array

_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_MAX_JSON_BYTES = 16 * 2**20
_MAX_CHUNKS_PER_SHARD = 2**20
_CODECS_V2 = {None, "blosc", "zstd", "zlib", "gzip", "bz2", "lzma", "lz4"}
_CODECS_V3 = {"bytes", "endian", "transpose", "blosc", "zstd", "gzip", "crc32c", "sharding_indexed"}
_NUMBERS = re.compile(r"[0-9]+")
_MAX_STRANGE = 1000  # files before the first that is a chunk
_AXES_BEFORE_0_4 = "tczyx"


class ZarrReader:
    """A multiscale image; safe in several threads."""

    thread_safe = True

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        from tnet.scenes.readers.zarr_limits import Meter

        self._path, self._options = path, options
        self._meter = Meter()
        self._read_files: dict[Path, tuple[int, int, int]] = {}
        with guarded(path):
            self._describe()

    @property
    def bytes_read(self) -> int:
        """Encoded bytes fetched so far, descriptions included."""
        return self._meter.bytes_read

    @property
    def tiles_read(self) -> int:
        """Chunks decoded so far, without those that have no file."""
        return self._meter.tiles_read

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        if not self._marks[level].is_file():  # or everything would read as the fill value
            raise unreadable(self._path, f"{self._marks[level].name} of level {level} is gone", "restore the folder")
        array = self._arrays[level]
        stored = dict(zip(self._axes, array.shards or array.chunks, strict=True)) | {"t": 1, "z": 1}
        window = {"t": (0, 1), "z": (0, 1), "c": (0, self.info.channels), "y": (y0, y1), "x": (x0, x1)}
        pixels = np.empty((y1 - y0, x1 - x0, self.info.channels), self.info.dtype)
        # One chunk at a time: if one of several is damaged, Zarr would go on with the others.
        with guarded(self._path):
            for c, y, x in product(*(_cuts(*window[axis], stored.get(axis, 1)) for axis in "cyx")):
                slices: dict[str, int | slice] = {"t": 0, "z": 0, "c": c, "y": y, "x": x}
                part = np.asarray(array[tuple(slices[axis] for axis in self._axes)])
                kept = [axis for axis in self._axes if axis in "cyx"]
                if "c" not in kept:
                    part, kept = part[None], ["c", *kept]
                rows, columns = slice(y.start - y0, y.stop - y0), slice(x.start - x0, x.stop - x0)
                pixels[rows, columns, c] = part.transpose([kept.index(axis) for axis in "yxc"])
        return pixels

    def close(self) -> None:
        """Release the arrays; no file is open between reads."""
        self._arrays.clear()
        self._marks.clear()

    def _describe(self) -> None:
        path, options = self._path, self._options
        root, attributes = path, self._attributes(path)
        if "multiscales" not in attributes and "bioformats2raw.layout" in attributes:
            root, options = path / str(options.series), ReaderOptions()
            attributes = self._attributes(root)
        images = self._images(root, attributes)
        only_series(path, options, len(images))
        image = images[options.series]
        datasets = image["datasets"][:MAX_LEVELS]
        folders = [self._inside(root, str(dataset["path"])) for dataset in datasets]
        opened = [self._array(folder) for folder in folders]
        self._arrays, self._marks = [array for array, _ in opened], [mark for _, mark in opened]
        self._axes = _axes(image, self._arrays[0])
        scales = [_scale(dataset, len(self._axes)) for dataset in datasets]
        first = self._arrays[0]
        channels = dict(zip(self._axes, first.shape, strict=True)).get("c", 1)
        if not 1 <= channels <= MAX_CHANNELS:
            raise unreadable(path, f"it has {channels:,} channels, not 1 to {MAX_CHANNELS:,}", "choose fewer")
        dtype = first.dtype.newbyteorder("=")
        chunk = dict(zip(self._axes, first.chunks, strict=True))
        texts = {"axes": "".join(self._axes), "shape": " x ".join(map(str, first.shape))}
        texts["version"] = clip_text(attributes.get("version", image.get("version", "")))
        texts["name"] = clip_text(image.get("name", ""))
        levels, color = self._levels(scales), _color(attributes, channels, dtype)
        spacing, tile_hw = _spacing_m_yx(image, self._axes, scales[0]), (chunk["y"], chunk["x"])
        form, files = (levels, channels, dtype, color, False), tuple(self._read_files.items())
        self.info = ImageInfo(*form, spacing, tile_hw=tile_hw, properties=texts, described_by=files)

    def _json(self, file: Path) -> dict[str, Any]:
        if not file.is_file():
            return {}
        check_inside(self._path, file)
        self._read_files.setdefault(file, stamp_of(file))
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise unreadable(self._path, f"{file.name} has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise unreadable(self._path, f"{file.name} is not a JSON object")
        return content

    def _attributes(self, folder: Path) -> dict[str, Any]:
        """Return the OME-Zarr attributes of a group, in either version."""
        if (folder / "zarr.json").is_file():
            attributes = self._json(folder / "zarr.json").get("attributes", {})
            return dict(attributes.get("ome", attributes))
        return self._json(folder / ".zattrs")

    def _images(self, folder: Path, attributes: dict[str, Any]) -> list[dict[str, Any]]:
        if "multiscales" in attributes:
            return list(attributes["multiscales"])
        if (folder / ".zarray").is_file() or self._json(folder / "zarr.json").get("node_type") == "array":
            return [{"datasets": [{"path": ""}], "axes": None}]
        if "plate" in attributes or "well" in attributes:
            raise unreadable(self._path, "it is a plate or well of many images", "give one of them, such as A/1/0")
        raise unreadable(self._path, "it is a Zarr folder without an OME-Zarr image", "give the folder of an image")

    def _inside(self, root: Path, name: str) -> Path:
        parts = [part for part in name.split("/") if part]
        if name.startswith("/") or "\\" in name or ":" in name or any(part in (".", "..") for part in parts):
            raise unreadable(self._path, f"it names a level {clip_text(name)!r}, which is not inside it")
        return root.joinpath(*parts)

    def _array(self, folder: Path) -> tuple[Array[Any], Path]:
        """Check the description of an array and open it; returns also the file that describes it."""
        from tnet.scenes.readers.zarr_limits import open_limited

        mark = folder / "zarr.json" if (folder / "zarr.json").is_file() else folder / ".zarray"
        described = self._json(mark)
        if not described:
            raise unreadable(self._path, f"its level {folder.name!r} is missing", "restore the folder")
        self._check_codecs(described)
        array = open_limited(folder, self._path, 3 if mark.name == "zarr.json" else 2, self._meter)
        if array.dtype.kind not in "uif" or not 2 <= array.ndim <= 5 or min(*array.shape, *array.chunks) < 1:
            raise unreadable(self._path, f"it holds {array.dtype} of shape {array.shape} in {array.chunks}")
        if array.shards and math.prod(array.shards) // math.prod(array.chunks) > _MAX_CHUNKS_PER_SHARD:
            raise unreadable(self._path, f"its shards are {array.shards}, of chunks {array.chunks}")
        pixel_bytes = math.prod(array.chunks[:-2]) * array.dtype.itemsize
        check_block(self._path, (1, math.prod(array.chunks[-2:])), pixel_bytes, self._options)
        self._check_chunks(folder, array, mark.name)
        return array, mark

    def _check_chunks(self, folder: Path, array: Array[Any], mark: str) -> None:
        """Raise ``ImageError`` if there are files where an array's chunks should be, but none is one of them."""
        grid = [-(-side // part) for side, part in zip(array.shape, array.shards or array.chunks, strict=True)]
        strange: list[str] = []
        for file in _files_in(folder, len(grid)):
            check_inside(self._path, file)
            name = file.relative_to(folder).as_posix()
            place = tuple(map(int, _NUMBERS.findall(name)))
            is_inside = len(place) == len(grid) and all(index < count for index, count in zip(place, grid, strict=True))
            if is_inside and array.metadata.encode_chunk_key(place) == name:
                return
            strange.append(name)
            if len(strange) == _MAX_STRANGE:
                break
        if strange:
            first = array.metadata.encode_chunk_key((0,) * len(grid))
            found = f"files such as {clip_text(strange[0])}"
            reason = f"its level {folder.name!r} has {found}, but no chunk was found, such as {first}"
            raise unreadable(self._path, reason, f"correct the chunk separator or shape in {mark}, or save it again")

    def _check_codecs(self, described: dict[str, Any]) -> None:
        """Allow only codecs of Zarr itself: others, pickles among them, could do anything."""
        if "codecs" in described:
            names = list(_codec_names(described["codecs"]))
            foreign = [name for name in names if name not in _CODECS_V3]
        else:
            codec = (described.get("compressor") or {}).get("id")
            foreign = [codec] if codec not in _CODECS_V2 else []
            foreign += [each.get("id") for each in described.get("filters") or []]
        if foreign:
            reason = f"its codec {clip_text(foreign[0])!r} is not supported"
            raise unreadable(self._path, reason, "save it with blosc, zstd or gzip and without filters")

    def _levels(self, scales: list[tuple[float, ...] | None]) -> tuple[StoredLevel, ...]:
        """Return resolutions that get ever smaller, with their stated scales if these fit their sizes."""
        y, x = self._axes.index("y"), self._axes.index("x")
        first = self._arrays[0]
        height, width = first.shape[y], first.shape[x]
        levels: list[StoredLevel] = []
        for array, scale in zip(self._arrays, scales, strict=True):
            if array.ndim != first.ndim or array.dtype != first.dtype:
                break
            size_hw = (array.shape[y], array.shape[x])
            if levels and math.prod(size_hw) >= math.prod(levels[-1].size_hw):
                break
            down_yx = (height / size_hw[0], width / size_hw[1])
            if scale and scales[0]:
                named = (scale[y] / scales[0][y], scale[x] / scales[0][x])
                axes = zip(size_hw, named, (height, width), strict=True)
                if all(abs(size * down - full) <= 2 * down for size, down, full in axes):
                    down_yx = named
            levels.append(StoredLevel(size_hw, down_yx))
        return tuple(levels)


def _cuts(start: int, stop: int, size: int) -> list[slice]:
    """Split a range into parts that each lie in one chunk."""
    firsts = [start, *range((start // size + 1) * size, stop, size)]
    return [slice(first, last) for first, last in zip(firsts, [*firsts[1:], stop], strict=True)]


def _files_in(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the files of an array and of folders in it one by one, except hidden ones and descriptions."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "zarr.json":
                continue
            if depth and entry.is_dir():
                yield from _files_in(Path(entry.path), depth - 1)
            else:
                yield Path(entry.path)


def _codec_names(codecs: Any) -> Any:
    for codec in codecs:
        name, settings = (codec, {}) if isinstance(codec, str) else (codec["name"], codec.get("configuration", {}))
        yield name
        for inner in ("codecs", "index_codecs"):
            yield from _codec_names(settings.get(inner, ()))


def _axes(image: dict[str, Any], array: Array[Any]) -> list[str]:
    """Return one letter per axis: t, c, z, y or x."""
    named = image.get("axes")
    if named:
        axes = [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in named]
    elif named is None and "version" not in image and array.ndim < 4:  # a plain array
        last_is_channel = array.ndim == 3 and array.shape[-1] <= 4 < array.shape[0]
        axes = list("yxc" if last_is_channel else "cyx"[3 - array.ndim :])
    else:
        axes = list(_AXES_BEFORE_0_4[5 - array.ndim :])
    if len(axes) != array.ndim or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise ValueError(f"axes {axes} of an array of shape {array.shape}")
    return axes


def _scale(described: dict[str, Any], axes: int) -> tuple[float, ...] | None:
    for transform in described.get("coordinateTransformations") or ():
        values = transform.get("scale") if transform.get("type") == "scale" else None
        if isinstance(values, list) and len(values) == axes:
            scale = tuple(float(value) for value in values)
            return scale if all(math.isfinite(value) and value > 0 for value in scale) else None
    return None


def _spacing_m_yx(
    image: dict[str, Any], axes: list[str], scale: tuple[float, ...] | None
) -> tuple[float, float] | None:
    """Return the spacing of level 0 if both axes have a unit of length."""
    whole = _scale(image, len(axes)) or (1.0,) * len(axes)
    named = [axis for axis in image.get("axes") or () if isinstance(axis, dict) and axis.get("unit")]
    units = {str(axis["name"]).lower(): METRES.get(str(axis["unit"]).lower()) for axis in named}
    metres = [units.get(axis) for axis in "yx"]
    if scale is None or metres[0] is None or metres[1] is None:
        return None
    y, x = axes.index("y"), axes.index("x")
    return metres[0] * scale[y] * whole[y], metres[1] * scale[x] * whole[x]


def _color(attributes: dict[str, Any], channels: int, dtype: np.dtype[Any]) -> Color:
    if channels == 1:
        return "grey"
    shown = [str(channel.get("color", "")).upper() for channel in (attributes.get("omero") or {}).get("channels", ())]
    is_rgb = channels == 3 and dtype == np.uint8 and shown in ([], ["FF0000", "00FF00", "0000FF"])
    return "rgb" if is_rgb else "bands"


def _score(content: Content) -> int:
    return 10 if content.is_folder and any((content.path / marker).is_file() for marker in _MARKERS) else 0


def _write_sample(path: Path, pixels: NDArray[np.uint8]) -> None:
    import zarr

    zarr.create_array(path, shape=(3, *pixels.shape[:2]), dtype="uint8")[:] = np.moveaxis(pixels, 2, 0)


READERS.register("zarr")(
    ReaderEntry(ZarrReader, _score, ("zarr",), ("zarr", "numcodecs"), "ome", write_sample=_write_sample)
)
