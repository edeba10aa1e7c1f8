"""Images that occur twice: among both training and validation images, or with two labels."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

from tnet.data.annotated import AnnotatedImages
from tnet.data.folder import LabelledImages
from tnet.data.loading import LabelledData

_HEAD_BYTES = 2**16  # compared first
_MAX_SECONDS = 20.0


class _Image(NamedTuple):
    path: Path
    in_val: bool
    label: str  # empty for annotated images, of which one may show several classes

    def __str__(self) -> str:
        return f"{self.path} ({self.label})" if self.label else str(self.path)


def find_repeats(train: LabelledData, val: LabelledData) -> list[str]:
    """Describe validation images that are also training images, and images with different labels.

    Images are the same if they are one file, by name or link, or have the same bytes. Files of one size are compared by
    their first 64 KiB, then as a whole, for at most 20 s.
    """
    groups = [[image for data, in_val in ((train, False), (val, True)) for image in _images(data, in_val)]]
    end = time.monotonic() + _MAX_SECONDS
    for key in (_size, lambda path: _digest(path, _HEAD_BYTES, end), lambda path: _digest(path, -1, end)):
        groups = [part for group in groups for part in _split(group, key) if _in_both(part) or _labels(part) > 1]
    both, other = [group for group in groups if _in_both(group)], [group for group in groups if _labels(group) > 1]
    late = f" (compared for {_MAX_SECONDS:.0f} s only)" if time.monotonic() > end else ""
    found = []
    if both:
        count = sum(image.in_val for group in both for image in group)
        pairs = _examples(both, lambda image: image.in_val)
        found.append(f"{count} validation image(s) are also training images{late}: {pairs}; leave them out of one")
    if other:
        pairs = _examples(other, lambda image: image.label)
        found.append(f"{len(other)} image(s) have different labels{late}: {pairs}; correct them")
    return found


def _images(data: LabelledData, in_val: bool) -> Iterator[_Image]:
    if isinstance(data, LabelledImages):
        for path, target in zip(data.paths, data.targets.tolist(), strict=True):
            names = [data.classes[index] for index, on in enumerate(target) if on] if data.multilabel else ()
            label = ", ".join(names) if data.multilabel else data.classes[target]
            yield _Image(path, in_val, "" if isinstance(data, AnnotatedImages) else label)


def _in_both(group: list[_Image]) -> bool:
    return len({image.in_val for image in group}) > 1


def _labels(group: list[_Image]) -> int:
    return len({image.label for image in group})


def _examples(groups: list[list[_Image]], key: Callable[[_Image], object]) -> str:
    pairs = []
    for group in groups[:2]:
        first = group[0]
        pairs.append(f"{first} and {next(image for image in group if key(image) != key(first))}")
    return ", ".join(pairs)


def _split(group: list[_Image], key: Callable[[Path], Hashable]) -> list[list[_Image]]:
    parts: dict[Hashable, list[_Image]] = {}
    one_file = len({image.path for image in group}) == 1
    for image in group:
        parts.setdefault(None if one_file else key(image.path), []).append(image)
    return list(parts.values())


def _size(path: Path) -> Hashable:
    """Return the size of a file, or what identifies a folder or a missing file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_size if stat.S_ISREG(status.st_mode) else (status.st_dev, status.st_ino)


def _digest(path: Path, count: int, end: float) -> Hashable:
    """Return the hash of the first bytes of a file (-1 for all), or after the end what identifies the file."""
    try:
        status = os.stat(path)  # noqa: PTH116
        if time.monotonic() > end or not stat.S_ISREG(status.st_mode):
            return status.st_dev, status.st_ino
        with path.open("rb") as file:
            if count >= 0:
                return hashlib.sha256(file.read(count)).digest()
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path
