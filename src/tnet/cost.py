"""Parameters, multiply-adds and time of a model, in total and per module.

Multiply-adds (MACs) are half of what PyTorch's FLOP counter counts: convolutions, linear layers, matrix products and
attention; element-wise operations, normalisation, pooling and resizing of pixels are free. Everything in
``TNet.forward`` counts, including the classification of each feature. The published figures classify only the
aggregate, treat aggregation as free and scale coordinates once per cell instead of once per row and column, together
less than 0.1 %; and they include the location module at 0 looks (1 % for ImageNet), where ours does not run.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from tnet.backbones import Described
from tnet.backbones.counting import counting
from tnet.baselines.patches import PatchModel
from tnet.errors import ConfigError, first_line
from tnet.geometry import Regions
from tnet.models.base import Model, ModelConfig
from tnet.models.kind import build_model
from tnet.models.tnet import TNet
from tnet.scenes.base import Scene
from tnet.traversal import Choice, Policy

_OWN = "aggregation"  # what TNet computes outside of its parts (cell pooling) is counted here


@dataclass(frozen=True)
class ParameterCount:
    """Number of trainable parameters, and of all parameters and running statistics, as in the paper's tables.

    The statistics are one mean and one variance per channel of batch norm, without the second set of
    ``batch_norm: per_level``.
    """

    trainable: int
    total: int


@dataclass(frozen=True)
class ModuleCost:
    """Parameters of one part of a model, and its multiply-adds over all glimpses of one image.

    Operations that belong to no part, such as the pooling of cell features, are attributed to ``aggregation`` if the
    model has one, otherwise to its last part.
    """

    name: str
    parameters: ParameterCount
    macs: int


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds per image of a forward pass: median, fastest and slowest of the timed repeats."""

    median_ms: float
    min_ms: float
    max_ms: float
    batch_size: int
    repeats: int


class _BlankScene:
    """One image of zeros that takes no memory: costs do not depend on pixel values."""

    is_normalized = True

    def __init__(self, size_hw: tuple[int, int], channels: int, like: Tensor) -> None:
        self.sizes_hw, self.channels, self.device, self.dtype = [size_hw], channels, like.device, like.dtype

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Return zeros for each region."""
        return torch.zeros(len(regions), self.channels, size_px, size_px, device=self.device, dtype=self.dtype)


class _FirstCells(Policy):
    """Chooses the first cells: the cost does not depend on the choice, and meta tensors cannot be ranked."""

    def __init__(self, needs_logits: bool) -> None:
        self.needs_logits = needs_logits  # whether the locator runs, and so is counted

    def __call__(self, logits: Float[Tensor, "regions cells"], k: int) -> Choice:
        """Choose the first ``k`` cells of each region."""
        nothing = logits.new_zeros(len(logits), k)
        return Choice(torch.arange(k).repeat(len(logits), 1), nothing, nothing.sum(dim=1))


def build_outline(config: ModelConfig) -> Model:
    """Build a model without weights on PyTorch's ``meta`` device, on which counting computes nothing.

    Raises:
        ConfigError: the configuration cannot be built.
    """
    with torch.device("meta"):
        return build_model(config.without_weights()).eval()


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count the parameters of a module; see :class:`ParameterCount`."""
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
    norms = (norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm))
    means = sum(norm.running_mean.numel() for norm in norms if norm.running_mean is not None)
    return ParameterCount(trainable, trainable + frozen + 2 * means)  # as many variances as means


def multiply_adds(
    model: Model,
    looks: int | Sequence[int] | None = None,
    image_size_hw: tuple[int, int] | None = None,
    policy: str | None = None,
) -> int:
    """Count the multiply-adds of one image in evaluation mode; arguments and errors: see :func:`cost_by_module`."""
    return sum(part.macs for part in cost_by_module(model, looks, image_size_hw, policy))


def cost_by_module(
    model: Model,
    looks: int | Sequence[int] | None = None,
    image_size_hw: tuple[int, int] | None = None,
    policy: str | None = None,
) -> list[ModuleCost]:
    """Count the parameters and multiply-adds of each part of a model, for one image in evaluation mode.

    Args:
        model: any model.
        looks: number of looks; see the model's ``forward``.
        image_size_hw: height and width, pixels; ``None`` for a size typical of the model. Matters only for models whose
            number of patches grows with the image; others resize every glimpse to one size.
        policy: how locations are chosen; ``None`` for the model's own policy. Controls such as ``random`` may not run
            the locator, which then costs nothing.

    Raises:
        GeometryError: the model or the image does not allow these looks.
    """
    if model.is_prepared:
        model = build_outline(model.config)  # fused operations are not counted
    size_hw = image_size_hw or model.config.typical_size_hw
    policy = policy or model.config.eval_policy
    chosen = model.config.resolve_looks(looks)
    if isinstance(model, PatchModel):
        # A model that counts itself may run a part in several roles; the first role has its parameters.
        counts = {name: count_parameters(getattr(model, name)) for name in model.parts}
        macs = model.multiply_adds(size_hw, chosen, policy)
        return [ModuleCost(name, counts.get(name, ParameterCount(0, 0)), number) for name, number in macs.items()]
    config = model.config
    scene = _BlankScene(size_hw, config.in_channels, like=model.classifier.weight)
    training = model.training
    try:
        with counting() as counter:
            kind = model.eval().policy(policy)
            model(scene, looks=chosen, policy=kind if isinstance(kind, str) else _FirstCells(kind.needs_logits))
    finally:
        model.train(training)
    own = _OWN if _OWN in model.parts else model.parts[-1]
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    parts = {name: _flops_of(flops, f"{type(model).__name__}.{name}") for name in model.parts}
    parts[own] += counter.get_total_flops() - sum(parts.values())
    modules = {name: getattr(model, name) for name in model.parts}
    return [
        ModuleCost(name, count_parameters(modules[name]), flops // 2)
        for name, flops in parts.items()
        if modules[name] is not None
    ]


def _flops_of(flops: dict[str, int], name: str) -> int:
    """Return the FLOPs of a module; if its ``forward`` was bypassed, the sum over the modules inside it."""
    if name in flops:
        return flops[name]
    inside = {other for other in flops if other.startswith(f"{name}.")}
    outermost = [other for other in inside if not any(other.startswith(f"{outer}.") for outer in inside)]
    return sum(flops[other] for other in outermost)


def full_image_multiply_adds(model: TNet, image_size_hw: tuple[int, int]) -> int:
    """Count the multiply-adds of a model's backbone and classifier on one whole image at full resolution.

    Raises:
        ConfigError: the backbone does not take images of this size, as many transformers do not.
    """
    backbone = copy.deepcopy(model.backbone).to("meta").eval()
    image = torch.zeros(1, model.config.in_channels, *image_size_hw, device="meta")
    try:
        with counting() as counter:
            described: Described = backbone(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"backbone {model.config.backbone.name} does not take a whole image of {image_size_hw[0]} x "
            f"{image_size_hw[1]} px ({first_line(error)}); choose another backbone or image size"
        ) from None
    return counter.get_total_flops() // 2 + described.pooled.shape[1] * model.config.num_classes


def time_per_image_ms(
    model: Model,
    images: Num[Tensor, "batch channels height width"] | Sequence[Num[Tensor, "_ _ _"]] | Sequence[Scene],
    looks: int | Sequence[int] | None = None,
    *,
    policy: Policy | str = "topk",
    repeats: int = 5,
    warmup: int = 2,
) -> Timing:
    """Time the forward pass of one batch in evaluation mode; arguments: see ``TNet.forward``.

    Includes cropping and resizing; excludes reading and decoding, unless the images are scenes.

    Raises:
        ConfigError: ``repeats`` is below 1.
        GeometryError: the model or the images do not allow these looks.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; give at least 1")
    device = model.classifier.weight.device
    training = model.training
    times_ms: list[float] = []
    try:
        model.eval()
        with torch.inference_mode():
            for repeat in range(warmup + repeats):
                synchronize(device)
                start = time.perf_counter()
                model(images, looks=looks, policy=policy)
                synchronize(device)
                if repeat >= warmup:
                    times_ms.append(1000 * (time.perf_counter() - start) / len(images))
    finally:
        model.train(training)
    return Timing(statistics.median(times_ms), min(times_ms), max(times_ms), len(images), repeats)


def synchronize(device: torch.device) -> None:
    """Wait for pending CUDA work, so that wall-clock time is meaningful."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
