"""TNet: look at the whole, choose regions, look at them, classify (paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from tnet.backbones import Described, PopulationNorms, create_backbone
from tnet.geometry import Regions, choose_cells, covered_shares, whole_images
from tnet.models.base import Images, Model, ModelOutput, mean_entropy
from tnet.models.config import TNetConfig
from tnet.models.parts import Locator, PositionModule, create_aggregation, pool_cells, sample_cells
from tnet.scenes import SceneBatch
from tnet.traversal import FixedCells, Policy, RandomCells, SampleWithoutReplacement, TopK

PARTS = ("backbone", "position", "locator", "aggregation", "classifier")
"""The parts of a TNet, in the order in which they run."""


@dataclass(frozen=True)
class TNetOutput(ModelOutput):
    """Everything a traversal found.

    Features are ordered, for each image: the whole image, then the regions of level 1 in raster order, then those of
    level 2 (parent by parent), and so on; ``n`` is their number and ``n - 1`` the number of looks.

    Attributes:
        logits: class logits from all features together.
        feature_logits: class logits from each feature alone, by the same classifier.
        features: after the position module.
        aggregate: what the classifier saw.
        weights: each feature's share of the aggregate.
        regions: one entry a level, level 0 first.
        location_logits: for each level but the last, what the locator said of each region's cells, after
            normalisation; empty for 0 looks.
        cells: for each level but the last, which of each region's cells were chosen, in raster order.
        log_prob: log-probability of each chosen location.
        joint_log_prob: log-probability of all choices made in an image.
    """

    is_ranked: ClassVar[bool] = True

    logits: Float[Tensor, "batch classes"]
    feature_logits: Float[Tensor, "batch n classes"]
    features: Float[Tensor, "batch n dim"]
    aggregate: Float[Tensor, "batch dim"]
    weights: Float[Tensor, "batch n"]
    regions: tuple[Regions, ...]
    location_logits: tuple[Float[Tensor, "_ cells"], ...]
    cells: tuple[Int[Tensor, "_ _"], ...]
    log_prob: Float[Tensor, "batch looks"]
    joint_log_prob: Float[Tensor, " batch"]

    @property
    def location_probs(self) -> tuple[Float[Tensor, "_ cells"], ...]:
        """For each level but the last, the probability of each region's cells."""
        return tuple(logits.softmax(dim=1) for logits in self.location_logits)

    @property
    @override
    def region_logits(self) -> Float[Tensor, "batch n classes"]:
        return self.feature_logits[:, 1:]

    @property
    @override
    def region_weights(self) -> Float[Tensor, "batch n"]:
        return self.weights[:, 1:]

    @property
    @override
    def region_probs(self) -> Float[Tensor, "batch n"]:
        batch = len(self.logits)
        chosen = [
            probs[regions.parent.to(probs.device), regions.cell.to(probs.device)].reshape(batch, -1)
            for probs, regions in zip(self.location_probs, self.regions[1:], strict=True)
        ]
        return torch.cat(chosen, dim=1) if chosen else self.logits.new_zeros(batch, 0)

    @property
    @override
    def whole_logits(self) -> Float[Tensor, "batch classes"]:
        return self.feature_logits[:, 0]

    @property
    @override
    def whole_weights(self) -> Float[Tensor, " batch"]:
        return self.weights[:, 0]

    @property
    @override
    def location_entropy(self) -> Float[Tensor, ""] | None:
        return mean_entropy(self.location_probs)


class TNet(Model):
    """A traversal network.

    Takes a batch of images of any size and answers for any number of looks. ``uint8`` images are normalised by the
    configuration's mean and standard deviation; floating point images are taken to be normalised already.

    Example:
        >>> model = TNet(TNetConfig(num_classes=10, base_px=224))
        >>> output = model(images, looks=3)
        >>> output.logits.argmax(1), output.regions[1].box_l0_yxyx

    Args:
        config: what it is made of.

    Raises:
        ConfigError: a configuration that cannot be built.
    """

    config: TNetConfig

    def __init__(self, config: TNetConfig) -> None:
        super().__init__(config)
        grid_side = max(config.grid.rows, config.grid.cols)
        self.backbone = create_backbone(config.backbone, config.in_channels, config.base_px, grid_side)
        dim = self.backbone.feature_dim
        self.position = PositionModule(config.position, dim)
        self.locator = Locator(config.locator, self.backbone.cell_dim, dim) if config.levels > 1 else None
        self.aggregation = create_aggregation(config.aggregation, dim)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(dim, config.num_classes)
        per_level = config.batch_norm == "per_level" and config.levels > 1
        self.population_norms = PopulationNorms(self.backbone) if per_level else None

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return PARTS

    def policy(self, kind: str | None = None) -> Policy:
        """The policy of that kind, or the configured one for the current mode (training or evaluation)."""
        config = self.config.policy
        kind = kind or (config.train if self.training else config.eval)
        super().policy(kind)
        grid = self.config.grid
        apart = covered_shares(grid) > config.max_overlap if config.max_overlap < 1 else None
        if kind == "topk":
            return TopK(apart)
        if kind == "sample":
            return SampleWithoutReplacement(config.joint, config.temperature)
        if kind == "random":
            return RandomCells()
        return FixedCells.centre_out(grid.rows, grid.cols, apart)

    @override
    def seeded_policy(self, kind: str, seed: int, device: torch.device) -> Policy:
        generator = torch.Generator(device).manual_seed(seed)
        if kind == "random":
            return RandomCells(generator)
        if kind == "sample":
            config = self.config.policy
            return SampleWithoutReplacement(config.joint, config.temperature, generator)
        return self.policy(kind)

    def forward(
        self,
        images: Images,
        looks: int | Sequence[int] | None = None,
        policy: Policy | str | None = None,
    ) -> TNetOutput:
        """Look at images and classify them.

        Args:
            images: a batch tensor; a list of images of different sizes; a scene (:func:`tnet.open_scene`) or a list
                of scenes of different sizes, of which only what is looked at is read; or a batch of scenes.
            looks: locations: a number for level 1 (deeper levels as configured), one number a level, or ``None`` for
                the configured ones. With 0 the locator is not used and this is the plain backbone on the downsized
                image.
            policy: how locations are chosen; the configured policy of the mode if ``None``.

        Raises:
            GeometryError: looks that the model or the images do not allow.
            ImageError: a file that cannot be read, or has channels of which the model's cannot be made.
        """
        config = self.config
        scene = self.scene(images)
        chosen = config.resolve_looks(looks)
        if policy is None or isinstance(policy, str):
            policy = self.policy(policy)
        regions = whole_images(scene.sizes_hw)
        batch = len(regions)
        all_regions, features, location_logits, cells = [regions], [], [], []
        log_probs: list[Tensor] = []
        joint: list[Tensor] = []
        for level in range(len(chosen) + 1):
            described = self._describe(scene, regions)
            features.append(self.position(described.pooled, regions).unflatten(0, (batch, -1)))
            if level == len(chosen):
                break
            logits = self._locate(described.cell_map, described.pooled, regions, policy)
            choice = policy(logits, chosen[level])
            location_logits.append(logits)
            cells.append(choice.cells)
            log_probs.append(choice.log_prob.reshape(batch, -1))
            joint.append(choice.joint_log_prob.reshape(batch, -1))
            regions = choose_cells(regions, config.grid, choice.cells)
            all_regions.append(regions)
            del described
        return self._classify(features, all_regions, location_logits, cells, log_probs, joint)

    def classify(self, features: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch classes"]:
        """Class logits from some of the features of each image together, without dropout.

        Args:
            features: as :attr:`TNetOutput.features` has them, any number of them in any order.
        """
        return self.classifier(self.aggregation(features).feature)

    def _describe(self, scene: SceneBatch, regions: Regions) -> Described:
        """Look at regions and describe them."""
        pixels = self.pixels(scene, regions, self.config.base_px)
        population: AbstractContextManager[None] = nullcontext()
        if self.population_norms is not None:
            population = self.population_norms.of_level(regions.level)
        with population:
            return self.backbone(pixels)

    def _locate(
        self,
        cell_map: Float[Tensor, "regions cell_dim h w"],
        pooled: Float[Tensor, "regions dim"],
        regions: Regions,
        policy: Policy,
    ) -> Float[Tensor, "regions cells"]:
        """Location logits of the cells of regions; zeros for a policy that does not ask the locator."""
        config = self.config
        if not policy.needs_logits:
            return pooled.new_zeros(len(regions), config.grid.cells)
        assert self.locator is not None
        if config.locator.cells == "area":
            cells = pool_cells(cell_map.detach(), regions, config.grid)
        else:
            cells = sample_cells(cell_map, config.grid, config.locator.position_start, config.locator.position_step)
        return self.locator(cells, pooled)

    def _classify(
        self,
        features: list[Tensor],
        regions: list[Regions],
        location_logits: list[Tensor],
        cells: list[Tensor],
        log_probs: list[Tensor],
        joint: list[Tensor],
    ) -> TNetOutput:
        """Put what was found together."""
        stacked = torch.cat(features, dim=1)
        aggregate, weights = self.aggregation(stacked)
        batch = stacked.shape[0]
        return TNetOutput(
            logits=self.classifier(self.dropout(aggregate)),
            # Dropout acts on single features independently (reference implementation).
            feature_logits=self.classifier(self.dropout(stacked)),
            features=stacked,
            aggregate=aggregate,
            weights=weights,
            regions=tuple(regions),
            location_logits=tuple(location_logits),
            cells=tuple(cells),
            log_prob=torch.cat(log_probs, dim=1) if log_probs else stacked.new_zeros(batch, 0),
            joint_log_prob=torch.cat(joint, dim=1).sum(1) if joint else stacked.new_zeros(batch),
        )
