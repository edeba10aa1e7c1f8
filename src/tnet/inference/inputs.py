"""Image files from files, folders and manifests."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tnet.data.folder import shorten
from tnet.data.table import read_columns, read_lines
from tnet.errors import DataError, PassedOverWarning
from tnet.remote import check_local
from tnet.scenes.find import count_kinds, find_images, image_exists

PATH_COLUMN = "path"  # column of a manifest that holds the paths
_TABLES = (".csv", ".parquet", ".pq")


def find_inputs(inputs: Sequence[str | os.PathLike[str]], *, check_exists: bool = True) -> list[Path]:
    """List image files without opening them; a warning counts the other files of a folder by kind.

    Args:
        inputs: image files; folders, which are searched recursively and sorted; or manifests: tables (``.csv``,
            ``.parquet``) with a column ``path``, or ``.txt`` files with one path per line, relative to the manifest.
        check_exists: raise an error if an image is missing, before any is read.

    Raises:
        DataError: no images are given or found, an image is missing, or a manifest cannot be read.
    """
    if not inputs:
        raise DataError("no images given; give image files, folders, or a manifest (.csv, .parquet, .txt)")
    paths: list[Path] = []
    manifests: list[str] = []
    for given in inputs:
        check_local(given)
        item = Path(given)
        if item.suffix.lower() in (*_TABLES, ".txt") and not item.is_dir():
            manifests.append(str(item))
            paths += _read_manifest(item)
        elif item.is_dir():
            others = Counter[str]()
            paths += find_images(item, others)
            if others:
                what = f"{others.total():,} file(s) in {item} without the suffix of an image"
                warnings.warn(f"{what} are passed over: {count_kinds(others)}", PassedOverWarning, stacklevel=2)
        else:
            paths.append(item)
    missing = [str(path) for path in paths if not image_exists(path)] if check_exists else []
    if missing:
        where = f" of {shorten(manifests)}" if manifests else ""
        problem = f"{len(missing)} of {len(paths)} images{where} do not exist: {shorten(missing)}"
        raise DataError(f"{problem}; correct the paths")
    return paths


def _read_manifest(manifest: Path) -> list[Path]:
    if manifest.suffix.lower() in _TABLES:
        rows = read_columns(manifest, [PATH_COLUMN])[PATH_COLUMN]
        empty = [str(row) for row, value in enumerate(rows, start=1) if not value.strip()]
        if empty:
            where = f"{len(empty)} rows, first row {', '.join(empty[:3])}"
            raise DataError(f"manifest {manifest} has an empty {PATH_COLUMN!r} in {where}; add paths, or remove rows")
    else:
        try:
            rows = [line.strip() for line in read_lines(manifest) if line.strip()]
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            reason = "not UTF-8 text" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
            raise DataError(f"manifest {manifest} cannot be read ({reason}); give one path per line") from None
        if not rows:
            raise DataError(f"manifest {manifest} is empty; write one path per line")
    for row in rows:
        check_local(row)
    return [manifest.parent / row for row in rows]
