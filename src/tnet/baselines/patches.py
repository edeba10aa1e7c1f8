"""What the baselines share that classify an image by patches at full resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from tnet.backbones import BackboneConfig
from tnet.errors import ConfigError, GeometryError
from tnet.losses import (
    Loss,
    ModelObjective,
    check_smoothing,
    check_weights,
    classification_loss,
    l2_term,
    penalised_parameters,
    reward,
)
from tnet.models.base import Model, ModelConfig, ModelOutput
from tnet.scenes import SceneBatch
from tnet.traversal import FixedCells, Policy, RandomCells, TopK


@dataclass(frozen=True, kw_only=True)
class PatchModelConfig(ModelConfig):
    """What every model that looks at patches at full resolution has.

    Attributes:
        backbone: what sees a patch.
        patch_px: side of a patch, pixels of the full-resolution image.
        looks: patches the prediction is made from: the default at inference and the number in training.
    """

    cost_depends_on_size: ClassVar[bool] = True

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet18"))
    in_channels: int = 1
    patch_px: int = 50
    looks: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(1, "patch_px", "looks")

    @property
    @override
    def look_px(self) -> int:
        return self.patch_px

    @property
    @override
    def whole_px(self) -> int:
        return 0

    @property
    def typical_size_hw(self) -> tuple[int, int]:
        """An image of 30 x 30 patches, as published for megapixel digits."""
        return 30 * self.patch_px, 30 * self.patch_px

    def _check_looks(self, looks: int) -> None:
        if looks < 1:
            raise GeometryError(f"looks is {looks}, but this model sees nothing except its patches; give at least 1")

    def _check_probability(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give a probability in [0, 1)")


class PatchModel(Model):
    """A model that sees patches at full resolution, so that its cost depends on the size of the image.

    Args:
        config: of the model.
    """

    config: PatchModelConfig

    def multiply_adds(
        self,
        image_size_hw: tuple[int, int],
        looks: int | Sequence[int] | None = None,
        policy: Policy | str | None = None,
    ) -> dict[str, int]:
        """Multiply-adds for one image of this size in evaluation, part by part; nothing is computed."""
        raise NotImplementedError


def images_by_size(scene: SceneBatch) -> dict[tuple[int, int], list[int]]:
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
        check_smoothing(self.label_smoothing)
        check_weights(self, "l2_weight")


class PatchObjective(ModelObjective):
    """Cross entropy of the one prediction, and the L2 term if it has a weight.

    Args:
        config: weights of the terms.
    """

    config: PatchObjectiveConfig

    def further_terms(self, output: ModelOutput) -> dict[str, Float[Tensor, ""]]:
        """What a model's own objective adds, by name, already weighted."""
        return {}

    def forward(
        self,
        output: ModelOutput,
        target: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
        model: nn.Module | None = None,
    ) -> Loss:
        """All terms for one batch.

        Args:
            output: of the model in training mode.
            target: class indices, or 0/1 values for several labels.
            model: whose parameters the L2 term penalises; needed only if that term has a weight.
        """
        config, logits = self.config, output.logits
        terms = {"cross_entropy": classification_loss(logits, target, config.label_smoothing).mean()}
        terms |= self.further_terms(output)
        if config.l2_weight and model is not None:
            terms["l2"] = l2_term(penalised_parameters(model, config.l2_scope), config.l2_weight)
        return Loss.of(terms, reward(logits, target).mean(), logits.new_zeros(()))


def control_policy(policy: Policy | str | None, rows: int, cols: int) -> Policy | None:
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
