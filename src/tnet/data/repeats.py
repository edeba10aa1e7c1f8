"""Images that occur twice: among both training and validation images, or with two labels."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

from tnet.data.annotated import AnnotatedImages
from tnet.data.folder import LabelledImages
from tnet.data.groups import shared_groups
from tnet.data.loading import LabelledData

_MAX_SECONDS = 20.0
_READ = (0, 2**16, -1)  # bytes by which files are compared, one after another: none but the size, some, all
_KINDS = (
    ("split", "both training and validation images", "leave them out of one"),
    ("label", "labelled differently", "correct the labels"),
)


class _Image(NamedTuple):
    path: Path
    split: str
    label: str  # empty for annotated images, of which one may show several classes


def find_repeats(train: LabelledData, val: LabelledData) -> list[str]:
    """Describe images and groups that are both training and validation images, and images with different labels.

    Images are the same if they are one file, by name or link, or have the same bytes, compared for at most 20 s.
    """
    shared = "" if train is val else shared_groups(getattr(train, "groups", None), getattr(val, "groups", None))
    end = time.monotonic() + _MAX_SECONDS
    groups = [[*_images(train, "train"), *_images(val, "val")]]
    for count in _READ:
        parts: dict[Hashable, list[_Image]] = {}
        for number, group in enumerate(groups):
            for image in group:
                parts.setdefault((number, _content(image.path, count, end)), []).append(image)
        groups = [part for part in parts.values() if any(_pair(part, kind) for kind, _, _ in _KINDS)]
    late = f" (compared for {_MAX_SECONDS:.0f} s only)" if time.monotonic() > end else ""
    found = [shared] if shared else []
    for kind, problem, remedy in _KINDS:
        pairs = [pair for group in groups if (pair := _pair(group, kind))]
        if pairs:
            found.append(f"{len(pairs)} image(s) are {problem}{late}, such as {', '.join(pairs[:2])}; {remedy}")
    return found


def _images(data: LabelledData, split: str) -> Iterator[_Image]:
    if isinstance(data, LabelledImages):
        for path, target in zip(data.paths, data.targets, strict=True):
            indices = target.nonzero().flatten() if data.multilabel else target[None]
            label = ", ".join(data.classes[index] for index in indices)
            yield _Image(path, split, "" if isinstance(data, AnnotatedImages) else label)


def _pair(group: list[_Image], kind: str) -> str:
    """Describe two images of a group that differ in a field; empty if none do."""
    other = next((image for image in group if getattr(image, kind) != getattr(group[0], kind)), None)
    shown = [f"{image.path} ({getattr(image, kind)})" for image in (group[0], other) if image]
    return " and ".join(shown) if other else ""


def _content(path: Path, count: int, end: float) -> Hashable:
    """Return what files with the same bytes share; for folders, and after the end, what identifies a file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or time.monotonic() > end:
            return status.st_dev, status.st_ino
        if not count:
            return status.st_size
        with path.open("rb") as file:
            found = hashlib.sha256(file.read(count)) if count > 0 else hashlib.file_digest(file, "sha256")
            return found.digest()
    except OSError:
        return path
