"""TNet: look at the whole, choose regions, look at them, classify (paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from tnet.backbones import Described, PopulationNorms, create_backbone
from tnet.errors import ConfigError
from tnet.geometry import Regions, choose_cells, resolve_looks, whole_images
from tnet.models.config import PolicyKind, TNetConfig
from tnet.models.parts import FeatureWeighting, Locator, MeanAggregation, PositionModule, pool_cells, sample_cells
from tnet.scenes import LazyBatch, Scene, SceneBatch, TensorScene
from tnet.traversal import FixedCells, Policy, RandomCells, SampleWithoutReplacement, TopK

Images = (
    Num[Tensor, "batch channels height width"] | Sequence[Num[Tensor, "_ _ _"]] | Scene | Sequence[Scene] | SceneBatch
)
"""What a model looks at: a batch tensor, a list of images of different sizes, a scene, scenes, or a batch of scenes."""


@dataclass(frozen=True)
class TNetOutput:
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
        log_prob: log-probability of each chosen location.
        joint_log_prob: log-probability of all choices made in an image.
    """

    logits: Float[Tensor, "batch classes"]
    feature_logits: Float[Tensor, "batch n classes"]
    features: Float[Tensor, "batch n dim"]
    aggregate: Float[Tensor, "batch dim"]
    weights: Float[Tensor, "batch n"]
    regions: tuple[Regions, ...]
    location_logits: tuple[Float[Tensor, "_ cells"], ...]
    log_prob: Float[Tensor, "batch looks"]
    joint_log_prob: Float[Tensor, " batch"]

    @property
    def location_probs(self) -> tuple[Float[Tensor, "_ cells"], ...]:
        """For each level but the last, the probability of each region's cells."""
        return tuple(logits.softmax(dim=1) for logits in self.location_logits)


class TNet(nn.Module):
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

    def __init__(self, config: TNetConfig) -> None:
        super().__init__()
        self.config = config
        grid_side = max(config.grid.rows, config.grid.cols)
        self.backbone = create_backbone(config.backbone, config.in_channels, config.base_px, grid_side)
        dim = self.backbone.feature_dim
        self.position = PositionModule(config.position, dim)
        self.locator = Locator(config.locator, self.backbone.cell_dim, dim) if config.levels > 1 else None
        self.aggregation = FeatureWeighting(dim) if config.aggregation == "weighted" else MeanAggregation()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(dim, config.num_classes)
        self.register_buffer("mean", torch.tensor(config.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).reshape(1, -1, 1, 1), persistent=False)
        per_level = config.batch_norm == "per_level" and config.levels > 1
        self.population_norms = PopulationNorms(self.backbone) if per_level else None

    def scene(self, images: Images) -> SceneBatch:
        """Wrap images so that they can be looked at, with this model's channels, resize and padding.

        Args:
            images: as for :meth:`forward`. A batch that can be looked at already is returned as it is.
        """
        config = self.config
        if isinstance(images, SceneBatch):
            return images
        scenes = [images] if isinstance(images, Scene) else images
        if not isinstance(scenes, Tensor) and any(isinstance(scene, Scene) for scene in scenes):
            device = self.get_buffer("mean").device
            return LazyBatch(cast(list[Scene], scenes), config.in_channels, config.resize, config.mean, device=device)
        scene = TensorScene(cast(Tensor | list[Tensor], scenes), config.resize)
        # Outside an image is 0 after normalisation, as in the reference implementation.
        scene.fill = 0.0 if scene.is_normalized else config.mean
        return scene

    def policy(self, kind: PolicyKind | None = None) -> Policy:
        """The policy of that kind, or the configured one for the current mode (training or evaluation)."""
        config = self.config.policy
        kind = kind or (config.train if self.training else config.eval)
        if kind == "topk":
            return TopK()
        if kind == "sample":
            return SampleWithoutReplacement(config.joint, config.temperature)
        if kind == "random":
            return RandomCells()
        return FixedCells.centre_out(self.config.grid.rows, self.config.grid.cols)

    def forward(
        self,
        images: Images,
        looks: int | Sequence[int] | None = None,
        policy: Policy | PolicyKind | None = None,
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
        chosen = config.looks if looks is None else resolve_looks(looks, config.looks, config.grid, config.levels)
        if policy is None or isinstance(policy, str):
            policy = self.policy(policy)
        regions = whole_images(scene.sizes_hw)
        batch = len(regions)
        all_regions, features, location_logits = [regions], [], []
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
            log_probs.append(choice.log_prob.reshape(batch, -1))
            joint.append(choice.joint_log_prob.reshape(batch, -1))
            regions = choose_cells(regions, config.grid, choice.cells)
            all_regions.append(regions)
            del described
        return self._classify(features, all_regions, location_logits, log_probs, joint)

    def _describe(self, scene: SceneBatch, regions: Regions) -> Described:
        """Look at regions and describe them."""
        pixels = scene.glimpse(regions, self.config.base_px)
        if pixels.shape[1] != self.config.in_channels:
            raise ConfigError(
                f"images have {pixels.shape[1]} channels but the model takes {self.config.in_channels}; "
                "convert them, or build the model with in_channels of the images"
            )
        mean = self.get_buffer("mean")
        pixels = pixels.to(mean)  # the model's device and precision
        if not scene.is_normalized:
            pixels = (pixels - mean) / self.get_buffer("std")
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
        log_probs: list[Tensor],
        joint: list[Tensor],
    ) -> TNetOutput:
        """Put what was found together."""
        stacked = torch.cat(features, dim=1)
        weights = self.aggregation(stacked)
        aggregate = torch.einsum("bn,bnd->bd", weights, stacked)
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
            log_prob=torch.cat(log_probs, dim=1) if log_probs else stacked.new_zeros(batch, 0),
            joint_log_prob=torch.cat(joint, dim=1).sum(1) if joint else stacked.new_zeros(batch),
        )
