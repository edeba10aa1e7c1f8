"""Common parts of IPS and attention sampling, which classify an image by patches at full resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn
from typing_extensions import override

from tnet.backbones import BackboneConfig
from tnet.backbones.counting import counting
from tnet.baselines.geometry import Looks
from tnet.baselines.objective import BaselineObjective, BaselineObjectiveConfig, Terms
from tnet.errors import ConfigError
from tnet.losses import Target, classification_loss, penalised_parameters, reward
from tnet.models.base import Model, ModelConfig, ModelOutput
from tnet.scenes import SceneBatch
from tnet.traversal import FixedCells, Policy, RandomCells, TopK

PatchPolicy = Policy | str | None


@dataclass(frozen=True, kw_only=True)
class PatchModelConfig(ModelConfig):
    """Configuration of any model that sees patches at full resolution.

    Attributes:
        backbone: encoder of patches.
        patch_px: side of a patch, pixels of the full-resolution image.
        looks: patches used for the prediction: the default at inference and the number in training.
    """

    cost_depends_on_size: ClassVar[bool] = True

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet18"))
    in_channels: int = 1
    patch_px: int = 50
    looks: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(1, "patch_px", "looks")
        self._check_values(self.patch_px)

    @property
    @override
    def region_px(self) -> int:
        return self.patch_px

    @property
    @override
    def whole_px(self) -> int:
        return 0

    @property
    @override
    def typical_size_hw(self) -> tuple[int, int]:
        """Size of an image of 30 x 30 patches, as published for megapixel digits."""
        return 30 * self.patch_px, 30 * self.patch_px


class PatchModel(Model):
    """A model that sees patches at full resolution; its cost can depend on the size of the image."""

    config: PatchModelConfig

    def multiply_adds(
        self, image_size_hw: tuple[int, int], looks: Looks = None, policy: PatchPolicy = None
    ) -> dict[str, int]:
        """Count the multiply-adds of each part for one image in evaluation, without computing anything."""
        raise NotImplementedError

    @staticmethod
    def count_macs(run: Callable[[], object]) -> int:
        """Count the multiply-adds of a call, as :mod:`tnet.cost` does."""
        with counting() as counter:
            run()
        return counter.get_total_flops() // 2

    @staticmethod
    def images_by_size(scene: SceneBatch) -> dict[tuple[int, int], list[int]]:
        """Group the indices of images by size (height, width)."""
        sizes = list(scene.sizes_hw)
        return {size: [index for index, other in enumerate(sizes) if other == size] for size in sizes}

    @staticmethod
    def control_policy(policy: PatchPolicy, rows: int, cols: int) -> Policy | None:
        """Return the policy that chooses patches without the model's scores; ``None`` if the model chooses."""
        if policy is None or policy == "topk" or isinstance(policy, TopK):
            return None
        if policy == "random":
            return RandomCells()
        if policy == "centre":
            return FixedCells.centre_out(rows, cols)
        if isinstance(policy, str) or policy.needs_logits:
            name = policy if isinstance(policy, str) else type(policy).__name__
            raise ConfigError(f"policy {name!r} cannot choose patches of this model; give topk, random or centre")
        return policy


@dataclass(frozen=True)
class PatchObjectiveConfig(BaselineObjectiveConfig):
    """Weights of the terms; L2 is on ``all`` parameters except norms, or only on ``new`` ones: not the backbone's."""

    l2_scope: Literal["all", "new"] = "all"


class PatchObjective(BaselineObjective):
    """Cross entropy, and L2."""

    config: PatchObjectiveConfig

    @override
    def terms(self, output: ModelOutput, target: Target) -> Terms:
        ce = classification_loss(output.logits, target, self.config.label_smoothing).mean()
        return {"cross_entropy": ce}, reward(output.logits, target).mean(), output.logits.new_zeros(())

    @override
    def penalised(self, model: nn.Module) -> list[nn.Parameter]:
        return penalised_parameters(model, self.config.l2_scope)
