"""Holding a data set on disk against what was published."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnet.config import to_plain
from tnet.data.annotated import AnnotatedImages
from tnet.data.folder import shorten
from tnet.errors import DataError

_NAMED = 5  # missing files that a finding names


@dataclass(frozen=True)
class SplitSummary:
    """One split of a data set.

    Attributes:
        name: of the split.
        images: how many pictures are listed; None if they cannot be.
        official: how many there should be.
        classes: of how many classes.
        missing: pictures that are listed but not there, or empty.
    """

    name: str
    images: int | None
    official: int
    classes: int = 0
    missing: int = 0


@dataclass(frozen=True)
class DatasetSummary:
    """What a data set on disk consists of.

    Attributes:
        name: by which recipes know it.
        title: by which people do.
        root: its folder.
        splits: one entry each.
        findings: one sentence for each thing that is missing or differs from what was published.
    """

    name: str
    title: str
    root: str
    splits: tuple[SplitSummary, ...]
    findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, nor differs."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**to_plain(self), "ok": self.ok}

    def text(self) -> str:
        """For people: a table of the splits, then the findings."""
        lines = [f"{self.title} in {self.root}", f"  {'split':<8}{'pictures':>12}{'official':>12}{'classes':>10}"]
        for split in self.splits:
            images = "-" if split.images is None else f"{split.images:,}"
            lines.append(f"  {split.name:<8}{images:>12}{split.official:>12,}{split.classes:>10,}")
        lines += [f"- {finding}" for finding in self.findings]
        return "\n".join([*lines, "complete" if self.ok else f"{len(self.findings)} findings"])


def check_splits(
    name: str,
    title: str,
    root: Path,
    list_split: Callable[[str], AnnotatedImages],
    official: Mapping[str, int],
    official_classes: int,
    more: Callable[[str, AnnotatedImages], Sequence[str]] = lambda split, images: (),
) -> DatasetSummary:
    """List every split, look for every picture, and count.

    Args:
        name: of the data set.
        title: of the data set.
        root: its folder.
        list_split: lists a split's pictures without looking for them.
        official: number of pictures of each split.
        official_classes: that each split has pictures of.
        more: finds what else there is to find in a split.
    """
    splits: list[SplitSummary] = []
    findings: list[str] = []
    for split, expected in official.items():
        try:
            images = list_split(split)
            also = more(split, images)
        except DataError as error:
            splits.append(SplitSummary(split, None, expected))
            findings.append(f"{split}: {error}")
            continue
        classes = len(images.targets.unique())
        if len(images) != expected:
            findings.append(f"{split}: there are {len(images):,} pictures, but {expected:,} were published.")
        if classes != official_classes:
            findings.append(f"{split}: there are {classes:,} classes, but {official_classes:,} were published.")
        missing = [path for path in images.paths if is_empty(path)]
        if missing:
            findings.append(f"{split}: {missing_sentence('pictures', missing, root)}")
        findings += [f"{split}: {sentence}" for sentence in also]
        splits.append(SplitSummary(split, len(images), expected, classes, len(missing)))
    return DatasetSummary(name, title, str(root), tuple(splits), tuple(dict.fromkeys(findings)))


def missing_sentence(what: str, paths: Sequence[Path], root: Path) -> str:
    """Say how many files are missing, and the first few by name."""
    shown = shorten([os.path.relpath(path, root) for path in paths], _NAMED)
    return f"{len(paths):,} {what} are missing or empty: {shown}."


def is_empty(path: Path) -> bool:
    """Whether a file is empty, or not there."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return True
