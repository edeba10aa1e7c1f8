"""Base classes of models: configuration, output, and access to pixels."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from typing_extensions import override

from tnet.backbones import Backbone, PopulationNorms, Precision, fuse
from tnet.backbones.precision import check_precision, compile_backbone, lower_precision
from tnet.config import check_most
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Regions
from tnet.models.hub import HubModel
from tnet.scenes import LazyBatch, MemoryScene, Resize, Scene, SceneBatch, TensorBatch
from tnet.scenes.memory import as_image, one_or_more
from tnet.traversal import Policy

Images = (
    Num[Tensor, "batch channels height width"]
    | Sequence[Num[Tensor, "_ _ _"]]
    | Scene
    | Sequence[Scene]
    | SceneBatch
    | Any  # what is converted
)
"""Input of a model: a batch tensor, a list of images of different sizes, one or more scenes, or a batch of scenes.

Paths, Pillow images and ``uint8`` arrays, one or a list, are converted; see :func:`tnet.scenes.memory.as_image`."""


_MOST: dict[str, float] = {
    "num_classes": 100_000, "in_channels": 4096, "blocks": 256, "wide_blocks": 256, "looks": 16_384, "patch_px": 2048,
    "mean": 1e6, "std": 1e6,
}  # fmt: skip
_MOST_OF_OTHERS = 8192  # pixels per side of an input, channels, units
_MAX_VALUES = 2**28  # in an input of the network


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the configurations of models.

    Attributes:
        num_classes: number of outputs of the classifier.
        in_channels: number of channels of an image.
        resize: filter for glimpses: ``antialias``, or ``bilinear`` as in the reference implementation.
        mean, std: mean and standard deviation of inputs in [0, 1], per channel or one for all.
        multilabel: independent labels (sigmoid) instead of exclusive classes (softmax).
        class_names: name of each class; empty if unknown.
        temperature: divisor of the logits in probabilities, fitted by ``tnet calibrate --probabilities``.
    """

    title: ClassVar[str] = "Model"
    policies: ClassVar[Collection[str]] = ("topk", "random", "centre")
    """Names of supported policies."""
    cost_depends_on_size: ClassVar[bool] = False
    """Whether a larger image costs more at the same number of looks."""
    allows_no_looks: ClassVar[bool] = False
    """Whether the model supports 0 looks."""

    num_classes: int = 10
    in_channels: int = 3
    resize: Resize = "antialias"
    mean: tuple[float, ...] | None = (0.5,)
    std: tuple[float, ...] | None = (0.5,)
    multilabel: bool = False
    class_names: tuple[str, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_most(self, "model.", {item.name: _MOST.get(item.name, _MOST_OF_OTHERS) for item in fields(self)})
        self._check_least(1, "num_classes", "in_channels")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"model.temperature is {self.temperature}; give a finite number above 0")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, self.in_channels):
                counts = f"{len(values)} values for {self.in_channels} channels"
                raise ConfigError(f"model.{name} has {counts}; give 1, or one per channel")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"model.std is {list(self.std)}; give numbers above 0")
        if self.class_names and len(self.class_names) != self.num_classes:
            counts = f"{len(self.class_names)} names for {self.num_classes} classes"
            raise ConfigError(f"model.class_names has {counts}; give one per class")

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, per channel or one for all."""
        return self.mean or (0.5,), self.std or (0.5,)

    def _check_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give at least {least}")

    def _check_values(self, side_px: int) -> None:
        """Raise ConfigError if one input of the network would have too many values."""
        if (values := self.in_channels * side_px**2) > _MAX_VALUES:
            sizes = f"model.in_channels is {self.in_channels} at {side_px} px per side"
            raise ConfigError(f"{sizes}, or {values:,} values per input; give at most {_MAX_VALUES:,}")

    @property
    def region_px(self) -> int:
        """Side of a glimpse of a region, pixels."""
        raise NotImplementedError

    @property
    def whole_px(self) -> int:
        """Side of the glimpse of the whole image before the first look, pixels; 0 if there is none."""
        return self.region_px

    @property
    def needed_px(self) -> int:
        """Shorter side of the smallest image that is not upsampled, pixels."""
        return max(self.region_px, self.whole_px)

    @property
    def typical_size_hw(self) -> tuple[int, int]:
        """Height and width of an image for which costs are counted, pixels."""
        return self.needed_px, self.needed_px

    @property
    def default_looks(self) -> tuple[int, ...]:
        """Looks per level in training and, by default, at inference; empty for none."""
        return self.resolve_looks(cast(Any, self).looks)

    def resolve_looks(self, looks: int | Sequence[int] | None) -> tuple[int, ...]:
        """Expand looks (default: the configured ones) to one number per level after the first; empty for 0."""
        if looks is None:
            return self.default_looks
        numbers = (looks,) if isinstance(looks, int) else tuple(looks) or (0,)
        if len(numbers) > 1:
            asked = f"{len(numbers)} levels of regions but the model has 1"
            raise GeometryError(f"looks {list(numbers)} asks for {asked}; give one number")
        self._check_looks(numbers[0])
        return numbers if numbers[0] else ()

    def count_looks(self, looks: int | Sequence[int] | None) -> int:
        """Return the sum of :meth:`resolve_looks`."""
        return sum(self.resolve_looks(looks))

    def looks_at_each_level(self, looks: tuple[int, ...]) -> tuple[int, ...]:
        """Pad resolved looks with a 0 for each deeper level that they omit; empty for 0."""
        return looks + (0,) * (len(self.default_looks) - len(looks)) if looks else ()

    def _check_looks(self, looks: int) -> None:
        """Raise GeometryError for an unsupported number of looks."""
        if looks < 1:
            raise GeometryError(f"looks is {looks} but {self.title} sees nothing without looks; give at least 1")

    def listed_looks(self) -> list[int | tuple[int, ...]]:
        """Return the numbers of looks to evaluate: each up to 8, then powers of 2 and the configured number."""
        most = sum(self.default_looks)
        powers = {2**power for power in range(4, most.bit_length()) if 2**power < most}
        return sorted({*range(0 if self.allows_no_looks else 1, min(most, 8) + 1), *powers, *([most] if most else [])})

    @property
    def eval_policy(self) -> str:
        """Default policy in evaluation."""
        policy: str = getattr(self, "policy", "learned")
        return "topk" if policy == "learned" else policy

    def size_problem(self, size_hw: tuple[int, int], looks: Sequence[int]) -> str:
        """Return why an image of this size cannot be used with these looks; empty if it can."""
        return ""

    @property
    def network(self) -> str:
        """Name of the network."""
        backbone = getattr(self, "backbone", None)
        return backbone.name if backbone is not None else self.title

    def line(self) -> str:
        """Describe the model in one line."""
        looks = f"{sum(self.default_looks)} look(s) by default" if self.default_looks else "the whole image only"
        return f"{self.title}: {self.network}, glimpses of {self.region_px} px, {looks}"

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values that describe the model."""
        common = {"backbone", *(field.name for field in fields(ModelConfig))}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}
        shown = [(k, " ".join(map(str, v)) if isinstance(v, tuple) else str(v)) for k, v in own.items()]
        network = f"{self.network}, {self.in_channels} channel(s)"
        return [("model", self.title), ("network", network), self._class_fact(), *shown]

    def _class_fact(self) -> tuple[str, str]:
        return "classes", f"{self.num_classes} {'labels, any number per image' if self.multilabel else 'classes'}"

    def without_weights(self) -> ModelConfig:
        """Return a copy whose backbone loads no pretrained weights: nothing is fetched or opened."""
        backbone = getattr(self, "backbone", None)
        changes: dict[str, Any] = {"backbone": backbone and replace(backbone, pretrained=False, weights=None)}
        return self if backbone is None else replace(self, **changes)


class ModelOutput:
    """Base of the outputs of models, which are frozen dataclasses.

    Values of single regions are ordered, per image, as its rows of ``regions`` after the whole image; if images have
    different numbers of regions, values past the last one are undefined. Values that a model does not have are
    ``None``.

    Attributes:
        logits: class logits.
        regions: all regions that were seen, whole images first.
    """

    logits: Float[Tensor, "batch classes"]
    regions: Regions

    verdict: ClassVar[str] = "alone"
    """Basis of ``region_logits``: each region ``alone``, or ``so far``, it and those before."""
    is_ranked: ClassVar[bool] = False
    """Whether regions are numbered by probability instead of by order."""

    @property
    def has_looks(self) -> bool:
        """Whether any region was seen besides the whole images."""
        return self.regions.depth > 0

    @property
    def region_logits(self) -> Float[Tensor, "batch n classes"] | None:
        """Class logits of single regions."""
        return None

    @property
    def region_weights(self) -> Float[Tensor, "batch n"] | None:
        """Share of single regions in the decision."""
        return None

    @property
    def region_probs(self) -> Float[Tensor, "batch n"] | None:
        """Probability of each region's location when it was chosen."""
        return None

    @property
    def whole_logits(self) -> Float[Tensor, "batch classes"] | None:
        """Class logits of the whole image alone."""
        return None

    @property
    def whole_weights(self) -> Float[Tensor, " batch"] | None:
        """Share of the whole image in the decision."""
        return None

    @property
    def location_entropy(self) -> Float[Tensor, ""] | None:
        """Mean entropy of the locations, nats."""
        return None


def mean_entropy(probs: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, ""] | None:
    """Return the mean entropy of several sets of distributions, nats; ``None`` if there are none."""
    entropy = [-(p * (p + 1e-10).log()).sum(1).mean() for p in probs]
    return torch.stack(entropy).mean().detach() if entropy else None


AnyModel = TypeVar("AnyModel", bound="Model")


class Model(nn.Module, HubModel):
    """Base of networks that classify images by glimpses of scenes.

    ``forward(images, looks=None, policy=None)`` takes :data:`Images`, a number of looks (or one per level) and a
    policy, and returns a :class:`ModelOutput`. ``uint8`` images are normalised by the configuration's mean and standard
    deviation; floating point images must already be normalised.
    """

    config: ModelConfig
    classifier: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mean, std = config.normalization
        self.config = replace(config, mean=mean, std=std)
        self.population_norms: PopulationNorms | None = None
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    is_prepared = False
    """Whether this is a copy by :meth:`prepare_for_inference`."""

    @torch.no_grad()
    def prepare_for_inference(self: AnyModel, precision: Precision = "fp32", *, compiled: bool = False) -> AnyModel:
        """Return a copy that computes the same faster, up to rounding (:data:`tnet.backbones.fusion.TOLERANCE`).

        Batch norm is folded into convolutions and, on the CPU, activations are computed with them. The command line
        does so by itself. The copy cannot be trained, saved or exported; a prepared model is returned as it is.

        Args:
            precision: in which backbones compute: ``bf16`` and ``fp16`` are for GPUs, and round to three digits; places
                are chosen, and classes decided, in ``fp32``.
            compiled: also compile the backbones when they are first used, on GPUs with CUDA graphs: takes up to
                minutes, and pays for many small batches. The first use raises ConfigError if they cannot be compiled.

        Raises:
            ConfigError: the device does not compute in this precision, or the model is prepared in another way already.
        """
        device = self.get_buffer("mean").device
        check_precision(precision, device)
        if self.is_prepared:
            if precision != "fp32" or compiled:
                self.check_original("prepared again")
            return self
        fused = self._fused_backbones()
        replaced = [part for name, part in self.named_children() if name in fused]
        prepared = copy.deepcopy(self, {id(part): part for part in replaced})  # these are not copied
        for name, backbone in fused.items():
            setattr(prepared, name, backbone)
        if fused:
            prepared.population_norms = None  # the statistics are in the weights
        prepared.is_prepared = True
        prepared.eval().requires_grad_(False)
        for backbone in (part for part in prepared.children() if isinstance(part, Backbone)):
            lower_precision(backbone, precision)
            if compiled:
                compile_backbone(backbone, device)
        return prepared

    def _fused_backbones(self) -> dict[str, Backbone]:
        """Return the fused copies of backbones by name, without those that cannot be fused."""
        sides = {self.config.whole_px, self.config.region_px} - {0}
        parts = [(name, part) for name, part in self.named_children() if isinstance(part, Backbone)]
        fused = [(name, fuse(part, self.config.in_channels, sides)) for name, part in parts]
        return {name: part for name, part in fused if part is not None}

    def check_original(self, action: str) -> None:
        """Raise ConfigError for a copy by :meth:`prepare_for_inference`, with which this cannot be done."""
        if self.is_prepared:
            raise ConfigError(f"a model prepared for inference cannot be {action}; use the model that it was made from")

    @override
    def train(self: AnyModel, mode: bool = True) -> AnyModel:
        if mode:
            self.check_original("trained")
        return super().train(mode)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the modules for which costs are reported, in the order in which they run."""
        return tuple(name for name, _ in self.named_children())

    def scene(self, images: Images) -> SceneBatch:
        """Wrap images, unless they are a batch of scenes, with this model's channels, resize and padding."""
        config = self.config
        if isinstance(images, SceneBatch):
            return images
        listed = one_or_more(images)
        is_batch = isinstance(listed, Tensor)
        checked = [as_image(image, config.in_channels) for image in (listed[:1] if is_batch else listed)]
        scenes = listed if is_batch else checked
        if not isinstance(scenes, Tensor) and any(isinstance(scene, Scene) for scene in scenes):
            device = self.get_buffer("mean").device
            lazy = [MemoryScene(scene.cpu()) if isinstance(scene, Tensor) else scene for scene in scenes]
            return LazyBatch(lazy, config.in_channels, config.resize, config.normalization[0], device=device)
        scene = TensorBatch(cast(Tensor | list[Tensor], scenes), config.resize)
        # Padding is 0 after normalisation, as in the reference implementation.
        scene.fill = 0.0 if scene.is_normalized else config.normalization[0]
        return scene

    def pixels(
        self, scene: SceneBatch, regions: Regions, size_px: int
    ) -> Float[Tensor, "regions channels {size_px} {size_px}"]:
        """Return the normalised pixels of regions, on the model's device and in its precision."""
        pixels = scene.glimpse(regions, size_px)
        if pixels.shape[1] != self.config.in_channels:
            channels = f"{pixels.shape[1]} channels but the model takes {self.config.in_channels}"
            raise ConfigError(f"images have {channels}; convert them, or set in_channels")
        mean = self.get_buffer("mean")
        pixels = pixels.to(mean)
        return pixels if scene.is_normalized else (pixels - mean) / self.get_buffer("std")

    def policy(self, kind: str | None = None) -> Policy | str:
        """Return the policy of that name, or the default for evaluation."""
        kind = kind or self.config.eval_policy
        if kind not in self.config.policies:
            names = ", ".join(self.config.policies)
            raise ConfigError(f"unknown policy {kind!r} of {self.config.title}; give one of {names}")
        return kind

    def seeded_policy(self, kind: str, seed: int, device: torch.device) -> Policy | str:
        """Return the policy of that name, with a generator of this seed if it draws."""
        return self.policy(kind)

    def is_located(self, policy: Policy | str) -> bool:
        """Return whether this policy follows the model, unlike the controls."""
        return policy not in ("random", "centre") if isinstance(policy, str) else policy.needs_logits
