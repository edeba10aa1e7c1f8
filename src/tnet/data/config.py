"""The data section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tnet.config import check_least, check_most
from tnet.data.augment import AugmentConfig
from tnet.data.digits import DigitsConfig
from tnet.data.groups import check_pattern
from tnet.data.published import PUBLISHED
from tnet.errors import ConfigError
from tnet.scenes.file import SceneOptions
from tnet.scenes.reading import LAZY_ABOVE_PX, ReadMode

_GENERAL_KINDS = ("folder", "table", "digits")
_MAX_CONTEXT = 100.0


@dataclass(frozen=True)
class DataConfig:
    """Where images come from, and how they are read.

    Attributes:
        kind: ``folder`` (root/train/class/image), ``table`` (CSV or Parquet), ``digits`` (synthetic), or a published
            dataset as distributed: ``imagenet``, ``fmow``, ``cub`` (CUB-200-2011) or ``nabirds``.
        root: folder of the images, relative to the working directory.
        train: subfolder or table of the training images, in ``root``; for a published dataset, the split.
        val: subfolder or table of the validation images, in ``root``; for a published dataset, the split (``cub`` and
            ``nabirds`` have ``test``); ``null`` splits ``val_fraction`` off the training images.
        val_fraction: share of the training images that ``val: null`` splits off, by a hash of each path, so that images
            stay on their side when others are added.
        path_column: column of a table.
        label_column: column of a table.
        group_column: column of a table with what must not be torn apart by ``val: null`` and by folds, such as the
            patient, film or place of an image; ``null`` for none.
        group_pattern: the same from paths: ``GROUP_*`` takes what stands before the first ``_`` of a file's name,
            ``GROUP/*`` its folder. ``null`` for none.
        label_separator: separates several labels of an image in a table, which makes the task multi-label.
        boxes: use of the annotated boxes of a published dataset: ``none``; ``cover``, random crops respect them; or
            ``crop``, each box is a sample.
        box_context: how much wider and taller than its box such a sample is, as a share of the box's sides; ``null``
            for the rule of the published fMoW baseline, which gives small boxes more.
        max_side_px: downscale images, antialiased, to this longer side, which decodes them; ``null`` keeps their size.
            With ``boxes: crop`` the crops are downscaled.
        max_short_side_px: the same for the shorter side, as published for fMoW; both may be given.
        read: ``memory`` decodes whole images; ``lazy`` reads only the regions that are seen, from files of any size and
            format; ``auto`` reads images of more than ``lazy_above_px`` pixels, slides and OME-Zarr lazily.
        lazy_above_px: width x height above which ``auto`` reads lazily.
        overview_px: side of an in-memory copy of each lazily read image, which serves the first look of later epochs;
            ``null`` for two to four times the model's ``base_px`` in training, as crops and rotation require, and none
            in evaluation; 0 for none. Glimpses served from it are averages of averages.
        overview_folder: folder that keeps these copies between runs; ``null`` for none.
        unreadable: what training does with an image that cannot be opened or decoded: ``raise`` ends it; ``skip`` takes
            the next image instead, in validation none, and lists it in ``unreadable.csv``.
        unreadable_cap: share of such images, 0 to 1, above which training ends all the same.
        scene: options of lazily read files: bands, range of values, reader.
        preprocess: fixed preparation of every image: ``reference_448`` makes a square of 448 pixels, as the reference
            implementation does for evaluation; ``null`` keeps the shape.
        augment: random augmentation of the training images.
        digits: the synthetic digits.
    """

    kind: str = "folder"
    root: str = "data"
    train: str = "train"
    val: str | None = "val"
    val_fraction: float = 0.2
    path_column: str = "path"
    label_column: str = "label"
    group_column: str | None = None
    group_pattern: str | None = None
    label_separator: str | None = None
    boxes: Literal["none", "cover", "crop"] = "none"
    box_context: float | None = None
    max_side_px: int | None = None
    max_short_side_px: int | None = None
    read: ReadMode = "auto"
    lazy_above_px: int = LAZY_ABOVE_PX
    overview_px: int | None = None
    overview_folder: str | None = None
    unreadable: Literal["raise", "skip"] = "raise"
    unreadable_cap: float = 0.01
    scene: SceneOptions = field(default_factory=SceneOptions)
    preprocess: str | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    digits: DigitsConfig = field(default_factory=DigitsConfig)

    def __post_init__(self) -> None:
        if self.kind not in (*_GENERAL_KINDS, *PUBLISHED):
            remedy = f"give one of {', '.join(_GENERAL_KINDS)}, or a published dataset: {', '.join(PUBLISHED)}"
            raise ConfigError(f"data.kind is {self.kind!r}; {remedy}")
        for name in ("max_side_px", "max_short_side_px", "preprocess"):
            if self.read == "lazy" and getattr(self, name) is not None:
                problem = f"data.{name} is {getattr(self, name)}, but lazily read images are not changed"
                raise ConfigError(f"{problem}; set it to null, or data.read to memory")
        if self.group_pattern is not None:
            check_pattern(self.group_pattern, "data.group_pattern")
        if self.group_column is not None and self.group_pattern is not None:
            problem = f"data.group_column is {self.group_column!r}, but data.group_pattern is given too"
            raise ConfigError(f"{problem}; use group_column for tables, or group_pattern for paths")
        if self.read == "lazy" and self.kind == "digits":
            raise ConfigError("data.read is lazy, but synthetic digits are not in files; set it to auto")
        if self.boxes != "none" and self.kind in _GENERAL_KINDS:
            problem = f"data.boxes is {self.boxes}, but images of kind {self.kind} have no boxes"
            raise ConfigError(f"{problem}; set it to none")
        if self.box_context is not None and not (self.boxes == "crop" and 0 <= self.box_context <= _MAX_CONTEXT):
            problem = f"data.box_context is {self.box_context} and data.boxes is {self.boxes}"
            raise ConfigError(f"{problem}; give 0 to {_MAX_CONTEXT:g} with data.boxes: crop, else null")
        check_most(
            self, "data.", {"unreadable_cap": 1, "overview_px": 2**14, "max_side_px": 2**24, "max_short_side_px": 2**24}
        )
        check_least(self, "data.", {"unreadable_cap": 0, "max_short_side_px": 1, "lazy_above_px": 0, "overview_px": 0})
