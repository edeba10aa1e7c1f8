"""Image files in folders, recognised by their suffix alone; nothing is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tnet.errors import DataError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide"}  # whole-slide images
    | {".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
_MAX_REGIONS_BYTES = 2**28
FOLDER_SUFFIXES: frozenset[str] = frozenset({".zarr"})  # folders that are one image


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder has the suffix of an image, in upper or lower case."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES | FOLDER_SUFFIXES


def is_image_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder that is one image by its suffix (OME-Zarr)."""
    # Unlike Path.is_dir, os.path.isdir returns False, and raises nothing, inside a folder that may not be entered.
    # And splitting the text is several times faster than a Path, which counts for a million rows.
    return os.path.splitext(path)[1].lower() in FOLDER_SUFFIXES and os.path.isdir(path)  # noqa: PTH112, PTH122


def image_exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file, or a folder that is one image."""
    return os.path.isfile(path) or is_image_folder(path)  # noqa: PTH113 (as above)


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """List the images in a folder and its subfolders, sorted, or a path that is an image itself; at least one.

    Hidden files and folders (leading dot) are skipped, and folders that are one image (OME-Zarr) are not entered.
    Links to folders are followed, each real folder once.
    """
    path = Path(path)
    try:
        if is_image_folder(path) or (path.is_file() and is_image_path(path)):
            return [path]
        if not path.is_dir():
            problem = "is neither a folder nor an image by its suffix" if path.exists() else "does not exist"
            raise DataError(f"{path} {problem}; give a folder of images")
        images = sorted(_walk(path))
    except OSError as error:
        folder = error.filename or path
        raise DataError(f"folder {folder} cannot be listed ({error.strerror}); make it readable") from error
    if not images:
        raise DataError(f"no images in {path} or its subfolders; suffixes are {' '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def listed_figures(regions: Path) -> set[str]:
    """Return the names of the figures that ``tnet explain`` wrote beside its ``regions.json``."""
    try:
        if regions.stat().st_size <= _MAX_REGIONS_BYTES:
            records = json.loads(regions.read_text(encoding="utf-8"))
            names = {record["figure"] for record in records if "figure" in record}
            return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return set()


def _walk(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:  # os.walk would silently skip folders that it cannot list
        raise error

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in folders if is_image_path(name))
        folders[:] = [name for name in folders if not is_image_path(name)]
        yield from (Path(folder, name) for name in names if not name.startswith(".") and is_image_path(name))
