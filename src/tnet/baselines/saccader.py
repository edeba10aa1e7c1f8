"""Saccader: describe every position of an image once, then choose a few of them in turn and classify by those.

Elsayed, Kornblith and Le, "Saccader: Improving accuracy of hard attention models for vision", NeurIPS 2019. The class
logits of every position come from its own 77 pixels; hard attention decides whose logits count. A glimpse is therefore
almost free, and the model costs as much as seeing everything. Differences from the original's code:

- Boxes are as in the code, spread evenly over the image (centre at ``pos * (1 - 77/224)`` with ``pos`` in [-1, 1]),
  8.17 px apart at 224 px. The true receptive fields are 8 px apart, up to 3 px before.
- ``centre`` takes the positions nearest to the middle, in the code the middle one every time. ``random`` takes
  distinct positions, all equally likely; in the code they can repeat and those at the border are half as likely.
- A visited position can never be chosen again; in the code only a penalty of 1e5, also used here, prevents it.
- In location pretraining the code marks what it sampled as visited, not the target (``pretraining_path``).
- The code does not say which logits REINFORCE rewards; here it is the mean over the glimpses. The term is averaged over
  images and glimpses, as in the code, which has another L2 penalty, divided by the number of weights (negligible).
- Sobel policies score windows an integer number of pixels apart from the first corner, as in the code.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from tnet.baselines.bagnet_lowd import BagNetLowD, PositionGrid, ShortcutNorm, conv_norm_relu, init_glorot
from tnet.baselines.geometry import Looks, window_regions
from tnet.baselines.objective import BaselineObjective, BaselineObjectiveConfig, Terms, reinforce
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Regions, whole_images
from tnet.losses import Target, classification_loss, repeat_target, reward
from tnet.models.base import Images, Model, ModelConfig, ModelOutput, mean_entropy
from tnet.models.kind import MODEL_KINDS, ModelKind
from tnet.traversal import FixedCells, SampleWithoutReplacement
from tnet.traversal.policies import most_wanted

SaccaderPolicy = Literal["learned", "topk", "sample", "random", "centre", "ordered_logits", "sobel_mean", "sobel_var"]
Stage = Literal["representation", "location", "joint"]

_BAGNET = ("planes", "blocks", "strides", "wide_blocks", "expansion", "feature_dim", "shortcut_norm")
_VISITED = 1e5  # subtracted from the logit of a visited position
_LUMINANCE = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True, kw_only=True)
class SaccaderConfig(ModelConfig):
    """A Saccader, or its representation network alone. The defaults are the published sizes.

    Attributes:
        num_classes: number of outputs of the classifier (1001 in the original: ImageNet's and the background).
        input_px: side to which every image is resized, pixels.
        looks: number of glimpses in joint training and by default at inference. 0 builds the representation network
            alone, BagNet-77-lowD, which answers with the mean of all positions' logits.
        planes, blocks, strides, wide_blocks, expansion, feature_dim, shortcut_norm: arguments of the representation
            network, :class:`~tnet.baselines.bagnet_lowd.BagNetLowD`.
        attention_dims: channels of the attention network's groups, each a 1x1 and a 3x3 convolution (dilation 2).
        mixed_dim: channels of the map that the cell works on.
        policy: ``learned`` (sampled in training, the most probable in evaluation), ``topk`` or ``sample`` (one of the
            two in both), ``random``, ``centre`` (from the middle outwards), ``ordered_logits`` (highest logit of the
            predicted class first), ``sobel_mean`` or ``sobel_var`` (highest mean or variance of edges first).
    """

    title: ClassVar[str] = "Saccader"
    policies: ClassVar[tuple[str, ...]] = get_args(SaccaderPolicy)
    allows_no_looks: ClassVar[bool] = True

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
        super().__post_init__()
        if not self.side:
            sizes = f"model.input_px is {self.input_px} but the receptive field is {self.grid.field_px} px"
            raise ConfigError(f"{sizes}; give at least that, or fewer model.wide_blocks")
        if not 0 <= self.looks <= self.side**2:
            raise ConfigError(f"model.looks is {self.looks}; give 0 to {self.side**2}, the number of positions")
        self._check_least(1, "mixed_dim")
        if not self.attention_dims or min(self.attention_dims) < 1:
            raise ConfigError(f"model.attention_dims is {list(self.attention_dims)}; give positive numbers")
        self._check_values(self.input_px)

    @property
    def grid(self) -> PositionGrid:
        """Receptive fields of the positions."""
        return PositionGrid.of(self.blocks, self.strides, self.wide_blocks)

    @property
    def side(self) -> int:
        """Positions along a side of an image."""
        return self.grid.side(self.input_px)

    @property
    @override
    def region_px(self) -> int:
        return self.grid.field_px

    @property
    @override
    def whole_px(self) -> int:
        return self.input_px

    @property
    @override
    def network(self) -> str:
        return f"BagNet-{self.grid.field_px}-lowD"

    def _check_looks(self, looks: int) -> None:
        if not 0 <= looks <= self.side**2:
            raise GeometryError(f"looks is {looks}; give 0 to {self.side**2}, the number of positions")
        if looks and not self.looks:
            raise GeometryError(f"looks is {looks} but model.looks is 0, a representation network alone; give 0")


@dataclass(frozen=True)
class SaccaderOutput(ModelOutput):
    """Output of Saccader; glimpses are in the order in which they were seen, positions in raster order."""

    logits: Float[Tensor, "batch classes"]  # mean of the glimpses' logits; without looks, representation_logits
    feature_logits: Float[Tensor, "batch looks classes"]
    representation_logits: Float[Tensor, "batch classes"]  # mean of all positions' logits
    position_logits: Float[Tensor, "batch positions classes"]
    cells: Int[Tensor, "batch looks"]  # position of each glimpse
    regions: Regions  # whole images, then the glimpses
    # The cell's logits when each glimpse was chosen, visited positions 1e5 lower; empty if the cell was not used.
    location_logits: tuple[Float[Tensor, "batch positions"], ...]
    log_prob: Float[Tensor, "batch looks"]  # of each glimpse given those before; 0 if the cell was not used

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
        return mean_entropy([logits.softmax(dim=1) for logits in self.location_logits])


class SaccaderCell(nn.Module):
    """Scores positions, given those visited.

    A linear map scores the features of each position; the softmax over positions weights them into a mean feature,
    whose softmax weights the channels; a position's location logit is the weighted sum of its channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.space = nn.Linear(dim, 1, bias=False)

    def forward(
        self, features: Float[Tensor, "batch dim positions"], visited: Float[Tensor, "batch positions"]
    ) -> Float[Tensor, "batch positions"]:
        """Compute location logits, 1e5 lower where ``visited`` is 1; in ``float32``, as 16 bits cannot hold that."""
        features = features.float()
        penalty = _VISITED * visited
        scores = torch.einsum("bdp,d->bp", features, self.space.weight[0].float()).float() / features.shape[1] ** 0.5
        mean = torch.einsum("bdp,bp->bd", features, (scores - penalty).softmax(dim=1)).float()
        return torch.einsum("bdp,bd->bp", features, mean.softmax(dim=1)).float() - penalty


class Saccader(Model):
    """Hard attention over the positions of a bag of local features.

    Images of any size are resized to ``input_px`` squared. With 0 looks it is the representation network alone; any
    other number of looks costs the same, except for 0.003 % per glimpse for the cell.
    """

    config: SaccaderConfig

    def __init__(self, config: SaccaderConfig) -> None:
        super().__init__(config)
        self.backbone = BagNetLowD(config.in_channels, **{name: getattr(config, name) for name in _BAGNET})
        self.side = config.side
        self.classifier = nn.Linear(self.backbone.feature_dim, config.num_classes)
        init_glorot(self.classifier)
        if config.looks:
            layers, dim = [], self.backbone.cell_dim
            for width in config.attention_dims:
                layers += [conv_norm_relu(dim, width), conv_norm_relu(width, width, 3, dilation=2, padding=2)]
                dim = width
            self.attention = nn.Sequential(*layers)
            self.mix = nn.Conv2d(dim + self.backbone.feature_dim, config.mixed_dim, 1)
            self.cell = SaccaderCell(config.mixed_dim)
            for module in (self.attention, self.mix, self.cell):
                init_glorot(module)

    def forward(
        self, images: Images, looks: Looks = None, policy: str | None = None, *, pretraining: bool = False
    ) -> SaccaderOutput:
        """Classify images; see :class:`~tnet.models.base.Model`.

        ``pretraining`` is for location pretraining: no gradient reaches the representation network, and the cell scores
        the positions before each glimpse, whatever the policy.
        """
        policy = str(self.policy(policy or self.config.policy))
        looks, scene = self.config.count_looks(looks), self.scene(images)
        whole = whole_images(scene.sizes_hw)
        pixels = self.pixels(scene, whole, self.config.input_px)
        position_logits, path, location_logits = self.look(pixels, looks, policy, pretraining)
        representation_logits = position_logits.mean(dim=1)
        feature_logits = position_logits.gather(1, path[:, :, None].expand(-1, -1, position_logits.shape[2]))
        windows = window_regions(whole, path, self.side, self.backbone.grid.field_px, self.config.input_px)
        log_probs = [logits.log_softmax(1).gather(1, path[:, t : t + 1]) for t, logits in enumerate(location_logits)]
        logits = feature_logits.mean(dim=1) if looks else representation_logits
        regions = Regions.concat([whole, windows])
        log_prob = torch.cat(log_probs, dim=1) if log_probs else position_logits.new_zeros(path.shape)
        return SaccaderOutput(
            logits, feature_logits, representation_logits, position_logits, path, regions, location_logits, log_prob
        )

    def look(
        self, pixels: Float[Tensor, "batch c h w"], looks: int, policy: str, pretraining: bool = False
    ) -> tuple[Float[Tensor, "batch p classes"], Int[Tensor, "batch looks"], tuple[Tensor, ...]]:
        """Compute the tensor part of :meth:`forward`: logits of all positions, the path, and the cell's logits."""
        with torch.no_grad() if pretraining else nullcontext():
            maps = self.backbone.describe(pixels)
            position_logits = self.classifier(maps.what.flatten(2).transpose(1, 2))
        path = self._path(policy, pixels, position_logits.detach(), looks)
        location_logits: tuple[Tensor, ...] = ()
        if looks and (path is None or pretraining):
            mixed = self.mix(torch.cat([self.attention(maps.features), maps.what], dim=1)).flatten(2)
            samples = policy == "sample" or (policy == "learned" and self.training)
            path, location_logits = self._traverse(mixed, looks, path, samples)
        assert path is not None
        return position_logits, path, location_logits

    def _path(
        self, policy: str, pixels: Float[Tensor, "batch c h w"], logits: Float[Tensor, "batch p classes"], looks: int
    ) -> Int[Tensor, "batch looks"] | None:
        """Return the positions that a policy takes, in order; ``None`` if the cell decides."""
        batch, positions, _ = logits.shape
        if not looks:
            return logits.new_zeros(batch, 0, dtype=torch.long)
        if policy in ("learned", "topk", "sample"):
            return None
        if policy == "ordered_logits":
            return ordered_positions(logits, looks)
        if policy == "random":
            return torch.rand(batch, positions, device=pixels.device).topk(looks, dim=1).indices
        if policy == "centre":
            order = FixedCells.centre_out(self.side, self.side).order[:looks]
            return torch.tensor(order, device=pixels.device).repeat(batch, 1)
        scores = edge_statistic(pixels, self.backbone.grid.field_px, self.side, variance=policy == "sobel_var")
        return most_wanted(scores, looks)

    def _traverse(
        self, mixed: Float[Tensor, "batch dim p"], looks: int, path: Int[Tensor, "batch looks"] | None, samples: bool
    ) -> tuple[Int[Tensor, "batch looks"], tuple[Tensor, ...]]:
        """Apply the cell once per glimpse; follow its choice, or the given path."""
        visited = torch.zeros(mixed.shape[0], mixed.shape[2], device=mixed.device)
        draw, chosen, location_logits = SampleWithoutReplacement(), [], []
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


def ordered_positions(
    position_logits: Float[Tensor, "batch positions classes"], count: int
) -> Int[Tensor, "batch {count}"]:
    """Sort positions by their logit of the class that the mean over all positions predicts, highest first."""
    predicted = position_logits.mean(dim=1).argmax(dim=1)
    scores = position_logits.gather(2, predicted[:, None, None].expand(-1, position_logits.shape[1], 1))
    return most_wanted(scores[:, :, 0], count)


def edge_statistic(
    pixels: Float[Tensor, "batch channels height width"], field_px: int, side: int, *, variance: bool
) -> Float[Tensor, "batch {side}*{side}"]:
    """Compute the mean or the (unbiased) variance of the Sobel edges in each position's window of ``field_px``.

    Images are square, with ``side`` positions along a side; RGB becomes luminance, other channels their mean.
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
        count = field_px**2
        mean = (F.avg_pool2d(strength.square(), field_px, stride_px) - mean.square()) * (count / (count - 1))
    return mean.flatten(1)


@dataclass(frozen=True)
class SaccaderObjectiveConfig(BaselineObjectiveConfig):
    """One of the three stages of training, each of which starts from the one before.

    Attributes:
        l2_weight: weight of the sum of squares of the weights that the stage trains; no biases, no norms.
        stage: ``representation`` (the representation network learns to classify by the mean of all positions),
            ``location`` (the location network learns the order of the positions by the logit of the predicted class; no
            labels) or ``joint`` (everything learns to classify by the glimpses; locations by REINFORCE, reward 1 if the
            prediction is right, baseline the batch's mean reward, one sample per image).
        pretraining_looks: steps of location pretraining.
        pretraining_path: positions that count as visited in location pretraining: the ``targets`` so far, or those that
            the policy ``sampled`` (the original's code; there a visited target costs 1e5).
    """

    l2_weight: float = 8e-5
    stage: Stage = "joint"
    reinforce_weight: float = 1.0
    pretraining_looks: int = 12
    pretraining_path: Literal["targets", "sampled"] = "targets"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretraining_looks < 1:
            raise ConfigError(f"objective.pretraining_looks is {self.pretraining_looks}; give at least 1")


class SaccaderObjective(BaselineObjective):
    """The loss of a stage."""

    config: SaccaderObjectiveConfig

    @property
    @override
    def forward_options(self) -> dict[str, int | str | bool]:
        if self.config.stage == "location":
            path = "ordered_logits" if self.config.pretraining_path == "targets" else "sample"
            return {"looks": self.config.pretraining_looks, "policy": path, "pretraining": True}
        return {"looks": 0} if self.config.stage == "representation" else {}

    @override
    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of the representation network (backbone, classifier), the location network, or both."""
        mine = {"representation": (True,), "location": (False,), "joint": (True, False)}[self.config.stage]
        trained = {n: p for n, p in model.named_parameters() if n.startswith(("backbone.", "classifier.")) in mine}
        if not trained:
            raise ConfigError("objective.stage 'location' trains nothing in a model whose looks are 0; set model.looks")
        return trained

    @override
    def penalised(self, model: nn.Module) -> list[nn.Parameter]:
        return [parameter for parameter in self.trained(model).values() if parameter.ndim >= 2]

    @override
    def terms(self, output: ModelOutput, target: Target) -> Terms:
        assert isinstance(output, SaccaderOutput)
        config, looks, terms = self.config, output.cells.shape[1], {}
        logits = output.representation_logits if config.stage == "representation" else output.logits
        rewards = reward(logits, target)
        if config.stage != "representation" and not output.location_logits:
            needs = f"objective.stage {config.stage!r} needs glimpses chosen by the location network"
            raise ConfigError(f"{needs}; use the objective's forward_options and, in joint training, a learned policy")
        if config.stage == "location":
            wanted = ordered_positions(output.position_logits.detach(), looks)
            scores = torch.stack(output.location_logits, dim=1)
            terms["location"] = F.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        else:
            terms["cross_entropy"] = classification_loss(logits, target, config.label_smoothing).mean()
        if config.stage == "joint":
            terms["reinforce"] = reinforce(rewards[:, None], output.log_prob) * config.reinforce_weight
        glimpse_rewards = reward(output.feature_logits, repeat_target(target, looks))
        return terms, rewards.mean(), glimpse_rewards.mean() if looks else logits.new_zeros(())


MODEL_KINDS.register("saccader")(ModelKind(SaccaderConfig, Saccader, SaccaderObjectiveConfig, SaccaderObjective))
