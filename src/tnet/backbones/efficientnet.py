"""TensorFlow's EfficientNets in any width, and with stochastic depth as the reference implementation has it."""

from __future__ import annotations

import re
from typing import Any

from timm.layers.drop import DropPath
from timm.models import efficientnet
from torch import nn

# (width, depth) multipliers of B0 to B7.
_SCALES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
_NAME = re.compile(r"tf_efficientnet_(b[0-7])")


def is_efficientnet(name: str) -> bool:
    """Whether a backbone, named with or without timm's tag of weights, is one of TensorFlow's EfficientNets."""
    return _NAME.fullmatch(name.partition(".")[0]) is not None


def set_stochastic_depth(model: nn.Module, probability: float) -> None:
    """Skip residual blocks at random, deeper ones more often (published: linear, from the first block on).

    Block ``n`` of ``N``, counted from 1 over all blocks, is left out with probability ``probability * n / N``, and what
    remains is scaled up by the inverse; blocks without a shortcut are always run. (timm's ``drop_path_rate`` counts
    from 0.)

    Args:
        model: a timm EfficientNet.
        probability: of the last block.
    """
    blocks = [block for stage in model.get_submodule("blocks").children() for block in stage.children()]
    for number, block in enumerate(blocks, start=1):
        if getattr(block, "has_skip", False):
            block.drop_path = DropPath(probability * number / len(blocks))


def create_narrow(name: str, in_channels: int, width: float, **kwargs: Any) -> nn.Module:
    """Build one of TensorFlow's EfficientNets in another width, without classifier and without weights.

    Args:
        name: ``tf_efficientnet_b0`` to ``tf_efficientnet_b7``.
        in_channels: channels of an image.
        width: factor on all channel counts, on top of the model's own (0.25 makes a narrow one for experiments).
        kwargs: further arguments of timm's model.

    Raises:
        TypeError: arguments that timm's model does not take.
    """
    scale, depth = _SCALES[name.partition(".")[0].removeprefix("tf_efficientnet_")]
    # timm's own constructors of B0 to B7 are this call with their multipliers filled in; none of them takes another.
    model: nn.Module = efficientnet._gen_efficientnet(
        name,
        channel_multiplier=scale * width,
        depth_multiplier=depth,
        num_classes=0,
        in_chans=in_channels,
        **{"bn_eps": 1e-3, "pad_type": "same", **kwargs},
    )
    return model
