"""Write an image as a tiled pyramid, of which any glimpse reads only a few tiles."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from io import BytesIO
from itertools import count, product
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnet.errors import ConfigError, ImageError, OutputError
from tnet.files import atomic_path, check_outputs
from tnet.scenes.guard import guarded
from tnet.scenes.readers import open_reader
from tnet.scenes.readers.base import GeoReference, ImageInfo, Reader, ReaderOptions

Compression = Literal["deflate", "zstd", "jpeg"]
"""``deflate``: lossless, widely supported; ``zstd``: lossless, faster, newer programs only; ``jpeg``: lossy, small."""

TILE_PX = 256

_READ_BYTES = 64 * 2**20  # read at once, unless one row of tiles is larger
_ENCODE_BYTES = 16 * 2**20  # compressed together
_CLASSIC_BYTES = 3_900_000_000  # a classic TIFF ends at 4 GiB, and metadata follow the pixels
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)  # scale, tie point, transform, keys, numbers, texts


class PyramidInfo(NamedTuple):
    """A pyramid that was written: its file, height and width of each level (finest first), and size of the file."""

    path: Path
    levels_hw: tuple[tuple[int, int], ...]
    bytes: int


def level_sizes(size_hw: tuple[int, int], smallest_px: int = TILE_PX) -> tuple[tuple[int, int], ...]:
    """Return height and width of each level: half of the one before, rounded up, until both sides fit."""
    sizes = [size_hw]
    while max(sizes[-1]) > max(smallest_px, 1):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return tuple(sizes)


def write_pyramid(
    source: Reader | str | Path,
    out: str | Path,
    *,
    compression: Compression = "deflate",
    quality: int = 90,
    smallest_px: int = TILE_PX,
    overwrite: bool = False,
    options: ReaderOptions | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> PyramidInfo:
    """Write an image (a path, or an open reader, which is left open) as a tiled TIFF with coarser levels.

    The image is read once, a few rows of tiles at a time; memory grows with its width, not its height. Formats without
    tiles (JPEG, PNG) are decoded as a whole, within ``options.max_pixels``. Coarser levels, down to a longer side of
    ``smallest_px``, are kept uncompressed (a third of the image) in anonymous temporary files beside ``out``.

    A pixel of level ``n`` is the mean of the existing level-0 pixels of its 2^n x 2^n cell, rounded once (integers:
    half up); its downsample is exactly 2^n, even for odd sizes. Colours of images with alpha are weighted by it. Levels
    are pages marked as reduced, as read by OpenSlide, GDAL, QuPath and libvips. Spacing and georeference are kept,
    colour profiles are not (``options.apply_icc`` converts to sRGB). JPEG, with a ``quality`` of 1 to 100, needs 8-bit
    grey or RGB without alpha. ``on_tile`` is called with the number of tiles written and in total.
    """
    out = Path(out)
    if compression == "jpeg" and not 1 <= quality <= 100:
        raise ConfigError(f"quality is {quality}; give 1 to 100")
    if smallest_px < 1:
        raise ConfigError(f"smallest_px is {smallest_px}; give at least 1")
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"{out} ends with {out.suffix!r}; give a file that ends with .tif or .tiff")
    check_outputs([out], inputs=[source] if isinstance(source, str | Path) else [], overwrite=overwrite)
    _require("tifffile", "write TIFF")
    if compression != "deflate":
        _require("imagecodecs", f"compress with {compression}")
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            name, reader = str(source), open_reader(source, options)
            stack.callback(reader.close)
        else:
            name, reader = "of the reader", source
        _check_type(reader.info, compression, name)
        sizes_hw = level_sizes(reader.info.levels[0].size_hw, smallest_px)
        plan = _Plan(name, reader.info, sizes_hw, compression, quality)
        plan.check_room(out.parent)
        with atomic_path(out) as temporary:
            _write(reader, plan, temporary, on_tile or (lambda done, total: None))
    return PyramidInfo(out, plan.sizes_hw, out.stat().st_size)


def _require(library: str, purpose: str, extra: str = "ome") -> None:
    if find_spec(library) is None:
        raise ImageError(f"{library} is needed to {purpose}, but is not installed; run: pip install 'tnet[{extra}]'")


def _check_type(info: ImageInfo, compression: Compression, name: str) -> None:
    dtype = info.dtype
    if (dtype.kind, dtype.itemsize) not in {*product("ui", (1, 2, 4)), *product("f", (4, 8))}:
        problem = f"image {name} has pixels of {dtype}, which pyramids do not support"
        raise ImageError(f"{problem}; convert it to uint16 or float32")
    if compression == "jpeg" and (dtype != np.uint8 or info.has_alpha or info.channels not in (1, 3)):
        alpha = ", one of them alpha" if info.has_alpha else ""
        problem = f"image {name} has {info.channels} channel(s) of {dtype}{alpha}"
        raise ImageError(f"{problem}, but JPEG needs 1 or 3 of uint8 without alpha; use deflate or zstd")


class _Plan:
    """Layout of the file, decided before the first pixel is read."""

    def __init__(
        self, name: str, info: ImageInfo, sizes_hw: tuple[tuple[int, int], ...], compression: Compression, quality: int
    ) -> None:
        self.name, self.info, self.sizes_hw = name, info, sizes_hw
        self.dtype = info.dtype.newbyteorder("=")
        self.pixel_bytes = info.channels * info.dtype.itemsize
        self.tile_bytes = TILE_PX * TILE_PX * self.pixel_bytes
        self.tile_counts = [-(-height // TILE_PX) * -(-width // TILE_PX) for height, width in sizes_hw]
        self._compression, self._quality = compression, quality
        self._geo_tags = geo_tags(info.georeference) if info.georeference is not None else []
        # Holds the sum of all pixels of one of the coarsest level, times alpha if there is one.
        bits = 8 * self.dtype.itemsize * (2 if info.has_alpha else 1) + 2 * (len(sizes_hw) - 1)
        sums_of_kind = {"f": np.float64, "i": np.int64, "u": np.uint32 if bits <= 32 else np.uint64}
        self.sums_dtype: np.dtype[Any] = np.dtype(sums_of_kind[self.dtype.kind] if bits <= 64 else np.float64)
        self.is_big = sum(self.tile_counts) * self.tile_bytes * 1.01 > _CLASSIC_BYTES

    def check_room(self, folder: Path) -> None:
        """Check that the coarser levels fit beside the file, uncompressed."""
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        wanted, free = sum(self.tile_counts[1:]) * self.tile_bytes, shutil.disk_usage(folder).free
        if wanted > free:
            problem = f"{folder} has {free / 1e9:.2f} GB free, but the coarser levels need {wanted / 1e9:.2f} GB"
            raise OutputError(f"{problem} meanwhile; make room, or choose another place")

    def page(self, level: int) -> dict[str, Any]:
        """Return tifffile's arguments for one level."""
        info, size_hw = self.info, self.sizes_hw[level]
        is_rgb = info.color == "rgb" and info.channels - info.has_alpha == 3
        extra = info.channels - (3 if is_rgb else 1)
        page: dict[str, Any] = {
            "shape": size_hw if info.channels == 1 else (*size_hw, info.channels), "dtype": self.dtype,
            "tile": (TILE_PX, TILE_PX), "photometric": "rgb" if is_rgb else "minisblack",
            "planarconfig": "contig" if info.channels > 1 else None,
            "extrasamples": ["unspecified"] * (extra - info.has_alpha) + ["unassalpha"] * info.has_alpha or None,
            "subfiletype": 1 if level else 0, "extratags": [] if level else self._geo_tags,
            "metadata": None, "software": "tnet", "buffersize": _ENCODE_BYTES,
        }  # fmt: skip
        if info.spacing_m_yx is not None:
            y, x = (0.01 / (spacing * 2**level) for spacing in info.spacing_m_yx)
            page |= {"resolution": (x, y), "resolutionunit": "centimeter"}
        if self._compression == "jpeg":
            page |= {"compression": "jpeg", "compressionargs": {"level": self._quality}}
            return page | ({"subsampling": (1, 1)} if is_rgb else {})
        # Deflate at level 1: a tenth more bytes than with the default level, in a third of the time.
        deflate = {"compression": "zlib", "compressionargs": {"level": 1}}
        page |= deflate if self._compression == "deflate" else {"compression": "zstd"}
        return page | ({"predictor": True} if self.dtype.kind in "ui" else {})  # few readers support float predictors


def geo_tags(georeference: GeoReference) -> list[tuple[int, int, int, Any, bool]]:
    """Return the GeoTIFF tags of a georeference, as tifffile's ``extratags``.

    GDAL writes them into a file of one pixel in memory, so that its rules for map projections apply.
    """
    _require("rasterio", "keep the georeference", "geo")
    import rasterio
    import tifffile

    shape = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    try:
        with rasterio.MemoryFile() as memory:
            where = {"transform": rasterio.Affine(*georeference.transform), "crs": georeference.crs or None}
            with memory.open(**shape, **where) as dataset:
                dataset.write(np.zeros((1, 1, 1), np.uint8))
            content = bytes(memory.getbuffer())
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise ImageError(f"the georeference cannot be written ({error}); remove it from the image") from None
    with tifffile.TiffFile(BytesIO(content)) as file:
        tags = file.pages.first.tags
        return [(code, tag.dtype, tag.count, tag.value, True) for code in _GEO_TAGS if (tag := tags.get(code))]


def _write(reader: Reader, plan: _Plan, path: Path, on_tile: Callable[[int, int], None]) -> None:
    """Write the finest level in one sweep over the image, then the others, which are spooled meanwhile."""
    import tifffile

    total, done = sum(plan.tile_counts), count(1)

    def counted(tiles: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for tile in tiles:
            on_tile(next(done), total)
            yield tile

    with ExitStack() as stack:
        below: list[_Level] = []
        for number in reversed(range(1, len(plan.sizes_hw))):
            spool = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            below = [_Level(plan, number, spool, below[0] if below else None), *below]
        with tifffile.TiffWriter(path, bigtiff=plan.is_big, shaped=False, ome=False) as file:
            file.write(counted(_sweep(reader, plan, below[0] if below else None)), **plan.page(0))
            for level in below:
                file.write(counted(level.tiles()), **plan.page(level.number))
                level.spool.close()


def _sweep(reader: Reader, plan: _Plan, below: _Level | None) -> Iterator[NDArray[Any]]:
    """Yield the tiles of the finest level in order, and push their sums to the coarser levels."""
    rows_left = plan.sizes_hw[0][0]
    for band in _bands(reader, plan):
        rows_left -= len(band)
        # Before the tiles are yielded: nothing is requested after the last one.
        if below is not None:
            weighted = band
            if plan.info.has_alpha:  # so that transparent pixels do not bleed
                weighted = band.astype(plan.sums_dtype)
                weighted[..., :-1][weighted[..., -1] == 0] = 0  # which may not be numbers
                weighted[..., :-1] *= weighted[..., -1:]
            below.push(_pair_sums(weighted, plan.sums_dtype))
            if rows_left == 0:
                below.finish()
        yield from _tiles(band)


def _bands(reader: Reader, plan: _Plan) -> Iterator[NDArray[Any]]:
    """Yield rows of tiles of the finest level, ``[rows, width, channels]``."""
    height, width = plan.sizes_hw[0]
    # Stored tiles need not align with ours: reading several rows at once decodes few twice.
    at_once = max(_READ_BYTES // (width * plan.pixel_bytes * TILE_PX), 1)
    rows = height if reader.info.tile_hw is None else at_once * TILE_PX
    for top in range(0, height, rows):
        with guarded(plan.name):
            part = reader.read(0, (top, 0, min(top + rows, height), width))
        for start in range(0, len(part), TILE_PX):
            yield part[start : start + TILE_PX]


def _tiles(band: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield full-sized tiles of a row: the last pixels are repeated, which compresses well and rings least."""
    for left in range(0, band.shape[1], TILE_PX):
        tile = band[:, left : left + TILE_PX]
        missing = [(0, TILE_PX - side) for side in tile.shape[:2]]
        if any(after for _, after in missing):
            tile = np.pad(tile, [*missing, (0, 0)], mode="edge")
        yield np.ascontiguousarray(tile[..., 0] if tile.shape[2] == 1 else tile)


def _pair_sums(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Sum over 2 x 2 pixels, or as many as exist at an odd end."""
    rows = values[0::2].astype(dtype)
    rows[: len(values) // 2] += values[1::2]
    sums = rows[:, 0::2].copy()
    sums[:, : rows.shape[1] // 2] += rows[:, 1::2]
    return sums


class _Level:
    """A coarser level: receives sums of level-0 pixels from the finer one by rows, and spools tiles of their means."""

    def __init__(self, plan: _Plan, number: int, spool: IO[bytes], below: _Level | None) -> None:
        self.number, self.spool = number, spool
        self._plan, self._below = plan, below
        self._waiting: list[NDArray[Any]] = []
        self._next_row = 0

    def push(self, sums: NDArray[Any]) -> None:
        self._waiting.append(sums)
        if sum(map(len, self._waiting)) >= TILE_PX:
            self._flush()

    def finish(self) -> None:
        if self._waiting:
            self._flush()
        if self._below is not None:
            self._below.finish()

    def tiles(self) -> Iterator[NDArray[Any]]:
        plan = self._plan
        shape = (TILE_PX, TILE_PX) if plan.info.channels == 1 else (TILE_PX, TILE_PX, plan.info.channels)
        self.spool.seek(0)
        for _ in range(plan.tile_counts[self.number]):
            yield np.frombuffer(self.spool.read(plan.tile_bytes), plan.dtype).reshape(shape)

    def _flush(self) -> None:
        sums = np.concatenate(self._waiting)
        self._waiting.clear()
        if self._below is not None:
            self._below.push(_pair_sums(sums, sums.dtype))
        for tile in _tiles(self._means(sums)):
            self.spool.write(tile.data)
        self._next_row += len(sums)

    def _means(self, sums: NDArray[Any]) -> NDArray[Any]:
        plan, (height, width) = self._plan, self._plan.sizes_hw[0]
        rows = _counts(self._next_row, len(sums), height, self.number)
        columns = _counts(0, sums.shape[1], width, self.number)
        counts = (rows[:, None] * columns[None, :])[..., None].astype(sums.dtype)
        if not plan.info.has_alpha:
            return _divided(sums, counts, plan.dtype)
        alpha = sums[..., -1:]
        colors = _divided(sums[..., :-1], np.where(alpha == 0, np.ones_like(alpha), alpha), plan.dtype)
        return np.concatenate([colors, _divided(alpha, counts, plan.dtype)], axis=2)


def _counts(first: int, pixels: int, size: int, level: int) -> NDArray[np.int64]:
    """Return the number of level-0 pixels along one axis in each of ``pixels`` of a level, from ``first`` on."""
    starts = np.arange(first, first + pixels, dtype=np.int64) << level
    return np.minimum(starts + (1 << level), size) - starts


def _divided(sums: NDArray[Any], counts: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if sums.dtype.kind != "f":
        return ((sums + counts // 2) // counts).astype(dtype)
    means = sums / counts
    return (means if dtype.kind == "f" else np.floor(means + 0.5)).astype(dtype)
