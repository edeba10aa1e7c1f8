"""The data section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tnet.data.augment import AugmentConfig
from tnet.data.digits import DigitsConfig
from tnet.data.published import PUBLISHED
from tnet.errors import ConfigError
from tnet.scenes.file import SceneOptions
from tnet.scenes.reading import LAZY_ABOVE_PX, ReadMode

_OWN_KINDS = ("folder", "table", "digits")
_MAX_CONTEXT = 100.0


@dataclass(frozen=True)
class DataConfig:
    """Where images come from.

    Attributes:
        kind: ``folder`` (root/train/class/picture), ``table`` (CSV or Parquet), ``digits`` (made on the fly), or a
            published data set as it was handed out: ``imagenet``, ``fmow``, ``cub`` (CUB-200-2011) or ``nabirds``.
        root: folder of the images; relative to where the command runs.
        train: sub-folder, or table, of training images, in ``root``; of a published data set the split.
        val: sub-folder, or table, of validation images, in ``root``; of a published data set the split (``cub`` and
            ``nabirds`` have ``test``); ``null`` sets ``val_fraction`` of the training images aside.
        val_fraction: used if ``val`` is ``null``.
        path_column: of a table.
        label_column: of a table.
        label_separator: between several labels of a picture in a table, which makes the task multi-label.
        boxes: what annotated boxes of a published data set are for: ``none``; ``cover``, random crops respect them; or
            ``crop``, each box is a picture of its own.
        box_context: how much wider and higher than its box such a picture is, as a share of the box's sides; ``null``
            for the rule that the fMoW baseline published, by which small boxes get more.
        max_side_px: shrink pictures, antialiased, so that the longer side has at most this many pixels; ``null`` keeps
            them. They are decoded for that. Where boxes are cropped to, it is the crops that are shrunk.
        max_short_side_px: the same of the shorter side, to which the publication shrank fMoW; both may be given.
        read: ``memory`` decodes each picture as a whole; ``lazy`` reads only what is looked at, of files of any size
            and every kind; ``auto`` reads lazily what has more than ``lazy_above_px`` pixels, slides and OME-Zarr.
        lazy_above_px: width x height above which ``auto`` reads lazily.
        overview_px: side of a copy, in memory, of each lazily read picture, which serves the first look of later
            epochs; ``null`` for two to four times the model's ``base_px`` in training, as crops and rotation need it,
            and none in evaluation; 0 for none. What it serves is an average of averages.
        overview_folder: folder that keeps these copies between runs; ``null`` for none.
        scene: how lazily read files are looked at: bands, range of values, reader.
        preprocess: prepare every picture after reading: ``reference_448`` makes a square of 448 pixels of it, as the
            reference implementation does for evaluation; ``null`` keeps its shape.
        augment: random changes of training images.
        digits: the made task.
    """

    kind: str = "folder"
    root: str = "data"
    train: str = "train"
    val: str | None = "val"
    val_fraction: float = 0.2
    path_column: str = "path"
    label_column: str = "label"
    label_separator: str | None = None
    boxes: Literal["none", "cover", "crop"] = "none"
    box_context: float | None = None
    max_side_px: int | None = None
    max_short_side_px: int | None = None
    read: ReadMode = "auto"
    lazy_above_px: int = LAZY_ABOVE_PX
    overview_px: int | None = None
    overview_folder: str | None = None
    scene: SceneOptions = field(default_factory=SceneOptions)
    preprocess: str | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    digits: DigitsConfig = field(default_factory=DigitsConfig)

    def __post_init__(self) -> None:
        if self.kind not in (*_OWN_KINDS, *PUBLISHED):
            raise ConfigError(
                f"data.kind is {self.kind!r}; give {', '.join(_OWN_KINDS)}, or a published dataset: "
                f"{', '.join(PUBLISHED)}"
            )
        for name in ("max_side_px", "max_short_side_px", "preprocess"):
            if self.read == "lazy" and getattr(self, name) is not None:
                raise ConfigError(
                    f"data.{name} is {getattr(self, name)}, but pictures that are read lazily are not changed; set it "
                    "to null, or data.read to memory"
                )
        if self.max_short_side_px is not None and self.max_short_side_px < 1:
            raise ConfigError(
                f"data.max_short_side_px is {self.max_short_side_px}; give at least 1 pixel, or null to keep the size"
            )
        if self.read == "lazy" and self.kind == "digits":
            raise ConfigError("data.read is lazy, but the made digits are not in files; set it to auto")
        if self.boxes != "none" and self.kind in _OWN_KINDS:
            raise ConfigError(f"data.boxes is {self.boxes}, but images of kind {self.kind} have none; set it to none")
        if self.box_context is not None and not (self.boxes == "crop" and 0 <= self.box_context <= _MAX_CONTEXT):
            raise ConfigError(
                f"data.box_context is {self.box_context} where data.boxes is {self.boxes}; give 0 to "
                f"{_MAX_CONTEXT:g} where boxes are cropped to, else null"
            )
        for name in ("lazy_above_px", "overview_px"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; give 0 or more")
