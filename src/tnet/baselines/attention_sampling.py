"""Attention sampling: draw patches from an attention map of the downscaled image, and learn where to draw.

Katharopoulos and Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models", 2019. The expectation of
patch features under the attention, and its gradient, are estimated from a few patches, without REINFORCE.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from tnet.backbones import create_backbone
from tnet.baselines.geometry import Looks, chosen_patches, position_boxes
from tnet.baselines.objective import Terms
from tnet.baselines.patches import PatchModel, PatchModelConfig, PatchObjective, PatchObjectiveConfig, PatchPolicy
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Regions, whole_images
from tnet.losses import Target
from tnet.models.base import Images, ModelOutput
from tnet.models.kind import MODEL_KINDS, ModelKind
from tnet.scenes import SceneBatch

_FIRST_KERNEL, _KERNEL = 7, 3
_Estimate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionSamplingConfig(PatchModelConfig):
    """Attention sampling, by default as published for megapixel digits: 10 patches of 50 px, attention at 0.12.

    Attributes:
        scale: side of the attention network's input, which is always square, over the longer side of the image.
        low_px: side of the attention network's input in pixels, for images of all sizes; 0 to use ``scale``.
        attention_channels: channels of the attention network's hidden layers (3x3 convolutions, tanh).
        features: patch encoder: ``conv``, the published plain network, or ``backbone``.
        feature_channels: channels of the plain network's layers (7x7, then 3x3, no padding, ReLU, global maximum).
        normalize_features: scale features to length 1, which minimises the variance of sampling from the attention.
        replacement: draw patches independently, so that one may repeat.
        eval: patches in evaluation: ``sample``, as in training (published), or ``topk``, those with most attention,
            weighted by it (not in the paper).
    """

    title: ClassVar[str] = "Attention sampling"
    policies: ClassVar[tuple[str, ...]] = ("sample", "topk", "random", "centre")

    looks: int = 10
    scale: float = 0.12
    low_px: int = 0
    attention_channels: tuple[int, ...] = (8, 8)
    features: Literal["conv", "backbone"] = "conv"
    feature_channels: tuple[int, ...] = (32, 32, 32, 32)
    normalize_features: bool = True
    replacement: bool = False
    eval: Literal["sample", "topk"] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(0, "low_px")
        if not 0 < self.scale <= 1:
            raise ConfigError(f"model.scale is {self.scale}; give a fraction above 0 and at most 1")
        if min(self.attention_channels, default=1) < 1 or min(self.feature_channels, default=0) < 1:
            channels = f"{list(self.attention_channels)} and model.feature_channels {list(self.feature_channels)}"
            remedy = "give positive numbers, at least one for the features"
            raise ConfigError(f"model.attention_channels is {channels}; {remedy}")
        needed = _FIRST_KERNEL + (_KERNEL - 1) * (len(self.feature_channels) - 1)
        if self.features == "conv" and self.patch_px < needed:
            layers = f"{len(self.feature_channels)} layers without padding need {needed} px"
            remedy = "give at least that, or fewer model.feature_channels"
            raise ConfigError(f"model.patch_px is {self.patch_px} but {layers}; {remedy}")

    @property
    @override
    def network(self) -> str:
        return super().network if self.features == "backbone" else "convolutions"

    @property
    @override
    def whole_px(self) -> int:
        return self.attention_px(self.typical_size_hw)

    def attention_px(self, size_hw: tuple[int, int]) -> int:
        """Return the side of the attention network's input for an image of this size, in pixels."""
        return self.low_px or max(1, round(self.scale * max(size_hw)))

    @property
    @override
    def needed_px(self) -> int:
        return self.patch_px

    @property
    @override
    def eval_policy(self) -> str:
        return self.eval


@dataclass(frozen=True)
class AttentionSamplingOutput(ModelOutput):
    """Output of attention sampling; patches are in the order drawn."""

    logits: Float[Tensor, "batch classes"]
    features: Float[Tensor, "batch looks dim"]
    aggregate: Float[Tensor, "batch dim"]  # estimated expectation of the feature, input of the classifier
    log_prob: Float[Tensor, "batch looks"]  # log-attention at each patch's position; 0 if a control policy chose
    entropy: Float[Tensor, " batch"]  # of each image's attention, nats
    attention: tuple[Float[Tensor, "_ _"], ...]  # of each image, over positions; sums to 1
    regions: Regions  # whole images, then patches

    @property
    @override
    def region_probs(self) -> Float[Tensor, "batch looks"]:
        return self.log_prob.exp()

    @property
    @override
    def location_entropy(self) -> Float[Tensor, ""]:
        return self.entropy.mean().detach()


def draw_positions(
    log_attention: Float[Tensor, "batch positions"], count: int, replacement: bool
) -> Int[Tensor, "batch {count}"]:
    """Draw positions from the attention; without replacement, each from the attention over the remaining ones."""
    probs = log_attention.detach().float().exp()
    # Without replacement, positions whose probability underflows may be needed too.
    return torch.multinomial(probs.clamp_min(torch.finfo(probs.dtype).tiny), count, replacement)


def expect_with_replacement(
    log_attention: Float[Tensor, "batch n"], features: Float[Tensor, "batch n dim"]
) -> Float[Tensor, "batch dim"]:
    """Estimate the expected feature from independent draws: mean of ``f``, with the gradient mean of ``d(a f) / a``."""
    ratio = (log_attention - log_attention.detach()).exp()  # 1, with the gradient of log a
    return torch.einsum("bn,bnd->bd", ratio, features) / features.shape[1]


def expect_without_replacement(
    log_attention: Float[Tensor, "batch n"], features: Float[Tensor, "batch n dim"]
) -> Float[Tensor, "batch dim"]:
    """Estimate the expected feature from distinct positions, in the order drawn (paper, sampling without replacement).

    The value is the mean over draws ``i`` of ``sum_{k<i} a_k f_k + (1 - sum_{k<i} a_k) f_i``: earlier positions count
    with their own attention, the new one stands for all others. In the gradient earlier positions count in full, the
    new one as ``d(a f) / p``, with ``p`` the probability of drawing it from the remaining ones. Both are unbiased.
    """
    attention, draws = log_attention.exp(), features.shape[1]
    left = (1 - (attention.cumsum(dim=1) - attention)).clamp_min(0).detach()
    newest = left * (log_attention - log_attention.detach()).exp()  # left, with the gradient of a / p
    later = torch.arange(draws - 1, -1, -1, device=features.device)
    return torch.einsum("bn,bnd->bd", newest + later * attention, features) / draws


def _weigh_by_attention(
    log_attention: Float[Tensor, "batch n"], features: Float[Tensor, "batch n dim"]
) -> Float[Tensor, "batch dim"]:
    """Average features, weighted by their share of the attention."""
    return torch.einsum("bn,bnd->bd", log_attention.softmax(dim=1), features)


def _convolutions(widths: tuple[int, ...], kernel: int, padding: int, activation: type[nn.Module]) -> list[nn.Module]:
    """Convolutions between these channel counts, the first with another kernel size, each with an activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, _KERNEL if layers else kernel, padding=padding), activation()]
    return layers


class AttentionSampling(PatchModel):
    """Attention sampling: an attention network sees each image downscaled and gives a probability to every position.

    A patch is centred on each drawn position; past the edge of the image it shows the scene's padding.
    """

    config: AttentionSamplingConfig

    def __init__(self, config: AttentionSamplingConfig) -> None:
        super().__init__(config)
        widths, same = (config.in_channels, *config.attention_channels), _KERNEL // 2
        layers = _convolutions(widths, _KERNEL, same, nn.Tanh)
        self.attention = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, _KERNEL, padding=same))
        self.backbone: nn.Module
        if config.features == "backbone":
            self.backbone = create_backbone(config.backbone, config.in_channels, config.patch_px, 1)
            dim = self.backbone.feature_dim
        else:
            widths = config.in_channels, *config.feature_channels
            self.backbone = nn.Sequential(*_convolutions(widths, _FIRST_KERNEL, 0, nn.ReLU))
            dim = widths[-1]
        self.classifier = nn.Linear(dim, config.num_classes)

    def forward(self, images: Images, looks: Looks = None, policy: PatchPolicy = None) -> AttentionSamplingOutput:
        """Draw patches and classify images by them; see :class:`~tnet.models.base.Model`.

        ``sample`` draws from the attention, ``topk`` takes the positions with most attention; ``None`` draws in
        training and follows the configuration in evaluation. After any policy that needs no logits, all patches have
        equal weight.
        """
        scene, count = self.scene(images), self.config.count_looks(looks)
        whole = whole_images(scene.sizes_hw)
        choices: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        estimate: _Estimate | None = None
        for size_hw, members in self.images_by_size(scene).items():
            low_px = self.config.attention_px(size_hw)
            logits = self.attention(self.pixels(scene, whole.take(torch.tensor(members)), low_px)).squeeze(1)
            log_attention = logits.flatten(1).log_softmax(dim=1).view_as(logits)
            grid = position_boxes(size_hw, (log_attention.shape[1], log_attention.shape[2]), self.config.patch_px)
            positions, estimate = self._choose(log_attention, count, policy)
            for row, image in enumerate(members):
                choices[image] = grid, positions[row], log_attention[row]
        boxes, chosen, maps = zip(*(choices[image] for image in sorted(choices)), strict=True)
        regions = chosen_patches(boxes, chosen)
        features = self._describe(scene, regions).unflatten(0, (len(maps), count))
        log_prob = torch.stack([log.flatten()[cells.to(log.device)] for log, cells in zip(maps, chosen, strict=True)])
        if estimate is None:
            log_prob = torch.zeros_like(log_prob)
        aggregate = (estimate or _weigh_by_attention)(log_prob, features)
        logits, regions = self.classifier(aggregate), Regions.concat([whole, regions])
        attention = tuple(log.exp() for log in maps)
        entropy = torch.stack([-(log.exp() * log).sum() for log in maps])
        return AttentionSamplingOutput(logits, features, aggregate, log_prob, entropy, attention, regions)

    def _choose(
        self, log_attention: Float[Tensor, "images rows cols"], count: int, policy: PatchPolicy
    ) -> tuple[Int[Tensor, "images looks"], _Estimate | None]:
        """Choose positions; also return the matching estimate, ``None`` for a control."""
        if policy is None:
            policy = "sample" if self.training else self.config.eval
        flat = log_attention.detach().flatten(1)
        if count > flat.shape[1] and not (policy == "sample" and self.config.replacement):
            positions = f"there are {flat.shape[1]} positions"
            raise GeometryError(f"looks is {count} but {positions}; give fewer, or raise model.scale")
        if policy == "sample":
            drawn = draw_positions(flat, count, self.config.replacement)
            return drawn, expect_with_replacement if self.config.replacement else expect_without_replacement
        control = self.control_policy(policy, log_attention.shape[1], log_attention.shape[2])
        if control is not None:
            return control(torch.zeros(flat.shape), count).cells, None
        return flat.sort(dim=1, descending=True, stable=True).indices[:, :count], _weigh_by_attention

    def _describe(self, scene: SceneBatch, regions: Regions) -> Float[Tensor, "regions dim"]:
        encoded = self.backbone(self.pixels(scene, regions, self.config.patch_px))
        pooled = encoded.amax(dim=(2, 3)) if isinstance(encoded, Tensor) else encoded.pooled
        return F.normalize(pooled, dim=1) if self.config.normalize_features else pooled

    @override
    def multiply_adds(
        self, image_size_hw: tuple[int, int], looks: Looks = None, policy: PatchPolicy = None
    ) -> dict[str, int]:
        count, outline = self.config.count_looks(looks), copy.deepcopy(self).to("meta").eval()
        low, patch = (
            torch.zeros(1, self.config.in_channels, side, side, device="meta")
            for side in (self.config.attention_px(image_size_hw), self.config.patch_px)
        )
        features = torch.zeros(1, count, self.classifier.in_features, device="meta")
        return {
            "attention": self.count_macs(lambda: outline.attention(low)),
            "backbone": count * self.count_macs(lambda: outline.backbone(patch)),
            "aggregation": self.count_macs(lambda: _weigh_by_attention(features[..., 0], features)),
            "classifier": self.classifier.weight.numel(),
        }


@dataclass(frozen=True)
class AttentionSamplingObjectiveConfig(PatchObjectiveConfig):
    """Weights of the terms; the entropy keeps the attention from settling too soon (published: 1e-4)."""

    entropy_weight: float = 1e-4


class AttentionSamplingObjective(PatchObjective):
    """Cross entropy minus the entropy of the attention, and L2."""

    config: AttentionSamplingObjectiveConfig

    @override
    def terms(self, output: ModelOutput, target: Target) -> Terms:
        assert isinstance(output, AttentionSamplingOutput)
        terms, joint_reward, region_reward = super().terms(output, target)
        if self.config.entropy_weight:
            terms["entropy"] = -self.config.entropy_weight * output.entropy.mean()
        return terms, joint_reward, region_reward


MODEL_KINDS.register("attention_sampling")(
    ModelKind(AttentionSamplingConfig, AttentionSampling, AttentionSamplingObjectiveConfig, AttentionSamplingObjective)
)
