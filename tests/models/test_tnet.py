"""TNet: regions seen and their order, numbers of looks, inputs, policies and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import (
    TINY_BAGNET,
    TINY_RESNET,
    by_level,
    location_logits_by_level,
    pictures,
    regions,
    three_levels,
    tiny_config,
)
from torch import Tensor, nn

from tnet.backbones import BackboneConfig
from tnet.backbones.base import batch_norms
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Grid, Regions, choose_cells, covered_shares, whole_images
from tnet.models import LocatorConfig, PolicyConfig, PositionConfig, TNetConfig
from tnet.models.tnet import TNet, TNetOutput
from tnet.objectives import Objective, ObjectiveConfig
from tnet.scenes import TensorBatch
from tnet.traversal import FixedCells, RandomCells, SampleWithoutReplacement, TopK

IMAGENET = TNetConfig(
    backbone=BackboneConfig("bagnet77"),
    num_classes=1000,
    base_px=77,
    position=PositionConfig("concat"),
    locator=LocatorConfig("context", logits="l2", cells="positions", position_step=2),
)
FMOW = TNetConfig(
    backbone=BackboneConfig("tf_efficientnet_b0", tap="blocks.3"),
    num_classes=62,
    grid=Grid(3, 3, 0.5),
    looks=(2,),
    locator=LocatorConfig("squeeze", logits="l2", cells="positions", position_start=2, position_step=4),
)
BIRDS = replace(
    FMOW,
    backbone=BackboneConfig("tf_efficientnet_b0", tap="blocks.3.0"),
    num_classes=200,
    grid=Grid(5, 5, 0.35),
    looks=(5,),
    locator=LocatorConfig("squeeze", logits="l2", cells="positions", position_start=2, position_step=2),
    aggregation="weighted",
)

# Every variant of every part at least once.
VARIANTS = {
    "squeeze": tiny_config(),
    "context": tiny_config(
        locator=LocatorConfig("context", hidden=8, logits="l2_scaled"), position=PositionConfig("concat")
    ),
    "weighted": tiny_config(aggregation="weighted", batch_norm="per_level"),
    "bagnet": tiny_config(backbone=TINY_BAGNET, locator=LocatorConfig(logits="none"), position=PositionConfig("none")),
    "levels": three_levels(aggregation="weighted"),
    "max": three_levels(aggregation="max"),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def build(config: TNetConfig) -> TNet:
    torch.manual_seed(0)
    model = TNet(config).eval()
    for norm in batch_norms(model):  # as after some training: timm starts the last one of each block at 0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.get_buffer("running_mean").normal_(0, 0.1)
        norm.get_buffer("running_var").uniform_(0.5, 1.5)
    return model


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


# --- size


@pytest.mark.parametrize(
    ("config", "parameters"), [(IMAGENET, 21_859_949), (FMOW, 4_517_575), (BIRDS, 5_516_434)], ids=["1000", "62", "200"]
)
def test_published_number_of_parameters(config: TNetConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = TNet(config)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == parameters


# --- no looks


class Untouchable(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        raise AssertionError("the locator was called")


@variants
def test_no_looks_is_the_backbone_on_the_downsized_image(config: TNetConfig) -> None:
    model = build(config)
    model.locator = Untouchable()  # type: ignore[assignment]
    images = torch.stack(pictures((64, 64), (64, 64)))
    output = model(images, looks=0)
    small = TensorBatch(images).glimpse(whole_images([(64, 64)] * 2), 32)
    feature = model.position(model.backbone((small - 0.5) / 0.5).pooled, whole_images([(64, 64)] * 2).position_yxl)
    close(output.logits, model.classifier(feature))
    close(output.features[:, 0], feature)
    assert output.weights.tolist() == [[1.0]] * 2
    assert len(output.location_logits) == len(output.location_probs) == 0
    assert output.log_prob.shape == (2, 0) and output.joint_log_prob.tolist() == [0.0, 0.0]
    assert output.regions.level.tolist() == [0, 0] and not output.has_looks
    # With looks it is called, except by controls.
    with pytest.raises(AssertionError, match="locator was called"):
        model(images, looks=1)
    for policy in (RandomCells(), FixedCells([4, 0]), "centre", "random"):
        model(images, looks=1, policy=policy)


def test_one_level_has_no_locator() -> None:
    model = build(tiny_config(levels=1, looks=()))
    assert model.locator is None and model(torch.rand(1, 1, 50, 40)).logits.shape == (1, 5)
    with pytest.raises(GeometryError, match="model has 0"):
        model(torch.rand(1, 1, 50, 40), looks=1)


# --- any number of looks


@variants
def test_any_number_of_looks(config: TNetConfig) -> None:
    model, images = build(config), torch.rand(2, 1, 96, 96)
    for looks in (0, 1, 2, 5, 9):
        output = model(images, looks=looks if config.levels == 2 else (looks,))
        assert output.features.shape[:2] == output.weights.shape == output.feature_logits.shape[:2] == (2, 1 + looks)
        assert output.log_prob.shape == (2, looks)
        torch.testing.assert_close(output.weights.sum(dim=1), torch.ones(2))
        weighted = (output.weights[:, :, None] * output.features).sum(dim=1)
        close(output.aggregate, output.features.amax(dim=1) if config.aggregation == "max" else weighted)
        close(output.logits, model.classifier(output.aggregate))
        close(output.feature_logits, model.classifier(output.features))
        assert torch.isfinite(output.logits).all()
    with pytest.raises(GeometryError, match="10 locations"):
        model(images, looks=10)


@pytest.mark.parametrize(
    ("looks", "counts"),
    [
        (None, [1, 2, 4]),
        (3, [1, 3, 6]),
        ((1,), [1, 1]),
        ((2, 3), [1, 2, 6]),
        ((9, 9), [1, 9, 81]),
        (0, [1]),
        ((1, 0), [1, 1]),
    ],
)
def test_looks_per_level(looks: int | Sequence[int] | None, counts: list[int]) -> None:
    output = build(three_levels())(torch.rand(1, 1, 96, 96), looks=looks)
    assert output.regions.level.tolist() == [level for level, count in enumerate(counts) for _ in range(count)]
    assert output.features.shape[1] == sum(counts)
    assert [tuple(logits.shape) for logits in location_logits_by_level(output)] == [(count, 9) for count in counts[:-1]]


def test_mean_aggregates_all_features() -> None:
    output = build(tiny_config())(torch.rand(2, 1, 96, 96), looks=3)
    close(output.aggregate, output.features.mean(dim=1))
    assert output.weights.tolist() == [[0.25] * 4] * 2


# --- what is looked at


@variants
def test_regions_are_the_most_probable_cells(config: TNetConfig) -> None:
    model = build(config)
    output = model(torch.rand(2, 1, 96, 64))
    tables = by_level(output.regions)
    for level, probabilities in enumerate(output.location_probs_by_level()):
        parents, children = tables[level], tables[level + 1]
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(parents)))
        k = config.looks[level]
        best = [sorted(torch.topk(row, k).indices.tolist()) for row in probabilities]
        assert children.cell.reshape(-1, k).tolist() == best
        again = choose_cells(parents, config.grid, torch.tensor(best))
        assert torch.equal(children.box_l0_yxyx, again.box_l0_yxyx) and torch.equal(children.parent, again.parent)
        chosen = probabilities.gather(1, torch.tensor(best))
        start = sum(len(before) // 2 for before in tables[1 : level + 1])
        log_prob = output.log_prob[:, start : start + len(children) // 2]
        close(log_prob.flatten(), (chosen + 1e-10).log().flatten())
    close(output.joint_log_prob, output.log_prob.sum(dim=1))


@variants
def test_features_match_their_regions(config: TNetConfig) -> None:
    """Whole image first, then level by level, parent by parent, in raster order."""
    model = build(config)
    images = torch.stack(pictures((96, 96), (96, 96)))
    output, scene = model(images), model.scene(images)
    features = []
    tables = by_level(output.regions)
    for level, table in enumerate(tables):
        pixels = (scene.glimpse(table, 32) - 0.5) / 0.5
        with model.population_norms.of_level(level) if model.population_norms else nullcontext():
            described = [model.backbone(pixels[i : i + 1]).pooled for i in range(len(table))]  # one by one
        features.append(model.position(torch.cat(described), table.position_yxl))
    for image in range(2):
        mine = [f[r.image == image] for f, r in zip(features, tables, strict=True)]
        close(output.features[image], torch.cat(mine))


@variants
@pytest.mark.parametrize("is_float", [False, True])
def test_images_are_independent_in_a_batch(config: TNetConfig, is_float: bool) -> None:
    model = build(config)
    images = pictures((96, 96), (70, 130), (200, 64))
    images = [image / 255 for image in images] if is_float else images
    together = model(images)
    for i, image in enumerate(images):
        alone = model(image[None])
        for name in ("logits", "feature_logits", "features", "weights", "log_prob", "joint_log_prob"):
            close(getattr(together, name)[i], getattr(alone, name)[0])
        mine = together.regions.take(together.regions.image == i)
        assert torch.equal(mine.box_l0_yxyx, alone.regions.box_l0_yxyx)
        assert torch.equal(mine.level, alone.regions.level)


def test_uint8_images_are_normalised_with_zero_padding() -> None:
    """The same image as uint8 and as normalised floats; at 78 px regions reach past the edge."""
    config = tiny_config(in_channels=3, mean=(0.5, 0.25, 0.75), std=(0.5, 0.25, 1.0), grid=Grid(3, 3, 0.45))
    model, image = build(config), pictures((78, 78), channels=3)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    whole = FixedCells(range(9))
    as_bytes = model(image[None], looks=9, policy=whole)
    as_floats = model(((image / 255 - mean) / std)[None], looks=9, policy=whole)
    assert int(as_bytes.regions.at_level(1).box_l0_yxyx.min()) < 0
    torch.testing.assert_close(as_bytes.features, as_floats.features, rtol=0.02, atol=0.02)  # whole grey levels
    nothing = regions([(-9, -9, -1, -1)])
    assert ((model.scene(image[None]).glimpse(nothing, 4) - mean) / std).abs().max() < 0.01
    assert not model.scene(image[None] / 255).glimpse(nothing, 4).any()


def test_configured_resize_is_used() -> None:
    stripes = torch.zeros(1, 1, 128, 128)
    stripes[..., ::2] = 1.0
    blurred, sampled = (build(tiny_config(resize=resize)).scene(stripes) for resize in ("antialias", "bilinear"))
    whole = whole_images([(128, 128)])
    assert float(blurred.glimpse(whole, 32).std()) < 0.05
    third = regions([(0, 0, 96, 96)])  # reduced by 3, with its centres on pixels: stripes or nothing
    assert set(sampled.glimpse(third, 32).unique().tolist()) == {0.0, 1.0}
    assert float(blurred.glimpse(third, 32).std()) < 0.3


class Recording:
    """Scene that records the requested regions and returns noise."""

    is_normalized = True

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        return [(10_000, 20_000), (8_000, 8_000)]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def glimpse(self, where: Regions, size_px: int) -> Tensor:
        self.asked.append((len(where), size_px))
        return torch.rand(len(where), 1, size_px, size_px)


def test_custom_scene_and_only_chosen_regions_are_read() -> None:
    scene = Recording()
    output = build(three_levels())(scene)
    assert scene.asked == [(2, 32), (4, 32), (8, 32)]
    assert output.regions.at_level(2).box_l0_yxyx.shape == (8, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_images_of_any_floating_dtype(dtype: torch.dtype) -> None:
    assert build(tiny_config())(torch.rand(1, 1, 64, 64).to(dtype)).logits.dtype == torch.float32


def test_wrong_number_of_channels() -> None:
    with pytest.raises(ConfigError, match="3 channels"):
        build(tiny_config())(torch.rand(1, 3, 64, 64))


def test_image_too_small_for_the_levels() -> None:
    with pytest.raises(GeometryError, match="cannot hold"):
        build(three_levels(grid=Grid(3, 3, 0.2), looks=(2, 2)))(torch.rand(1, 1, 8, 8))


# --- policies


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("topk", TopK), ("sample", SampleWithoutReplacement), ("random", RandomCells), ("centre", FixedCells)],
)
def test_policies_by_name(kind: str, cls: type) -> None:
    model = build(tiny_config(policy=PolicyConfig(train=kind, eval="centre", joint="set", temperature=0.7)))
    assert isinstance(model.policy(kind), cls)
    assert isinstance(model.train().policy(), cls) and isinstance(model.eval().policy(), FixedCells)
    policy = model.policy(kind)
    if isinstance(policy, SampleWithoutReplacement):
        assert (policy.joint, policy.temperature) == ("set", 0.7)


def test_policy_argument() -> None:
    model = build(tiny_config())
    output = model(torch.rand(1, 1, 96, 96), looks=3, policy=FixedCells([8, 0, 4]))
    assert output.regions.at_level(1).cell.tolist() == [0, 4, 8] and not output.log_prob.any()
    assert model(torch.rand(1, 1, 96, 96), looks=1, policy="centre").regions.at_level(1).cell.tolist() == [4]


@pytest.mark.parametrize("kind", ["topk", "centre"])
def test_chosen_cells_do_not_overlap_much(kind: str) -> None:
    """By default another chosen cell covers at most half of a cell."""
    grid = Grid(5, 5, 0.4)
    shares = covered_shares(grid)

    def most_covered(policy: PolicyConfig) -> float:
        looked = build(tiny_config(grid=grid, policy=policy))(torch.rand(6, 1, 96, 96), looks=4, policy=kind)
        return max(
            float(shares[first, second])
            for row in looked.regions.at_level(1).cell.reshape(6, 4).tolist()
            for first, second in combinations(row, 2)
        )

    assert most_covered(PolicyConfig(max_overlap=0.5)) < 0.5 < most_covered(PolicyConfig(max_overlap=1.0))


# --- gradients


def gradients(model: TNet, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def touched(found: dict[str, Tensor | None]) -> set[str]:
    return {name for name, gradient in found.items() if gradient is not None and bool(gradient.abs().max() > 0)}


def without_effect(config: TNetConfig) -> set[str]:
    """Biases that shift all inputs of a softmax: their gradient is zero except for rounding."""
    shifts = {"aggregation.rate.bias"} if config.aggregation == "weighted" else set()
    return shifts | ({"locator.output.bias"} if config.locator.logits == "none" else set())


@variants
@pytest.mark.parametrize("policy", ["topk", "sample"])
def test_every_parameter_gets_a_gradient(config: TNetConfig, policy: str) -> None:
    model = build(config).train()
    images, target = torch.rand(4, 1, 96, 96), torch.tensor([0, 1, 2, 3])
    loss = Objective(ObjectiveConfig())(model(images, policy=policy), target)
    found = gradients(model, loss.total)
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in found.values())
    assert set(found) - touched(found) <= without_effect(config)


@variants
def test_only_the_locator_learns_from_reinforce(config: TNetConfig) -> None:
    model = build(config).train()
    output = model(torch.rand(4, 1, 96, 96))
    locator = {name for name, _ in model.named_parameters() if name.startswith("locator.")} - without_effect(config)
    assert touched(gradients(model, output.joint_log_prob.sum())) - without_effect(config) == locator
    everything_else = gradients(model, F.cross_entropy(output.logits, torch.tensor([0, 1, 2, 3])))
    assert touched(everything_else).isdisjoint(locator)
    assert {name for name in everything_else if name.startswith("backbone.")} <= touched(everything_else)


def test_random_policy_gives_the_locator_no_gradient() -> None:
    model = build(tiny_config()).train()
    output = model(torch.rand(2, 1, 96, 96), policy="random")
    assert not output.log_prob.requires_grad and not output.joint_log_prob.requires_grad


def test_dropout_is_independent_per_feature() -> None:
    model = build(tiny_config(dropout=0.5)).train()
    model.classifier = nn.Identity()  # type: ignore[assignment]  # so that what was dropped can be seen
    output: TNetOutput = model(torch.rand(2, 1, 96, 96), looks=2)
    dropped = [output.logits == 0, *(output.feature_logits[:, i] == 0 for i in range(3))]
    for i, first in enumerate(dropped):
        assert 0 < int(first.sum()) < first.numel()
        assert all(not torch.equal(first, second) for second in dropped[i + 1 :])
    assert (output.aggregate != 0).all() and (output.features != 0).all()


def test_seed_makes_training_repeatable() -> None:
    model = build(tiny_config(dropout=0.3, policy=PolicyConfig(train="sample"))).train()
    images, outputs = torch.rand(3, 1, 96, 96), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(images))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert not torch.equal(outputs[0].logits, outputs[2].logits)


def test_double_precision() -> None:
    model = build(tiny_config()).double()
    output = model(torch.stack(pictures((64, 64))))
    assert output.logits.dtype == torch.float64 and output.location_logits.dtype == torch.float64


def test_tiny_backbones_have_several_positions_per_cell() -> None:
    """Otherwise the tests of cells would be weak."""
    for backbone in (TINY_RESNET, TINY_BAGNET):
        model = build(tiny_config(backbone=backbone))
        assert model.backbone(torch.rand(1, 1, 32, 32)).cell_map.shape[-1] >= 3
