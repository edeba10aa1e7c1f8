"""Tables of folds, for cross-validation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tnet.data.folder import LabelledImages
from tnet.data.groups import make_folds
from tnet.files import make_folder, write_text
from tnet.text import csv_row

FOLDS_NAME = "folds.csv"
_COLUMNS = ("path", "label", "group", "fold")


def write_folds(
    images: LabelledImages, folder: Path, folds: int, seed: int, separator: str = "|"
) -> Int[np.ndarray, " images"]:
    """Divide images into folds (see :func:`make_folds`), write them as tables, and return the fold of each image.

    ``FOLDER/folds.csv`` lists all images with their path (absolute), label, group (the path, if there are none) and
    fold; ``FOLDER/fold-0/train.csv`` and ``test.csv`` the images outside and inside of a fold. Several labels of an
    image are joined by ``separator``.

    Raises:
        DataError: the images cannot be divided into as many folds.
        OutputError: a file cannot be written.
    """
    numbers = make_folds(images.targets, images.groups, folds, seed)
    rows = []
    for index, (path, target, fold) in enumerate(zip(images.paths, images.targets, numbers.tolist(), strict=True)):
        indices = target.nonzero().flatten().tolist() if images.multilabel else [int(target)]
        label = separator.join(images.classes[i] for i in indices)
        name = os.path.abspath(path)  # noqa: PTH100 (links stay links)
        rows.append((name, label, images.groups[index] if images.groups else name, fold))
    for fold in range(folds):
        place = make_folder(folder / f"fold-{fold}")
        _write(place / "train.csv", [row for row in rows if row[-1] != fold])
        _write(place / "test.csv", [row for row in rows if row[-1] == fold])
    _write(folder / FOLDS_NAME, rows)
    return numbers


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    write_text(path, "".join(map(csv_row, [_COLUMNS, *rows])))
