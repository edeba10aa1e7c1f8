"""What readers are installed, and whether they read: each is given a tiny image to try."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.guard import one_line
from tnet.scenes.readers import READER_KINDS, ReaderKind, extra_of, modules_of, open_reader

_PACKAGES: dict[ReaderKind, tuple[str, ...]] = {
    "pillow": ("pillow",),
    "openslide": ("openslide-python", "openslide-bin"),
    "rasterio": ("rasterio",),
    "tifffile": ("tifffile", "imagecodecs"),
    "zarr": ("zarr", "numcodecs"),
}
_SIDE_PX = 32  # libtiff refuses uncompressed tiles that are no multiple of 1,024 bytes


@dataclass(frozen=True)
class ReaderStatus:
    """Of one reader.

    Attributes:
        kind: which.
        extra: of tnet, that installs what it needs; empty where that is always there.
        installed: its library is.
        versions: of the packages that it needs, by name; those that are installed.
        works: it has read a picture rightly just now.
        detail: what went wrong, or a version inside the library.
    """

    kind: ReaderKind
    extra: str
    installed: bool
    versions: dict[str, str] = field(default_factory=dict)
    works: bool = False
    detail: str = ""


def reader_status() -> list[ReaderStatus]:
    """Try all readers, in the order of :data:`tnet.scenes.readers.READER_KINDS`; raises nothing."""
    return [_status(kind) for kind in READER_KINDS]


def _status(kind: ReaderKind) -> ReaderStatus:
    versions = {}
    for package in _PACKAGES[kind]:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # the library may be the system's
            continue
    installed = all(find_spec(module) is not None for module in modules_of(kind))
    if not installed:
        return ReaderStatus(kind, extra_of(kind), False, versions)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            pixels = np.arange(_SIDE_PX * _SIDE_PX * 3, dtype=np.uint8).reshape(_SIDE_PX, _SIDE_PX, 3)
            _WRITERS[kind](path, pixels)
            reader = open_reader(path, kind=kind)
            try:
                got = reader.read(0, (0, 0, _SIDE_PX, _SIDE_PX))
            finally:
                reader.close()
            works = np.array_equal(got, pixels)
            detail = _inside(kind) if works else "it reads other pixels than were written"
    except Exception as error:  # whatever is wrong with an installation
        return ReaderStatus(kind, extra_of(kind), True, versions, False, one_line(error))
    return ReaderStatus(kind, extra_of(kind), True, versions, works, detail)


def _inside(kind: ReaderKind) -> str:
    if kind == "rasterio":
        import rasterio

        return f"GDAL {rasterio.__gdal_version__}"
    if kind == "openslide":
        import openslide

        return f"OpenSlide {openslide.__library_version__}"
    return ""


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG")


def _write_tiled_tiff(path: Path, pixels: NDArray[np.uint8]) -> None:
    """One uncompressed tile, without any library: OpenSlide writes nothing."""
    short, long = 3, 4
    bits_at = 8 + 2 + 12 * 11 + 4
    data_at = bits_at + 6
    tags = [
        *((256, short, 1, _SIDE_PX), (257, short, 1, _SIDE_PX), (258, short, 3, bits_at), (259, short, 1, 1)),
        *((262, short, 1, 2), (277, short, 1, 3), (284, short, 1, 1), (322, short, 1, _SIDE_PX)),
        *((323, short, 1, _SIDE_PX), (324, long, 1, data_at), (325, long, 1, pixels.nbytes)),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(head + entries + struct.pack("<I3H", 0, 8, 8, 8) + pixels.tobytes())


def _write_deflate_tiff(path: Path, pixels: NDArray[np.uint8]) -> None:
    import tifffile

    tifffile.imwrite(path, pixels, tile=(_SIDE_PX, _SIDE_PX), photometric="rgb", compression="zlib")


def _write_geotiff(path: Path, pixels: NDArray[np.uint8]) -> None:
    import rasterio

    form = {"driver": "GTiff", "width": _SIDE_PX, "height": _SIDE_PX, "count": 3, "dtype": "uint8"}
    where = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    with rasterio.open(path, "w", photometric="rgb", **form, **where) as dataset:
        dataset.write(np.moveaxis(pixels, 2, 0))


def _write_zarr(path: Path, pixels: NDArray[np.uint8]) -> None:
    import zarr

    array = zarr.create_array(path, shape=(3, _SIDE_PX, _SIDE_PX), dtype="uint8")
    array[:] = np.moveaxis(pixels, 2, 0)


_WRITERS: dict[ReaderKind, Callable[[Path, NDArray[np.uint8]], None]] = {
    "pillow": _write_png,
    "openslide": _write_tiled_tiff,
    "rasterio": _write_geotiff,
    "tifffile": _write_deflate_tiff,
    "zarr": _write_zarr,
}
