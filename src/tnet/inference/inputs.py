"""Which pictures a command is asked about: files, folders, manifests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tnet.data.folder import shorten
from tnet.data.table import read_columns
from tnet.errors import DataError
from tnet.scenes.images import find_images, image_exists

PATH_COLUMN = "path"
"""Column of a manifest that holds the paths."""

_TABLES = (".csv", ".parquet", ".pq")
_LISTS = (".txt",)


def find_inputs(inputs: Sequence[str | os.PathLike[str]], *, check_exists: bool = True) -> list[Path]:
    """Spell out pictures, folders and manifests as a list of pictures; none is opened.

    Args:
        inputs: each a picture; a folder, of which all pictures are taken, also those in folders inside it, sorted;
            or a manifest: a table (``.csv``, ``.parquet``) with a column ``path``, or a ``.txt`` file with one path a
            line. Relative paths in a manifest start from the manifest's folder.
        check_exists: refuse at once if a picture is missing, rather than when its turn comes.

    Returns:
        Paths in the order given; at least one.

    Raises:
        DataError: nothing was given, or a folder is empty, a manifest cannot be read or lacks the column, or a
            picture is missing.
    """
    if not inputs:
        raise DataError(
            "No picture was named; give pictures, folders of pictures, or a manifest (.csv, .parquet, .txt)."
        )
    paths: list[Path] = []
    for item in map(Path, inputs):
        if item.suffix.lower() in (*_TABLES, *_LISTS) and not item.is_dir():
            paths += _read_manifest(item, check_exists)
        elif item.is_dir():
            paths += find_images(item)
        else:
            paths.append(item)
    missing = [str(path) for path in paths if not image_exists(path)] if check_exists else []
    if missing:
        raise DataError(
            f"Of {len(paths)} picture(s) asked for, {len(missing)} do not exist: {shorten(missing)}; correct the "
            "path(s)."
        )
    return paths


def _read_manifest(manifest: Path, check_exists: bool) -> list[Path]:
    """The pictures that a manifest lists."""
    if manifest.suffix.lower() in _TABLES:
        rows = read_columns(manifest, [PATH_COLUMN])[PATH_COLUMN]
        empty = [str(row) for row, value in enumerate(rows, start=1) if not value.strip()]
        if empty:
            raise DataError(
                f"The manifest {manifest} has an empty path (column '{PATH_COLUMN}') in {len(empty)} row(s), first row "
                f"{', '.join(empty[:3])}; name the picture, or remove the row."
            )
    else:
        rows = [line.strip() for line in _read_lines(manifest) if line.strip()]
        if not rows:
            raise DataError(f"The manifest {manifest} lists no picture; write one path a line.")
    paths = [manifest.parent / row for row in rows]
    missing = [str(path) for path in paths if not image_exists(path)] if check_exists else []
    if missing:
        raise DataError(
            f"The manifest {manifest} lists {len(missing)} picture(s) (of {len(paths)}) that do not exist: "
            f"{shorten(missing)}; restore them, or correct the paths (relative ones start from {manifest.parent})."
        )
    return paths


def _read_lines(manifest: Path) -> list[str]:
    try:
        return manifest.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"The manifest {manifest} does not exist; correct the path.") from None
    except UnicodeDecodeError:
        raise DataError(f"The manifest {manifest} is not UTF-8 text; save it as that, one path a line.") from None
    except OSError as error:
        raise DataError(f"The manifest {manifest} cannot be read ({error.strerror}); make it readable.") from None
