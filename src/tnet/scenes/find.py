"""Image files in folders, recognised by their suffix alone; nothing is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tnet.errors import DataError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide"}  # whole-slide images
    | {".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
FOLDER_SUFFIXES: frozenset[str] = frozenset({".zarr"})  # folders that are one image


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder has the suffix of an image, in upper or lower case."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES | FOLDER_SUFFIXES


def is_image_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder that is one image by its suffix (OME-Zarr)."""
    # Unlike Path.is_dir, os.path.isdir returns False, and raises nothing, inside a folder that may not be entered.
    return Path(path).suffix.lower() in FOLDER_SUFFIXES and os.path.isdir(path)  # noqa: PTH112


def image_exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file, or a folder that is one image."""
    return os.path.isfile(path) or is_image_folder(path)  # noqa: PTH113 (as above)


def find_images(path: str | os.PathLike[str], others: Counter[str] | None = None) -> list[Path]:
    """List the images in a folder and its subfolders, sorted, or a path that is an image itself; at least one.

    Hidden files and folders (leading dot) are skipped, and folders that are one image (OME-Zarr) are not entered.
    Links to folders are followed, each real folder once. ``others`` counts the files without such a suffix, by kind.
    """
    path, others = Path(path), Counter() if others is None else others
    try:
        if is_image_folder(path) or (path.is_file() and is_image_path(path)):
            return [path]
        if not path.is_dir():
            problem = "is neither a folder nor an image by its suffix" if path.exists() else "does not exist"
            raise DataError(f"{path} {problem}; give a folder of images")
        images = sorted(_walk(path, others))
    except OSError as error:
        folder = error.filename or path
        raise DataError(f"folder {folder} cannot be listed ({error.strerror}); make it readable") from error
    if not images:
        found = f" (only {count_kinds(others)})" if others else ""
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no images in {path} or its subfolders{found}; suffixes are {suffixes}")
    return images


def count_kinds(others: Counter[str]) -> str:
    """Return a count of each kind of file, the most frequent first, such as ``9 .txt, 3 .xml``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(10)) + ", ..." * (len(others) > 10)


def _walk(root: Path, others: Counter[str]) -> Iterator[Path]:
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
        rest = [name for name in names if name.startswith(".") or not is_image_path(name)]
        others.update("hidden" if name[0] == "." else Path(name).suffix.lower() or "without suffix" for name in rest)
        yield from (Path(folder, name) for name in names if not name.startswith(".") and is_image_path(name))
