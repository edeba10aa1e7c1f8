"""The survey of a folder of labelled images: classes, sizes and formats. Reads headers, not pixels."""

from __future__ import annotations

import os
import statistics
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from tnet.data.config import DataConfig
from tnet.data.folder import LabelledImages
from tnet.data.loading import open_data
from tnet.data.repeats import find_repeats
from tnet.errors import ConfigError, DataError, ImageError, SlowImageWarning
from tnet.remote import check_local
from tnet.scenes.decode import DEFAULT_MAX_PIXELS, read_header
from tnet.scenes.file import FileScene
from tnet.scenes.guard import open_file, unreadable
from tnet.scenes.reading import ReadOptions

# The images whose headers training reads too (tnet.data.loading.check_sizes): a proposal must pass there.
_HEADERS_PER_SPLIT = 500

_VAL_NAMES = ("val", "valid", "validation")
_TABLES = (".csv", ".parquet", ".pq")
_DTYPES_WITH_RANGE = ("uint8", "uint16", "bool")
# Formats of phones and cameras, which folders skip silently, as most files in other formats are not images.
_UNSUPPORTED = {
    ".heic",
    ".heif",
    ".hif",
    ".jxl",
    ".dng",
    ".raw",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".rw2",
    ".psd",
}
_GREY_MODES = ("1", "L", "LA", "La", "I")


@dataclass(frozen=True)
class ImageFacts:
    """The header of one image."""

    path: Path
    size_hw: tuple[int, int]  # upright, pixels
    is_lazy: bool = False  # only the regions that are seen are read
    is_flat: bool = False  # lazy, but without tiles, so that any glimpse decodes the whole image
    is_grey: bool = False  # one channel besides alpha
    bands: int = 0  # number of channels that are neither grey nor colours
    has_no_up: bool = False  # a slide or map, which can be turned


@dataclass(frozen=True)
class Survey:
    """A set of labelled images."""

    data: DataConfig  # section of a recipe for the images
    classes: tuple[str, ...]
    multilabel: bool
    train_counts: tuple[int, ...]  # training images per class
    train_images: int
    val_images: int
    images: tuple[ImageFacts, ...]  # the images whose headers were read, training images first; at least one
    left_out: tuple[tuple[str, int], ...] = ()  # suffixes and counts of files in unsupported image formats
    repeats: tuple[str, ...] = ()  # sentences about images that occur twice

    @property
    def place(self) -> str:
        """Path of the images, as the user gave it."""
        is_split = self.data.kind == "folder" and self.data.train == "train"
        return self.data.root if is_split else str(Path(self.data.root) / self.data.train)

    @property
    def median_hw(self) -> tuple[int, int]:
        """Median height and width, pixels."""
        heights, widths = zip(*(image.size_hw for image in self.images), strict=True)
        return round(statistics.median(heights)), round(statistics.median(widths))

    @property
    def smallest(self) -> ImageFacts:
        """The image with the shortest side."""
        return min(self.images, key=lambda image: min(image.size_hw))

    def longer_side_px(self, share: float) -> int:
        """Return a quantile of the longer sides: 0 for the smallest, 1 for the largest."""
        sides = sorted(max(image.size_hw) for image in self.images)
        return sides[round(share * (len(sides) - 1))]

    def count(self, fact: str) -> int:
        """Return the number of images with a fact, of those whose headers were read."""
        return sum(bool(getattr(image, fact)) for image in self.images)


def find_layout(path: str | Path) -> DataConfig:
    """Return the data section of a recipe for a table or folder; ``val`` is ``None`` without validation images.

    A folder holds ``train/CLASS/`` (and ``val/CLASS/``), ``train.csv`` (and ``val.csv``), or one folder per class.
    """
    check_local(path)
    path = Path(path)
    if path.suffix.lower() in _TABLES and not path.is_dir():
        val = path.with_name(path.name.replace("train", "val"))
        has_val = val != path and val.is_file()
        return DataConfig(kind="table", root=str(path.parent), train=path.name, val=val.name if has_val else None)
    if not path.is_dir():
        problem = "is not a table (.csv, .parquet)" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}; give a folder of class folders, or a table of paths and labels")
    if (path / "train").is_dir():
        val_folder = next((name for name in _VAL_NAMES if (path / name).is_dir()), None)
        return DataConfig(root=str(path), train="train", val=val_folder)
    for suffix in _TABLES:
        if (path / f"train{suffix}").is_file():
            return find_layout(path / f"train{suffix}")
    other = next((name for name in (*_VAL_NAMES, "test") if (path / name).is_dir()), None)
    if other is not None:
        raise DataError(f"{path} has a folder {other!r} but no 'train'; put the training images in {path / 'train'}")
    if not path.name:  # "." and "..", whose folders have names
        path = path.resolve()
    return DataConfig(root=str(path.parent), train=path.name, val=None)


def survey_images(data: DataConfig) -> Survey:
    """Read all labels, and the header of every n-th image in order of paths, up to a thousand per split."""
    if data.kind == "digits":
        raise ConfigError("data.kind is digits, which are synthetic; give folder or table")
    train, val = open_data(data, channels=3, seed=0)
    assert isinstance(train, LabelledImages) and isinstance(val, LabelledImages)
    targets = train.targets.long()
    counts = targets.sum(dim=0) if train.multilabel else torch.bincount(targets, minlength=len(train.classes))
    paths = [path for part in (train, val) for path in part.paths[:: max(1, len(part) // _HEADERS_PER_SPLIT)]]
    images, errors = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowImageWarning)  # one warning about all images follows from the survey
        for path in paths:
            try:
                images.append(_read_facts(path, train.reading))
            except ImageError as error:
                errors.append(str(error))
    if errors:
        problem = f"{len(errors)} of {len(paths)} images cannot be read"
        raise DataError(f"{problem}; repair or remove them, starting with: {errors[0]}")
    left_out, repeats = _count_unsupported(data), tuple(find_repeats(train, val))
    labels = tuple(train.classes), train.multilabel, tuple(counts.tolist())
    return Survey(data, *labels, len(train), len(val), tuple(images), left_out, repeats)


def _count_unsupported(data: DataConfig) -> tuple[tuple[str, int], ...]:
    """Count files in class folders by unsupported suffix; unsupported files in a table are errors instead."""
    parts = [part for part in (data.train, data.val) if part is not None and data.kind == "folder"]
    files = (name for part in parts for _, _, names in os.walk(Path(data.root) / part) for name in names)
    suffixes = Counter(Path(name).suffix.lower() for name in files if not name.startswith("."))
    return tuple(sorted((suffix, count) for suffix, count in suffixes.items() if suffix in _UNSUPPORTED))


def _read_facts(path: Path, reading: ReadOptions) -> ImageFacts:
    if not reading.is_lazy(path):
        with open_file(path) as stream:
            mode = read_header(stream, path, DEFAULT_MAX_PIXELS).mode
        return ImageFacts(path, reading.size_hw(path), is_grey=mode in _GREY_MODES or mode.startswith("I;16"))
    scene = FileScene(path, reading.scene)
    try:
        info = scene.info
        if info.dtype.name not in _DTYPES_WITH_RANGE and reading.scene.value_range is None:
            remedy = "convert it to 8 or 16 bits, or set data.scene.value_range: [black, white] in a recipe"
            raise unreadable(path, f"it holds {info.dtype.name} values, whose range is unknown", remedy)
        has_bands = info.color == "bands" and reading.scene.bands is None
        bands = info.channels - info.has_alpha if has_bands else 0
        no_up = info.georeference is not None or any(name.startswith("openslide.") for name in info.properties)
        is_flat, is_grey = info.tile_hw is None, info.color == "grey"
        return ImageFacts(path, scene.size_hw, True, is_flat, is_grey, bands, no_up)
    finally:
        scene.close()
