"""What a data set hands out, and how samples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class Sample(NamedTuple):
    """One labelled image.

    Attributes:
        image: grey levels 0 to 255, ``[channels, height, width]``.
        target: the class index (a scalar ``int64``), or one 0/1 value per class for multi-label tasks (``float32``).
        name: where the image came from: a path, or ``made/<index>`` for images made on the fly.
    """

    image: UInt8[Tensor, "channels height width"]
    target: Int[Tensor, ""] | Float[Tensor, " classes"]
    name: str


class Batch(NamedTuple):
    """Samples together.

    Attributes:
        images: one tensor ``[batch, channels, height, width]`` when all images have one size, else a list of
            ``[channels, height, width]``.
        targets: ``[batch]`` class indices, or ``[batch, classes]`` 0/1 values.
        names: one per image.
    """

    images: UInt8[Tensor, "batch channels height width"] | list[UInt8[Tensor, "_ _ _"]]
    targets: Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
    names: list[str]


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples together; images of different sizes stay a list, nothing is resized or padded."""
    images = [sample.image for sample in samples]
    same_size = len({tuple(image.shape) for image in images}) == 1
    return Batch(
        images=torch.stack(images) if same_size else images,
        targets=torch.stack([sample.target for sample in samples]),
        names=[sample.name for sample in samples],
    )
