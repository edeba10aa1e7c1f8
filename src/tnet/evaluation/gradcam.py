"""Grad-CAM of a plain network (Selvaraju et al. 2017), as regions that compare with looks."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tnet.errors import ConfigError
from tnet.geometry import whole_images
from tnet.models.base import Images, Model
from tnet.models.tnet import TNet

_FINE = 64  # positions of a map per axis, between which a window is placed


class GradCam:
    """Maps of how much each place of an image adds to the most probable class of a plain network.

    The layer is the last one with a square map, before it is pooled.

    Args:
        model: a TNet of one level, in evaluation mode.
        name: its name in messages.

    Raises:
        ConfigError: captum is missing, or the network is not a plain convolutional one.
    """

    def __init__(self, model: Model, name: str) -> None:
        if find_spec("captum") is None:
            raise ConfigError("Grad-CAM needs captum; run pip install 'tnet[gradcam]', or leave --gradcam out")
        if not isinstance(model, TNet) or model.config.levels > 1:
            levels = f"a TNet of {model.config.levels} levels" if isinstance(model, TNet) else model.config.title
            raise ConfigError(f"{name} is {levels}, but Grad-CAM explains a plain network; give one of model.levels=1")
        from captum.attr import LayerGradCam

        self.model = model.eval()
        self._cam: Any = LayerGradCam(self._logits, _last_map(model, name))

    def pixels(self, images: Images) -> Float[Tensor, "images channels side side"]:
        """Return what the network sees of images."""
        scene = self.model.scene(images)
        return self.model.pixels(scene, whole_images(scene.sizes_hw), self.model.config.whole_px)

    def answer(self, pixels: Float[Tensor, "images channels side side"]) -> Int[Tensor, " images"]:
        """Return the most probable classes."""
        with torch.no_grad():
            return self._logits(pixels).argmax(1)

    def maps(
        self, pixels: Float[Tensor, "images channels side side"], classes: Int[Tensor, " images"]
    ) -> Float[Tensor, "images height width"]:
        """Return the map of a class of each image, at least 0."""
        with torch.enable_grad():
            found = self._cam.attribute(pixels, classes, relu_attributions=True)
        return found.detach()[:, 0]

    def _logits(self, pixels: Float[Tensor, "images channels side side"]) -> Float[Tensor, "images classes"]:
        return self.model(pixels, looks=0).logits


def _last_map(model: TNet, name: str) -> nn.Module:
    """Return the module whose output is the last map of the backbone."""
    ran: list[tuple[nn.Module, tuple[int, ...]]] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            ran.append((module, tuple(output.shape)))

    handles = [module.register_forward_hook(keep) for module in model.backbone.modules()]
    side, device = model.config.whole_px, model.classifier.weight.device
    try:
        with torch.no_grad():
            model(torch.zeros(1, model.config.in_channels, side, side, device=device), looks=0)
    finally:
        for handle in handles:
            handle.remove()
    maps = [(module, shape) for module, shape in ran if len(shape) == 4 and shape[2] > 1]
    has_tokens = any(len(shape) == 3 for _, shape in ran)
    if not maps or has_tokens or maps[-1][1][2] != maps[-1][1][3]:
        network = f"{name} ({model.config.network})"
        raise ConfigError(f"{network} has no map of channels to explain; give a convolutional network for Grad-CAM")
    return maps[-1][0]


def best_windows(
    maps: Float[Tensor, "images height width"], window_hw: Float[Tensor, "images 2"], count: int
) -> Float[Tensor, "images {count} 4"]:
    """Return the windows with the largest mean that do not overlap, best first, as shares of the image.

    ``window_hw`` is their height and width as shares. Where no further one fits, the last is repeated.
    """
    fine = F.interpolate(maps[:, None], (_FINE, _FINE), mode="bilinear", align_corners=False).double()
    sides = (window_hw * _FINE).round().long().clamp(1, _FINE).tolist()
    found = []
    for image, (high, wide) in zip(fine, sides, strict=True):
        means = F.avg_pool2d(image, (high, wide), stride=1)[0]
        windows: list[list[float]] = []
        while len(windows) < count:
            if windows and not bool(means.isfinite().any()):
                windows.append(windows[-1])
                continue
            y, x = divmod(int(means.argmax()), means.shape[1])
            windows.append([y / _FINE, x / _FINE, (y + high) / _FINE, (x + wide) / _FINE])
            means[max(0, y - high + 1) : y + high, max(0, x - wide + 1) : x + wide] = -torch.inf
        found.append(windows)
    return torch.tensor(found)
