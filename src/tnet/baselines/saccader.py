"""Saccader: describe every position of an image once, then choose a few of them, one after the other, to classify by.

Elsayed, Kornblith and Le, "Saccader: Improving accuracy of hard attention models for vision", NeurIPS 2019. The class
logits of every position come from its own 77 pixels; hard attention decides whose logits count. A glimpse therefore
costs next to nothing, and the model as much as looking everywhere.

Where this differs from the original's code, or that from its description:

- Boxes: the code spreads positions evenly over the image (centre at ``pos * (1 - 77/224)`` with ``pos`` in [-1, 1]),
  8.17 px apart at 224 px; so do ours. The positions' true receptive fields lie 8 px apart, up to 3 px before.
- The control ``centre`` takes the positions nearest to the middle; the code looks at the middle one every time. The
  control ``random`` takes different positions, all equally likely; the code rounds points drawn from the image, so that
  positions can come twice and those at the border are half as likely.
- A visited position can never be chosen again; the code relies on a penalty of 1e5 alone, which is used here as well.
- In location pretraining the code marks what it sampled as visited, not the target, so that a target can already be
  visited, which costs 1e5; ``pretraining_path`` chooses.
- The code's REINFORCE takes a list of logits to reward and does not say which; here the reward is that of the mean over
  the glimpses. As in the code, the term is averaged over images and glimpses.
- The code has a normalised L2 penalty, too, divided by the number of weights, which 8e-5 would make vanish; here it is
  the sum of squares.
- Sobel policies rate windows a whole number of pixels apart from the first corner (8 px at 224 px), as the code does.
- See :class:`tnet.baselines.bagnet_lowd.BagNetLowD` for the shortcuts of the representation network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from tnet.baselines.bagnet_lowd import (
    BagNetLowD,
    LowDMaps,
    PositionGrid,
    ShortcutNorm,
    conv_norm_relu,
    init_glorot,
    position_grid,
)
from tnet.baselines.geometry import window_regions
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Regions, whole_images
from tnet.losses import Loss, ModelObjective, check_smoothing, check_weights, classification_loss, l2_term, reward
from tnet.models.base import Images, Model, ModelConfig, ModelOutput, mean_entropy
from tnet.models.kind import MODEL_KINDS, ModelKind
from tnet.traversal import FixedCells, SampleWithoutReplacement

SaccaderPolicy = Literal["learned", "topk", "sample", "random", "centre", "ordered_logits", "sobel_mean", "sobel_var"]
Stage = Literal["representation", "location", "joint"]

_LEARNED = ("learned", "topk", "sample")
_VISITED = 1e5  # taken off the logit of a visited position
_LUMINANCE = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True, kw_only=True)
class SaccaderConfig(ModelConfig):
    """A Saccader, or its representation network alone. The defaults are the published sizes.

    Attributes:
        num_classes: outputs of the classifier (1001 in the original: ImageNet's and one for the background).
        input_px: side to which every image is resized, pixels.
        looks: glimpses: the default at inference and the number in joint training. 0 builds the representation network
            alone, BagNet-77-lowD, which answers with the mean of all positions' logits.
        planes: width of the representation network's stages.
        blocks: bottlenecks in each stage.
        strides: of the first bottleneck of each stage.
        wide_blocks: bottlenecks of each stage, from its first, that look 3 pixels wide; with the strides they make the
            receptive field.
        expansion: output channels of a stage over its planes.
        feature_dim: channels from which a position is classified; 0 for a quarter of the last stage's.
        shortcut_norm: ``branch``, the original's code, or ``shortcut``; see ``BagNetLowD``.
        attention_dims: channels of the attention network's groups, each a 1x1 and a 3x3 convolution (dilation 2).
        mixed_dim: channels of the map on which the cell works.
        policy: where to look: ``learned`` (sampled in training, the most probable in evaluation), ``topk`` or
            ``sample`` (one of these two in both), ``random``, ``centre`` (from the middle outwards),
            ``ordered_logits`` (highest logit of the predicted class first), ``sobel_mean`` and ``sobel_var`` (mean or
            variance of the edges in the glimpse, highest first).
    """

    title: ClassVar[str] = "Saccader"
    policies: ClassVar[tuple[str, ...]] = get_args(SaccaderPolicy)

    num_classes: int = 1001
    input_px: int = 224
    looks: int = 6
    planes: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    strides: tuple[int, ...] = (2, 2, 2, 1)
    wide_blocks: tuple[int, ...] = (2, 2, 2, 2)
    expansion: int = 4
    feature_dim: int = 0
    shortcut_norm: ShortcutNorm = "branch"
    attention_dims: tuple[int, ...] = (1024, 512)
    mixed_dim: int = 512
    policy: SaccaderPolicy = "learned"

    def __post_init__(self) -> None:
        grid = self.grid
        if not grid.side(self.input_px):
            raise ConfigError(
                f"model.input_px is {self.input_px} but a position sees {grid.field_px} px; give at least that, or "
                "fewer wide_blocks"
            )
        positions = grid.side(self.input_px) ** 2
        if not 0 <= self.looks <= positions:
            raise ConfigError(
                f"model.looks is {self.looks}; give between 0 and {positions}, the positions at {self.input_px} px"
            )
        self._check_least(1, "mixed_dim")
        if not self.attention_dims or min(self.attention_dims) < 1:
            raise ConfigError(f"model.attention_dims is {list(self.attention_dims)}; give positive numbers")
        super().__post_init__()

    @property
    def grid(self) -> PositionGrid:
        """How positions lie on an image of ``input_px``."""
        return position_grid(self.blocks, self.strides, self.wide_blocks)

    @property
    @override
    def look_px(self) -> int:
        return self.grid.field_px

    @property
    @override
    def whole_px(self) -> int:
        return self.input_px

    @property
    @override
    def network(self) -> str:
        return f"BagNet-{self.grid.field_px}-lowD"

    @property
    @override
    def allows_no_looks(self) -> bool:
        return True

    @property
    @override
    def eval_policy(self) -> str:
        return "topk" if self.policy == "learned" else self.policy

    def _check_looks(self, looks: int) -> None:
        side = self.grid.side(self.input_px)
        if not 0 <= looks <= side**2:
            raise GeometryError(
                f"looks {looks} asked of images with {side} x {side} positions; give between 0 and {side**2}"
            )
        if looks and not self.looks:
            raise GeometryError(
                f"looks {looks} asked of a representation network alone (model.looks is 0), which looks everywhere; "
                "give 0"
            )


@dataclass(frozen=True)
class SaccaderOutput(ModelOutput):
    """Everything that was found; glimpses in the order in which they were made, positions in raster order.

    Attributes:
        logits: mean of the glimpses' logits; without looks, ``representation_logits``.
        feature_logits: class logits of each glimpse.
        representation_logits: mean of all positions' logits, what the representation network alone says.
        position_logits: class logits of every position.
        cells: position of each glimpse.
        regions: whole images, then (with looks) the glimpses.
        location_logits: one entry a glimpse: the cell's logits when it was chosen, visited positions 1e5 lower; empty
            where the cell was not asked.
        log_prob: log-probability of each glimpse given those before; 0 where the cell was not asked.
    """

    logits: Float[Tensor, "batch classes"]
    feature_logits: Float[Tensor, "batch looks classes"]
    representation_logits: Float[Tensor, "batch classes"]
    position_logits: Float[Tensor, "batch positions classes"]
    cells: Int[Tensor, "batch looks"]
    regions: Regions
    location_logits: tuple[Float[Tensor, "batch positions"], ...]
    log_prob: Float[Tensor, "batch looks"]

    @property
    def joint_log_prob(self) -> Float[Tensor, " batch"]:
        """Log-probability of all glimpses of an image in their order."""
        return self.log_prob.sum(dim=1)

    @property
    def location_probs(self) -> tuple[Float[Tensor, "batch positions"], ...]:
        """For each glimpse, the probability of every position."""
        return tuple(logits.softmax(dim=1) for logits in self.location_logits)

    @property
    @override
    def region_logits(self) -> Float[Tensor, "batch looks classes"]:
        return self.feature_logits

    @property
    @override
    def region_weights(self) -> Float[Tensor, "batch looks"]:
        return torch.full_like(self.log_prob, 1 / max(self.log_prob.shape[1], 1))

    @property
    @override
    def region_probs(self) -> Float[Tensor, "batch looks"] | None:
        return self.log_prob.exp() if self.location_logits else None

    @property
    @override
    def location_entropy(self) -> Float[Tensor, ""] | None:
        return mean_entropy(self.location_probs)


class SaccaderCell(nn.Module):
    """Says where to look next, given where one has looked.

    Positions are weighted against each other by a linear map of their features, which makes one mean feature; its
    softmax weights the channels; a position's location logit is the sum of its features with these weights.

    Args:
        dim: channels of the map.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.space = nn.Linear(dim, 1, bias=False)

    def forward(
        self, features: Float[Tensor, "batch dim positions"], visited: Float[Tensor, "batch positions"]
    ) -> Float[Tensor, "batch positions"]:
        """Location logits, 1e5 lower where ``visited`` is 1.

        Always ``float32``: 16 bits cannot hold the difference.
        """
        features = features.float()
        penalty = _VISITED * visited
        dim = features.shape[1]
        rated = torch.einsum("bdp,d->bp", features, self.space.weight[0].float()).float() / dim**0.5
        mean = torch.einsum("bdp,bp->bd", features, (rated - penalty).softmax(dim=1)).float()
        return torch.einsum("bdp,bd->bp", features, mean.softmax(dim=1)).float() - penalty


class Saccader(Model):
    """Hard attention over the positions of a bag of local features.

    Takes images of any size, resized to ``input_px`` squared. With 0 looks it is the representation network alone. Any
    other number costs the same but for the cell, 0.003 % a glimpse.

    Args:
        config: what it is made of.

    Raises:
        ConfigError: a configuration that cannot be built.
    """

    config: SaccaderConfig

    def __init__(self, config: SaccaderConfig) -> None:
        super().__init__(config)
        self.backbone = BagNetLowD(
            config.in_channels,
            planes=config.planes,
            blocks=config.blocks,
            strides=config.strides,
            wide_blocks=config.wide_blocks,
            expansion=config.expansion,
            feature_dim=config.feature_dim,
            shortcut_norm=config.shortcut_norm,
        )
        self.side = self.backbone.grid.side(config.input_px)
        self.classifier = nn.Linear(self.backbone.feature_dim, config.num_classes)
        init_glorot(self.classifier)
        if config.looks:
            layers, dim = [], self.backbone.cell_dim
            for width in config.attention_dims:
                layers.append(conv_norm_relu(dim, width))
                layers.append(conv_norm_relu(width, width, 3, dilation=2, padding=2))
                dim = width
            self.attention = nn.Sequential(*layers)
            self.mix = nn.Conv2d(dim + self.backbone.feature_dim, config.mixed_dim, 1)
            self.cell = SaccaderCell(config.mixed_dim)
            for module in (self.attention, self.mix, self.cell):
                init_glorot(module)

    def forward(
        self,
        images: Images,
        looks: int | Sequence[int] | None = None,
        policy: str | None = None,
        *,
        pretraining: bool = False,
    ) -> SaccaderOutput:
        """Look at images and classify them.

        Args:
            images: a batch tensor, a list of images of different sizes, or a scene; ``uint8`` images are normalised,
                floating point ones are taken to be.
            looks: glimpses, all at different positions; the configured number if ``None``.
            policy: a :data:`SaccaderPolicy`; the configured one if ``None``.
            pretraining: for location pretraining: no gradient reaches the representation network, and the cell is asked
                along the way whatever the policy.

        Raises:
            ConfigError: an unknown policy, or images of another number of channels.
            GeometryError: more looks than positions, or looks at all of a representation network alone.
        """
        kind = self.config.policy if policy is None else policy
        if kind not in get_args(SaccaderPolicy):
            raise ConfigError(f"policy {kind!r} is not known; give one of {', '.join(get_args(SaccaderPolicy))}")
        looks = self.config.count_looks(looks)
        scene = self.scene(images)
        whole = whole_images(scene.sizes_hw)
        pixels = self.pixels(scene, whole, self.config.input_px)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not pretraining):
            maps = self.backbone.describe(pixels)
            position_logits = self.classifier(maps.what.flatten(2).transpose(1, 2))
        path = self._path(kind, pixels, position_logits.detach(), looks)
        location_logits: tuple[Tensor, ...] = ()
        if looks and (path is None or pretraining):
            samples = kind == "sample" or (kind == "learned" and self.training)
            path, location_logits = self._traverse(maps, looks, path, samples)
        assert path is not None
        representation_logits = position_logits.mean(dim=1)
        feature_logits = position_logits.gather(1, path[:, :, None].expand(-1, -1, position_logits.shape[2]))
        regions = whole
        if looks:
            field_px, input_px = self.backbone.grid.field_px, self.config.input_px
            regions = Regions.concat([whole, window_regions(whole, path, self.side, field_px, input_px)])
        log_probs = [logits.log_softmax(1).gather(1, path[:, t : t + 1]) for t, logits in enumerate(location_logits)]
        return SaccaderOutput(
            logits=feature_logits.mean(dim=1) if looks else representation_logits,
            feature_logits=feature_logits,
            representation_logits=representation_logits,
            position_logits=position_logits,
            cells=path,
            regions=regions,
            location_logits=location_logits,
            log_prob=torch.cat(log_probs, dim=1) if log_probs else position_logits.new_zeros(path.shape),
        )

    def _path(
        self,
        kind: str,
        pixels: Float[Tensor, "batch channels height width"],
        position_logits: Float[Tensor, "batch positions classes"],
        looks: int,
    ) -> Int[Tensor, "batch looks"] | None:
        """The positions that a policy takes, in its order; None for a learned policy, which must be asked."""
        if not looks:
            return position_logits.new_zeros(len(pixels), 0, dtype=torch.long)
        if kind in _LEARNED:
            return None
        if kind == "ordered_logits":
            return ordered_positions(position_logits, looks)
        batch, positions, _ = position_logits.shape
        if kind == "random":
            return torch.rand(batch, positions, device=pixels.device).topk(looks, dim=1).indices
        if kind == "centre":
            order = FixedCells.centre_out(self.side, self.side).order[:looks]
            return torch.tensor(order, device=pixels.device).repeat(batch, 1)
        rated = edge_statistic(pixels, self.backbone.grid.field_px, self.side, variance=kind == "sobel_var")
        return _highest_first(rated, looks)

    def _traverse(
        self,
        maps: LowDMaps,
        looks: int,
        path: Int[Tensor, "batch looks"] | None,
        samples: bool,
    ) -> tuple[Int[Tensor, "batch looks"], tuple[Tensor, ...]]:
        """Ask the cell once a glimpse; go where it says, or along a given path."""
        mixed = self.mix(torch.cat([self.attention(maps.features), maps.what], dim=1)).flatten(2)
        visited = torch.zeros(len(mixed), mixed.shape[2], device=mixed.device)
        draw = SampleWithoutReplacement()
        chosen: list[Tensor] = []
        location_logits: list[Tensor] = []
        for step in range(looks):
            logits = self.cell(mixed, visited)
            if path is not None:
                position = path[:, step : step + 1]
            else:
                open_logits = logits.detach().masked_fill(visited > 0, -torch.inf)
                position = draw(open_logits, 1).cells if samples else open_logits.argmax(dim=1, keepdim=True)
            visited = visited.scatter(1, position, 1.0)
            chosen.append(position)
            location_logits.append(logits)
        return torch.cat(chosen, dim=1), tuple(location_logits)


def _highest_first(rated: Float[Tensor, "batch positions"], count: int) -> Int[Tensor, "batch {count}"]:
    # A stable sort settles ties, for the earlier position; topk leaves them open.
    return rated.sort(dim=1, descending=True, stable=True).indices[:, :count]


def ordered_positions(
    position_logits: Float[Tensor, "batch positions classes"], count: int
) -> Int[Tensor, "batch {count}"]:
    """Positions by their logit of the class that the mean over all positions predicts, highest first."""
    predicted = position_logits.mean(dim=1).argmax(dim=1)
    rated = position_logits.gather(2, predicted[:, None, None].expand(-1, position_logits.shape[1], 1))
    return _highest_first(rated[:, :, 0], count)


def edge_statistic(
    pixels: Float[Tensor, "batch channels height width"], field_px: int, side: int, *, variance: bool
) -> Float[Tensor, "batch {side}*{side}"]:
    """Mean or (unbiased) variance of the Sobel edges in each position's window.

    Args:
        pixels: square images; colour is brought to luminance, other channels to their mean.
        field_px: side of a window.
        side: positions along a side of the image.
        variance: instead of the mean.
    """
    channels, size_px = pixels.shape[1], pixels.shape[-1]
    shares = _LUMINANCE if channels == 3 else (1 / channels,) * channels
    # 32 bits: the variance is a small difference of large numbers.
    grey = torch.einsum("bchw,c->bhw", pixels.float(), torch.tensor(shares, device=pixels.device))[:, None]
    slope = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]], device=pixels.device)
    edges = F.conv2d(F.pad(grey.float(), (1, 1, 1, 1), mode="reflect"), torch.stack([slope, slope.T])[:, None])
    strength = edges.float().norm(dim=1, keepdim=True)
    stride_px = -(-(size_px - field_px + 1) // side)
    mean = F.avg_pool2d(strength, field_px, stride_px)
    if variance:
        pixels_in = field_px**2
        mean = (F.avg_pool2d(strength.square(), field_px, stride_px) - mean.square()) * (pixels_in / (pixels_in - 1))
    return mean.flatten(1)


@dataclass(frozen=True)
class SaccaderObjectiveConfig:
    """One of the three stages of training, each going on from the one before.

    Attributes:
        stage: ``representation`` (the representation network learns to classify by the mean of all positions),
            ``location`` (the location network learns the order of the positions by the logit of the predicted class;
            no labels) or ``joint`` (all learns to classify by the glimpses; locations by REINFORCE, reward 1 where the
            prediction is right, baseline the mean reward of the batch, one sample an image).
        reinforce_weight: of the REINFORCE term.
        l2_weight: of the sum of squares of the weights that the stage trains: those of convolutions, classifier and
            cell; no biases, no norms.
        pretraining_looks: steps of location pretraining.
        pretraining_path: in location pretraining, what counts as visited: the ``targets`` so far, or what the policy
            ``sampled`` (the original's code; there a visited target costs 1e5).
        label_smoothing: of the cross entropy of classes.
    """

    stage: Stage = "joint"
    reinforce_weight: float = 1.0
    l2_weight: float = 8e-5
    pretraining_looks: int = 12
    pretraining_path: Literal["targets", "sampled"] = "targets"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self, "reinforce_weight", "l2_weight")
        if self.pretraining_looks < 1:
            raise ConfigError(f"objective.pretraining_looks is {self.pretraining_looks}; give at least 1")
        check_smoothing(self.label_smoothing)


def trained_parameters(model: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """Parameters that a stage trains, by name: those of the representation network, of the location network, or all.

    The representation network is the backbone and the classifier, the location network all else.

    Raises:
        ConfigError: nothing to train: location pretraining of a representation network alone.
    """
    wanted = {"representation": (True,), "location": (False,), "joint": (True, False)}[stage]
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("backbone.", "classifier.")) in wanted
    }
    if not trained:
        raise ConfigError("objective.stage location trains nothing in a model whose looks are 0; set model.looks")
    return trained


class SaccaderObjective(ModelObjective):
    """What a stage minimises.

    Example:
        >>> objective = SaccaderObjective(SaccaderObjectiveConfig(stage="location"))
        >>> optimizer = torch.optim.Adam(objective.trained(model).values())
        >>> loss = objective(model(images, **objective.forward_options), target, model)

    Args:
        config: which stage, and weights of its terms.
    """

    config: SaccaderObjectiveConfig

    @property
    def forward_options(self) -> dict[str, int | str | bool]:
        """Arguments beside the images that ``Saccader.forward`` takes in training at this stage."""
        config = self.config
        if config.stage == "representation":
            return {"looks": 0}
        if config.stage == "location":
            path = "ordered_logits" if config.pretraining_path == "targets" else "sample"
            return {"looks": config.pretraining_looks, "policy": path, "pretraining": True}
        return {}

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that this stage trains, by name; see :func:`trained_parameters`."""
        return trained_parameters(model, self.config.stage)

    def forward(
        self,
        output: SaccaderOutput,
        target: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
        model: nn.Module | None = None,
    ) -> Loss:
        """All terms for one batch.

        Args:
            output: of the model in training mode, called with :attr:`forward_options`.
            target: class indices, or 0/1 values for several labels; location pretraining uses it for the log only.
            model: whose parameters the L2 term penalises; needed only if that term has a weight.

        Raises:
            ConfigError: an output that this stage cannot learn from.
        """
        config = self.config
        logits = output.representation_logits if config.stage == "representation" else output.logits
        right = reward(logits, target)
        looks = output.cells.shape[1]
        if config.stage != "representation" and not output.location_logits:
            raise ConfigError(
                f"objective.stage {config.stage} needs glimpses that the location network was asked for; call the "
                "model with the objective's forward_options, and joint training with a learned policy"
            )
        terms = {}
        if config.stage == "location":
            wanted = ordered_positions(output.position_logits.detach(), looks)
            rated = torch.stack(output.location_logits, dim=1)
            terms["location"] = F.cross_entropy(rated.flatten(0, 1), wanted.flatten())
        else:
            terms["cross_entropy"] = classification_loss(logits, target, config.label_smoothing).mean()
        if config.stage == "joint":
            advantage = right - right.mean()
            surprise = (advantage[:, None] * -output.log_prob).mean()
            terms["reinforce"] = surprise * config.reinforce_weight
        if config.l2_weight and model is not None:
            weights = [parameter for parameter in self.trained(model).values() if parameter.ndim >= 2]
            terms["l2"] = l2_term(weights, config.l2_weight)
        per_glimpse = logits.new_zeros(())
        if looks:
            repeated = target[:, None].expand(-1, looks, *target.shape[1:])
            per_glimpse = reward(output.feature_logits, repeated).mean()
        return Loss.of(terms, right.mean(), per_glimpse)


MODEL_KINDS.register("saccader")(ModelKind(SaccaderConfig, Saccader, SaccaderObjectiveConfig, SaccaderObjective))
