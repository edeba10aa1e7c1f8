"""TensorFlow's EfficientNets of any width, with the stochastic depth of the reference implementation."""

from __future__ import annotations

import re
from typing import Any

from timm.layers.drop import DropPath
from timm.models import efficientnet
from torch import nn

# (width, depth) multipliers of B0 to B7.
_SCALES = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1)]
_NAME = re.compile(r"tf_efficientnet_b([0-7])(\..*)?")


def is_efficientnet(name: str) -> bool:
    """Return whether a backbone, with or without a tag of weights, is one of TensorFlow's EfficientNets."""
    return _NAME.fullmatch(name) is not None


def set_stochastic_depth(model: nn.Module, probability: float) -> None:
    """Skip residual block ``n`` of ``N`` with probability ``probability * n / N``, or else scale it up by the inverse.

    Blocks are counted from 1 over all blocks, as in the reference implementation; timm's ``drop_path_rate`` counts from
    0.
    """
    blocks = [block for stage in model.get_submodule("blocks").children() for block in stage.children()]
    for number, block in enumerate(blocks, start=1):
        if getattr(block, "has_skip", False):
            block.drop_path = DropPath(probability * number / len(blocks))


def create_narrow(name: str, in_channels: int, width: float, **kwargs: Any) -> nn.Module:
    """Build an EfficientNet with all channel counts times ``width``, without classifier and pretrained weights."""
    match = _NAME.fullmatch(name)
    assert match
    scale, depth = _SCALES[int(match[1])]
    # timm's constructors of B0 to B7 make this call with fixed multipliers.
    options = {"bn_eps": 1e-3, "pad_type": "same", **kwargs, "num_classes": 0, "in_chans": in_channels}
    model: nn.Module = efficientnet._gen_efficientnet(name, scale * width, depth, **options)
    return model
