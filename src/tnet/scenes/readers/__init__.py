"""Readers of image files: which one suits a file is told by its content, never by its name alone.

==========  =============================================  ======================
kind        files                                          installed by
==========  =============================================  ======================
pillow      JPEG, PNG, WebP, BMP, GIF, AVIF, flat TIFF     tnet itself
openslide   whole-slide images                             ``tnet[wsi]``
rasterio    georeferenced TIFF and JPEG 2000               ``tnet[geo]``
tifffile    tiled, pyramidal and OME TIFF                  ``tnet[ome]``
zarr        OME-Zarr folders                               ``tnet[ome]``
==========  =============================================  ======================
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NoReturn, get_args

from tnet.errors import ConfigError, ImageError
from tnet.scenes.guard import guarded, open_file, unreadable
from tnet.scenes.readers.base import GeoReference, ImageInfo, Reader, ReaderOptions, StoredLevel
from tnet.scenes.readers.tiff_header import TiffHeader

__all__ = [
    "READER_KINDS",
    "GeoReference",
    "ImageInfo",
    "Reader",
    "ReaderKind",
    "ReaderOptions",
    "StoredLevel",
    "extra_of",
    "is_installed",
    "is_plain_image",
    "modules_of",
    "open_reader",
    "sniff",
]

ReaderKind = Literal["pillow", "openslide", "rasterio", "tifffile", "zarr"]
"""Names of readers."""

READER_KINDS: tuple[ReaderKind, ...] = get_args(ReaderKind)
"""All of them."""

_EXTRAS: dict[ReaderKind, tuple[str, tuple[str, ...]]] = {
    "pillow": ("", ("PIL",)),
    "openslide": ("wsi", ("openslide",)),  # and openslide_bin, or the library of the system
    "rasterio": ("geo", ("rasterio",)),
    "tifffile": ("ome", ("tifffile", "imagecodecs")),
    "zarr": ("ome", ("zarr",)),
}
_ZARR_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JP2_STARTS = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001}  # of TIFF
_FLAT_PX = 1 << 24  # a flat TIFF of more pixels is better read by rows than as a whole


def open_reader(path: str | Path, options: ReaderOptions | None = None, kind: str | None = None) -> Reader:
    """Open an image by the reader that suits its content.

    Where that reader's library is not installed, another that reads the file rightly is taken.

    Args:
        path: a file, or the folder of an OME-Zarr.
        options: what the reader has to know.
        kind: one of :data:`ReaderKind`, instead of choosing.

    Raises:
        ImageError: it cannot be read, or the library for it is not installed; the message says what to do.
        ConfigError: there is no reader of this name.
    """
    path, options = Path(path), options or ReaderOptions()
    if kind is None:
        chosen = sniff(path, options)
        if not is_installed(chosen):
            chosen = _stand_in(path, chosen)
    elif kind in READER_KINDS:
        chosen = kind
        if not is_installed(chosen):
            _refuse_missing(path, chosen)
    else:
        raise ConfigError(f"reader {kind!r} does not exist; there are {', '.join(READER_KINDS)}")
    module = importlib.import_module(f"tnet.scenes.readers.{chosen}_reader")
    reader: Reader = getattr(module, f"open_{chosen}")(path, options)
    return reader


def sniff(path: str | Path, options: ReaderOptions | None = None) -> ReaderKind:
    """The reader that suits a file or folder, by its content, whether it is installed or not.

    Args:
        path: a file, or the folder of an OME-Zarr.
        options: ``remote`` allows a VRT, which refers to other files.

    Raises:
        ImageError: there is nothing, it is empty, a damaged TIFF, a folder of another kind, or a VRT.
    """
    path, options = Path(path), options or ReaderOptions()
    if path.is_dir():
        if any((path / marker).is_file() for marker in _ZARR_MARKERS):
            return "zarr"
        raise unreadable(path, "it is a folder, but no OME-Zarr", "name an image in it")
    with open_file(path) as stream:
        start = stream.read(512)
    if _is_slide(path, start):
        return "openslide"
    if start.startswith(_TIFF_STARTS):
        return _sniff_tiff(path)
    if start.startswith(_JP2_STARTS):
        return "rasterio"
    if start.lstrip()[:11] == b"<VRTDataset":
        if not options.remote:
            raise unreadable(
                path, "it is a VRT, which refers to data elsewhere", "allow that with remote=True if you trust it"
            )
        return "rasterio"
    if start.startswith(b"PK\x03\x04"):
        raise unreadable(path, "it is a ZIP archive", "unpack it, and name the image or OME-Zarr folder in it")
    return "pillow"


@cache
def is_installed(kind: ReaderKind) -> bool:
    """Whether what a reader needs is installed (openslide without its shared library is not)."""
    if not all(find_spec(module) is not None for module in modules_of(kind)):
        return False
    if kind == "openslide":
        try:
            importlib.import_module("openslide")
        except (ImportError, OSError):
            return False
    return True


def extra_of(kind: ReaderKind) -> str:
    """The extra of tnet that installs a reader; empty for one that is always there."""
    return _EXTRAS[kind][0]


def modules_of(kind: ReaderKind) -> tuple[str, ...]:
    """The modules that a reader imports."""
    return _EXTRAS[kind][1]


def _is_slide(path: Path, start: bytes) -> bool:
    """By OpenSlide itself where it is installed, else by marks of the commonest formats."""
    if is_installed("openslide"):
        with guarded(path):
            from openslide import OpenSlide

            return OpenSlide.detect_format(path) not in (None, "generic-tiff")
    if start.startswith(b"ZISRAWFILE") or start[128:132] == b"DICM":
        return True
    if path.suffix.lower() in (".mrxs", ".ndpi", ".vms", ".vmu", ".svslide"):
        return True
    if not start.startswith(_TIFF_STARTS):
        return False
    from tnet.scenes.readers import tiff_header

    header = tiff_header.read_tiff_header(path)
    texts = header.text(tiff_header.TAG_DESCRIPTION) + header.text(tiff_header.TAG_SOFTWARE)
    return any(mark in texts for mark in (b"Aperio", b"Philips", b"leica-microsystems.com/scn", b"iScan"))


def is_plain_image(path: str | Path) -> bool:
    """Whether decoding a file as a whole by Pillow loses nothing: no slide, map, stack, nodata or odd bands.

    Raises:
        ImageError: as for :func:`sniff`.
    """
    from tnet.scenes.readers import tiff_header as tiff

    kind = sniff(path)
    if kind != "tifffile":
        return kind == "pillow"
    header = tiff.read_tiff_header(Path(path))
    says_missing = tiff.TAG_GDAL_NODATA in header.ifds[0] or header.has_masks
    return _is_plain(header) and not (header.is_ome or says_missing)


def _is_plain(header: TiffHeader) -> bool:
    """Whether Pillow knows this compression and these samples."""
    from tnet.scenes.readers import tiff_header as tiff

    samples = header.number(tiff.TAG_SAMPLES, 1)
    bits = max(header.numbers(tiff.TAG_BITS) or (1,))
    depth = bits <= 8 or (bits == 16 and samples == 1)
    return header.number(tiff.TAG_COMPRESSION, 1) in _PILLOW_COMPRESSIONS and samples in (1, 3, 4) and depth


def _sniff_tiff(path: Path) -> ReaderKind:
    from tnet.scenes.readers import tiff_header as tiff
    from tnet.scenes.readers.tifffile_reader import READABLE_COMPRESSIONS

    header = tiff.read_tiff_header(path)
    if header.has_geo_keys:
        return "rasterio"
    pixels = header.number(tiff.TAG_WIDTH, 0) * header.number(tiff.TAG_HEIGHT, 0)
    compression = header.number(tiff.TAG_COMPRESSION, 1)
    is_plain = _is_plain(header)
    if header.number(tiff.TAG_PHOTOMETRIC, 1) in (5, 8) and is_plain and not header.is_ome:
        return "pillow"  # CMYK and CIELAB, which it converts
    if is_plain and pixels <= _FLAT_PX and not (header.is_ome or header.is_tiled or header.is_pyramidal):
        return "pillow"
    if compression in READABLE_COMPRESSIONS:
        return "tifffile"
    return "rasterio" if not header.is_ome else "tifffile"


def _stand_in(path: Path, kind: ReaderKind) -> ReaderKind:
    """Another reader that is installed and reads the file rightly.

    Raises:
        ImageError: there is none.
    """
    from tnet.scenes.readers import tiff_header as tiff
    from tnet.scenes.readers.tifffile_reader import READABLE_COMPRESSIONS

    if path.is_dir():
        _refuse_missing(path, kind)
    with open_file(path) as stream:
        start = stream.read(16)
    if kind == "rasterio" and start.startswith(_JP2_STARTS):
        return "pillow"
    if not start.startswith(_TIFF_STARTS):
        _refuse_missing(path, kind)
    header = tiff.read_tiff_header(path)
    is_decoded = header.number(tiff.TAG_COMPRESSION, 1) in READABLE_COMPRESSIONS
    bits = max(header.numbers(tiff.TAG_BITS) or (1,))
    samples = header.number(tiff.TAG_SAMPLES, 1)
    is_simple = header.count == 1 and not header.is_pyramidal and bits <= 8 and samples in (1, 3, 4)
    says_missing = tiff.TAG_GDAL_NODATA in header.ifds[0] or header.has_masks
    candidates: dict[ReaderKind, bool] = {
        "tifffile": is_decoded and not says_missing,
        "rasterio": kind == "tifffile" and not header.is_ome,
        "openslide": kind == "tifffile" and header.is_tiled and bits == 8 and header.number(tiff.TAG_SAMPLES, 1) == 3,
        "pillow": is_simple and not says_missing and kind != "openslide",
    }
    for other, can in candidates.items():
        if can and other != kind and is_installed(other):
            return other
    _refuse_missing(path, kind)


def _refuse_missing(path: Path, kind: ReaderKind) -> NoReturn:
    extra, modules = _EXTRAS[kind]
    are = "are" if len(modules) > 1 else "is"
    raise ImageError(
        f"The picture {path} cannot be read: it needs {' and '.join(modules)}, which {are} not installed; run: "
        f"pip install 'tnet[{extra}]'."
    )
