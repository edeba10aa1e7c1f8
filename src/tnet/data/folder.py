"""Labelled pictures on disk, and folders that hold one folder of pictures a class."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tnet.data.augment import Augment, sample_generator
from tnet.data.sample import Sample
from tnet.data.transforms import ReferenceEval
from tnet.errors import ConfigError, DataError
from tnet.scenes.base import Scene
from tnet.scenes.images import DEFAULT_MAX_PIXELS, find_images, is_image_folder, is_image_path, load_image
from tnet.scenes.reading import Reading


class LabelledImages(Dataset[Sample]):
    """Pictures whose paths and targets are known; each is decoded, or made a scene of, when it is asked for.

    Augmentation depends on ``(seed, epoch, index)`` only. Call :meth:`set_epoch` before each epoch, in the process
    that owns the data loader: its workers hold copies made when the epoch's iteration starts, so the loader must
    not keep workers from one epoch to the next (``persistent_workers=False``), or they would repeat the first epoch.

    Attributes:
        paths: one a picture.
        targets: class indices ``[samples]`` (``int64``), or one 0/1 value per class ``[samples, classes]``
            (``float32``).
        multilabel: whether a picture can have several labels.
        classes: names, in the order of the indices.
        channels: of the pictures handed out, 1 or 3.
        max_side_px: longer side that pictures are shrunk to, or None.
        max_short_side_px: shorter side that they are shrunk to, or None (set it after making the data set).
        augment: random changes, or None.
        preprocess: what is done to every picture before that, or None (set it after making the data set).
        seed: of the augmentation.
        epoch: of the augmentation, counted from 0.
        max_pixels: largest picture that is decoded.
        reading: which pictures are decoded and which are scenes; all are decoded unless it is set.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
        classes: Sequence[str],
        *,
        channels: Literal[1, 3] = 3,
        max_side_px: int | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        """Keep the lists; no picture is opened.

        Raises:
            ConfigError: ``seed`` is negative.
        """
        if seed < 0:
            raise ConfigError(f"The seed of a data set is {seed}, but must be at least 0.")
        self.paths = list(paths)
        self.targets = targets
        self.multilabel = targets.ndim == 2
        self.classes = list(classes)
        self.channels = channels
        self.max_side_px = max_side_px
        self.max_short_side_px: int | None = None
        self.augment = augment
        self.preprocess: ReferenceEval | None = None
        self.seed = seed
        self.epoch = 0
        self.max_pixels = max_pixels
        self.reading = Reading()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, counted from 0: it decides, with the seed, how pictures are augmented."""
        self.epoch = epoch

    def order_classes(self, names: Sequence[str]) -> None:
        """Number the classes in another order, such as a model's.

        Args:
            names: the same classes.

        Raises:
            DataError: other classes.
        """
        if sorted(names) != sorted(self.classes):
            raise DataError(f"The classes {shorten(names)} are not those of the data, {shorten(self.classes)}.")
        old = [self.classes.index(name) for name in names]
        self.targets = self.targets[:, old] if self.multilabel else torch.tensor(old).argsort()[self.targets]
        self.classes = list(names)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Decode, and augment, one picture; or make a scene of it, with the same change.

        Raises:
            ImageError: the picture cannot be read; of a scene, perhaps only when it is looked at.
            IndexError: there is no such index.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"Sample {index} was asked for, but there are {len(self)}.")
        index %= len(self)
        path = self.paths[index]
        if self.reading.is_lazy(path):
            return Sample(self._scene(path, index), self.targets[index], str(path))
        image = self._load(path)
        if self.preprocess is not None:
            image = self.preprocess(image)
        if self.augment is not None:
            image = self.augment(image, sample_generator(self.seed, self.epoch, index))
        return Sample(image, self.targets[index], str(path))

    def _load(self, path: Path) -> UInt8[Tensor, "channels height width"]:
        """Decode a picture, shrunk as far as it must be."""
        return load_image(
            path,
            channels=self.channels,
            max_side_px=self.max_side_px,
            max_short_side_px=self.max_short_side_px,
            max_pixels=self.max_pixels,
        )

    def _scene(self, path: Path, index: int) -> Scene:
        scene = self.reading.open_scene(path, self.channels)
        if self.augment is None:
            return scene
        return self.augment.of_scene(scene, sample_generator(self.seed, self.epoch, index))

    def subset(self, indices: Sequence[int], *, augment: Augment | None) -> LabelledImages:
        """Some of the pictures, with the same classes and options, and their own augmentation."""
        part = LabelledImages(
            [self.paths[index] for index in indices],
            self.targets[torch.as_tensor(indices, dtype=torch.int64)],
            self.classes,
            channels=self.channels,
            max_side_px=self.max_side_px,
            augment=augment,
            seed=self.seed,
            max_pixels=self.max_pixels,
        )
        part.reading = self.reading
        part.max_short_side_px = self.max_short_side_px
        part.preprocess = self.preprocess
        return part

    def split_off(self, fraction: float, *, split_seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
        """Part with some pictures, for validation.

        Which ones is decided by a hash of ``split_seed`` and each path below the folder that all share: the same on
        every machine and in any order of files, and little changed when a few pictures are added. With one label a
        picture, every class gives its share, at least one picture, and keeps at least one. Pictures of one patient,
        place or film may come to both sides; if that matters, make the split by hand.

        Args:
            fraction: of the pictures to part with, above 0 and below 1.
            split_seed: another one gives another split. It is apart from ``seed`` so that runs that differ in
                their seed are still judged on the same pictures.

        Returns:
            The rest, with the augmentation, and the parted pictures, without; both in the order they had.

        Raises:
            ConfigError: ``fraction`` is out of range.
            DataError: a class has a single picture, or there are too few pictures.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"The fraction of pictures to split off is {fraction}, but must be above 0 and below 1.")
        if len(self) < 2:
            raise DataError(f"There are {len(self)} pictures to split in two; give at least 2.")
        # Links are not followed: what they lead to may have other names on another machine.
        paths = [Path(os.path.abspath(path)) for path in self.paths]  # noqa: PTH100
        common = os.path.commonpath([path.parent for path in paths])
        order = sorted(
            range(len(self)), key=lambda index: _hash(split_seed, os.path.relpath(paths[index], common), index)
        )
        strata: dict[int, list[int]] = {}
        for index in order:
            strata.setdefault(0 if self.multilabel else int(self.targets[index]), []).append(index)
        parted: list[int] = []
        for label, members in strata.items():
            if len(members) < 2:
                raise DataError(
                    f"Class '{self.classes[label]}' has a single picture ({self.paths[members[0]]}), which cannot be "
                    "both trained on and validated on; add pictures, or give validation pictures of their own."
                )
            parted += members[: min(len(members) - 1, max(1, round(len(members) * fraction)))]
        rest = sorted(set(order) - set(parted))
        return self.subset(rest, augment=self.augment), self.subset(sorted(parted), augment=None)


class ImageFolder(LabelledImages):
    """A folder with one folder a class: ``root/<class>/**/<picture>``.

    Files and folders whose name starts with a dot are skipped, and so are pictures that lie in ``root`` beside the
    class folders.

    Attributes:
        root: the folder.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        channels: Literal[1, 3] = 3,
        max_side_px: int | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        """List the pictures; none is opened.

        Args:
            root: the folder of class folders.
            classes: names that the class folders must have, in the order of the class indices; the sorted names of
                the folders there are if not given.
            channels: 3 for RGB, 1 for grey levels.
            max_side_px: shrink pictures so that the longer side has at most this many pixels.
            augment: random changes.
            seed: of the augmentation, at least 0.
            max_pixels: largest width x height that is decoded.

        Raises:
            DataError: there is no such folder, it has no class folders, they are not those named in ``classes``, or
                one has no pictures.
            ConfigError: ``seed`` is negative.
        """
        self.root = Path(root)
        found = _class_folders(self.root)
        names = found if classes is None else check_classes(classes)
        _match_classes(self.root, found, names)
        paths: list[Path] = []
        targets: list[int] = []
        for index, name in enumerate(names):
            try:
                images = find_images(self.root / name)
            except DataError as error:
                raise DataError(f"Class '{name}' cannot be used: {error}") from error
            paths += images
            targets += [index] * len(images)
        super().__init__(
            paths,
            torch.tensor(targets, dtype=torch.int64),
            names,
            channels=channels,
            max_side_px=max_side_px,
            augment=augment,
            seed=seed,
            max_pixels=max_pixels,
        )


def open_split_folders(
    root: str | os.PathLike[str],
    train: str = "train",
    val: str | None = "val",
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    channels: Literal[1, 3] = 3,
    max_side_px: int | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> tuple[LabelledImages, LabelledImages]:
    """Open the training and the validation pictures of ``root/<train>/<class>`` and ``root/<val>/<class>``.

    Args:
        root: the folder that holds both.
        train: name of the training folder.
        val: name of the validation folder; None splits off a part of the training pictures instead.
        val_fraction: which part, if ``val`` is None; see :meth:`LabelledImages.split_off`.
        split_seed: of that split.
        classes: as for :class:`ImageFolder`; the validation folder must have the training folder's classes.
        channels: as for :class:`ImageFolder`.
        max_side_px: as for :class:`ImageFolder`.
        augment: random changes to training pictures; validation pictures are never changed.
        seed: of the augmentation.
        max_pixels: as for :class:`ImageFolder`.

    Returns:
        Training and validation pictures, with the same classes.

    Raises:
        DataError: a folder is missing (the message lists those there are), its classes do not fit, or as for
            :class:`ImageFolder`.
        ConfigError: ``val_fraction`` or ``seed`` is out of range.
    """
    root = Path(root)
    folders = _subfolders(root)
    for role, name in (("training", train), ("validation", val)):
        if name is not None and not (root / name).is_dir():
            there = ", ".join(folders) or "none"
            hint = ", or set val to null to set training pictures aside for it" if role == "validation" else ""
            raise DataError(
                f"There is no folder of {role} pictures {root / name} (folders in {root}: {there}); name one of "
                f"those{hint}."
            )

    def open_folder(name: str, classes: Sequence[str] | None, augment: Augment | None) -> ImageFolder:
        return ImageFolder(
            root / name,
            classes=classes,
            channels=channels,
            max_side_px=max_side_px,
            augment=augment,
            seed=seed,
            max_pixels=max_pixels,
        )

    train_images = open_folder(train, classes, augment)
    if val is None:
        return train_images.split_off(val_fraction, split_seed=split_seed)
    return train_images, open_folder(val, train_images.classes, None)


def check_classes(classes: Sequence[str]) -> list[str]:
    """The names as a list.

    Raises:
        DataError: there is none, one is empty, or one comes twice.
    """
    if not classes:
        raise DataError("The list of classes is empty; name at least one class, or leave the list out.")
    if not all(classes):
        raise DataError(f"The list of classes has an empty name at index {list(classes).index('')}; remove it.")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DataError(f"The list of classes names {shorten(twice)} more than once; name each class once.")
    return list(classes)


def shorten(names: Sequence[str], most: int = 3) -> str:
    """Quote the first few names, and count the others."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _hash(split_seed: int, relative: str, index: int) -> tuple[bytes, int]:
    text = f"{split_seed}/{Path(relative).as_posix()}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), index


def _subfolders(root: Path) -> list[str]:
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and not is_image_folder(entry)]
        return sorted(entry.name for entry in folders if not entry.name.startswith("."))
    except FileNotFoundError as error:
        raise DataError(f"The folder {root} does not exist; correct the path.") from error
    except NotADirectoryError as error:
        raise DataError(f"{root} is a file, not a folder of class folders; name the folder.") from error
    except OSError as error:
        raise DataError(
            f"The folder {root} cannot be looked into ({error.strerror}); make it readable for this user."
        ) from error


def _class_folders(root: Path) -> list[str]:
    folders = _subfolders(root)
    if folders:
        return folders
    if any(is_image_path(entry) for entry in root.iterdir()):
        raise DataError(
            f"The folder {root} holds pictures but no class folders; move each picture into a folder named after its "
            "class, or list pictures and labels in a table (CSV or Parquet)."
        )
    raise DataError(f"The folder {root} is empty; put one folder of pictures a class into it, or name another folder.")


def _match_classes(root: Path, found: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in set(found)]
    extra = [name for name in found if name not in set(names)]
    if missing or extra:
        parts = [
            f"{what} {shorten(which, 10)}" for what, which in (("lacks", missing), ("has besides", extra)) if which
        ]
        part = next((name for name in extra if name.lower() in ("val", "validation", "test", "train")), None)
        remedy = (
            "add, remove or rename folders" if part is None else f"name the folder of a part of them, {root / part}"
        )
        raise DataError(
            f"The class folders in {root} are not the {len(names)} classes expected: it {' and '.join(parts)}; "
            f"{remedy}."
        )
