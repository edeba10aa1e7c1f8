"""From a recipe's data section to data sets and loaders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from tnet.data.annotated import AnnotatedImages
from tnet.data.augment import Augment, AugmentConfig
from tnet.data.config import DataConfig
from tnet.data.digits import MegapixelDigits
from tnet.data.folder import LabelledImages, open_split_folders
from tnet.data.published import PUBLISHED
from tnet.data.sample import Sample, collate
from tnet.data.table import ImageTable
from tnet.data.transforms import named_transform
from tnet.errors import ConfigError, DataError, ImageError
from tnet.scenes.images import shrunk_size
from tnet.scenes.reading import Reading

_SIZES_CHECKED = 500


@runtime_checkable
class LabelledData(Protocol):
    """A data set of samples that knows its classes."""

    classes: list[str]
    multilabel: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_data(
    config: DataConfig, channels: int, seed: int, *, base_px: int | None = None
) -> tuple[LabelledData, LabelledData]:
    """Open the training and validation images of a recipe.

    Args:
        config: where they come from.
        channels: of the images handed out: 1 or 3 (1 for the made task); any number where all are read lazily.
        seed: of the augmentation.
        base_px: side of a glimpse of the model that is trained, by which overviews are made as large as they need to
            be. None are kept if it is ``None``, unless the configuration asks for them.

    Raises:
        DataError: missing, empty or inconsistent data; or a single class, which each picture has.
        ConfigError: channels that the data cannot have.
    """
    if config.kind == "digits":
        if channels != 1:
            raise ConfigError(f"the made digits are grey but model.in_channels is {channels}; set it to 1")
        if not config.digits.images_train or not config.digits.images_val:
            raise ConfigError(
                f"data.digits.images_train is {config.digits.images_train} and images_val {config.digits.images_val}; "
                "training needs at least 1 of each"
            )
        return MegapixelDigits(config.digits, "train"), MegapixelDigits(config.digits, "val")
    if channels not in (1, 3) and config.read != "lazy":
        raise ConfigError(f"pictures are read with 1 or 3 channels but model.in_channels is {channels}; set 1 or 3")
    planes: Literal[1, 3] = 1 if channels == 1 else 3
    colours = config.augment.brightness, config.augment.contrast, config.augment.saturation, config.augment.hue
    if channels not in (1, 3) and any(colours):
        raise ConfigError(
            f"data.augment changes colours, which images of {channels} channels (model.in_channels) have not; set "
            "brightness, contrast, saturation and hue to 0"
        )
    augment = Augment(config.augment) if config.augment != AugmentConfig() else None
    train, val = _open_pictures(config, planes, augment, seed)
    if len(train.classes) < 2 and not train.multilabel:
        raise DataError(
            f"There is a single class, '{train.classes[0]}', in {Path(config.root) / config.train}; there must be two "
            "or more to tell apart, each with its own folder or label."
        )
    train.reading = val.reading = reading_of(config, channels, base_px=base_px)
    train.max_short_side_px = val.max_short_side_px = config.max_short_side_px
    if config.preprocess is not None:
        val.preprocess = named_transform(config.preprocess)
        if config.augment.resize_px is None:
            train.preprocess = val.preprocess
        # Otherwise crops are made of the picture as it is stored, and brought to their size by the augmentation.
    return train, val


def open_split(config: DataConfig, channels: int, seed: int, split: Literal["val", "test"]) -> LabelledData:
    """Open the validation or the test images of a recipe.

    Args:
        config: of the recipe.
        channels: as for :func:`open_data`.
        seed: of the recipe.
        split: which images; :func:`name_of_test_images` says where those to test on lie.

    Raises:
        DataError: missing, empty or inconsistent data.
        ConfigError: channels that the data cannot have, or a published data set that has no such split.
    """
    if split == "test" and config.kind != "digits":
        config = replace(config, val=name_of_test_images(config))
        if config.kind == "folder" and not (Path(config.root) / str(config.val)).is_dir():
            raise DataError(
                f"There is no folder of test pictures {Path(config.root) / str(config.val)}; make one, with the class "
                "folders of the training pictures, or ask for the validation pictures"
            )
    val = open_data(config, channels, seed)[1]
    return MegapixelDigits(config.digits, "test") if split == "test" and config.kind == "digits" else val


def number_classes_as(names: Sequence[str], data: LabelledData) -> None:
    """Number the classes of pictures as a model does, where it has the same ones in another order.

    Args:
        names: the model's classes; empty if it does not know their names.
        data: left alone if it has other classes.
    """
    if isinstance(data, LabelledImages) and list(names) != data.classes and set(names) == set(data.classes):
        data.order_classes(names)


def name_of_test_images(config: DataConfig) -> str:
    """What the test images of a recipe are called in its ``data.root``.

    They lie beside the training images: ``test`` beside ``train``, ``test.csv`` beside ``train.csv``. Of a published
    data set it is the name of a split.
    """
    train = Path(config.train)
    return "test" if config.kind in PUBLISHED else str(train.with_name("test").with_suffix(train.suffix))


def reading_of(config: DataConfig, channels: int, *, base_px: int | None = None) -> Reading:
    """How pictures are read by a recipe; arguments as for :func:`open_data`."""
    changes = config.max_side_px, config.max_short_side_px, config.preprocess  # for which pictures are decoded
    overview_px = config.overview_px
    if overview_px is None:
        overview_px = _overview_px(base_px, config.augment) if base_px else 0
    return Reading(
        mode="memory" if any(change is not None for change in changes) else config.read,
        lazy_above_px=config.lazy_above_px,
        overview_px=overview_px,
        overview_folder=Path(config.overview_folder) if config.overview_folder else None,
        scene=config.scene,
        channels=channels,
    )


def _overview_px(base_px: int, augment: AugmentConfig) -> int:
    """Enough to serve the first look at any crop, from twice to four times what it asks for of the whole."""
    area, (low, high) = augment.crop_area[0], augment.crop_aspect
    smallest_side = max(area, min(math.sqrt(area / high), math.sqrt(area * low)))
    finer = 3 if augment.rotation else 1  # turned pixels are taken finer than asked for, and averaged
    return math.ceil(base_px * min(4.0, max(2.0, finer / smallest_side)))


def _open_pictures(
    config: DataConfig, planes: Literal[1, 3], augment: Augment | None, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Pictures of folders, tables or published data sets."""
    if config.kind in PUBLISHED:
        return _open_published(config, planes, augment, seed)
    if config.kind == "folder":
        return open_split_folders(
            config.root, config.train, config.val, val_fraction=config.val_fraction, channels=planes,
            max_side_px=config.max_side_px, augment=augment, seed=seed,
        )  # fmt: skip
    root = Path(config.root)

    def table(name: str, classes: list[str] | None, changes: Augment | None) -> ImageTable:
        return ImageTable(
            root / name, path_column=config.path_column, label_column=config.label_column, image_root=root,
            classes=classes, label_separator=config.label_separator, channels=planes,
            max_side_px=config.max_side_px, augment=changes, seed=seed,
        )  # fmt: skip

    train = table(config.train, None, augment)
    if config.val is None:
        return train.split_off(config.val_fraction)
    return train, table(config.val, train.classes, None)


def _open_published(
    config: DataConfig, planes: Literal[1, 3], augment: Augment | None, seed: int
) -> tuple[AnnotatedImages, AnnotatedImages]:
    """Pictures of a published data set; those set aside are before boxes are cut from them."""

    def split(name: str, changes: Augment | None) -> AnnotatedImages:
        return PUBLISHED[config.kind].read(
            config.root, name, channels=planes, max_side_px=config.max_side_px, augment=changes, seed=seed
        )

    train = split(config.train, augment)
    if config.val is None:
        # AnnotatedImages.subset keeps the boxes.
        train, val = cast("tuple[AnnotatedImages, AnnotatedImages]", train.split_off(config.val_fraction))
    else:
        val = split(config.val, None)
    if config.boxes == "crop":
        return train.cropped_to_boxes(config.box_context), val.cropped_to_boxes(config.box_context)
    if config.boxes == "cover":
        train.cover_boxes()
    return train, val


def check_sizes(data: LabelledData, base_px: int) -> None:
    """Refuse a data set with pictures below the base resolution, by the headers of up to 500 of them.

    Such a picture would be enlarged to be seen at all; looking closer cannot show more of it.

    Args:
        data: pictures in files; made images are not checked.
        base_px: side of a glimpse.

    Raises:
        ImageError: a picture that is too small, or whose header cannot be read.
    """
    if not isinstance(data, LabelledImages):
        return
    paths = data.paths
    for path in paths[:: max(1, len(paths) // _SIZES_CHECKED)]:
        height, width = data.reading.size_hw(path)
        if data.preprocess is not None:
            height = width = data.preprocess.size_px
        elif data.augment is not None and data.augment.config.resize_px is not None:
            height = width = data.augment.config.resize_px
        shown_hw = shrunk_size((height, width), data.max_side_px, data.max_short_side_px)
        if min(shown_hw) < base_px:
            raise ImageError(
                f"picture {path} has {width} x {height} px"
                f"{' before shrinking' if shown_hw != (height, width) else ''}, which leaves "
                f"less than the base resolution of {base_px} px; lower "
                "model.base_px, raise data.max_side_px or data.max_short_side_px, or remove it"
            )


class EpochSampler(Sampler[int]):
    """Which images an epoch sees, and in which order: a function of seed and epoch alone.

    Epochs shorter than the data walk through one shuffled pass after another, so that no image comes again before all
    others have come.

    Args:
        images: number of images there are.
        per_epoch: images an epoch.
        seed: of the order.
        epoch: counts from 0.
    """

    def __init__(self, images: int, per_epoch: int, seed: int, epoch: int) -> None:
        self.images, self.per_epoch, self.seed, self.epoch = images, per_epoch, seed, epoch

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.per_epoch
        order: list[int] = []
        while len(order) < self.per_epoch:
            lap, offset = divmod(start + len(order), self.images)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + lap)
            shuffled = torch.randperm(self.images, generator=generator)
            order += shuffled[offset : offset + self.per_epoch - len(order)].tolist()
        return iter(order)


def train_loader(
    data: LabelledData, batch_size: int, workers: int, seed: int, epoch: int, per_epoch: int | None
) -> DataLoader[Any]:
    """Loader of the batches of one training epoch; the same for every number of workers."""
    images = len(data)
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)
    sampler = EpochSampler(images, per_epoch or images, seed, epoch)
    # A last batch of one image would leave batch norm without a spread.
    drop_last = len(sampler) > batch_size
    return DataLoader(
        cast("Dataset[Any]", data),
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=_pin(),
    )


def eval_loader(data: LabelledData, batch_size: int, workers: int) -> DataLoader[Any]:
    """Loader of batches of all images in order."""
    return DataLoader(
        cast("Dataset[Any]", data), batch_size, num_workers=workers, collate_fn=collate, pin_memory=_pin()
    )


def _pin() -> bool:
    return torch.cuda.is_available()
