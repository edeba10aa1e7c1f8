"""Which readers are installed, and whether they work: each reads a tiny image back."""

from __future__ import annotations

import struct
import tempfile
import zlib
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.guard import one_line
from tnet.scenes.readers import READERS
from tnet.scenes.readers.base import ReaderEntry, ReaderOptions

_SIDE_PX = 32


@dataclass(frozen=True)
class ReaderStatus:
    """Status of one reader."""

    kind: str
    extra: str  # extra of tnet that installs what it needs; empty if that is always installed
    installed: bool
    versions: dict[str, str] = field(default_factory=dict)  # versions of the installed packages that it needs
    works: bool = False  # whether it has just read an image correctly
    detail: str = ""  # the problem, or the version of the underlying library


def reader_status() -> list[ReaderStatus]:
    """Try all readers in the order of the registry; raises nothing."""
    return [_status(name, entry) for name, entry in READERS.items()]


def _status(name: str, entry: ReaderEntry) -> ReaderStatus:
    versions = {}
    for package in entry.packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # the library may be the system's
            continue
    if not entry.has_modules:
        return ReaderStatus(name, entry.extra, False, versions)
    try:
        works = _reads_back(entry)
        detail = _library(name) if works else "it reads other pixels than were written"
    except Exception as error:  # whatever is wrong with an installation
        works, detail = False, one_line(error)
    return ReaderStatus(name, entry.extra, True, versions, works, detail)


def _reads_back(entry: ReaderEntry) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        pixels = np.arange(_SIDE_PX * _SIDE_PX * 3, dtype=np.uint8).reshape(_SIDE_PX, _SIDE_PX, 3)
        (entry.write_sample or write_tiff)(path, pixels)
        reader = entry.open(path, ReaderOptions())
        try:
            return np.array_equal(reader.read(0, (0, 0, _SIDE_PX, _SIDE_PX)), pixels)
        finally:
            reader.close()


def _library(name: str) -> str:
    if name == "rasterio":
        return f"GDAL {import_module(name).__gdal_version__}"
    return f"OpenSlide {import_module(name).__library_version__}" if name == "openslide" else ""


def write_tiff(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write one deflated tile by hand: OpenSlide cannot write, and all readers but Zarr's read it."""
    height, width = pixels.shape[:2]
    tile = zlib.compress(pixels.tobytes())
    short, long, bits_at = 3, 4, 8 + 2 + 12 * 11 + 4
    tags = [
        *((256, short, 1, width), (257, short, 1, height), (258, short, 3, bits_at), (259, short, 1, 8)),
        *((262, short, 1, 2), (277, short, 1, 3), (284, short, 1, 1), (322, short, 1, width)),
        *((323, short, 1, height), (324, long, 1, bits_at + 6), (325, long, 1, len(tile))),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(head + entries + struct.pack("<I3H", 0, 8, 8, 8) + tile)
