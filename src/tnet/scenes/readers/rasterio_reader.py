"""Georeferenced rasters through rasterio (GDAL): GeoTIFF, Cloud-Optimized GeoTIFF, JPEG 2000.

Pixels are stored ones, never resampled by GDAL. Missing pixels (``nodata``, a mask) become alpha, with values of 0.
Pixels of the coarser levels of a JPEG 2000 are centred on the first of the pixels that they stand for, due to its
wavelets: up to half a pixel of that level further up and left than levels of other formats. GDAL is confined to the
file itself: only the drivers below, no sidecar files (``.ovr``, ``.aux.xml``, ``.tfw``), no network. With ``remote`` a
VRT may name other sources.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.base import Window
from tnet.scenes.guard import guarded, open_file, unreadable
from tnet.scenes.readers import common
from tnet.scenes.readers.base import READERS, Color, GeoReference, ImageInfo, ReaderEntry, ReaderOptions
from tnet.scenes.readers.content import Content
from tnet.scenes.readers.tiff_header import read_tiff_header

_DRIVERS = {b"II": "GTiff", b"MM": "GTiff", b"\0\0": "JP2OpenJPEG", b"\xffO": "JP2OpenJPEG"}
_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_CACHEMAX": 64,  # MiB; of the whole process
    "GDAL_NUM_THREADS": "1",
    "OPJ_NUM_THREADS": "1",
    "PROJ_NETWORK": "OFF",
}


class RasterioReader:
    """A raster, for one thread at a time."""

    thread_safe = False

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        self._path, self._options = path, options
        self.bytes_read = self.tiles_read = 0
        self._datasets: dict[int, Any] = {}
        self._checked: set[tuple[int, int, str]] = set()
        common.only_series(path, options)
        self._driver = self._allowed_driver()
        try:
            with self._guarded():
                self.info = self._describe()
            pixels = sum(math.prod(level.size_hw) for level in self.info.levels)
            self._bytes_per_pixel = path.stat().st_size / pixels
        except BaseException:
            self.close()
            raise

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        """Read a window; see :class:`~tnet.scenes.readers.base.Reader`."""
        from rasterio import windows

        common.check_window(self._path, self.info, level, box_yxyx)
        y0, x0, y1, x1 = box_yxyx
        window = windows.Window(x0, y0, x1 - x0, y1 - y0)
        with self._guarded():
            dataset = self._stored(self._numbers[level])
            self._count(dataset, level, box_yxyx)
            stored = dataset.read(window=window)
            mask = dataset.dataset_mask(window=window) if self._mask_is_extra else None
        pixels = np.moveaxis(stored, 0, 2)
        if self._palette is not None:
            pixels = self._palette[np.minimum(stored[0], len(self._palette) - 1)]
        pixels = np.ascontiguousarray(pixels[..., : self.info.channels], dtype=self.info.dtype)
        if mask is None:
            return pixels
        out = np.empty((*mask.shape, self.info.channels), self.info.dtype)
        out[..., : self.info.channels - 1] = pixels[..., : self.info.channels - 1]
        out[mask == 0] = 0
        out[..., -1] = np.where(mask == 0, 0, common.opaque(self.info.dtype))
        return out

    def close(self) -> None:
        """Release the file."""
        for dataset in self._datasets.values():
            dataset.close()
        self._datasets.clear()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        import rasterio

        with guarded(self._path), rasterio.Env(**_SETTINGS):
            yield

    def _allowed_driver(self) -> str:
        """Choose by the first bytes. GDAL's names for URLs, which are not files, get no further than this."""
        with open_file(self._path) as stream:
            start = stream.read(64)
        if start.lstrip()[:11] == b"<VRTDataset" and self._options.remote:
            return "VRT"
        driver = _DRIVERS.get(start[:2])
        if driver is None:
            raise unreadable(self._path, "it is neither a TIFF nor a JPEG 2000", "leave out the reader")
        if driver == "GTiff":
            read_tiff_header(self._path)  # refuses directories that form a ring
        return driver

    def _stored(self, number: int) -> Any:
        """Open the image (0), or one of its overviews as a dataset of its own, so that no read resamples."""
        import rasterio

        if number not in self._datasets:
            chosen = {"OVERVIEW_LEVEL": number - 1} if number else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                path = str(self._path.absolute())
                self._datasets[number] = rasterio.open(path, driver=self._driver, sharing=False, **chosen)
        return self._datasets[number]

    def _describe(self) -> ImageInfo:
        from rasterio.enums import MaskFlags

        dataset = self._stored(0)
        count = min(len(dataset.overviews(1)), common.MAX_LEVELS - 1) if dataset.count else 0
        sizes_hw = [self._stored(number).shape for number in range(1 + count)]
        self._numbers = common.pyramid_of(sizes_hw)
        dtype = np.dtype(np.result_type(*dataset.dtypes))
        if not 1 <= dataset.count <= common.MAX_CHANNELS or dtype.kind not in "uif":
            raise unreadable(self._path, f"it has {dataset.count} bands of {dtype}", "save bands of real numbers")
        for number in self._numbers:
            self._check(self._stored(number), dtype)
        self._palette = _palette(dataset)
        if self._palette is not None:
            dtype = self._palette.dtype
        color, channels, has_alpha = self._colors(dataset)
        has_mask = any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums)
        self._mask_is_extra = has_mask and not has_alpha
        tags = dataset.tags()
        exact_halves = dataset.driver == "JP2OpenJPEG" or tags.get("TIFFTAG_SOFTWARE") == "tnet"
        levels = common.ratio_levels([sizes_hw[number] for number in self._numbers], halves=exact_halves)
        form = (channels + self._mask_is_extra, dtype, color, has_alpha or self._mask_is_extra)
        place, properties = (_spacing_m_yx(dataset), _georeference(dataset)), _properties(dataset, tags)
        return ImageInfo(levels, *form, *place, tile_hw=dataset.block_shapes[0], properties=properties)

    def _check(self, dataset: Any, dtype: np.dtype[Any]) -> None:
        if min(dataset.shape) < 1 or (len(set(dataset.dtypes)) > 1 and dtype.kind == "f"):
            raise unreadable(self._path, f"its size is {dataset.shape}, of {set(dataset.dtypes)}")
        bands = 1 if dataset.profile.get("interleave") == "band" else dataset.count
        common.check_block(self._path, dataset.block_shapes[0], bands * dtype.itemsize, self._options)

    def _colors(self, dataset: Any) -> tuple[Color, int, bool]:
        """Return the meaning of the bands, the number of channels, and whether the last is alpha."""
        from rasterio.enums import ColorInterp

        if self._palette is not None:
            has_alpha = bool(self._palette.shape[1] == 4)
            return "rgb", 3 + has_alpha, has_alpha
        meanings = list(dataset.colorinterp)
        has_alpha = len(meanings) > 1 and meanings[-1] == ColorInterp.alpha
        colors = meanings[:-1] if has_alpha else meanings
        if colors == [ColorInterp.red, ColorInterp.green, ColorInterp.blue]:
            return "rgb", len(meanings), has_alpha
        return ("grey" if len(colors) == 1 else "bands"), len(meanings), has_alpha

    def _count(self, dataset: Any, level: int, box_yxyx: Window) -> None:
        """Count the stored tiles of a window, by their sizes in the file if GDAL reports them."""
        height, width = dataset.block_shapes[0]
        y0, x0, y1, x1 = box_yxyx
        profile = dataset.profile
        bands = range(1, 1 + dataset.count) if profile.get("interleave") == "band" else (1,)
        is_deflated = profile.get("compress") == "deflate"
        for row in range(y0 // height, (y1 - 1) // height + 1):
            for column in range(x0 // width, (x1 - 1) // width + 1):
                self.tiles_read += len(bands)
                for band in bands:
                    if dataset.driver == "GTiff":
                        self._count_tile(dataset, self._numbers[level], band, f"{column}_{row}", is_deflated)
                    else:
                        self.bytes_read += round(height * width * self._bytes_per_pixel / len(bands))

    def _count_tile(self, dataset: Any, number: int, band: int, place: str, is_deflated: bool) -> None:
        """Count a tile of a TIFF, and verify the checksum of deflated ones once, which GDAL ignores."""
        overview = {"ovr": number - 1} if number else {}
        offset, size = (
            int(self._datasets[0].get_tag_item(f"BLOCK_{what}_{place}", "TIFF", bidx=band, **overview) or 0)
            for what in ("OFFSET", "SIZE")  # neither for a tile that is left out of the file
        )
        self.bytes_read += size
        tile = (number, band, place)
        if not (size and is_deflated) or tile in self._checked:
            return
        with open_file(self._path) as stream:
            stream.seek(offset)
            common.check_deflated(stream.read(size), math.prod(dataset.block_shapes[0]) * dataset.count * 8)
        self._checked.add(tile)


def _palette(dataset: Any) -> NDArray[np.uint8] | None:
    """Return colours by stored value, ``[values, 3 or 4]``; ``None`` without a colour table."""
    from rasterio.enums import ColorInterp

    if dataset.count != 1 or dataset.colorinterp[0] != ColorInterp.palette or np.dtype(dataset.dtypes[0]).kind != "u":
        return None
    entries = dataset.colormap(1)
    table = np.zeros((max(entries) + 1, 4), np.uint8)
    table[list(entries)] = list(entries.values())
    return table if (table[:, 3] < 255).any() else np.ascontiguousarray(table[:, :3])


def _georeference(dataset: Any) -> GeoReference | None:
    transform = dataset.transform
    if dataset.crs is None and transform.is_identity:
        return None
    values = tuple(float(value) for value in transform[:6])
    if not all(map(math.isfinite, values)) or transform.is_degenerate:
        return None
    crs = ""
    if dataset.crs:
        code = dataset.crs.to_epsg()
        crs = f"EPSG:{code}" if code else dataset.crs.to_wkt()
    a, b, c, d, e, f = values
    return GeoReference((a, b, c, d, e, f), crs)


def _spacing_m_yx(dataset: Any) -> tuple[float, float] | None:
    """Return lengths on the map, if it has a projection, which may stretch them (Web Mercator does)."""
    if not dataset.crs or not dataset.crs.is_projected:
        return None
    metres = float(dataset.crs.linear_units_factor[1])
    a, b, _, d, e, _ = dataset.transform[:6]
    spacing = (metres * math.hypot(b, e), metres * math.hypot(a, d))
    return spacing if all(math.isfinite(value) and value > 0 for value in spacing) else None


def _properties(dataset: Any, tags: dict[str, str]) -> dict[str, str]:
    properties = {"driver": dataset.driver}
    properties |= {name: common.clip_text(value) for name, value in list(tags.items())[:100]}
    if dataset.nodata is not None:
        properties["nodata"] = str(dataset.nodata)
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return properties | ({"bits_per_sample": bits} if bits else {})


def _score(content: Content) -> int:
    """Best for georeferenced TIFFs, JPEG 2000 and VRT; a stand-in for other TIFFs but OME-TIFF."""
    header = content.tiff
    if content.is_slide:
        return 0
    if header is None:
        return 9 if content.is_jp2 or content.is_vrt else 0
    return 9 if header.has_geo_keys else 0 if header.is_ome else 3


READERS.register("rasterio")(ReaderEntry(RasterioReader, _score, ("rasterio",), ("rasterio",), extra="geo"))
