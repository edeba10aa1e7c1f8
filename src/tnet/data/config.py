"""The data section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tnet.data.augment import AugmentConfig
from tnet.data.digits import DigitsConfig


@dataclass(frozen=True)
class DataConfig:
    """Where images come from.

    Attributes:
        kind: ``folder`` (root/train/class/picture), ``table`` (CSV or Parquet) or ``digits`` (made on the fly).
        root: folder of the images; relative to where the command runs.
        train: sub-folder, or table, of training images, in ``root``.
        val: sub-folder, or table, of validation images, in ``root``; ``null`` sets ``val_fraction`` of the training
            images aside.
        val_fraction: used if ``val`` is ``null``.
        path_column: of a table.
        label_column: of a table.
        label_separator: between several labels of a picture in a table, which makes the task multi-label.
        max_side_px: shrink larger pictures on reading; ``null`` keeps them.
        preprocess: prepare every picture after reading: ``reference_448`` makes a square of 448 pixels of it, as the
            reference implementation does for evaluation; ``null`` keeps its shape.
        augment: random changes of training images.
        digits: the made task.
    """

    kind: Literal["folder", "table", "digits"] = "folder"
    root: str = "data"
    train: str = "train"
    val: str | None = "val"
    val_fraction: float = 0.2
    path_column: str = "path"
    label_column: str = "label"
    label_separator: str | None = None
    max_side_px: int | None = None
    preprocess: str | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    digits: DigitsConfig = field(default_factory=DigitsConfig)
