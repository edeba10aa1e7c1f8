"""Saccader as one function of a tensor: it describes all positions once, so that its looks are easily unrolled."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from tnet.baselines.geometry import window_regions
from tnet.baselines.saccader import Saccader
from tnet.errors import ConfigError
from tnet.export.resize import Resized
from tnet.export.unrolled import OUTPUTS
from tnet.geometry import Regions

_DRAWN = ("sample", "random")


class FixedSaccader(nn.Module):
    """A Saccader on images of one size; see :class:`tnet.export.unrolled.FixedLooks`.

    The whole image has a weight of 1 without looks, else 0; its own logits are the mean over all positions.

    Raises:
        ConfigError: the looks are drawn.
    """

    def __init__(self, model: Saccader, looks: tuple[int, ...], size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.looks, self.policy = model, sum(looks), model.config.policy
        if self.policy in _DRAWN and looks:
            problem = f"model.policy is {self.policy!r}, whose looks cannot be unrolled"
            raise ConfigError(f"{problem}; only the representation network can be exported, with --looks 0")
        self.whole = Resized(size_hw, model.config.input_px, model.config.resize)

    def forward(self, image: UInt8[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Classify raw images of ``size_hw``, values 0 to 255; returns :data:`OUTPUTS`."""
        model, config, batch = self.model, self.model.config, image.shape[0]
        pixels = (self.whole(image) / 255 - model.get_buffer("mean")) / model.get_buffer("std")
        logits, path, _ = model.look(pixels, self.looks, self.policy)
        seen = logits.gather(1, path[:, :, None].expand(-1, -1, logits.shape[2]))
        zeros, one = torch.zeros(batch, dtype=torch.long), torch.tensor([[0, 0, *self.whole.size_hw]])
        whole = Regions(
            zeros, torch.arange(batch), one.expand(batch, 4), zeros - 1, zeros - 1, zeros[:, None].expand(-1, 2)
        )
        windows = window_regions(whole, path, model.side, model.backbone.grid.field_px, config.input_px)
        boxes = torch.cat([whole.box_l0_yxyx[:, None], windows.box_l0_yxyx.reshape(batch, self.looks, 4)], dim=1)
        alone = torch.cat([logits.mean(dim=1, keepdim=True), seen], dim=1)
        weights = torch.tensor([0.0] + [1 / self.looks] * self.looks if self.looks else [1.0])
        answer = seen.mean(dim=1) if self.looks else alone[:, 0]
        return dict(zip(OUTPUTS, (answer, boxes, weights.expand(batch, -1), alone), strict=True))
