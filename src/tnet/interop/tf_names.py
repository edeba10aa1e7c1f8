"""Mapping between variables of a TensorFlow checkpoint and tensors of a model.

There are two naming schemes: *reference* for checkpoints of the reference implementation, and *google* for Google's
ImageNet classifiers (EfficientNet, also NoisyStudent), which the bird models start from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import ConfigError
from tnet.models.tnet import TNet

Family = Literal["reference", "google"]

_BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_LAYER = {"weight": "kernel", "bias": "bias"}

# Modules of TNet outside the backbone and the locator.
_HEADS = {
    "position.linear": "feature_posBurn/linear",
    "classifier": "feature_extraction/logits_layer/linear",
    "aggregation.squeeze": "feat_weighting/se/dense_1",
    "aggregation.excite": "feat_weighting/se/dense_2",
    "aggregation.rate": "feat_weighting/output_linear",
}
# Modules of the locator by its form, after "location_prediction_earlyLocs/" (context) or "location_prediction/".
_SCALING = {"coordinates.scale_y": "height_scaling", "coordinates.scale_x": "width_scaling", "output": "output_linear"}
_CONTEXT = _SCALING | {"hidden": "conv2d"}
_SQUEEZE = _SCALING | {"reduce": "init/conv2d", "hidden": "final/conv2d"}
_SQUEEZE |= {"squeeze": "se/conv2d_1", "excite": "se/conv2d_2"}
_BAGNET = {"reduce": "comp_1", "look": "comp_2", "expand": "comp_3", "shortcut": "shortcut_comp"}
# Layers of a timm block without and with an expansion.
_PLAIN_BLOCK = {"conv_dw": "depthwise", "bn1": "depthwise", "conv_pw": "bottleneck", "bn2": "bottleneck"}
_EXPANDING_BLOCK = {"conv_pw": "expand", "bn1": "expand", "conv_dw": "depthwise", "bn2": "depthwise"}
_EXPANDING_BLOCK |= {"conv_pwl": "bottleneck", "bn3": "bottleneck"}


def tensors_of(model: TNet) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint must fill: all but the batch counters of batch norm."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def variable_names(model: TNet, family: Family) -> dict[str, str]:
    """Return the variable name for each name in the state dict of a model of any width and number of classes."""
    backbone = model.config.backbone.name
    if backbone != "bagnet77" and not backbone.startswith("tf_efficientnet_b"):
        remedy = "choose a model with bagnet77 or tf_efficientnet_b0 to b7"
        raise ConfigError(f"there are no TensorFlow checkpoints of backbone {backbone}; {remedy}")
    if family == "google" and (model.config.levels > 1 or backbone == "bagnet77"):
        remedy = "import them with --model efficientnet_b0.imagenet (to b7)"
        use = "and use the result as model.backbone.weights of another model"
        raise ConfigError(f"checkpoints of Google's EfficientNet are plain classifiers; {remedy}, {use}")
    name_of: Callable[[str, TNet], str] = _google if family == "google" else _reference
    return {name: name_of(name, model) for name in tensors_of(model)}


def _reference(name: str, model: TNet) -> str:
    module, _, leaf = name.rpartition(".")
    if module.startswith("locator."):
        is_context = model.config.locator.kind == "context"
        scope, layers = ("_earlyLocs", _CONTEXT) if is_context else ("", _SQUEEZE)
        return f"location_prediction{scope}/{layers[module.removeprefix('locator.')]}/{_LAYER[leaf]}"
    if not module.startswith("backbone."):
        return f"{_HEADS[module]}/{_LAYER[leaf]}"
    module = module.removeprefix("backbone.")
    if model.config.backbone.name == "bagnet77":
        return f"feature_extraction/{_bagnet(module)}/conv2d/{_LAYER[leaf]}"
    return f"feature_extraction/{_efficientnet(module.removeprefix('model.'), leaf, model)}"


def _bagnet(module: str) -> str:
    if module in ("stem", "head"):
        return {"stem": "part1", "head": "part6"}[module]
    _, stage, block, layer = module.split(".")
    return f"part{int(stage) + 2}_block{int(block) + 1}/{_BAGNET[layer]}"


def _block_layers(model: TNet, stage: str, block: str) -> dict[str, str]:
    layers = dict(model.get_submodule(f"backbone.model.blocks.{stage}.{block}").named_children())
    return _EXPANDING_BLOCK if "conv_pwl" in layers else _PLAIN_BLOCK


def _efficientnet(module: str, leaf: str, model: TNet) -> str:
    ends = {"conv_stem": "stem/conv2d", "bn1": "stem/batch_norm", "conv_head": "top/conv2d", "bn2": "top/batch_norm"}
    if module in ends:
        return f"{ends[module]}/{(_BATCH_NORM if 'bn' in module else _LAYER)[leaf]}"
    _, stage, block, *layer = module.split(".")
    part = f"part{int(stage) + 2}_block{int(block) + 1}"
    if layer[0] == "se":
        return f"{part}/se/{ {'conv_reduce': 'conv2d_1', 'conv_expand': 'conv2d_2'}[layer[1]] }/{_LAYER[leaf]}"
    place = _block_layers(model, stage, block)[layer[0]]
    if layer[0].startswith("bn"):
        return f"{part}/{place}/batch_norm/{_BATCH_NORM[leaf]}"
    return f"{part}/{place}/conv2d/{'depthwise_kernel' if place == 'depthwise' else 'kernel'}"


def _google(name: str, model: TNet) -> str:
    module, _, leaf = name.rpartition(".")
    network = "efficientnet-" + model.config.backbone.name.partition(".")[0].removeprefix("tf_efficientnet_")
    if module == "classifier":
        return f"{network}/head/dense/{_LAYER[leaf]}"
    module = module.removeprefix("backbone.model.")
    ends = {"conv_stem": "stem/conv2d", "conv_head": "head/conv2d"}
    norms = {"bn1": "stem/tpu_batch_normalization", "bn2": "head/tpu_batch_normalization"}
    if module in ends or module in norms:
        return f"{network}/{(ends | norms)[module]}/{(_BATCH_NORM if module in norms else _LAYER)[leaf]}"
    _, stage, block, *layer = module.split(".")
    sizes = [len(list(s.children())) for s in model.get_submodule("backbone.model.blocks").children()]
    prefix = f"{network}/blocks_{sum(sizes[: int(stage)]) + int(block)}"
    if layer[0] == "se":
        return f"{prefix}/se/{ {'conv_reduce': 'conv2d', 'conv_expand': 'conv2d_1'}[layer[1]] }/{_LAYER[leaf]}"
    if layer[0] == "conv_dw":
        return f"{prefix}/depthwise_conv2d/depthwise_kernel"
    # Layers of a kind are numbered in order of execution, the first without a number.
    kind = "tpu_batch_normalization" if layer[0].startswith("bn") else "conv2d"
    of_kind = sorted(key for key in _block_layers(model, stage, block) if key.startswith(layer[0][:2]))
    of_kind = [key for key in of_kind if key != "conv_dw"]
    number = of_kind.index(layer[0])
    suffix = f"_{number}" if number else ""
    return f"{prefix}/{kind}{suffix}/{(_BATCH_NORM if kind != 'conv2d' else _LAYER)[leaf]}"


def tensorflow_shape(name: str, shape: torch.Size) -> tuple[int, ...]:
    """Return the TensorFlow shape of a variable, given the shape of its tensor."""
    if name.endswith("depthwise_kernel"):
        return (shape[2], shape[3], shape[0], 1)
    if len(shape) == 4:
        return (shape[2], shape[3], shape[1], shape[0])
    return tuple(reversed(shape))


def to_tensor(name: str, value: NDArray[Any]) -> Tensor:
    """Convert a variable to PyTorch's layout: kernels HWIO to OIHW, depthwise HWC1 to C1HW, dense transposed."""
    if name.endswith("depthwise_kernel"):
        value = value.transpose(2, 3, 0, 1)
    elif value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
        value = value.T
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))


def family_of(variables: Iterable[str]) -> Family:
    """Return the naming scheme of some variables."""
    return "google" if any(re.match(r"efficientnet-b\d/", name) for name in variables) else "reference"
