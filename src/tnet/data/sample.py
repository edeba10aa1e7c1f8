"""What a data set hands out, and how samples become a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tnet.scenes.base import Scene
from tnet.scenes.memory import MemoryScene


class Sample(NamedTuple):
    """One labelled image.

    Attributes:
        image: grey levels 0 to 255, ``[channels, height, width]``; or a scene, of which only what is looked at is read.
        target: the class index (a scalar ``int64``), or one 0/1 value per class for multi-label tasks (``float32``).
        name: where the image came from: a path, or ``made/<index>`` for images made on the fly.
    """

    image: UInt8[Tensor, "channels height width"] | Scene
    target: Int[Tensor, ""] | Float[Tensor, " classes"]
    name: str


class Batch(NamedTuple):
    """Samples together.

    Attributes:
        images: one tensor ``[batch, channels, height, width]`` when all images have one size, a list of
            ``[channels, height, width]`` when they have not; a list of scenes when any of them is a scene.
        targets: ``[batch]`` class indices, or ``[batch, classes]`` 0/1 values.
        names: one per image.
    """

    images: UInt8[Tensor, "batch channels height width"] | list[UInt8[Tensor, "_ _ _"]] | list[Scene]
    targets: Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
    names: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on a device; scenes stay, what is looked at goes to the model's device."""
        device = torch.device(device)
        pinned = device.type == "cuda"  # as loaders hand batches out there

        return self._with(lambda tensor: tensor.to(device, non_blocking=pinned))

    def pin_memory(self) -> Batch:
        """The batch with its tensors in pinned memory; loaders call this."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with something done to its tensors."""
        images = self.images
        if isinstance(images, Tensor):
            return Batch(change(images), change(self.targets), self.names)
        changed = [change(image) if isinstance(image, Tensor) else image for image in images]
        return Batch(cast("list[Tensor] | list[Scene]", changed), change(self.targets), self.names)


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples together; images of different sizes stay a list, nothing is resized or padded."""
    return Batch(
        images=_together(samples),
        targets=torch.stack([sample.target for sample in samples]),
        names=[sample.name for sample in samples],
    )


def _together(samples: Sequence[Sample]) -> Tensor | list[Tensor] | list[Scene]:
    tensors = [sample.image for sample in samples if isinstance(sample.image, Tensor)]
    if len(tensors) < len(samples):
        return [MemoryScene(image, name) if isinstance(image, Tensor) else image for image, _, name in samples]
    same_size = len({tuple(image.shape) for image in tensors}) == 1
    return torch.stack(tensors) if same_size else tensors
