"""Readers of image files, chosen by content.

==========  =============================================  ======================
reader      files                                          installed by
==========  =============================================  ======================
pillow      JPEG, PNG, WebP, BMP, GIF, AVIF, flat TIFF     tnet itself
openslide   whole-slide images                             ``tnet[wsi]``
rasterio    georeferenced TIFF and JPEG 2000               ``tnet[geo]``
tifffile    tiled, pyramidal and OME TIFF                  ``tnet[ome]``
zarr        OME-Zarr folders                               ``tnet[ome]``
==========  =============================================  ======================
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tnet.scenes.guard import unreadable
from tnet.scenes.readers.base import READERS, Reader, ReaderOptions
from tnet.scenes.readers.content import Content, mask_beside
from tnet.scenes.readers.tiff_samples import lost

for _name in ("pillow", "openslide", "rasterio", "tifffile", "zarr"):
    import_module(f"tnet.scenes.readers.{_name}_reader")  # which registers the reader

__all__ = ["READERS", "Reader", "ReaderOptions", "is_plain_image", "lost_by", "open_reader", "sniff"]


def open_reader(path: str | Path, options: ReaderOptions | None = None, name: str | None = None) -> Reader:
    """Open a file or OME-Zarr folder with the reader ``name``, or the installed one that suits its content best."""
    path, options = Path(path), options or ReaderOptions()
    entries = [READERS[each] for each in ([name] if name is not None else _scores(path, options))]
    if name is not None and (reason := lost_by(name, Content(path))):
        raise unreadable(path, f"the reader {name} would lose {reason}", "leave out the reader")
    for entry in entries:
        if entry.is_installed:
            return entry.open(path, options)
    reason = f"{' and '.join(entries[0].modules)} must be installed"
    raise unreadable(path, reason, f"run: pip install 'tnet[{entries[0].extra}]'")


def sniff(path: str | Path, options: ReaderOptions | None = None) -> str:
    """Return the name of the reader that suits a file or folder best, installed or not."""
    return next(iter(_scores(Path(path), options or ReaderOptions())))


def is_plain_image(path: str | Path) -> bool:
    """Return whether Pillow decodes a file without loss: not a slide, map, stack, file with nodata or odd bands."""
    name = sniff(path)
    header = Content(Path(path)).tiff if name == "tifffile" else None
    return name == "pillow" or (header is not None and not lost(header, "pillow"))


def _scores(path: Path, options: ReaderOptions) -> dict[str, int]:
    """Scores of the readers that can read a file, best first; at least one."""
    content = Content(path)
    if content.is_vrt and not options.remote:
        raise unreadable(path, "it is a VRT, which refers to other files", "set remote=True if you trust it")
    if content.is_zip:
        raise unreadable(path, "it is a ZIP archive", "unpack it, and give the image or OME-Zarr folder in it")
    scores = {name: entry.score(content) for name, entry in READERS.items()}
    if not any(scores.values()):  # pillow scores for every file
        raise unreadable(path, "it is a folder, but not an OME-Zarr", "give an image in it")
    best = [name for name, score in sorted(scores.items(), key=lambda item: -item[1]) if score]
    reasons = {name: lost_by(name, content) for name in best}
    if all(reasons.values()):
        reason = reasons.get("tifffile", reasons[best[0]])
        remedy = "convert it to TIFF" if content.tiff is None else "save it as RGB, grey or bands of real numbers"
        raise unreadable(path, f"no reader supports {reason}", remedy)
    return {name: scores[name] for name in best if not reasons[name]}


def lost_by(name: str, content: Content, *, keep_depth: bool = True) -> str:
    """Name what a reader would lose of an image; empty if it honours everything."""
    if not content.is_folder and name != "rasterio" and mask_beside(content.path) is not None:
        return f"the mask beside it, {content.path.name}.msk"
    is_checked = name != "openslide" or not content.is_slide
    return lost(content.tiff, name, keep_depth=keep_depth) if content.tiff is not None and is_checked else ""
