"""Samples without the images that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tnet.data.folder import LabelledImages
from tnet.data.sample import Batch, Sample, collate
from tnet.errors import ImageError, ImageSizeError


class Found(NamedTuple):
    """A sample, and path and error of those that cannot be read in its place."""

    sample: Sample | None
    unreadable: tuple[tuple[str, str], ...]


class Readable:
    """Labelled images, each that cannot be read replaced by the next, or by none."""

    def __init__(self, data: LabelledImages, *, replace: bool) -> None:
        self.data, self.replace = data, replace

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Found:
        """Return a sample, which depends on the index alone.

        Raises:
            ImageError: one image more than ``most_unreadable`` in a row cannot be read, or an image is too small.
        """
        unreadable: list[tuple[str, str]] = []
        while True:
            place = (index + len(unreadable)) % len(self.data)
            try:
                sample = self.data[place]
                _ = sample.size_hw  # opens the file of a scene
                return Found(sample, tuple(unreadable))
            except ImageSizeError:
                raise
            except ImageError as error:
                if len(unreadable) >= min(self.data.most_unreadable, len(self.data) - 1):
                    raise
                unreadable.append((str(self.data.paths[place]), str(error)))
            if not self.replace:
                return Found(None, tuple(unreadable))


def collate_readable(found: Sequence[Found]) -> Batch:
    """Combine what is found into a batch, which has no images if none can be read."""
    samples = [item.sample for item in found if item.sample is not None]
    batch = collate(samples) if samples else Batch([], torch.empty(0, dtype=torch.int64), [])
    return batch._replace(unreadable=tuple(image for item in found for image in item.unreadable))
