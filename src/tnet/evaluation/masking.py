"""Scenes of which boxes are covered, or of which only boxes are sharp; for deletion and insertion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tnet.geometry import Regions, pixel_cover, whole_images
from tnet.scenes.base import SceneBatch

_BLURRED_PX = 16  # side at which a blurred image is kept


class MaskedBatch:
    """A batch of scenes with boxes changed in every glimpse, so that large files need not be decoded.

    Padding around images stays as it is.

    Args:
        scene: the scenes as they are.
        boxes: boxes of each image, ``(y0, x0, y1, x1)`` in level-0 pixels.
        instead: what is shown in place of the changed pixels: a small copy of each image, which is interpolated.
        keep: change what is outside the boxes, rather than inside.
    """

    def __init__(
        self,
        scene: SceneBatch,
        boxes: Int[Tensor, "images n 4"],
        instead: Float[Tensor, "images channels side side"],
        *,
        keep: bool = False,
    ) -> None:
        self.scene, self.boxes, self.instead, self.keep = scene, boxes, instead, keep
        self.is_normalized = scene.is_normalized

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, level-0 pixels."""
        return self.scene.sizes_hw

    @property
    def device(self) -> torch.device:
        """Device of the glimpses."""
        return self.scene.device

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Return the pixels of each region, resized to ``size_px`` squared, with the boxes changed."""
        pixels = self.scene.glimpse(regions, size_px)
        frames, sizes_hw = regions.box_l0_yxyx, torch.tensor(self.sizes_hw)[regions.image]
        whole = torch.cat([torch.zeros_like(sizes_hw), sizes_hw], dim=1)
        inside, chosen = (
            pixel_cover(frames, boxes, size_px).to(pixels)[:, None]
            for boxes in (whole[:, None], self.boxes[regions.image])
        )
        share = (inside - chosen).clamp_min(0) if self.keep else torch.minimum(chosen, inside)
        ends = 2 * frames / sizes_hw.repeat(1, 2) - 1  # grid_sample counts from -1 to 1 across the image
        low, side = ends[:, :2], ends[:, 2:] - ends[:, :2]
        centres = low[:, None] + side[:, None] * ((torch.arange(size_px) + 0.5) / size_px)[None, :, None]
        y, x = (centres[:, :, axis] for axis in (0, 1))
        grid = torch.stack([x[:, None, :].expand(-1, size_px, -1), y[:, :, None].expand(-1, -1, size_px)], dim=-1)
        copies = self.instead[regions.image.to(self.instead.device)].to(pixels)
        blurry = F.grid_sample(copies, grid.to(pixels), padding_mode="border", align_corners=False)
        return torch.lerp(pixels, blurry, share.expand_as(pixels))


def blurred(scene: SceneBatch) -> Float[Tensor, "images channels side side"]:
    """Return copies of images averaged over a 16th of their sides."""
    return scene.glimpse(whole_images(scene.sizes_hw), _BLURRED_PX)
