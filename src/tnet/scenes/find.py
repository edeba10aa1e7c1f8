"""Image files in folders, recognised by their suffix alone; nothing is opened."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tnet.errors import DataError, PassedOverWarning
from tnet.files import CLAIM_NAME

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide"}  # whole-slide images
    | {".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"}  # macOS
    | {"$recycle.bin", "recycler", "recycled", "system volume information"}  # Windows
    | {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@__thumb"}  # network storage
    | {"lost+found", "__pycache__"}
)
_OUTPUTS = ({"config.json", "model.safetensors"}, {"evaluation.md", "evaluation.csv"}, {"results.json", "index.html"})
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


def find_images(path: str | os.PathLike[str], others: Counter[str] | None = None) -> list[Path]:
    """List the images in a folder and its subfolders, sorted, or a path that is an image itself; at least one.

    Hidden files and folders (leading dot) are skipped, and folders that are one image (OME-Zarr) are not entered.
    Links to folders are followed, each real folder once. What the system (thumbnails, recycle bins) or tnet (runs,
    figures) wrote in subfolders is passed over, with a warning. ``others`` counts the files without such a suffix, by
    kind.
    """
    path, others = Path(path), Counter() if others is None else others
    if is_image_folder(path) or (os.path.isfile(path) and is_image_path(path)):  # noqa: PTH113 (as above)
        return [path]
    images, passed = list_images(path, is_given=True, others=others)
    warn_passed_over(path, passed)
    if not images:
        found = f" (only {count_kinds(others)})" if others else ""
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no images in {path} or its subfolders{found}; suffixes are {suffixes}")
    return images


def count_kinds(others: Counter[str]) -> str:
    """Return a count of each kind of file, the most frequent first, such as ``9 .txt, 3 .xml``."""
    return ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(10)) + ", ..." * (len(others) > 10)


def list_images(
    path: Path, *, is_given: bool = False, others: Counter[str] | None = None
) -> tuple[list[Path], list[Path]]:
    """List the images in a folder as :func:`find_images`, maybe none, and what was passed over in it.

    The folder itself is passed over too if it is not the user's, unless it ``is_given`` by the user.
    """
    passed: list[Path] = []
    if _is_system_folder(path.name) and not is_given:
        return [], [path]
    try:
        if not path.is_dir():
            problem = "is neither a folder nor an image by its suffix" if path.exists() else "does not exist"
            raise DataError(f"{path} {problem}; give a folder of images")
        return sorted(_walk(path, is_given, passed, Counter() if others is None else others)), passed
    except OSError as error:
        folder = error.filename or path
        raise DataError(f"folder {folder} cannot be listed ({error.strerror}); make it readable") from error


def warn_passed_over(root: Path, passed: Sequence[Path]) -> None:
    """Say what was passed over in a folder, if anything."""
    if passed:
        first = ", ".join(str(path.relative_to(root)) for path in passed[:3]) + (", ..." if len(passed) > 3 else "")
        what = f"{len(passed)} folder(s) or image(s) in {root} that the system or tnet wrote ({first})"
        warnings.warn(f"{what} are passed over", PassedOverWarning, stacklevel=3)


def _is_system_folder(name: str) -> bool:
    """Return whether systems make folders of this name (besides hidden ones), which may not be readable."""
    return name.casefold() in _SYSTEM_FOLDERS or name.casefold().startswith("found.0")


def _is_output(folders: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether tnet wrote a folder: a run, a model, a comparison, an evaluation or a demonstration."""
    inside, files = set(folders), set(names)
    is_run = CLAIM_NAME in files or ("recipe.yaml" in files and bool(inside & {"checkpoints", "logs", "model"}))
    return is_run or ("comparison.md" in files and "cache" in inside) or any(files >= marks for marks in _OUTPUTS)


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


def _walk(root: Path, is_given: bool, passed: list[Path], others: Counter[str]) -> Iterator[Path]:
    def fail(error: OSError) -> None:  # os.walk would silently skip folders that it cannot list
        raise error

    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=fail):
        folder = Path(place)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if _is_output(folders, names) and not (is_given and folder == root):
            passed.append(folder)
            folders.clear()
            continue
        passed += [folder / name for name in folders if _is_system_folder(name)]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_system_folder(name))
        yield from (folder / name for name in folders if is_image_path(name))
        folders[:] = [name for name in folders if not is_image_path(name)]
        images = [name for name in names if not name.startswith(".") and is_image_path(name)]
        lists = [name for name in names if name.endswith("regions.json")] if images else []
        figures = {name for regions in lists for name in listed_figures(folder / regions)}.intersection(images)
        passed += [folder / name for name in sorted(figures)]
        yield from (folder / name for name in images if name not in figures)
        rest = [name for name in names if name.startswith(".") or not is_image_path(name)]
        others.update("hidden" if name[0] == "." else Path(name).suffix.lower() or "without suffix" for name in rest)
