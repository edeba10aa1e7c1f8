"""The interface and registry of published datasets, and the comparison of a copy on disk with the published one.

Datasets are read as distributed. Shards (WebDataset, LitData) read faster from object stores and hard disks, but need a
converted copy and shuffle within a buffer per worker; here the order of an epoch depends on seed and epoch alone, and
boxes, lazy reading and splits need random access.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from typing_extensions import Unpack

from tnet.config import to_plain
from tnet.data.annotated import AnnotatedImages
from tnet.data.folder import ImageOptions, check_images_exist, shorten
from tnet.errors import ConfigError, DataError
from tnet.registry import Registry

_NAMED_FILES = 5  # missing files that a finding names


@dataclass(frozen=True)
class SplitSummary:
    """One split on disk, with numbers of images and classes."""

    name: str
    images: int | None  # listed; None if they cannot be listed
    official: int  # published
    classes: int = 0  # with images
    missing: int = 0  # listed, but missing or empty


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset on disk compared with the published one; for the names see :class:`PublishedDataset`."""

    name: str
    title: str
    root: str
    home_page: str
    licence: str
    splits: tuple[SplitSummary, ...]
    findings: tuple[str, ...]  # one sentence per missing or different item

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or differs."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values for JSON."""
        return {**to_plain(self), "ok": self.ok}

    def text(self) -> str:
        """Return a table of the splits, followed by the findings."""
        lines = [f"{self.title} in {self.root}", f"  {'split':<8}{'images':>12}{'official':>12}{'classes':>10}"]
        for split in self.splits:
            images = "-" if split.images is None else f"{split.images:,}"
            lines.append(f"  {split.name:<8}{images:>12}{split.official:>12,}{split.classes:>10,}")
        lines += [f"- {finding}" for finding in self.findings]
        if not self.ok:
            lines.append(f"  home page: {self.home_page} (licence: {self.licence})")
        return "\n".join([*lines, "complete" if self.ok else f"{len(self.findings)} findings"])


class PublishedDataset(ABC):
    """A published dataset, read in the layout its archives unpack to.

    A subclass sets the class attributes, implements the abstract methods and registers one instance in
    :data:`PUBLISHED`.

    Attributes:
        name: name in recipes (``data.kind``).
        title: display name.
        home_page: where to download it.
        licence: terms of use, in a few words.
        images: number of images published in each split.
        num_classes: number of classes.
        marker: file or folder by which the dataset's folder is recognised.
        subfolder: folder that the archive unpacks to, which is searched for ``marker`` too.
        lists_images: whether images are listed in a file, and may thus be missing.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    home_page: ClassVar[str]
    licence: ClassVar[str]
    images: ClassVar[Mapping[str, int]]
    num_classes: ClassVar[int]
    marker: ClassVar[str]
    subfolder: ClassVar[str] = ""
    lists_images: ClassVar[bool] = False

    def read(
        self, root: str | os.PathLike[str], split: str = "train", **options: Unpack[ImageOptions]
    ) -> AnnotatedImages:
        """Open one split; no image is decoded.

        Args:
            root: the dataset's folder, or the folder that it was unpacked in.
            split: a key of ``images``.
            options: see :class:`LabelledImages`.

        Raises:
            DataError: a list or folder is missing, empty or damaged, or images are missing.
            ConfigError: the dataset has no such split.
        """
        if split not in self.images:
            splits = ", ".join(self.images)
            remedy = f"set data.train and data.val to one of {splits}, or data.val to null to split off training images"
            raise ConfigError(f"{self.name} has no split {split!r}; {remedy}")
        folder = self.find_root(root)
        images = self.list_split(folder, split, options)
        if self.lists_images:
            remedy = f"list everything that is missing with: tnet data check {self.name}"
            check_images_exist(images.paths, str(folder), remedy)
        return images

    def check(self, root: str | os.PathLike[str]) -> DatasetSummary:
        """Count the files on disk and compare the counts with the published ones, without opening images."""
        folder = self.find_root(root)
        splits: list[SplitSummary] = []
        findings: list[str] = []
        for split, official in self.images.items():
            try:
                images = self.list_split(folder, split, {})
                more = self.extra_findings(folder, split, images)
            except DataError as error:
                splits.append(SplitSummary(split, None, official))
                findings.append(f"{split}: {error}")
                continue
            classes = len(images.targets.unique())
            if len(images) != official:
                findings.append(f"{split}: {len(images):,} images found, {official:,} published")
            if classes != self.num_classes:
                findings.append(f"{split}: {classes:,} classes found, {self.num_classes:,} published")
            missing = [path for path in images.paths if is_empty(path)]
            findings += [f"{split}: {text}" for text in (*missing_files("images", missing, folder), *more)]
            splits.append(SplitSummary(split, len(images), official, classes, len(missing)))
        about = self.name, self.title, str(folder), self.home_page, self.licence
        return DatasetSummary(*about, tuple(splits), tuple(dict.fromkeys(findings)))

    def find_root(self, root: str | os.PathLike[str]) -> Path:
        """Return the folder that holds ``marker``: ``root`` or its ``subfolder``; ``root`` if neither does."""
        root = Path(root)
        if not root.is_dir():
            remedy = f"correct the path (data.root), or get {self.title} from {self.home_page}"
            raise DataError(f"the dataset folder {root} does not exist; {remedy}")
        return next((folder for folder in (root, root / self.subfolder) if (folder / self.marker).exists()), root)

    @abstractmethod
    def list_split(self, root: Path, split: str, options: ImageOptions) -> AnnotatedImages:
        """List the images of a split without checking that they exist; ``root`` is what :meth:`find_root` returns.

        Raises:
            DataError: a list or folder is missing, empty or damaged.
        """

    def extra_findings(self, root: Path, split: str, images: AnnotatedImages) -> Sequence[str]:
        """Return other differences of a split from the published one, one sentence each."""
        return ()

    @abstractmethod
    def author_classes(self, root: str | os.PathLike[str]) -> Sequence[str]:
        """Return the class names in the order in which the checkpoints of the paper's authors number them."""

    @abstractmethod
    def write_miniature(self, root: Path) -> None:
        """Write a synthetic copy for smoke runs: every split, two classes, boxes; see :func:`write_image`."""


_MODULES = {name: f"tnet.data.{name}" for name in ("imagenet", "fmow", "cub", "nabirds")}
PUBLISHED: Registry[PublishedDataset] = Registry("published dataset", lazy=_MODULES)


def missing_files(what: str, paths: Sequence[Path], root: Path) -> list[str]:
    """Return a finding with the number of missing files and the first few paths, or nothing if there are none."""
    named = [os.path.relpath(path, root) for path in paths[:_NAMED_FILES]]
    shown = shorten([*named, *map(str, paths[_NAMED_FILES:])], _NAMED_FILES)
    return [f"{len(paths):,} {what} are missing or empty: {shown}"] if paths else []


def is_empty(path: Path) -> bool:
    """Return whether a file is empty or missing."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return True


# Size in pixels of the synthetic images of PublishedDataset.write_miniature, and the box annotated in each.
MINIATURE_HW, MINIATURE_BOX_YXYX = (240, 300), (60, 90, 180, 240)


def write_image(path: Path, seed: int) -> None:
    """Write one synthetic image of coarse noise as JPEG."""
    height, width = MINIATURE_HW
    grains = np.random.default_rng(seed).integers(256, size=(height // 10, width // 10, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grains).resize((width, height), Image.Resampling.NEAREST).save(path, format="JPEG")
