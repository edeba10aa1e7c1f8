"""TNet: see the whole image, choose regions, see them, classify (paper, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from tnet.backbones import Backbone, Described, PopulationNorms, create_backbone, fuse
from tnet.errors import ConfigError
from tnet.geometry import Regions, cell_boxes, cell_spans, image_shares
from tnet.models.aggregation import AGGREGATIONS, Aggregated, Features, Mask, PlacedAggregation, Places, mean_of
from tnet.models.base import Images, ModelOutput, mean_entropy
from tnet.models.calibration import Calibration
from tnet.models.config import TNetConfig
from tnet.models.engine import Seen, Traversable, Traversal, advance
from tnet.models.parts import Locator, PositionModule, pool_cells, sample_cells
from tnet.scenes import SceneBatch
from tnet.traversal import POLICIES, LevelByLevel, Policy, Search, Trail
from tnet.traversal.trail import gather_rows

PARTS = ("backbone", "position", "locator", "aggregation", "classifier")
"""Parts of a TNet in the order in which they run."""


@dataclass(frozen=True)
class TNetOutput(ModelOutput):
    """Output of a TNet.

    ``n`` is the largest number of regions of an image, including the whole image; features are in the order seen. For
    the published traversal that is, per image, the whole image, the regions of level 1 in raster order, those of level
    2 parent by parent, and so on.

    Attributes:
        logits: class logits from all features together.
        feature_logits: class logits from each feature alone, by the same classifier.
        features: features with their position encoded.
        aggregate: input of the classifier.
        weights: share of each feature in the aggregate.
        regions: table of all regions that were seen, whole images first.
        rows: row of ``regions`` of each feature.
        seen: mask of valid features; ``None`` if all images have ``n``. Other features are 0.
        location_logits: location logits of the cells of each divided region, normalised as configured, from when the
            region was seen.
        divided: row of ``regions`` of each divided region.
        gains: predicted gains of the cells of each divided region, in nats; ``None`` if they are not predicted.
        log_prob: log-probability of each chosen location.
        joint_log_prob: log-probability of all choices in an image.
        places: where features were seen, if the aggregation is a canvas.
    """

    is_ranked: ClassVar[bool] = True

    logits: Float[Tensor, "batch classes"]
    feature_logits: Float[Tensor, "batch n classes"]
    features: Float[Tensor, "batch n dim"]
    aggregate: Float[Tensor, "batch dim"]
    weights: Float[Tensor, "batch n"]
    regions: Regions
    rows: Int[Tensor, "batch n"]
    seen: Bool[Tensor, "batch n"] | None
    location_logits: Float[Tensor, "divided cells"]
    divided: Int[Tensor, " divided"]
    gains: Float[Tensor, "divided cells"] | None
    log_prob: Float[Tensor, "batch looks"]
    joint_log_prob: Float[Tensor, " batch"]
    places: Places | None = None

    @property
    def location_probs(self) -> Float[Tensor, "divided cells"]:
        """Probabilities of the cells of each divided region."""
        return self.location_logits.softmax(dim=1)

    def of_chosen(self, values: Float[Tensor, "divided cells"]) -> Float[Tensor, " rows"]:
        """Return the value of the cell of each row of ``regions`` in its parent; 0 for whole images."""
        children = (self.regions.parent >= 0).nonzero().flatten()
        chosen = values[self._cell_of(children)]
        return self.logits.new_zeros(len(self.regions)).index_put((children.to(chosen.device),), chosen)

    def _cell_of(self, rows: Int[Tensor, "*rows"]) -> tuple[Int[Tensor, "*rows"], Int[Tensor, "*rows"]]:
        """Index of rows of ``regions`` in ``location_logits``."""
        index = torch.zeros(len(self.regions), dtype=torch.long)
        index[self.divided] = torch.arange(len(self.divided))
        device = self.location_logits.device
        return index[self.regions.parent[rows]].to(device), self.regions.cell[rows].to(device)

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
        rows = self.rows[:, 1:]
        probs = self.location_probs[self._cell_of(rows)]
        return probs.masked_fill((self.regions.cell[rows] < 0).to(probs.device), torch.nan)  # places that a caller gave

    @property
    @override
    def whole_logits(self) -> Float[Tensor, "batch classes"]:
        whole = self._is_whole.to(self.feature_logits)
        return (self.feature_logits * (whole / whole.sum(dim=1, keepdim=True))[:, :, None]).sum(dim=1)

    @property
    @override
    def whole_weights(self) -> Float[Tensor, " batch"]:
        return (self.weights * self._is_whole.to(self.weights)).sum(dim=1)

    @property
    def _is_whole(self) -> Bool[Tensor, "batch n"]:
        """Which features are of level 0: the first, and others if a long image was seen as squares."""
        is_whole = self.regions.level[self.rows] == 0
        return is_whole if self.seen is None else is_whole & self.seen

    @property
    @override
    def location_entropy(self) -> Float[Tensor, ""] | None:
        return mean_entropy(self.location_probs_by_level())

    def location_probs_by_level(self) -> list[Float[Tensor, "_ cells"]]:
        """Return :attr:`location_probs` per divided level, level 0 first."""
        level = self.regions.level[self.divided]
        probs = self.location_probs
        return [probs[(level == depth).to(probs.device)] for depth in level.unique().tolist()]


class TNet(Traversable):
    """A traversal network for images of any size and any number of looks.

    It has three stateless steps, :meth:`see`, :meth:`locate` and :meth:`answer`; a :class:`tnet.traversal.Search`
    decides which regions are seen next.

    Example:
        >>> model = TNet(TNetConfig(num_classes=10, base_px=224))
        >>> output = model(images, looks=3)
        >>> output.logits.argmax(1), output.regions.box_l0_yxyx
    """

    config: TNetConfig
    calibration: Calibration | None
    """When to stop looking, from ``tnet calibrate``; saved with the model."""

    def __init__(self, config: TNetConfig) -> None:
        super().__init__(config)
        self.calibration = None
        self.grid, self.levels = config.grid, config.levels
        grid_side = max(config.grid.rows, config.grid.cols)
        self.backbone = create_backbone(config.backbone, config.in_channels, config.base_px, grid_side)
        self.look_backbone: Backbone | None = None
        if config.levels > 1:
            self.backbone.check_px(config.region_px)
            if config.look_weights == "separate":
                self.look_backbone = copy.deepcopy(self.backbone)  # starts from the same weights
        dim = self.backbone.feature_dim
        self.position = PositionModule(config.position, dim)
        cell_dim, make = self.backbone.cell_dim, AGGREGATIONS[config.aggregation]
        placed = make if isinstance(make, type) and issubclass(make, PlacedAggregation) else None
        collected_dim = (dim if placed is None else placed.channels) if self.sees_collected else 0
        self.locator = Locator(config.locator, cell_dim, dim, collected_dim) if config.levels > 1 else None
        self.aggregation = make(dim) if placed is None else placed(dim, cell_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(dim, config.num_classes)
        per_level = config.batch_norm == "per_level" and config.levels > 1 and self.look_backbone is None
        self.population_norms = PopulationNorms(self.backbone) if per_level else None

    @property
    def placed(self) -> PlacedAggregation | None:
        """The aggregation, if it knows where features were seen."""
        return self.aggregation if isinstance(self.aggregation, PlacedAggregation) else None

    @property
    @override
    def parts(self) -> tuple[str, ...]:
        return PARTS if self.look_backbone is None else (PARTS[0], "look_backbone", *PARTS[1:])

    @override
    def _fused_backbones(self) -> dict[str, Backbone]:
        if self.population_norms is None:
            return super()._fused_backbones()
        fused, sides = {}, (self.config.base_px, self.config.region_px)
        for level, (name, side) in enumerate(zip(("backbone", "look_backbone"), sides, strict=True)):
            with self.population_norms.of_level(level):
                fused[name] = fuse(self.backbone, self.config.in_channels, {side})
        complete = {name: part for name, part in fused.items() if part is not None}
        return complete if len(complete) == len(fused) else {}

    @override
    def seeded_policy(self, kind: str, seed: int, device: torch.device) -> Policy:
        return self.policy(kind, torch.Generator(device).manual_seed(seed))

    def policy(self, kind: str | None = None, generator: torch.Generator | None = None) -> Policy:
        """Return the policy of that name, or the configured one of the current mode (training or evaluation)."""
        config = self.config.policy
        policy = POLICIES[kind or (config.train if self.training else config.eval)]
        return policy.create(config, self.config.grid, generator)

    def forward(
        self,
        images: Images,
        looks: int | Sequence[int] | None = None,
        policy: Policy | str | None = None,
        search: Search | None = None,
    ) -> TNetOutput:
        """Classify images.

        Args:
            images: a batch tensor; a list of images of different sizes; a scene (:func:`tnet.open_scene`) or a list of
                them, from which only the regions seen are read; or a batch of scenes. ``uint8`` images are normalised
                here, floating point images must already be.
            looks: locations: a number for level 1 (deeper levels as configured), one number per level, or ``None`` for
                the configured ones. 0 runs the backbone and classifier on the downscaled image only.
            policy: choice of locations; the configured policy of the current mode if ``None``.
            search: search to use instead of ``looks`` and ``policy``.

        Raises:
            GeometryError: the model or the images do not support these looks.
            ImageError: a file cannot be read, or its channels cannot be converted to the model's.
            ConfigError: both a search and looks or a policy are given.
        """
        traversal = Traversal(self, self.scene(images), self._search(looks, policy, search))
        while traversal.step is not None:
            advance([traversal])
        return self.answer(traversal.trail)

    def _search(self, looks: int | Sequence[int] | None, policy: Policy | str | None, search: Search | None) -> Search:
        if search is None:
            chosen = self.config.resolve_looks(looks)
            policy = policy if isinstance(policy, Policy) else self.policy(policy)
            return LevelByLevel(chosen, policy, one_by_one=self.sees_collected)
        if looks is not None or policy is not None:
            raise ConfigError("forward got both a search and looks or a policy; give one of the two")
        self._check_search()
        return search

    def _check_search(self) -> None:
        if self.locator is None:
            raise ConfigError("model.levels is 1, but a search needs a locator; give 2 or more levels")

    @override
    def search(self, images: Images, search: Search) -> Traversal:
        self._check_search()
        return super().search(images, search)

    @override
    def look_pixels(self, scene: SceneBatch, regions: Regions) -> Float[Tensor, "regions channels side side"]:
        config, is_region = self.config, regions.level > 0
        sides = [px for px, mask in ((config.base_px, ~is_region), (config.region_px, is_region)) if bool(mask.any())]
        if len(set(sides)) > 1:
            problem = "a step of the search sees whole images and regions, which this model sees at"
            raise ConfigError(f"{problem} {sides[0]} and {sides[1]} px; give whole images a step of their own")
        return self.pixels(scene, regions, sides[0])

    @override
    def encode(self, pixels: Float[Tensor, "regions channels side side"], regions: Regions) -> Seen:
        described = self.describe(pixels, regions.level > 0)
        return Seen(self.position(described.pooled, regions.position_yxl), described.pooled, described.cell_map)

    def see(self, scene: SceneBatch, regions: Regions) -> Seen:
        """Glimpse regions of any mix of images and levels, and extract their features."""
        return self.encode(self.look_pixels(scene, regions), regions)

    def describe(
        self, pixels: Float[Tensor, "regions channels height width"], is_region: Bool[Tensor, " regions"]
    ) -> Described:
        """Run the backbone on normalised glimpses, with separate weights or batch norm statistics if configured.

        ``is_region``, on the CPU, is true for regions and false for whole images.
        """
        if self.population_norms is None and self.look_backbone is None:
            return self.backbone(pixels)
        if bool((is_region == is_region[0]).all()):
            return self._describe_population(pixels, int(is_region[0]))
        parts, order = [], []
        for level, mask in enumerate((~is_region, is_region)):
            rows = mask.nonzero().flatten()
            order.append(rows)
            parts.append(self._describe_population(pixels[rows.to(pixels.device)], level))
        back = torch.cat(order).argsort().to(pixels.device)
        return Described(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))

    def _describe_population(self, pixels: Float[Tensor, "regions channels height width"], level: int) -> Described:
        """Run the backbone on whole images (level 0) or regions (level 1), with their own weights or statistics."""
        backbone = self.backbone if self.look_backbone is None or not level else self.look_backbone
        if self.population_norms is None:
            return backbone(pixels)
        with self.population_norms.of_level(level):
            return backbone(pixels)

    @override
    def gains(
        self, seen: Seen, regions: Regions, scored: Bool[Tensor, " regions"] | None = None
    ) -> Float[Tensor, "scored cells"] | None:
        if self.locator is None or not self.config.locator.value:
            return None
        return self.locate(seen, regions, scored, self.locator.value)

    @override
    def locate(
        self, seen: Seen, regions: Regions, scored: Bool[Tensor, " regions"] | None = None, head: Locator | None = None
    ) -> Float[Tensor, "scored ..."] | None:
        """Return the location logits, or the output of another head, of the cells of ``scored`` regions (default: all).

        ``None`` if there are none. With ``model.locator.context: collected`` location logits are drafts; see
        :meth:`relocate`.
        """
        if scored is not None and not bool(scored.any()):
            return None
        cell_map, pooled = seen.cell_map, seen.pooled
        if scored is not None and not bool(scored.all()):
            rows = scored.nonzero().flatten()
            regions = regions.take(rows)
            cell_map, pooled = cell_map[rows.to(cell_map.device)], pooled[rows.to(pooled.device)]
        return self.score(cell_map, pooled, *cell_spans(regions, self.config.grid), head)

    def score(
        self,
        cell_map: Float[Tensor, "regions cell_dim h w"],
        pooled: Float[Tensor, "regions dim"],
        y_spans: Float[Tensor, "regions rows 2"],
        x_spans: Float[Tensor, "regions cols 2"],
        head: Locator | None = None,
    ) -> Float[Tensor, "regions ..."]:
        """Compute the tensor part of :meth:`locate`; spans are those of :func:`tnet.geometry.cell_spans`."""
        head, config = head or self.locator, self.config
        assert head is not None
        if config.locator.cells == "area":
            cells = pool_cells(cell_map.detach(), y_spans, x_spans)
        else:
            cells = sample_cells(cell_map, config.grid, config.locator.position_start, config.locator.position_step)
        return head(cells, pooled)

    @property
    @override
    def sees_collected(self) -> bool:
        return self.config.locator.context == "collected"

    @override
    def relocate(self, trail: Trail, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows cells"]:
        assert self.locator is not None
        regions, grid = trail.regions.take(rows), self.config.grid
        images, image = regions.image.unique(return_inverse=True)
        with torch.no_grad():
            features, seen, places = self._collected(trail, images)
            if self.placed is not None:
                shares = image_shares(cell_boxes(regions, grid), torch.tensor(trail.sizes_hw)[regions.image])
                shares = shares.unflatten(1, (grid.rows, grid.cols))
                canvas = self.placed.read(features, seen, places)[image.to(features.device)]
                collected = pool_cells(canvas, shares[:, :, 0, 0::2], shares[:, 0, :, 1::2])
            else:
                collected = mean_of(features, seen).feature[image.to(features.device), :, None, None]
        drafts, place = torch.cat([draft for _, draft in trail.drafts]), torch.searchsorted(trail.drafted_rows, rows)
        return self.locator.finish(drafts[place.to(drafts.device)], collected)

    @override
    def begin(
        self, cell_map: Float[Tensor, "views cell_dim h w"], regions: Regions, sizes_hw: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "images channels _ _"] | None:
        if self.placed is None:
            return None
        size_hw = torch.tensor(sizes_hw)[regions.image]
        return self.placed.begin(cell_map, regions.box_l0_yxyx / size_hw.repeat(1, 2), regions.image)

    @override
    def answer(self, trail: Trail) -> TNetOutput:
        """Aggregate and classify the features of a trail."""
        rows, seen = trail.by_image()
        features, on_device, places = self._collected(trail)
        logits, feature_logits, aggregate, weights = self.decide(features, on_device, places)
        divided = trail.divided_rows()
        return TNetOutput(
            logits, feature_logits, features, aggregate, weights, trail.regions, rows, seen,
            location_logits=trail.scores(divided, first=True),
            divided=divided,
            gains=trail.gains if len(trail.scored_rows) == len(divided) else None,
            log_prob=gather_rows(trail.log_prob, rows, seen)[:, 1:],
            joint_log_prob=trail.joint_log_prob(),
            places=places,
        )  # fmt: skip

    def _collected(
        self, trail: Trail, images: Int[Tensor, " images"] | None = None
    ) -> tuple[Features, Mask, Places | None]:
        """Return the features of images (default: all), their mask and places, on the model's device."""
        rows, seen = trail.by_image()
        if images is not None:
            rows, seen = rows[images], None if seen is None else seen[images]
        features = gather_rows(trail.features, rows, seen)
        places, start = None, trail.start
        if start is not None:
            image = trail.regions.image[rows[:, 0]]
            boxes = image_shares(trail.regions.box_l0_yxyx[rows], torch.tensor(trail.sizes_hw)[image])
            places = Places(boxes.to(start.device), start[image.to(start.device)])
        return features, None if seen is None else seen.to(features.device), places

    @override
    def logits_of(self, trail: Trail) -> Float[Tensor, "images classes"]:
        return self.classify(*self._collected(trail))

    def _aggregate(self, features: Features, seen: Mask, places: Places | None) -> Aggregated:
        return self.aggregation(features, seen) if self.placed is None else self.placed(features, seen, places)

    def decide(
        self, features: Features, seen: Mask = None, places: Places | None = None
    ) -> tuple[
        Float[Tensor, "batch classes"],
        Float[Tensor, "batch n classes"],
        Float[Tensor, "batch dim"],
        Float[Tensor, "batch n"],
    ]:
        """Compute the tensor part of :meth:`answer`: logits, logits of single features, aggregate and its weights."""
        aggregate, weights = self._aggregate(features, seen, places)
        # Dropout is independent for each single feature (as in the reference implementation).
        return self.classifier(self.dropout(aggregate)), self.classifier(self.dropout(features)), aggregate, weights

    def classify(
        self, features: Features, seen: Mask = None, places: Places | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Return the class logits of any features (where ``seen`` is true) of each image together, without dropout.

        A canvas needs their ``places``, from the output.
        """
        return self.classifier(self._aggregate(features, seen, places).feature)

    def answers(
        self, features: Features, seen: Mask = None, places: Places | None = None
    ) -> Float[Tensor, "batch n classes"]:
        """Return the class logits from the first 1, 2, ... features of each image together, without dropout."""
        n = features.shape[1]
        first = torch.ones(n, n, dtype=torch.bool, device=features.device).tril()
        masks = (first[None] if seen is None else first & seen[:, None].to(features.device)).expand(len(features), n, n)
        return torch.stack([self.classify(features, masks[:, j], places) for j in range(n)], dim=1)
