"""Small variants of the registered forms, and images, for tests of exports."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.helpers import as_trained, awaken
from torch import Tensor

from tnet.backbones import BackboneConfig
from tnet.models import TNet, TNetConfig
from tnet.models.registry import list_models, model_config

# A map of 24 x 24 positions at 48 px, enough for the cells of every published form.
BACKBONE = BackboneConfig("resnet10t", tap=0, kwargs={"channels": [8, 8, 16, 16], "stem_width": 8})


def forms() -> dict[str, TNetConfig]:
    """Every form of TNet among the registered models, under the name of one of them, with a tiny backbone."""
    found: dict[str, TNetConfig] = {}
    for name in list_models():
        config = model_config(name)
        if isinstance(config, TNetConfig):
            position = replace(config.position, divisor=2)
            mean, std = config.normalization
            sizes = {"num_classes": 5, "base_px": 48, "backbone": BACKBONE}
            tiny = replace(config, **sizes, position=position, mean=mean, std=std)
            if tiny not in found.values():
                found[name] = tiny
    return found


def build(config: TNetConfig) -> TNet:
    """A model with weights and batch norm statistics as after some training."""
    torch.manual_seed(1)
    return as_trained(awaken(TNet(config)).eval())


def noise(channels: int, size_hw: tuple[int, int], count: int = 2) -> Tensor:
    """Raw images of noise."""
    return torch.randint(256, (count, channels, *size_hw), dtype=torch.uint8)


def as_floats(model: TNet, images: Tensor) -> Tensor:
    """Normalised images, whose glimpses the model does not round, unlike those of raw images."""
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in model.config.normalization)
    return (images / 255 - mean) / std
