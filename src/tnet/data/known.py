"""The published data sets by name.

They are read as they were handed out, picture by picture. Shards of samples one after another (WebDataset, LitData)
would read faster from object stores and disks that turn, but were left out: their readers shuffle within a buffer and
per worker, whereas here an epoch's order and each picture's change follow from seed, epoch and index alone, for any
number of workers and after a resumed run; boxes, crops of boxes, lazily read pictures and splits ask for samples by
index; and either needs a conversion step, with a second copy of the data, and a dependency.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tnet.data import cub, fmow, imagenet, nabirds
from tnet.data.annotated import AnnotatedImages
from tnet.data.checking import DatasetSummary
from tnet.data.cub import check_cub, classes_of_cub, open_cub
from tnet.data.fmow import check_fmow, open_fmow
from tnet.data.imagenet import check_imagenet, classes_of_imagenet, open_imagenet
from tnet.data.nabirds import check_nabirds, numbered_by_the_reference, open_nabirds
from tnet.errors import ConfigError


@dataclass(frozen=True)
class KnownDataset:
    """A published data set.

    Attributes:
        name: by which recipes know it (``data.kind``).
        official: number of pictures of each split, by its name.
        classes: number of classes.
        open: opens a split of the data set in a folder.
        check: holds the data set in a folder against what was published.
        numbered: the classes of the data set in a folder, in the order in which the checkpoints of the paper's authors
            number them.
    """

    name: str
    official: dict[str, int]
    classes: int
    open: Callable[..., AnnotatedImages]
    check: Callable[[str | os.PathLike[str]], DatasetSummary]
    numbered: Callable[[str | os.PathLike[str]], Sequence[str]]


KNOWN = {
    known.name: known
    for known in (
        KnownDataset(
            "imagenet", imagenet.OFFICIAL, imagenet.CLASSES, open_imagenet, check_imagenet, classes_of_imagenet
        ),
        KnownDataset("fmow", fmow.OFFICIAL, len(fmow.CATEGORIES), open_fmow, check_fmow, lambda root: fmow.CATEGORIES),
        KnownDataset("cub", cub.OFFICIAL, cub.CLASSES, open_cub, check_cub, classes_of_cub),
        KnownDataset(
            "nabirds", nabirds.OFFICIAL, nabirds.CLASSES, open_nabirds, check_nabirds, numbered_by_the_reference
        ),
    )
}
"""By name."""


def known_dataset(name: str) -> KnownDataset:
    """The data set of that name.

    Raises:
        ConfigError: no such data set.
    """
    if name not in KNOWN:
        raise ConfigError(f"The data set {name!r} is not known; name one of {', '.join(KNOWN)}.")
    return KNOWN[name]


def open_known(name: str, root: str | os.PathLike[str], split: str, **options: object) -> AnnotatedImages:
    """Open a split of a published data set.

    Args:
        name: of the data set.
        root: its folder.
        split: one of its splits.
        options: as for :class:`tnet.data.annotated.AnnotatedImages`.

    Raises:
        ConfigError: no such data set, or split.
        DataError: it is missing, or damaged.
    """
    return known_dataset(name).open(root, split, **options)
