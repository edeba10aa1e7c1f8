"""Samples, and how they become a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tnet.scenes.base import Scene
from tnet.scenes.memory import MemoryScene


class Sample(NamedTuple):
    """One labelled image."""

    image: UInt8[Tensor, "channels height width"] | Scene  # of a scene, only glimpsed regions are read
    target: Int[Tensor, ""] | Float[Tensor, " classes"]  # class index, or one 0/1 value per class (multi-label)
    name: str  # path of the image, or made/<split>/<index> for synthetic images

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, pixels."""
        image = self.image
        return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else image.size_hw


class Batch(NamedTuple):
    """A batch of samples: one tensor of images if all have one size, or a list; scenes if any of them is a scene."""

    images: UInt8[Tensor, "batch channels height width"] | list[UInt8[Tensor, "_ _ _"]] | list[Scene]
    targets: Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
    names: list[str]
    unreadable: tuple[tuple[str, str], ...] = ()  # path and error of images that were left out

    def to(self, device: torch.device | str) -> Batch:
        """Move the tensors to a device; scenes stay, and only their glimpses go to the model's device."""
        device = torch.device(device)
        pinned = device.type == "cuda"  # loaders pin memory if there is a GPU
        return self._map(lambda tensor: tensor.to(device, non_blocking=pinned))

    def pin_memory(self) -> Batch:
        """Move the tensors to pinned memory; called by loaders."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        images = self.images
        if isinstance(images, Tensor):
            return self._replace(images=change(images), targets=change(self.targets))
        changed = [change(image) if isinstance(image, Tensor) else image for image in images]
        return self._replace(images=cast("list[Tensor] | list[Scene]", changed), targets=change(self.targets))


def collate(samples: Sequence[Sample]) -> Batch:
    """Combine samples into a batch; images of different sizes stay a list, nothing is resized or padded."""
    tensors = [sample.image for sample in samples if isinstance(sample.image, Tensor)]
    images: Tensor | list[Tensor] | list[Scene]
    if len(tensors) < len(samples):
        images = [MemoryScene(image, name) if isinstance(image, Tensor) else image for image, _, name in samples]
    else:
        same_size = len({tuple(image.shape) for image in tensors}) == 1
        images = torch.stack(tensors) if same_size else tensors
    return Batch(images, torch.stack([sample.target for sample in samples]), [sample.name for sample in samples])
