"""What the baselines share that classify an image by patches at full resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tnet.backbones import BackboneConfig
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Regions
from tnet.models.config import PolicyKind
from tnet.objectives import Loss, classification_loss, penalised_parameters, reward
from tnet.scenes import Scene, TensorScene
from tnet.scenes.tensor import Resize
from tnet.traversal import FixedCells, Policy, RandomCells, TopK


@dataclass(frozen=True)
class PatchModelConfig:
    """What every model that looks at patches at full resolution has.

    Attributes:
        backbone: what sees a patch.
        num_classes: outputs of the classifier.
        in_channels: channels of an image.
        patch_px: side of a patch, pixels of the full-resolution image.
        looks: patches the prediction is made from: the default at inference and the number in training.
        resize: how what is not at full resolution is made smaller.
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        multilabel: classes do not exclude each other (sigmoid instead of softmax).
        class_names: one for each class; empty if unknown.
    """

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet18"))
    num_classes: int = 10
    in_channels: int = 1
    patch_px: int = 50
    looks: int = 100
    resize: Resize = "antialias"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    multilabel: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_least(1, "num_classes", "in_channels", "patch_px", "looks")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.in_channels):
                raise ConfigError(
                    f"model.{name} has {len(getattr(self, name))} values for {self.in_channels} channels; "
                    f"give 1 or {self.in_channels}"
                )
        if min(self.std) <= 0:
            raise ConfigError(f"model.std is {list(self.std)}; give numbers above 0")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(
                f"model.class_names has {len(self.class_names)} names for {self.num_classes} classes; give one each"
            )

    def _check_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give at least {least}")

    def _check_probability(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give a probability in [0, 1)")


class PatchModel(nn.Module):
    """A model that gets its pixels through scenes, normalised by its configuration.

    Args:
        config: of the model.
    """

    config: PatchModelConfig

    def __init__(self, config: PatchModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).reshape(1, -1, 1, 1), persistent=False)

    def scene(self, images: Num[Tensor, "batch channels height width"] | Sequence[Num[Tensor, "_ _ _"]]) -> TensorScene:
        """Wrap images in memory so that they can be looked at, with this model's resize; 0 lies outside them."""
        scene = TensorScene(images, self.config.resize)
        scene.fill = 0.0 if scene.is_normalized else self.config.mean
        return scene

    def _as_scene(
        self, images: Num[Tensor, "batch channels height width"] | Sequence[Num[Tensor, "_ _ _"]] | Scene
    ) -> Scene:
        return images if hasattr(images, "glimpse") else self.scene(images)  # type: ignore[return-value]

    def _pixels(
        self, scene: Scene, regions: Regions, size_px: int
    ) -> Float[Tensor, "regions channels {size_px} {size_px}"]:
        """Normalised pixels of regions, on the model's device and in its precision."""
        pixels = scene.glimpse(regions, size_px)
        if pixels.shape[1] != self.config.in_channels:
            raise ConfigError(
                f"images have {pixels.shape[1]} channels but the model takes {self.config.in_channels}; "
                "convert them, or build the model with in_channels of the images"
            )
        mean = self.get_buffer("mean")
        pixels = pixels.to(mean)
        return pixels if scene.is_normalized else (pixels - mean) / self.get_buffer("std")

    def _looks(self, looks: int | None) -> int:
        """The number of patches asked for."""
        looks = self.config.looks if looks is None else looks
        if looks < 1:
            raise GeometryError(f"looks is {looks}, but this model sees nothing except its patches; give at least 1")
        return looks


def images_by_size(scene: Scene) -> dict[tuple[int, int], list[int]]:
    """Indices of the images of each size (height, width)."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(scene.sizes_hw):
        groups.setdefault((height, width), []).append(index)
    return groups


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-adds of what ``run`` computes in evaluation, as :mod:`tnet.evaluation.cost` counts them."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class PatchObjectiveConfig:
    """Weights of the terms.

    Attributes:
        label_smoothing: of the cross entropy.
        l2_weight: of the sum of squares of the penalised parameters, biases included, norms excluded.
        l2_scope: penalise ``all`` parameters or only those of the ``new`` layers (everything but the backbone).
    """

    label_smoothing: float = 0.0
    l2_weight: float = 0.0
    l2_scope: Literal["all", "new"] = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"objective.label_smoothing is {self.label_smoothing}; give a number in [0, 1)")
        if not 0 <= self.l2_weight < float("inf"):
            raise ConfigError(f"objective.l2_weight is {self.l2_weight}; give a number, 0 or more")


def patch_loss(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
    config: PatchObjectiveConfig,
    model: nn.Module | None,
    **terms: Tensor,
) -> Loss:
    """Cross entropy, the L2 term if it has a weight, and further terms."""
    all_terms = {"cross_entropy": classification_loss(logits, target, config.label_smoothing).mean(), **terms}
    if config.l2_weight and model is not None:
        squares = torch.stack([p.square().sum() for p in penalised_parameters(model, config.l2_scope)])
        all_terms["l2"] = squares.sum() * config.l2_weight
    total = torch.stack(list(all_terms.values())).sum()
    return Loss(all_terms, total, reward(logits, target).mean(), logits.new_zeros(()))


def control_policy(policy: Policy | PolicyKind | None, rows: int, cols: int) -> Policy | None:
    """The policy that chooses patches without looking at them; ``None`` where the model itself is to choose.

    Args:
        policy: ``None``, ``topk`` or a ``TopK``: the model. ``random``, ``centre`` or a policy that needs no logits.
        rows: of the grid of patches.
        cols: of the grid of patches.

    Raises:
        ConfigError: a policy that asks for location logits.
    """
    if policy is None or policy == "topk" or isinstance(policy, TopK):
        return None
    if policy == "random":
        return RandomCells()
    if policy == "centre":
        return FixedCells.centre_out(rows, cols)
    if isinstance(policy, str) or policy.needs_logits:
        name = policy if isinstance(policy, str) else type(policy).__name__
        raise ConfigError(f"policy {name} cannot choose patches of this model; give topk, random or centre")
    return policy


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; then each submodule's own mode again."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
