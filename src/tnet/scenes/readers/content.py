"""What the content of a file says about the reader that it needs; its name hardly matters."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from tnet.scenes.guard import guarded, open_file
from tnet.scenes.readers import tiff_header as tiff
from tnet.scenes.readers.base import READERS

_JP2_STARTS = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_SLIDE_SUFFIXES = (".mrxs", ".ndpi", ".vms", ".vmu", ".svslide")
_SLIDE_MARKS = (b"Aperio", b"Philips", b"leica-microsystems.com/scn", b"iScan")


def mask_beside(path: Path) -> Path | None:
    """Return the mask that GDAL has written beside an image, a TIFF."""
    mask = path.absolute().with_name(f"{path.name}.msk")
    if not mask.is_file():
        return None
    with open_file(mask) as stream:
        return mask if stream.read(4) in tiff.STARTS else None


class Content:
    """A file or folder whose reader is to be chosen; raises ``ImageError`` if the file is empty or not readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.start = b""
        if not self.is_folder:
            with open_file(path) as stream:
                self.start = stream.read(512)
        self.is_jp2 = self.start.startswith(_JP2_STARTS)
        self.is_vrt = self.start.lstrip()[:11] == b"<VRTDataset"
        self.is_zip = self.start.startswith(b"PK\x03\x04")

    @cached_property
    def tiff(self) -> tiff.TiffHeader | None:
        """Directories of a TIFF; ``None`` for other files. Raises ``ImageError`` if they are damaged."""
        return tiff.read_tiff_header(self.path) if self.start.startswith(tiff.STARTS) else None

    @cached_property
    def is_slide(self) -> bool:
        """Whether it is a whole-slide image: by OpenSlide if it is installed, else by marks of the common formats."""
        if self.is_folder:
            return False
        if READERS["openslide"].is_installed:
            with guarded(self.path):
                from openslide import OpenSlide

                return OpenSlide.detect_format(self.path) not in (None, "generic-tiff")
        has_magic = self.start.startswith(b"ZISRAWFILE") or self.start[128:132] == b"DICM"
        if has_magic or self.path.suffix.lower() in _SLIDE_SUFFIXES:
            return True
        texts = self.tiff.text(tiff.TAG_DESCRIPTION) + self.tiff.text(tiff.TAG_SOFTWARE) if self.tiff else b""
        return any(mark in texts for mark in _SLIDE_MARKS)
