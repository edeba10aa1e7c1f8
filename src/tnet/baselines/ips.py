"""Iterative patch selection (IPS): encode every patch without gradient, keep the best, learn from those.

Bergner, Lippert and Mahendran, "Iterative Patch Selection for High-Resolution Image Recognition", 2023. Computation
grows with the size of the image, memory does not.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from tnet.backbones import Backbone, TimmBackbone, create_backbone
from tnet.baselines.geometry import Looks, chosen_patches, patch_boxes
from tnet.baselines.patches import PatchModel, PatchModelConfig, PatchObjective, PatchObjectiveConfig, PatchPolicy
from tnet.errors import ConfigError
from tnet.geometry import Regions, whole_images
from tnet.models.base import Images, ModelOutput
from tnet.models.kind import MODEL_KINDS, ModelKind
from tnet.models.parts import positional_encoding
from tnet.scenes import SceneBatch
from tnet.traversal.policies import most_wanted

_MIN_POSITION_DIM = 6


@dataclass(frozen=True, kw_only=True)
class IPSConfig(PatchModelConfig):
    """IPS, by default as published for megapixel digits: 100 of 900 patches of 50 px, ResNet-18's first two stages.

    Attributes:
        backbone_stages: stages of a timm ResNet to keep, 1 to 4; 0 for all of any backbone.
        stride_px: pixels between starts of neighbouring patches; 0 for ``patch_px``, patches side by side.
        step: patches per image encoded at a time during selection; memory grows with it.
        score: ``attention`` (published): patches are compared by their attention among the current candidates, averaged
            over heads and queries; with several heads the result depends slightly on the order of comparison.
            ``logit``: by their attention logits before the softmax, averaged likewise; the result is exactly the best
            of all patches, for any ``step``.
        shuffle: visit patches in a new random order at each training step, because ties go to the first visited.
            Evaluation uses raster order.
        reuse_embeddings: in evaluation, aggregate the features computed by selection instead of encoding again.
        position: add an encoding of a patch's row and column to its feature before it is scored and aggregated.
        queries: number of learned queries; each gathers one summary, and the classifier sees all of them.
        heads, key_dim, value_dim: number of attention heads, and size of their queries and keys, and of their values.
        hidden: size of the hidden layer of the MLP after attention.
        attention_dropout, dropout: dropout probability of attention weights, and after attention and after the MLP.
    """

    title: ClassVar[str] = "IPS"

    backbone_stages: int = 2
    stride_px: int = 0
    step: int = 100
    score: Literal["attention", "logit"] = "attention"
    shuffle: bool = True
    reuse_embeddings: bool = True
    position: bool = True
    queries: int = 1
    heads: int = 8
    key_dim: int = 16
    value_dim: int = 16
    hidden: int = 512
    attention_dropout: float = 0.1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(1, "step", "queries", "heads", "key_dim", "value_dim", "hidden")
        for name in ("attention_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give a probability in [0, 1)")
        if not 0 <= self.stride_px <= self.patch_px:
            raise ConfigError(f"model.stride_px is {self.stride_px}; give 0 to model.patch_px, {self.patch_px}")
        if not 0 <= self.backbone_stages <= 4:
            raise ConfigError(f"model.backbone_stages is {self.backbone_stages}; give 1 to 4, or 0 for all")


@dataclass(frozen=True)
class IPSOutput(ModelOutput):
    """Output of IPS; ``n`` is the largest number of kept patches of any image, at most ``looks``."""

    logits: Float[Tensor, "batch classes"]
    features: Float[Tensor, "batch n dim"]  # in raster order, before positions are added; 0 past the kept patches
    weights: Float[Tensor, "batch n"]  # attention to each kept patch, averaged over heads and queries; sums to 1
    regions: Regions  # whole images, then kept patches in raster order

    @property
    @override
    def region_weights(self) -> Float[Tensor, "batch n"]:
        return self.weights


@torch.no_grad()
def select_patches(
    describe: Callable[[Tensor], Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
    combine: Callable[[Tensor], Tensor],
    order: Int[Tensor, " patches"],
    keep: int,
    step: int,
) -> tuple[Int[Tensor, "images kept"], Float[Tensor, "images kept dim"]]:
    """Keep the best patches of each image, encoding only ``step`` at a time; return sorted indices and features.

    At each step the new patches join those kept so far, all are compared, and the best ``keep`` stay; ties go to those
    visited first. At most ``keep + step`` patches per image are in memory.

    Args:
        describe: computes features ``[images, n, dim]`` of the patches with indices ``[n]`` of all images.
        score: computes scores ``[images, n, scores]`` of single patches from their features and indices.
        combine: computes one score each, ``[images, n]``, from the scores of the patches to compare.
        order: patch indices in the order of visiting.
        keep: number of patches to keep; all if there are fewer.
        step: number of patches to describe at a time.
    """
    held: tuple[Tensor, ...] = ()
    for seen in order.split(step):
        features = describe(seen)
        new = (seen.to(features.device).expand(len(features), -1), features, score(features, seen))
        held = tuple(torch.cat(pair, dim=1) for pair in zip(held, new, strict=True)) if held else new
        if held[0].shape[1] > keep:
            best = most_wanted(combine(held[2]), keep)
            held = tuple(part[torch.arange(len(best), device=best.device)[:, None], best] for part in held)
    patches, raster = held[0].sort(dim=1)
    return patches, held[1][torch.arange(len(raster), device=raster.device)[:, None], raster]


class CrossAttentionPool(nn.Module):
    """Learned queries attend to tokens of size ``dim``; an MLP follows, both with residual connection and norm."""

    def __init__(self, dim: int, config: IPSConfig) -> None:
        super().__init__()
        self.heads, self.key_dim = config.heads, config.key_dim
        bound = config.key_dim**-0.5
        self.queries = nn.Parameter(torch.empty(config.queries, dim).uniform_(-bound, bound))
        self.to_query = nn.Linear(dim, config.heads * config.key_dim, bias=False)
        self.to_key = nn.Linear(dim, config.heads * config.key_dim, bias=False)
        self.to_value = nn.Linear(dim, config.heads * config.value_dim, bias=False)
        self.project = nn.Linear(config.heads * config.value_dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, config.hidden)
        self.contract = nn.Linear(config.hidden, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def logits(self, tokens: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch heads queries n"]:
        """Compute the scaled products of queries and keys."""
        query = self.to_query(self.queries).unflatten(1, (self.heads, self.key_dim)) * self.key_dim**-0.5
        key = self.to_key(tokens).unflatten(2, (self.heads, self.key_dim))
        return torch.einsum("qhd,bnhd->bhqn", query, key)

    def forward(
        self, tokens: Float[Tensor, "batch n dim"], counts: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch n"]]:
        """Summarise each image's first ``counts`` tokens; also return the mean attention to each."""
        beyond = torch.arange(tokens.shape[1], device=tokens.device) >= counts[:, None]
        attention = self.logits(tokens).masked_fill(beyond[:, None, None], -torch.inf).softmax(dim=3)
        value = self.to_value(tokens).unflatten(2, (self.heads, -1))
        gathered = torch.einsum("bhqn,bnhd->bqhd", self.attention_dropout(attention), value).flatten(2)
        x = self.norm(self.queries + self.dropout(self.project(gathered)))
        x = self.mlp_norm(x + self.dropout(self.contract(F.relu(self.expand(x)))))
        return x, attention.mean(dim=(1, 2))


def _keep_stages(backbone: Backbone, stages: int) -> None:
    """Cut a timm ResNet after some of its stages, so that its pooled feature is the last kept stage's."""
    model = backbone.model if isinstance(backbone, TimmBackbone) else None
    names = [f"layer{stage}" for stage in range(1, 5)]
    if model is None or not all(hasattr(model, name) for name in (*names, "global_pool")):
        raise ConfigError(f"model.backbone_stages is {stages}; give 0 for backbones that are not timm ResNets")
    backbone.feature_dim = int(model.feature_info[stages]["num_chs"])
    for name in names[stages:]:
        setattr(model, name, nn.Identity())


class IPS(PatchModel):
    """Iterative patch selection.

    Patches on a grid that covers the image are encoded without gradient and in evaluation mode, ``step`` at a time; the
    ``looks`` with most attention are kept, encoded again with gradient and aggregated by the same attention.
    """

    config: IPSConfig

    def __init__(self, config: IPSConfig) -> None:
        super().__init__(config)
        self.backbone = create_backbone(config.backbone, config.in_channels, config.patch_px, 1)
        if config.backbone_stages:
            _keep_stages(self.backbone, config.backbone_stages)
        dim = self.backbone.feature_dim
        if config.position and dim < _MIN_POSITION_DIM:
            raise ConfigError(f"model.position needs {_MIN_POSITION_DIM} features, not {dim}; set it to false")
        self.pool = CrossAttentionPool(dim, config)
        self.classifier = nn.Linear(config.queries * dim, config.num_classes)

    def forward(self, images: Images, looks: Looks = None, policy: PatchPolicy = None) -> IPSOutput:
        """Select patches and classify images by them; see :class:`~tnet.models.base.Model`.

        ``topk`` or ``None`` select by score. With any policy that needs no logits, only the chosen patches are encoded.
        """
        scene, keep = self.scene(images), self.config.count_looks(looks)
        choices: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        for size_hw, members in self.images_by_size(scene).items():
            grid = self._grid(size_hw)
            patches, described = self._choose(scene, members, grid, keep, policy)
            for row, image in enumerate(members):
                choices[image] = grid, patches[row], None if described is None else described[row]
        boxes, chosen, selected = zip(*(choices[image] for image in sorted(choices)), strict=True)
        regions, counts = chosen_patches(boxes, chosen), [len(patches) for patches in chosen]
        reuse = self.config.reuse_embeddings and not self.training and all(part is not None for part in selected)
        kept = torch.cat(selected) if reuse else self._encode(scene, regions)
        tokens = kept + self._positions(regions).to(kept) if self.config.position else kept
        padded = pad_sequence(list(tokens.split(counts)), batch_first=True)
        summary, weights = self.pool(padded, torch.tensor(counts, device=padded.device))
        features = pad_sequence(list(kept.split(counts)), batch_first=True)
        regions = Regions.concat([whole_images(scene.sizes_hw), regions])
        return IPSOutput(self.classifier(summary.flatten(1)), features, weights, regions)

    def _grid(self, size_hw: tuple[int, int]) -> Int[Tensor, "rows cols 4"]:
        return patch_boxes(size_hw, self.config.patch_px, self.config.stride_px or self.config.patch_px)

    def _encode(self, scene: SceneBatch, regions: Regions) -> Float[Tensor, "regions dim"]:
        return self.backbone(self.pixels(scene, regions, self.config.patch_px)).pooled

    def _positions(self, regions: Regions) -> Float[Tensor, "regions dim"]:
        """Encode the patches' rows and columns as TNet does, at level 0."""
        return positional_encoding(F.pad(regions.position_yx.float(), (0, 1)), self.backbone.feature_dim)

    def _choose(
        self, scene: SceneBatch, members: list[int], grid: Int[Tensor, "rows cols 4"], keep: int, policy: PatchPolicy
    ) -> tuple[Int[Tensor, "images kept"], Float[Tensor, "images kept dim"] | None]:
        """Choose patches of images of one size; also return their features if computed."""
        rows, cols = grid.shape[:2]
        control = self.control_policy(policy, rows, cols)
        keep = min(keep, rows * cols)
        if control is not None:
            return control(torch.zeros(len(members), rows * cols), keep).cells, None
        if keep == rows * cols:
            return torch.arange(keep).expand(len(members), keep), None

        def describe(patches: Tensor) -> Tensor:
            regions = chosen_patches([grid] * len(members), [patches] * len(members), members)
            return self._encode(scene, regions).unflatten(0, (len(members), -1))

        def score(features: Tensor, patches: Tensor) -> Tensor:
            if self.config.position:
                features = features + self._positions(chosen_patches([grid], [patches])).to(features)
            return self.pool.logits(features).flatten(1, 2).transpose(1, 2)

        def combine(logits: Tensor) -> Tensor:
            return (logits.softmax(dim=1) if self.config.score == "attention" else logits).mean(dim=2)

        shuffled = self.config.shuffle and self.training
        order = torch.randperm(rows * cols) if shuffled else torch.arange(rows * cols)
        modes = [(part, part.training) for part in self.modules()]
        self.eval()
        try:
            return select_patches(describe, score, combine, order, keep, self.config.step)
        finally:
            for part, mode in modes:
                part.training = mode

    @override
    def multiply_adds(
        self, image_size_hw: tuple[int, int], looks: Looks = None, policy: PatchPolicy = None
    ) -> dict[str, int]:
        rows, cols = self._grid(image_size_hw).shape[:2]
        patches, keep = rows * cols, min(self.config.count_looks(looks), rows * cols)
        outline = copy.deepcopy(self).to("meta").eval()
        patch = torch.zeros(1, self.config.in_channels, self.config.patch_px, self.config.patch_px, device="meta")
        encoder = self.count_macs(lambda: outline.backbone(patch))

        def tokens(count: int) -> Tensor:
            return torch.zeros(1, count, self.backbone.feature_dim, device="meta")

        def scoring(count: int) -> int:
            return self.count_macs(lambda: outline.pool.logits(tokens(count)))

        selects = self.control_policy(policy, rows, cols) is None and keep < patches
        steps = Counter(len(part) for part in torch.arange(patches).split(self.config.step))
        return {
            "selection": patches * encoder + sum(n * scoring(k) for k, n in steps.items()) if selects else 0,
            "backbone": 0 if selects and self.config.reuse_embeddings else keep * encoder,
            "pool": self.count_macs(lambda: outline.pool(tokens(keep), torch.tensor([keep], device="meta"))),
            "classifier": self.classifier.weight.numel(),
        }


# Nothing is sampled and locations have no gradient, so the objective has no further terms.
MODEL_KINDS.register("ips")(ModelKind(IPSConfig, IPS, PatchObjectiveConfig, PatchObjective))
