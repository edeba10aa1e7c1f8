"""What a folder of labelled pictures holds: how many of which class, of which sizes and kinds. Pixels are not read."""

from __future__ import annotations

import os
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tnet.data.config import DataConfig
from tnet.data.folder import LabelledImages
from tnet.data.loading import open_data
from tnet.errors import ConfigError, DataError, ImageError, SlowImageWarning
from tnet.scenes.file import FileScene
from tnet.scenes.images import DEFAULT_MAX_PIXELS, open_picture, read_header, unreadable
from tnet.scenes.reading import ReadOptions

# The pictures whose headers training reads too (tnet.data.loading.check_sizes): what is proposed must pass there.
_SIZES_READ = 500

_VAL_NAMES = ("val", "valid", "validation")
_TABLES = (".csv", ".parquet", ".pq")
_KNOWN_RANGE = ("uint8", "uint16", "bool")
# Of phones and cameras: left out of folders without a word, since most files of other kinds are no pictures.
_NOT_READ = {".heic", ".heif", ".hif", ".jxl", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".psd"}
_GREY_MODES = ("1", "L", "LA", "La", "I")


@dataclass(frozen=True)
class PictureFacts:
    """What the header of one picture says.

    Attributes:
        path: of the picture.
        size_hw: height and width, upright, pixels.
        is_lazy: it is read where it is looked at, rather than decoded.
        is_flat: it is read so, but any look costs decoding all of it.
        is_grey: it has one channel, alpha aside.
        bands: channels that are neither grey nor colours; 0 if there are none.
        has_no_up: a slide or map, which has no side that is up.
    """

    path: Path
    size_hw: tuple[int, int]
    is_lazy: bool = False
    is_flat: bool = False
    is_grey: bool = False
    bands: int = 0
    has_no_up: bool = False

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.size_hw[0] * self.size_hw[1]


@dataclass(frozen=True)
class Survey:
    """What a set of labelled pictures holds.

    Attributes:
        data: where they are, as a recipe says it.
        classes: names, by index.
        multilabel: whether a picture can have several labels.
        train_counts: training pictures of each class.
        train_images: training pictures.
        val_images: validation pictures.
        pictures: those whose headers were read, training pictures first; at least one.
        left_out: how many files there are beside the pictures of class folders that are pictures of kinds that are not
            read, by ending.
    """

    data: DataConfig
    classes: tuple[str, ...]
    multilabel: bool
    train_counts: tuple[int, ...]
    train_images: int
    val_images: int
    pictures: tuple[PictureFacts, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def place(self) -> str:
        """Where the pictures are, as a person says it."""
        is_split = self.data.kind == "folder" and self.data.train == "train"
        return self.data.root if is_split else str(Path(self.data.root) / self.data.train)

    @property
    def median_hw(self) -> tuple[int, int]:
        """Median height and width, pixels."""
        heights, widths = zip(*(picture.size_hw for picture in self.pictures), strict=True)
        return round(statistics.median(heights)), round(statistics.median(widths))

    @property
    def smallest(self) -> PictureFacts:
        """The picture with the shortest side."""
        return min(self.pictures, key=lambda picture: min(picture.size_hw))

    def longer_side_px(self, share: float) -> int:
        """The longer side below which this share of the pictures is; 0 is the smallest, 1 the largest."""
        sides = sorted(max(picture.size_hw) for picture in self.pictures)
        return sides[round(share * (len(sides) - 1))]

    def count(self, fact: str) -> int:
        """Pictures, of those whose headers were read, of which a fact holds."""
        return sum(bool(getattr(picture, fact)) for picture in self.pictures)


def find_layout(path: str | Path) -> DataConfig:
    """How the pictures of a folder are laid out.

    Args:
        path: a folder that holds ``train/<class>/`` (and ``val/<class>/``), or ``train.csv`` (and ``val.csv``), or
            one folder a class; or a table.

    Returns:
        The data section of a recipe; ``val`` is ``None`` where no validation pictures are apart.

    Raises:
        DataError: there is no such folder, or it holds neither folders nor a table.
    """
    path = Path(path)
    if path.suffix.lower() in _TABLES and not path.is_dir():
        val = path.with_name(path.name.replace("train", "val"))
        return DataConfig(
            kind="table",
            root=str(path.parent),
            train=path.name,
            val=val.name if val != path and val.is_file() else None,
        )
    if not path.is_dir():
        state = "is a file that is no table (.csv, .parquet)" if path.exists() else "does not exist"
        raise DataError(f"{path} {state}; name a folder of class folders, or a table of paths and labels.")
    if (path / "train").is_dir():
        val_folder = next((name for name in _VAL_NAMES if (path / name).is_dir()), None)
        return DataConfig(root=str(path), train="train", val=val_folder)
    for ending in _TABLES:
        if (path / f"train{ending}").is_file():
            return find_layout(path / f"train{ending}")
    apart = next((name for name in (*_VAL_NAMES, "test") if (path / name).is_dir()), None)
    if apart is not None:
        raise DataError(
            f"{path} has a folder {apart} but none called train; call the folder of training pictures {path / 'train'}."
        )
    if not path.name:  # such as "." and "..", whose folder has a name all the same
        path = path.resolve()
    return DataConfig(root=str(path.parent), train=path.name, val=None)


def survey(data: DataConfig) -> Survey:
    """Look at the labels of all pictures and at the headers of up to a thousand of each split.

    The same pictures every time: every n-th, in order of their paths.

    Args:
        data: folders or tables of pictures.

    Raises:
        DataError: missing, empty or inconsistent data; a single class; or pictures that cannot be read.
    """
    train, val = _open(data)
    classes, multilabel = train.classes, train.multilabel
    targets = train.targets.long()
    counts = targets.sum(dim=0) if multilabel else torch.bincount(targets, minlength=len(classes))
    reading = train.reading
    paths = [path for part in (train, val) for path in part.paths[:: max(1, len(part) // _SIZES_READ)]]
    pictures = _read_headers(paths, reading)
    return Survey(
        data=data,
        classes=tuple(classes),
        multilabel=multilabel,
        train_counts=tuple(counts.tolist()),
        train_images=len(train),
        val_images=len(val),
        pictures=tuple(pictures),
        left_out=_left_out(data),
    )


def _left_out(data: DataConfig) -> tuple[tuple[str, int], ...]:
    """Pictures of kinds that are not read, in folders; what a table lists is all meant to be read."""
    parts = [part for part in (data.train, data.val) if part is not None and data.kind == "folder"]
    files = (name for part in parts for _, _, names in os.walk(Path(data.root) / part) for name in names)
    endings = Counter(Path(name).suffix.lower() for name in files if not name.startswith("."))
    return tuple(sorted((ending, count) for ending, count in endings.items() if ending in _NOT_READ))


def _open(data: DataConfig) -> tuple[LabelledImages, LabelledImages]:
    if data.kind == "digits":
        raise ConfigError("data.kind is digits, which are made, not looked at; give folder or table")
    train, val = open_data(data, channels=3, seed=0)
    assert isinstance(train, LabelledImages) and isinstance(val, LabelledImages)
    return train, val


def _read_headers(paths: Sequence[Path], reading: ReadOptions) -> list[PictureFacts]:
    pictures, errors = [], []
    for path in paths:
        try:
            # Said once for all pictures, by who asked for the survey.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SlowImageWarning)
                pictures.append(_facts(path, reading))
        except ImageError as error:
            errors.append(str(error))
    if errors:
        raise DataError(
            f"{len(errors)} of the {len(paths)} pictures that were looked at cannot be read; mend or remove them, the "
            f"first is: {errors[0]}"
        )
    return pictures


def _facts(path: Path, reading: ReadOptions) -> PictureFacts:
    if not reading.is_lazy(path):
        with open_picture(path) as stream:
            mode = read_header(stream, path, DEFAULT_MAX_PIXELS).mode
        is_grey = mode in _GREY_MODES or mode.startswith("I;16")
        return PictureFacts(path, reading.size_hw(path), is_grey=is_grey)
    scene = FileScene(path, reading.scene)
    try:
        info = scene.info
        if info.dtype.name not in _KNOWN_RANGE and reading.scene.value_range is None:
            raise unreadable(
                path,
                f"it holds {info.dtype.name} values, of which it is not known which is black and which is white",
                "convert it to 8 or 16 bits, or write a recipe by hand, with data.scene.value_range: [black, white]",
            )
        has_bands = info.color == "bands" and reading.scene.bands is None
        return PictureFacts(
            path,
            scene.size_hw,
            is_lazy=True,
            is_flat=info.tile_hw is None,
            is_grey=info.color == "grey",
            bands=info.channels - info.has_alpha if has_bands else 0,
            has_no_up=info.georeference is not None or any(name.startswith("openslide.") for name in info.properties),
        )
    finally:
        scene.close()
