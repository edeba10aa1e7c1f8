"""Georeferenced rasters through rasterio (GDAL): GeoTIFF, Cloud-Optimized GeoTIFF, JPEG 2000.

Pixels are stored ones, never resampled by GDAL. Missing pixels (``nodata``, a mask) become alpha, with values of 0; a
level without a mask of its own has the share of the pixels of the image that its mask shows. How the samples of a TIFF
become channels: :mod:`tnet.scenes.readers.tiff_samples`.
Pixels of the coarser levels of a JPEG 2000 are centred on the first of the pixels that they stand for, due to its
wavelets: up to half a pixel of that level further up and left than levels of other formats. GDAL is confined to the
file itself and the mask beside it (``.msk``): only the drivers below, no other sidecar files (``.ovr``, ``.aux.xml``,
``.tfw``), no network. With ``remote`` a VRT may name other sources.
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
from tnet.scenes.readers.base import READERS, Color, GeoReference, ImageInfo, Reader, ReaderEntry, ReaderOptions
from tnet.scenes.readers.content import Content, mask_beside
from tnet.scenes.readers.tiff_header import RECOMPRESS, TAG_ORIENTATION, TiffHeader, read_tiff_header
from tnet.scenes.readers.tiff_samples import Samples, compression_of, tiff_samples

_DRIVERS = {b"II": "GTiff", b"MM": "GTiff", b"\0\0": "JP2OpenJPEG", b"\xffO": "JP2OpenJPEG"}
_MASK_BESIDE = -1  # number of its dataset
_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_CACHEMAX": 64,  # MiB; of the whole process
    "GDAL_NUM_THREADS": "1",
    "OPJ_NUM_THREADS": "1",
    "PROJ_NETWORK": "OFF",
}


def open_rasterio(path: Path, options: ReaderOptions) -> Reader:
    """Open a raster; one without a place on a map is turned upright."""
    reader = RasterioReader(path, options)
    is_turned = options.apply_orientation and reader.info.georeference is None and reader.header is not None
    return common.oriented(reader, reader.header.number(TAG_ORIENTATION, 1) if reader.header and is_turned else 1)


class RasterioReader:
    """A raster, for one thread at a time."""

    thread_safe = False

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        self._path, self._options = path, options
        self.bytes_read = self.tiles_read = 0
        self._datasets: dict[int, Any] = {}
        self._checked: set[tuple[int, int, str]] = set()
        common.only_series(path, options)
        self.header: TiffHeader | None = None
        self._driver = self._allowed_driver()
        self._mask_path = mask_beside(path)
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
            mask = self._mask(level, dataset, window) if self._samples.is_masked else None
        return np.ascontiguousarray(self._samples.apply(np.moveaxis(stored, 0, 2), mask))

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
            self.header = read_tiff_header(self._path)  # refuses directories that form a ring
        return driver

    def _stored(self, number: int) -> Any:
        """Open the image (0), or one of its overviews as a dataset of its own, so that no read resamples."""
        import rasterio

        if number not in self._datasets:
            chosen = {"OVERVIEW_LEVEL": number - 1} if number else {}
            # rasterio compares "no data" with the limits of the type, in that type, which may be too small for it.
            with warnings.catch_warnings(), np.errstate(over="ignore"):
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                path, driver = str(self._path.absolute()), self._driver
                if self.header is not None and self.header.photometric == 5:
                    path = f"GTIFF_RAW:{path}"  # else GDAL converts some CMYK, by its own formula
                if number == _MASK_BESIDE:
                    path, driver, chosen = str(self._mask_path), "GTiff", {}
                try:
                    self._datasets[number] = rasterio.open(path, driver=driver, sharing=False, **chosen)
                except rasterio.errors.RasterioIOError as error:
                    if "missing codec" not in str(error) or self.header is None:
                        raise
                    reason = f"this build of GDAL lacks {compression_of(self.header)}"
                    raise unreadable(self._path, reason, RECOMPRESS) from error
        return self._datasets[number]

    def _mask(self, level: int, dataset: Any, window: Any) -> NDArray[np.uint8]:
        """Return how much of each pixel of a window is there, 0 to 255."""
        from rasterio.enums import Resampling
        from rasterio.windows import Window

        beside = self._stored(_MASK_BESIDE) if self._mask_path else None
        if beside is None and (self.header is None or tuple(dataset.shape) in self.header.masks_hw):
            return np.where(dataset.dataset_mask(window=window) == 0, 0, 255).astype(np.uint8)
        if beside is not None and level == 0:
            return np.where(beside.read(window=window).any(axis=0), 255, 0).astype(np.uint8)
        (height, width), (down_y, down_x) = self.info.levels[0].size_hw, self.info.levels[level].downsample_yx
        top, left = window.row_off * down_y, window.col_off * down_x
        box = (min(window.width * down_x, width - left), min(window.height * down_y, height - top))
        form = {"window": Window(left, top, *box), "resampling": Resampling.average}
        form["out_shape"] = (int(window.height), int(window.width))
        return np.asarray(self._stored(0).read_masks(1, **form) if beside is None else beside.read(1, **form))

    def _describe(self) -> ImageInfo:
        from rasterio.enums import MaskFlags

        dataset = self._stored(0)
        count = min(len(dataset.overviews(1)), common.MAX_LEVELS - 1) if dataset.count else 0
        sizes_hw = [self._stored(number).shape for number in range(1 + count)]
        odd_hw = self.header.odd_hw if self.header else ()
        numbers = common.pyramid_of(sizes_hw)
        self._numbers = [number for number in numbers if number == 0 or sizes_hw[number] not in odd_hw]
        dtype = np.dtype(np.result_type(*dataset.dtypes))
        if not 1 <= dataset.count <= common.MAX_CHANNELS or dtype.kind not in "uif":
            raise unreadable(self._path, f"it has {dataset.count} bands of {dtype}", "save bands of real numbers")
        for number in self._numbers:
            self._check(self._stored(number), dtype)
        flags = {flag for flags in dataset.mask_flag_enums for flag in flags}
        is_unfit = self.header is not None and self.header.masks_hw and MaskFlags.per_dataset not in flags
        if is_unfit or (self._mask_path is not None and self._stored(_MASK_BESIDE).shape != dataset.shape):
            raise unreadable(self._path, "its mask does not fit the image", "write the mask again, or remove it")
        if self.header is None:
            self._samples = _samples(dataset, dtype, self._mask_path is not None or flags != {MaskFlags.all_valid})
        else:
            is_masked = bool(self.header.masks_hw) or self._mask_path is not None
            self._samples = tiff_samples(self.header, is_masked=is_masked)
            if dataset.count != self._samples.count:
                reason = f"GDAL shows {dataset.count} bands of its {self._samples.count} samples"
                raise unreadable(self._path, reason, "save it as RGB or grey")
        tags = dataset.tags()
        exact_halves = dataset.driver == "JP2OpenJPEG" or tags.get("TIFFTAG_SOFTWARE") == "tnet"
        levels = common.ratio_levels([sizes_hw[number] for number in self._numbers], halves=exact_halves)
        properties, georeference = _properties(dataset, tags), _georeference(dataset)
        spacing = _spacing_m_yx(dataset) if georeference else self.header.spacing_m_yx if self.header else None
        form = (*self._samples.form, spacing, georeference)
        return ImageInfo(levels, *form, tile_hw=dataset.block_shapes[0], properties=properties)

    def _check(self, dataset: Any, dtype: np.dtype[Any]) -> None:
        if min(dataset.shape) < 1 or (len(set(dataset.dtypes)) > 1 and dtype.kind == "f"):
            raise unreadable(self._path, f"its size is {dataset.shape}, of {set(dataset.dtypes)}")
        bands = 1 if dataset.profile.get("interleave") == "band" else dataset.count
        common.check_block(self._path, dataset.block_shapes[0], bands * dtype.itemsize, self._options)

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


def _samples(dataset: Any, dtype: np.dtype[Any], has_missing: bool) -> Samples:
    """Return the meaning of the bands of other formats than TIFF, as GDAL reports it."""
    from rasterio.enums import ColorInterp

    table = _palette(dataset)
    meanings = list(dataset.colorinterp)
    alpha = len(meanings) - 1 if len(meanings) > 1 and meanings[-1] == ColorInterp.alpha else None
    colors = meanings[:-1] if alpha else meanings
    is_rgb = table is not None or colors == [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    color: Color = "rgb" if is_rgb else "grey" if len(colors) == 1 else "bands"
    has_alpha = alpha is not None or (table is not None and table.shape[1] == 4)
    return Samples(dtype, len(meanings), color, alpha=alpha, table=table, is_masked=has_missing and not has_alpha)


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
    # GDAL's value for none, as of raw scenes, which may yet name a coordinate system.
    if tuple(transform[:6]) in ((1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)):
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
    return 9 if header.has_geo_keys else 3


READERS.register("rasterio")(ReaderEntry(open_rasterio, _score, ("rasterio",), ("rasterio",), extra="geo"))
