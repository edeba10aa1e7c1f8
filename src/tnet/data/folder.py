"""Labelled images in files, and folders with one subfolder per class."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Unpack

from tnet.data.augment import Augment, sample_generator
from tnet.data.groups import held_out_groups
from tnet.data.sample import Sample
from tnet.errors import ConfigError, DataError
from tnet.losses import check_labels
from tnet.remote import check_local
from tnet.scenes.base import Scene
from tnet.scenes.find import image_exists, is_image_folder, is_image_path, list_images, warn_passed_over
from tnet.scenes.reading import ReadOptions
from tnet.text import on_one_line


class ImageOptions(TypedDict, total=False):
    """Options of every dataset of image files; see :class:`LabelledImages`."""

    reading: ReadOptions
    augment: Augment | None
    seed: int


class LabelledImages(Dataset[Sample]):
    """Image files with targets, decoded (or opened as a scene) on access.

    Augmentation depends on ``(seed, epoch, index)`` only. Call :meth:`set_epoch` before each epoch in the process that
    owns the data loader, and do not keep its workers from one epoch to the next (``persistent_workers=False``): their
    copies would repeat the first epoch.

    Attributes:
        targets: class indices ``[samples]`` (``int64``), or 0/1 values ``[samples, classes]`` (``float32``).
        classes: names, by class index.
        reading: how files become tensors or scenes.
        augment: random augmentation, or None.
        groups: what splits must not tear apart, such as the patient of each image; None if each image is its own.
        seed: seed of the augmentation, at least 0.
        epoch: epoch of the augmentation, from 0.
        most_unreadable: how many images loaders may leave out if they cannot be read; if 0, they raise the error.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
        classes: Sequence[str],
        *,
        reading: ReadOptions | None = None,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        """Store the lists; no file is opened."""
        if seed < 0:
            raise ConfigError(f"seed is {seed}; give at least 0")
        if targets.ndim == 1:
            check_labels(targets.long(), len(classes))
        self.paths = list(paths)
        self.targets = targets
        self.multilabel = targets.ndim == 2
        self.classes = list(classes)
        self.reading = reading or ReadOptions()
        self.augment = augment
        self.groups: list[str] | None = None
        self.seed = seed
        self.epoch = 0
        self.most_unreadable = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, from 0, which determines the augmentation together with the seed."""
        self.epoch = epoch

    def order_classes(self, names: Sequence[str]) -> None:
        """Renumber the classes, for example in the order of a model; ``names`` must be the same classes."""
        if sorted(names) != sorted(self.classes):
            raise DataError(f"the classes {shorten(names)} do not match those of the data, {shorten(self.classes)}")
        old = [self.classes.index(name) for name in names]
        self.targets = self.targets[:, old] if self.multilabel else torch.tensor(old).argsort()[self.targets]
        self.classes = list(names)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Return one augmented image, or a scene with the same augmentation.

        Raises:
            ImageError: the image cannot be read; scenes may raise it only when they are glimpsed.
            IndexError: ``index`` is out of range.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} is out of range; there are {len(self)} samples")
        index %= len(self)
        image = self._load(index)
        if self.augment is not None:
            generator = sample_generator(self.seed, self.epoch, index)
            image = self.augment(image, generator, self._boxes_to_cover(index, image))
        return Sample(image, self.targets[index], self.name(index))

    def name(self, index: int) -> str:
        """Return the name of a sample, without loading it."""
        return str(self.paths[index])

    def _load(self, index: int) -> UInt8[Tensor, "channels height width"] | Scene:
        return self.reading.load(self.paths[index])

    def _boxes_to_cover(self, index: int, image: Tensor | Scene) -> Float[Tensor, "boxes 4"] | None:
        """Return the boxes that random crops should respect, in pixels of the loaded image."""
        return None

    def subset(self, indices: Sequence[int], *, augment: Augment | None) -> LabelledImages:
        """Return some of the images with the same classes and options, and with ``augment``."""
        part = copy.copy(self)
        part.paths = [self.paths[index] for index in indices]
        part.targets = self.targets[torch.as_tensor(indices, dtype=torch.int64)]
        part.augment = augment
        part.groups = self.groups and [self.groups[index] for index in indices]
        return part

    def split_off(
        self, fraction: float, *, split_seed: int = 0, root: Path | None = None
    ) -> tuple[LabelledImages, LabelledImages]:
        """Split off a fraction of the images, for validation and without augmentation; the order is kept.

        An image is split off if a hash of ``split_seed`` and its path below ``root`` is small: the choice is the same
        on every machine and in any order of files, and stays the same when other images are added or removed. It does
        not depend on ``seed``. Each class gives about the fraction, a small one perhaps none, but never all its images;
        at least one image is split off. With :attr:`groups` whole groups are split off, by a hash of their names.

        Args:
            fraction: share of the images to split off.
            split_seed: another number gives another split.
            root: folder of all images, now and later; ``None`` for the deepest common folder of the present ones.

        Returns:
            The remaining images, and the ones split off.

        Raises:
            ConfigError: ``fraction`` is not between 0 and 1.
            DataError: a class has a single image or group, or there are too few images.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"the fraction of images to split off is {fraction}; give a number above 0 and below 1")
        if len(self) < 2:
            raise DataError(f"{len(self)} images cannot be split in two; give at least 2")
        # Links are not followed: their targets may have other names on another machine.
        paths = [Path(os.path.abspath(path)) for path in self.paths]  # noqa: PTH100
        folder = None if root is None else Path(os.path.abspath(root))  # noqa: PTH100
        if folder is None or not all(path.is_relative_to(folder) for path in paths):
            folder = Path(os.path.commonpath([path.parent for path in paths]))
        hashes = [_hash(split_seed, path.relative_to(folder).as_posix()) for path in paths]
        order = sorted(range(len(self)), key=lambda index: (hashes[index], index))
        strata: dict[int, list[int]] = {}
        for index in order:
            strata.setdefault(0 if self.multilabel else int(self.targets[index]), []).append(index)
        if (groups := self.groups) is not None:
            by_group = {group: _hash(split_seed, group) for group in groups}
            chosen = held_out_groups(strata, groups, by_group, fraction)
            sides = [[index for index in range(len(self)) if (groups[index] in chosen) == side] for side in (0, 1)]
            return self.subset(sides[0], augment=self.augment), self.subset(sides[1], augment=None)
        held_out: list[int] = []
        for label, members in strata.items():
            if len(members) < 2:
                problem = f"class {self.classes[label]!r} has a single image, {self.paths[members[0]]}, which cannot be"
                remedy = "add images, or provide separate validation images"
                raise DataError(f"{problem} used for both training and validation; {remedy}")
            limit = min(fraction, hashes[members[-1]])  # not all of a class
            held_out += [index for index in members if hashes[index] < limit]
        held_out = held_out or [index for index in order if hashes[index] == hashes[order[0]]]
        rest = sorted(set(order) - set(held_out))
        return self.subset(rest, augment=self.augment), self.subset(sorted(held_out), augment=None)


class ImageFolder(LabelledImages):
    """A folder with one subfolder per class: ``root/<class>/**/<image>``.

    Files and folders whose name starts with a dot are skipped, and so are images in ``root`` beside the class folders,
    folders that systems make, such as ``__MACOSX``, and what tnet wrote, such as runs.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, classes: Sequence[str] | None = None, **options: Unpack[ImageOptions]
    ) -> None:
        """List the images; no file is opened.

        Args:
            root: the folder of class folders.
            classes: required names of the class folders, by class index; defaults to their sorted names.
            options: see :class:`LabelledImages`.

        Raises:
            DataError: the folder is missing, its class folders are missing or not ``classes``, or one has no images.
        """
        check_local(root)
        self.root = Path(root)
        found: dict[str, list[Path]] = {}
        passed: list[Path] = []
        for name in _class_folders(self.root):
            try:
                images, left_out = list_images(self.root / name)
            except DataError as error:
                raise DataError(f"class {name!r} cannot be used: {error}") from error
            passed += left_out
            if images or not left_out:
                found[name] = images
        if not found:
            problem = f"the folder {self.root} has only folders that tnet or the system wrote"
            raise DataError(f"{problem}; add one folder per class")
        warn_passed_over(self.root, passed)
        names = check_classes(list(found) if classes is None else classes)
        _match_classes(self.root, list(found), names)
        paths: list[Path] = []
        targets: list[int] = []
        for index, name in enumerate(names):
            if not found[name]:
                raise DataError(f"class {name!r} has no images in {self.root / name}; add some, or remove the folder")
            paths += found[name]
            targets += [index] * len(found[name])
        super().__init__(paths, torch.tensor(targets, dtype=torch.int64), names, **options)


def check_split_folders(root: Path, train: str, val: str | None) -> None:
    """Raise a :class:`DataError`, which lists the existing folders, if one of the two is missing."""
    folders = _subfolders(root)
    for role, name in (("training", train), ("validation", val)):
        if name is not None and not (root / name).is_dir():
            hint = ", or set val to null to split off training images" if role == "validation" else ""
            remedy = f"give one of the folders in {root} ({', '.join(folders) or 'none'}){hint}"
            raise DataError(f"the folder of {role} images {root / name} is missing; {remedy}")


def check_classes(classes: Sequence[str]) -> list[str]:
    """Return the names as a list, or raise a :class:`DataError` if there are none, or one is empty or repeated."""
    if not classes:
        raise DataError("the list of classes is empty; give at least one class, or leave the list out")
    if not all(classes):
        raise DataError(f"the list of classes has an empty name at index {list(classes).index('')}; remove it")
    bad = [name for name in classes if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if bad:
        raise DataError(f"the name of the class {shorten(bad)} is not UTF-8; rename its folder")
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise DataError(f"the list of classes has {shorten(repeated)} more than once; remove the repetitions")
    return list(classes)


def check_images_exist(paths: Sequence[Path], source: str, remedy: str) -> None:
    """Raise a :class:`DataError` if images listed in ``source`` are missing."""
    missing = [str(path) for path in paths if not image_exists(path)]
    if missing:
        problem = f"{len(missing)} of the {len(paths)} images listed in {source} are missing: {shorten(missing)}"
        raise DataError(f"{problem}; restore them, or {remedy}")


def shorten(names: Sequence[str], most: int = 3) -> str:
    """Quote the first few names and count the others."""
    shown = ", ".join(f"'{on_one_line(name)}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _hash(split_seed: int, name: str) -> float:
    """Return a number in [0, 1) that depends on a path or the name of a group."""
    digest = hashlib.sha256(f"{split_seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _subfolders(root: Path) -> list[str]:
    try:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and not is_image_folder(entry)]
        return sorted(entry.name for entry in folders if not entry.name.startswith("."))
    except FileNotFoundError as error:
        raise DataError(f"the folder {root} does not exist; correct the path") from error
    except NotADirectoryError as error:
        raise DataError(f"{root} is a file, not a folder of class folders; give the folder") from error
    except OSError as error:
        raise DataError(f"the folder {root} cannot be listed ({error.strerror}); make it readable") from error


def _class_folders(root: Path) -> list[str]:
    folders = _subfolders(root)
    if folders:
        return folders
    if any(is_image_path(entry) for entry in root.iterdir()):
        remedy = (
            "move each image into a folder named after its class, or list images and labels in a table (CSV or Parquet)"
        )
        raise DataError(f"the folder {root} has images but no class folders; {remedy}")
    raise DataError(f"the folder {root} is empty; add one folder of images per class, or give another folder")


def _match_classes(root: Path, folders: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in set(folders)]
    extra = [name for name in folders if name not in set(names)]
    if not missing and not extra:
        return
    kinds = {"missing": missing, "extra": extra}
    problems = [f"{kind}: {shorten(which, 10)}" for kind, which in kinds.items() if which]
    split = next((name for name in extra if name.lower() in ("val", "validation", "test", "train")), None)
    remedy = "add, remove or rename folders" if split is None else f"give the folder of a split, {root / split}"
    what = f"the class folders in {root} are not the {len(names)} expected classes ({'; '.join(problems)})"
    raise DataError(f"{what}; {remedy}")
