"""From a recipe's data section to datasets and data loaders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tnet.data.annotated import AnnotatedImages
from tnet.data.augment import Augment, AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.digits import MegapixelDigits
from tnet.data.folder import ImageFolder, ImageOptions, LabelledImages, check_split_folders
from tnet.data.groups import group_in_path
from tnet.data.published import PUBLISHED
from tnet.data.readable import Readable, collate_readable
from tnet.data.sample import Sample, collate
from tnet.data.table import ImageTable, read_columns
from tnet.data.transforms import ReferenceEval, named_transform
from tnet.data.workers import image_loader
from tnet.errors import ConfigError, DataError, ImageError, ImageSizeError
from tnet.remote import check_local
from tnet.scenes.decode import shrunk_size
from tnet.scenes.reading import ReadOptions

_SIZES_CHECKED = 500


@runtime_checkable
class LabelledData(Protocol):
    """A dataset of samples with known classes."""

    classes: list[str]
    multilabel: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_data(
    config: DataConfig, channels: int, seed: int, *, base_px: int | None = None
) -> tuple[LabelledData, LabelledData]:
    """Open the training and validation images of a recipe.

    Args:
        config: the data section.
        channels: number of channels: 1 or 3 (1 for synthetic digits); any number if all images are read lazily.
        seed: seed of the augmentation.
        base_px: side of a glimpse in training, which sets the default size of overviews; None for no overviews by
            default.

    Raises:
        DataError: the data are missing, empty or inconsistent, or have a single class.
        ConfigError: ``channels`` does not fit the data.
    """
    augment = None if config.augment == AugmentConfig() else Augment(config.augment)
    if config.kind == "digits":
        if channels != 1:
            raise ConfigError(f"synthetic digits are grey, but model.in_channels is {channels}; set it to 1")
        if not config.digits.images_train or not config.digits.images_val:
            counts = f"images_train is {config.digits.images_train} and images_val {config.digits.images_val}"
            raise ConfigError(f"data.digits.{counts}; give at least 1 of each for training")
        train_digits = MegapixelDigits(config.digits, "train", augment=augment, seed=seed)
        return train_digits, MegapixelDigits(config.digits, "val")
    if channels not in (1, 3) and config.read != "lazy":
        problem = f"images are decoded with 1 or 3 channels, but model.in_channels is {channels}"
        raise ConfigError(f"{problem}; set it to 1 or 3, or data.read to lazy (--read lazy)")
    colours = config.augment.brightness, config.augment.contrast, config.augment.saturation, config.augment.hue
    if channels not in (1, 3) and any(colours):
        problem = f"data.augment changes colours, but images have {channels} channels (model.in_channels)"
        raise ConfigError(f"{problem}; set brightness, contrast, saturation and hue to 0")
    train, val = _open_images(config, augment, read_options(config, channels, base_px=base_px), seed)
    if config.augment.resize_px is not None:
        # Crops are taken from the stored image, and resized by the augmentation.
        train.reading = replace(train.reading, prepare=None)
    if len(train.classes) < 2 and not train.multilabel:
        problem = f"{Path(config.root) / config.train} has a single class, {train.classes[0]!r}"
        raise DataError(f"{problem}; give at least two, each with its own folder or label")
    return train, val


def open_labelled(config: DataConfig) -> LabelledImages:
    """List all labelled images of ``config.train``, in files of kind ``folder`` or ``table``, without a split.

    Raises:
        DataError: the images are missing or inconsistent.
        ConfigError: the images are of another kind.
    """
    if config.kind not in ("folder", "table"):
        problem = f"data.kind is {config.kind!r}, but folds are made of images in class folders or tables"
        raise ConfigError(f"{problem}; give those")
    return _open_images(replace(config, val=config.train), None, ReadOptions(), 0)[0]


def open_split(config: DataConfig, channels: int, seed: int, split: Literal["val", "test"]) -> LabelledData:
    """Open the validation or test images (see :func:`name_of_test_images`) of a recipe.

    Raises:
        DataError: the data are missing, empty or inconsistent.
        ConfigError: ``channels`` does not fit the data, or a published dataset has no such split.
    """
    if split == "test" and config.kind != "digits":
        config = replace(config, val=name_of_test_images(config))
        folder = Path(config.root) / str(config.val)
        if config.kind == "folder" and not folder.is_dir():
            remedy = "create it, with the class folders of the training images, or use the validation images"
            raise DataError(f"the folder of test images {folder} is missing; {remedy}")
    val = open_data(config, channels, seed)[1]
    return MegapixelDigits(config.digits, "test") if split == "test" and config.kind == "digits" else val


class _Part:
    """Some images of labelled data."""

    def __init__(self, data: LabelledData, indices: Sequence[int]) -> None:
        self.classes, self.multilabel = data.classes, data.multilabel
        self._data, self._indices = data, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._data[self._indices[index]]


def evenly(data: LabelledData, count: int) -> LabelledData:
    """Return ``count`` images spread evenly over labelled data, which may be sorted by class."""
    return _Part(data, [index * len(data) // count for index in range(min(count, len(data)))])


def number_classes_as(names: Sequence[str], data: LabelledData) -> None:
    """Number the classes of images as a model does, if the model has the same ones in another order."""
    if isinstance(data, LabelledImages) and list(names) != data.classes and set(names) == set(data.classes):
        data.order_classes(names)


def name_of_test_images(config: DataConfig) -> str:
    """Return the folder, table or split of the test images: ``test`` for ``train``, ``test.csv`` for ``train.csv``."""
    train = Path(config.train)
    return "test" if config.kind in PUBLISHED else str(train.with_name("test").with_suffix(train.suffix))


def read_options(config: DataConfig, channels: int, *, base_px: int | None = None) -> ReadOptions:
    """Return how a recipe reads images; arguments: see :func:`open_data`.

    Raises:
        ConfigError: options exclude each other, or ``data.preprocess`` is unknown.
    """
    changes = config.max_side_px, config.max_short_side_px, config.preprocess  # which need decoded images
    overview_px = config.overview_px
    if overview_px is None:
        overview_px = _overview_px(base_px, config.augment) if base_px else 0
    return ReadOptions(
        mode="memory" if any(change is not None for change in changes) else config.read,
        lazy_above_px=config.lazy_above_px, overview_px=overview_px,
        overview_folder=Path(config.overview_folder) if config.overview_folder else None,
        scene=config.scene, channels=channels,
        max_side_px=config.max_side_px, max_short_side_px=config.max_short_side_px,
        prepare=None if config.preprocess is None else named_transform(config.preprocess),
    )  # fmt: skip


def _overview_px(base_px: int, augment: AugmentConfig) -> int:
    """Return a size that serves the first look at any crop, two to four times what the whole image needs."""
    area, (low, high) = augment.crop_area[0], augment.crop_aspect
    smallest_side = max(area, min(math.sqrt(area / high), math.sqrt(area * low)))
    finer = 3 if augment.rotation else 1  # rotated pixels are sampled at a finer resolution, and averaged
    return math.ceil(base_px * min(4.0, max(2.0, finer / smallest_side)))


def _open_images(
    config: DataConfig, augment: Augment | None, reading: ReadOptions, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    root = Path(config.root)
    for given in (config.root, config.train, config.val or ""):
        check_local(given)

    def open_one(name: str, classes: list[str] | None = None, augment: Augment | None = None) -> LabelledImages:
        images = read_one(name, classes, augment)
        images.groups = _read_groups(config, images, root / name)
        return images

    def read_one(name: str, classes: list[str] | None, augment: Augment | None) -> LabelledImages:
        options: ImageOptions = {"reading": reading, "augment": augment, "seed": seed}
        if config.kind == "folder":
            return ImageFolder(root / name, classes=classes, **options)
        if config.kind == "table":
            return ImageTable(
                root / name, path_column=config.path_column, label_column=config.label_column, image_root=root,
                classes=classes, label_separator=config.label_separator, **options,
            )  # fmt: skip
        return PUBLISHED[config.kind].read(root, name, **options)

    if config.kind == "folder":
        check_split_folders(root, config.train, config.val)
    train = open_one(config.train, augment=augment)
    if config.val is None:
        folder = root / config.train if config.kind == "folder" else root
        train, val = train.split_off(config.val_fraction, root=folder)
    else:
        val = open_one(config.val, train.classes)
    if isinstance(train, AnnotatedImages) and isinstance(val, AnnotatedImages):
        if config.boxes == "crop":
            return train.cropped_to_boxes(config.box_context), val.cropped_to_boxes(config.box_context)
        if config.boxes == "cover":
            train.cover_boxes()
    return train, val


def _read_groups(config: DataConfig, images: LabelledImages, place: Path) -> list[str] | None:
    """Return the group of each image, from a column of its table or from its path; ``None`` if there are none."""
    if config.group_pattern is not None:
        return [group_in_path(path, config.group_pattern) for path in images.paths]
    if config.group_column is None:
        return None
    if config.kind != "table":
        problem = f"data.group_column is {config.group_column!r}, but data.kind is {config.kind}"
        raise ConfigError(f"{problem}; use group_column for tables, or group_pattern for paths")
    groups = [group.strip() for group in read_columns(place, [config.group_column])[config.group_column]]
    if "" in groups:
        problem = f"the table {place} has no {config.group_column!r} in row {groups.index('') + 1}"
        raise DataError(f"{problem}; give each image a group")
    return groups


def check_sizes(data: LabelledData, base_px: int) -> None:
    """Raise an :class:`ImageSizeError` if an image file is smaller than a glimpse, by the headers of up to 500 of them.

    Even the first glimpse would enlarge such an image, and closer looks cannot show more.
    """
    if not isinstance(data, LabelledImages):
        return
    reading, augment = data.reading, data.augment
    for path in data.paths[:: max(1, len(data.paths) // _SIZES_CHECKED)]:
        try:
            height, width = reading.size_hw(path)
        except ImageError:
            if data.most_unreadable:
                continue
            raise
        if isinstance(reading.prepare, ReferenceEval):
            height = width = reading.prepare.size_px
        elif augment is not None and augment.config.resize_px is not None:
            height = width = augment.config.resize_px
        shown_hw = shrunk_size((height, width), reading.max_side_px, reading.max_short_side_px)
        if min(shown_hw) < base_px:
            downscaled = "" if shown_hw == (height, width) else f", downscaled to {shown_hw[1]} x {shown_hw[0]} px"
            problem = f"image {path} has {width} x {height} px{downscaled}, below the base resolution of {base_px} px"
            remedy = "lower model.base_px, raise data.max_side_px or data.max_short_side_px, or remove it"
            raise ImageSizeError(f"{problem}; {remedy}")


class Share(NamedTuple):
    """Which of several processes that train together this is."""

    rank: int = 0
    processes: int = 1


ALONE = Share()


class EpochSampler(Sampler[int]):
    """Indices of the images of one epoch, in an order that depends on seed and epoch alone.

    Epochs shorter than the data continue through one shuffled pass after another, so no image is repeated before all
    others have been used. Several processes take whole batches in turn, so that together they take the steps of one
    process with a batch as large as all of theirs.
    """

    def __init__(
        self,
        images: int,
        per_epoch: int,
        seed: int,
        epoch: int,
        batch: int = 1,
        share: Share = ALONE,
        classes: Int[Tensor, " images"] | None = None,
    ) -> None:
        self.images, self.per_epoch, self.seed, self.epoch = images, per_epoch, seed, epoch
        self.classes = classes  # draws as many images of each, with replacement
        self.batch, self.share = batch, share

    def __len__(self) -> int:
        step = self.batch * self.share.processes
        return self.per_epoch if self.share.processes == 1 else self.per_epoch // step * self.batch

    def __iter__(self) -> Iterator[int]:
        rank, processes = self.share
        if processes == 1:
            return self._order()
        kept = islice(self._order(), len(self) * processes)
        return (image for place, image in enumerate(kept) if place // self.batch % processes == rank)

    def _order(self) -> Iterator[int]:
        if self.classes is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            shares = 1 / self.classes.bincount().clamp(min=1).double()[self.classes]
            yield from torch.multinomial(shares, self.per_epoch, replacement=True, generator=generator).tolist()
            return
        start = self.epoch * self.per_epoch
        done = 0
        while done < self.per_epoch:
            lap, offset = divmod(start + done, self.images)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + lap)
            shuffled = torch.randperm(self.images, generator=generator)
            part = shuffled[offset : offset + self.per_epoch - done].tolist()
            yield from part
            done += len(part)


def train_loader(
    data: LabelledData,
    batch_size: int,
    workers: int,
    seed: int,
    epoch: int,
    per_epoch: int | None,
    share: Share = ALONE,
    *,
    balanced: bool = False,
) -> DataLoader[Any]:
    """Return a loader of one training epoch; batches do not depend on the number of workers.

    Raises:
        ConfigError: ``balanced`` is asked for, but images have no single class.
    """
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)
    classes = getattr(data, "targets", None) if balanced else None
    if balanced and (not isinstance(classes, Tensor) or classes.ndim != 1):
        problem = "train.balance is classes, but the images are synthetic or have several labels"
        raise ConfigError(f"{problem}; set it to none")
    sampler = EpochSampler(len(data), per_epoch or len(data), seed, epoch, batch_size, share, classes)
    # Batch norm cannot normalise a last batch of one image.
    return _loader(data, batch_size, workers, replace=True, sampler=sampler, drop_last=len(sampler) > batch_size)


def eval_loader(
    data: LabelledData, batch_size: int, workers: int, share: Share = ALONE, indices: Sequence[int] | None = None
) -> DataLoader[Any]:
    """Return a loader of all images (or those of ``indices``) in order, or of every n-th for one of n processes."""
    chosen = range(len(data)) if indices is None else indices
    return _loader(data, batch_size, workers, replace=False, sampler=chosen[share.rank :: share.processes])


def _loader(data: LabelledData, batch_size: int, workers: int, *, replace: bool, **options: Any) -> DataLoader[Any]:
    options |= {"collate_fn": collate, "pin_memory": torch.cuda.is_available()}
    if isinstance(data, LabelledImages) and data.most_unreadable:
        options["collate_fn"] = collate_readable
        return image_loader(Readable(data, replace=replace), batch_size, workers, **options)
    return image_loader(data, batch_size, workers, **options)
