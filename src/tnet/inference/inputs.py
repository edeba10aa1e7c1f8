"""Image files from files, folders and manifests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tnet.data.folder import shorten
from tnet.data.table import read_columns
from tnet.errors import DataError
from tnet.scenes.find import find_images, image_exists

PATH_COLUMN = "path"
"""Column of a manifest that holds the paths."""

_TABLES = (".csv", ".parquet", ".pq")
_LISTS = (".txt",)


def find_inputs(inputs: Sequence[str | os.PathLike[str]], *, check_exists: bool = True) -> list[Path]:
    """List image files without opening them.

    Args:
        inputs: image files; folders, whose images are taken recursively and sorted; or manifests: tables (``.csv``,
            ``.parquet``) with a column ``path``, or ``.txt`` files with one path per line. Relative paths in a
            manifest start from its folder.
        check_exists: raise an error if an image is missing, before any is read.

    Returns:
        At least one path, in the order given.

    Raises:
        DataError: there are no inputs, a folder is empty, a manifest cannot be read or lacks the column, or an image is
            missing.
    """
    if not inputs:
        raise DataError("no images given; give image files, folders, or a manifest (.csv, .parquet, .txt)")
    paths: list[Path] = []
    for item in map(Path, inputs):
        if item.suffix.lower() in (*_TABLES, *_LISTS) and not item.is_dir():
            paths += _read_manifest(item, check_exists)
        else:
            paths += find_images(item) if item.is_dir() else [item]
    missing = [str(path) for path in paths if not image_exists(path)] if check_exists else []
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} images do not exist: {shorten(missing)}; correct the paths")
    return paths


def _read_manifest(manifest: Path, check_exists: bool) -> list[Path]:
    if manifest.suffix.lower() in _TABLES:
        rows = read_columns(manifest, [PATH_COLUMN])[PATH_COLUMN]
        empty = [str(row) for row, value in enumerate(rows, start=1) if not value.strip()]
        if empty:
            raise DataError(
                f"manifest {manifest} has an empty {PATH_COLUMN!r} in {len(empty)} rows, first row "
                f"{', '.join(empty[:3])}; add the path, or remove the row"
            )
    else:
        rows = [line.strip() for line in _read_lines(manifest) if line.strip()]
        if not rows:
            raise DataError(f"manifest {manifest} is empty; write one path per line")
    paths = [manifest.parent / row for row in rows]
    missing = [str(path) for path in paths if not image_exists(path)] if check_exists else []
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images in manifest {manifest} do not exist: {shorten(missing)}; restore "
            f"them, or correct the paths (relative ones start from {manifest.parent})"
        )
    return paths


def _read_lines(manifest: Path) -> list[str]:
    try:
        return manifest.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"manifest {manifest} does not exist; correct the path") from None
    except UnicodeDecodeError:
        raise DataError(f"manifest {manifest} is not UTF-8 text; save it as UTF-8, one path per line") from None
    except OSError as error:
        raise DataError(f"manifest {manifest} cannot be read ({error.strerror}); make it readable") from None
