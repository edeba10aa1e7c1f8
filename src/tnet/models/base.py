"""What every model has in common: configuration, how it gets its pixels, what its answers hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from tnet.backbones import PopulationNorms
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Regions
from tnet.models.hub import HubModel
from tnet.scenes import LazyBatch, Resize, Scene, SceneBatch, TensorBatch
from tnet.traversal import Policy

Images = (
    Num[Tensor, "batch channels height width"] | Sequence[Num[Tensor, "_ _ _"]] | Scene | Sequence[Scene] | SceneBatch
)
"""What a model looks at: a batch tensor, a list of images of different sizes, a scene, scenes, or a batch of scenes."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the configuration of every model has.

    Attributes:
        num_classes: outputs of the classifier.
        in_channels: channels of an image.
        resize: how pixels become glimpses: ``antialias``, or ``bilinear`` (the reference implementation's).
        mean: per channel, of inputs in [0, 1].
        std: per channel, of inputs in [0, 1].
        multilabel: classes do not exclude each other (sigmoid instead of softmax).
        class_names: one for each class; empty if unknown.
    """

    title: ClassVar[str] = "Model"
    policies: ClassVar[Collection[str]] = ("topk", "random", "centre")
    """Names of the ways to choose locations that the model has."""
    cost_depends_on_size: ClassVar[bool] = False
    """Whether a larger image costs more at the same number of looks."""

    num_classes: int = 10
    in_channels: int = 3
    resize: Resize = "antialias"
    mean: tuple[float, ...] | None = (0.5,)
    std: tuple[float, ...] | None = (0.5,)
    multilabel: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_least(1, "num_classes", "in_channels")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, self.in_channels):
                raise ConfigError(
                    f"model.{name} has {len(values)} values for {self.in_channels} channels; "
                    f"give 1 or {self.in_channels}"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"model.std is {list(self.std)}; give numbers above 0")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ConfigError(
                f"model.class_names has {len(self.class_names)} names for {self.num_classes} classes; give one each"
            )

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels, one value each or one for all."""
        return self.mean or (0.5,), self.std or (0.5,)

    def _check_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give at least {least}")

    @property
    def look_px(self) -> int:
        """Side to which a region is resized to be looked at, pixels."""
        raise NotImplementedError

    @property
    def whole_px(self) -> int:
        """Side at which the whole image is seen before the first look, pixels; 0 if it is not."""
        return self.look_px

    @property
    def needed_px(self) -> int:
        """Shorter side of the smallest image that need not be enlarged, pixels."""
        return max(self.look_px, self.whole_px)

    @property
    def typical_size_hw(self) -> tuple[int, int]:
        """Height and width of an image that the model is made for, pixels; what costs are counted for."""
        return self.needed_px, self.needed_px

    @property
    def default_looks(self) -> tuple[int, ...]:
        """Looks in training and, by default, at inference, a number for each level; empty for none."""
        return self.resolve_looks(cast(Any, self).looks)

    @property
    def allows_no_looks(self) -> bool:
        """Whether the model answers without a look."""
        return False

    def resolve_looks(self, looks: int | Sequence[int] | None) -> tuple[int, ...]:
        """Spell out a number of looks as one number for each level after the first; empty for 0.

        Args:
            looks: a number, or one a level; the configured ones if ``None``.

        Raises:
            GeometryError: looks that the model does not allow.
        """
        if looks is None:
            return self.default_looks
        numbers = (looks,) if isinstance(looks, int) else tuple(looks) or (0,)
        if len(numbers) > 1:
            raise GeometryError(
                f"looks {list(numbers)} asks for {len(numbers)} levels of regions but the model has 1; give one number"
            )
        self._check_looks(numbers[0])
        return numbers if numbers[0] else ()

    def count_looks(self, looks: int | Sequence[int] | None) -> int:
        """The number of looks at a single level; see :meth:`resolve_looks`."""
        return sum(self.resolve_looks(looks))

    def looks_at_each_level(self, looks: tuple[int, ...]) -> tuple[int, ...]:
        """Resolved looks with a 0 for each deeper level that they leave out, as they are typed; empty for 0."""
        return looks + (0,) * (len(self.default_looks) - len(looks)) if looks else ()

    def _check_looks(self, looks: int) -> None:
        """Refuse a number of looks that cannot be, with a GeometryError."""
        raise NotImplementedError

    def listed_looks(self) -> list[int | tuple[int, ...]]:
        """Numbers of looks that an evaluation measures: up to 8 each, then in doubling steps."""
        most = sum(self.default_looks)
        few = list(range(1, min(most, 8) + 1))
        doubled = [2**power for power in range(4, math.ceil(math.log2(most)) + 1)] if most > 8 else []
        none = [0] if self.allows_no_looks else []
        return sorted({*none, *few, *(number for number in doubled if number < most), *([most] if most else [])})

    @property
    def eval_policy(self) -> str:
        """How locations are chosen in evaluation unless something else is asked for."""
        return "topk"

    def size_problem(self, size_hw: tuple[int, int], looks: Sequence[int]) -> str:
        """Why an image of this size cannot be looked at however it is resized; empty if it can."""
        return ""

    @property
    def network(self) -> str:
        """What sees a glimpse, in a few words."""
        backbone = getattr(self, "backbone", None)
        return backbone.name if backbone is not None else self.title

    def line(self) -> str:
        """One line on the model."""
        looks = f"{sum(self.default_looks)} look(s) by default" if self.default_looks else "the whole image only"
        return f"{self.title}: {self.network}, glimpses of {self.look_px} px, {looks}"

    def sentence(self) -> str:
        """What the model is, for its card."""
        return f"{self.line()}."

    def facts(self) -> list[tuple[str, str]]:
        """What the model is made of: names and values."""
        common = {field.name for field in fields(ModelConfig)}
        own = [field.name for field in fields(self) if field.name not in common and field.name != "backbone"]
        values = [(name, getattr(self, name)) for name in own]
        shown = [
            (name, " ".join(map(str, value)) if isinstance(value, tuple) else str(value)) for name, value in values
        ]
        return [
            ("model", self.title),
            ("network", f"{self.network}, {self.in_channels} channel(s)"),
            self.class_fact(),
            *shown,
        ]

    def class_fact(self) -> tuple[str, str]:
        """Return the classes as a fact for `tnet info`."""
        return "classes", f"{self.num_classes} {'labels, any number an image' if self.multilabel else 'classes'}"

    def without_weights(self) -> ModelConfig:
        """The same without weights that a backbone would be loaded with: nothing is fetched or opened."""
        backbone = getattr(self, "backbone", None)
        if backbone is None:
            return self
        changes: dict[str, Any] = {"backbone": replace(backbone, pretrained=False, weights=None)}
        return replace(self, **changes)


class ModelOutput:
    """What the output of every model has. A base for frozen dataclasses.

    Values of single regions are ordered, per image, as its rows of ``regions`` after the whole image; where images have
    different numbers of regions, values past the last one are meaningless.

    Attributes:
        logits: class logits.
        regions: every region that was looked at, whole images first.
    """

    logits: Float[Tensor, "batch classes"]
    regions: Regions

    verdict: ClassVar[str] = "alone"
    """What ``region_logits`` say: the classes by each region ``alone``, or ``so far``, by it and those before."""
    is_ranked: ClassVar[bool] = False
    """Whether regions are numbered by their probability; else in the order in which they were made."""

    @property
    def has_looks(self) -> bool:
        """Whether anything was looked at beside the whole images."""
        return self.regions.depth > 0

    @property
    def region_logits(self) -> Float[Tensor, "batch n classes"] | None:
        """Class logits of single regions, if the model says."""
        return None

    @property
    def region_weights(self) -> Float[Tensor, "batch n"] | None:
        """Share of single regions in the decision, if the model says."""
        return None

    @property
    def region_probs(self) -> Float[Tensor, "batch n"] | None:
        """Probability of each region's location when it was chosen, if the model says."""
        return None

    @property
    def whole_logits(self) -> Float[Tensor, "batch classes"] | None:
        """Class logits of the whole image alone, if it is classified."""
        return None

    @property
    def whole_weights(self) -> Float[Tensor, " batch"] | None:
        """Share of the whole image in the decision, if the model says."""
        return None

    @property
    def location_entropy(self) -> Float[Tensor, ""] | None:
        """Mean entropy of where to look, nats, if locations have probabilities."""
        return None


def mean_entropy(probs: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, ""] | None:
    """Mean entropy of several sets of distributions, nats; None if there is none."""
    entropy = [-(p * (p + 1e-10).log()).sum(1).mean() for p in probs]
    return torch.stack(entropy).mean().detach() if entropy else None


class Model(nn.Module, HubModel):
    """A network that looks at images through scenes and classifies them.

    ``forward(images, looks=None, policy=None)`` takes :data:`Images`, a number of looks, or one a level, and how
    locations are chosen, and gives a :class:`ModelOutput`. ``uint8`` images are normalised by the configuration's mean
    and standard deviation; floating point images are taken to be normalised already.

    Args:
        config: what it is made of.
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

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the modules by which costs are reported, in order of execution."""
        return tuple(name for name, part in self.named_children() if not isinstance(part, PopulationNorms))

    def scene(self, images: Images) -> SceneBatch:
        """Wrap images so that they can be looked at, with this model's channels, resize and padding.

        Args:
            images: as for ``forward``. A batch that can be looked at already is returned as it is.
        """
        config = self.config
        if isinstance(images, SceneBatch):
            return images
        scenes = [images] if isinstance(images, Scene) else images
        if not isinstance(scenes, Tensor) and any(isinstance(scene, Scene) for scene in scenes):
            device = self.get_buffer("mean").device
            return LazyBatch(
                cast(list[Scene], scenes), config.in_channels, config.resize, config.normalization[0], device=device
            )
        scene = TensorBatch(cast(Tensor | list[Tensor], scenes), config.resize)
        # Outside an image is 0 after normalisation, as in the reference implementation.
        scene.fill = 0.0 if scene.is_normalized else config.normalization[0]
        return scene

    def pixels(
        self, scene: SceneBatch, regions: Regions, size_px: int
    ) -> Float[Tensor, "regions channels {size_px} {size_px}"]:
        """Normalised pixels of regions, on the model's device and in its precision.

        Raises:
            ConfigError: images of another number of channels than the model takes.
        """
        pixels = scene.glimpse(regions, size_px)
        if pixels.shape[1] != self.config.in_channels:
            raise ConfigError(
                f"images have {pixels.shape[1]} channels but the model takes {self.config.in_channels}; "
                "convert them, or build the model with in_channels of the images"
            )
        mean = self.get_buffer("mean")
        pixels = pixels.to(mean)
        return pixels if scene.is_normalized else (pixels - mean) / self.get_buffer("std")

    def policy(self, kind: str | None = None) -> Policy | str:
        """The policy of that kind, or the configured one for evaluation.

        Raises:
            ConfigError: a kind that the model does not know.
        """
        kind = kind or self.config.eval_policy
        if kind not in self.config.policies:
            raise ConfigError(
                f"policy {kind!r} is not known to a {self.config.title}; give one of {', '.join(self.config.policies)}"
            )
        return kind

    def seeded_policy(self, kind: str, seed: int, device: torch.device) -> Policy | str:
        """The policy of that kind whose draws, if it has a generator of its own, follow from the seed alone."""
        return self.policy(kind)

    def is_located(self, policy: Policy | str) -> bool:
        """Whether the model itself decides where to look with this policy, rather than a control."""
        return policy not in ("random", "centre") if isinstance(policy, str) else policy.needs_logits
