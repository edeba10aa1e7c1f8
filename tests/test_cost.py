from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tnet.backbones import BackboneConfig
from tnet.cost import (
    build_outline,
    cost_by_module,
    count_parameters,
    full_image_multiply_adds,
    multiply_adds,
    time_per_image_ms,
)
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Grid
from tnet.models.config import LocatorConfig, PositionConfig, TNetConfig
from tnet.models.tnet import PARTS, TNet


def tiny(**changes: object) -> TNet:
    """A BagNet of a few thousand parameters in the paper's ImageNet form."""
    config = TNetConfig(
        backbone=BackboneConfig("bagnet77", kwargs={"planes": [4, 4, 8, 8], "expansion": 1, "feature_dim": 12}),
        num_classes=7,
        in_channels=1,
        base_px=32,
        grid=Grid(3, 3, 0.5),
        looks=(2,),
        position=PositionConfig("concat"),
        locator=LocatorConfig("context", hidden=5),
    )
    return TNet(replace(config, **changes))  # type: ignore[arg-type]


def test_parts_cost_what_their_shapes_say() -> None:
    model = tiny()
    parts = {part.name: part for part in cost_by_module(model, 2)}
    assert tuple(parts) == PARTS
    glimpses, dim, classes, cells = 3, 12, 7, 9
    assert parts["position"].macs == glimpses * (2 * dim) * dim
    assert parts["classifier"].macs == (1 + glimpses) * dim * classes
    # Hidden layer over cell features (8), context (12) and coordinates (2), the output, and the two coordinates'
    # scales: one number for each row and each column.
    assert parts["locator"].macs == cells * ((8 + dim + 2) * 5 + 5) + 3 + 3
    assert parts["classifier"].parameters.trainable == (dim + 1) * classes
    assert parts["aggregation"].parameters.trainable == 0
    assert multiply_adds(model, 2) == sum(part.macs for part in parts.values())
    assert count_parameters(model).trainable == sum(part.parameters.trainable for part in parts.values())


def test_each_look_costs_the_backbone_once_more() -> None:
    model = tiny()
    backbone = [cost_by_module(model, looks)[0].macs for looks in range(4)]
    assert backbone[0] > 0
    assert backbone == [backbone[0] * (1 + looks) for looks in range(4)]


@pytest.mark.parametrize("policy", ["random", "centre"])
def test_policies_that_do_not_ask_the_locator_do_not_pay_for_it(policy: str) -> None:
    parts = {part.name: part for part in cost_by_module(tiny(), 2, policy=policy)}  # type: ignore[arg-type]
    assert parts["locator"].macs == 0
    assert parts["locator"].parameters.trainable > 0
    assert parts["backbone"].macs == cost_by_module(tiny(), 2)[0].macs


def test_a_model_of_one_level_has_no_locator() -> None:
    names = [part.name for part in cost_by_module(tiny(levels=1, looks=()), 0)]
    assert names == ["backbone", "position", "aggregation", "classifier"]


def test_image_size_changes_nothing_but_must_be_divisible() -> None:
    model = tiny()
    assert multiply_adds(model, 2, (64, 64)) == multiply_adds(model, 2, (50_000, 300)) == multiply_adds(model, 2)
    with pytest.raises(GeometryError, match="1 px cannot hold 3 cells"):
        multiply_adds(model, 2, (1, 1))


def test_more_looks_than_cells_are_refused() -> None:
    with pytest.raises(GeometryError, match="10 locations in a grid of 3 x 3"):
        multiply_adds(tiny(), 10)


def test_counting_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = tiny(backbone=BackboneConfig("resnet10t", kwargs={"channels": [8, 8, 12, 16], "stem_width": 8}))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    multiply_adds(model, 2, policy="random")
    full_image_multiply_adds(model, (64, 96))
    assert model.training and model.backbone.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.classifier.weight.device.type == "cpu"


@pytest.mark.parametrize("changes", [
    {},
    {"levels": 3, "looks": (2, 3)},
    {"levels": 1, "looks": ()},
    {"aggregation": "weighted", "locator": LocatorConfig("squeeze", cells="area")},
    {"batch_norm": "per_level", "backbone": BackboneConfig("resnet10t", kwargs={"channels": [8] * 4})},
    {"levels": 3, "looks": (2, 1), "aggregation": "canvas", "locator": LocatorConfig(context="collected")},
    {"in_channels": 3, "backbone": BackboneConfig("vit_tiny_patch16_224", kwargs={"embed_dim": 24, "depth": 1})},
])  # fmt: skip
def test_an_outline_costs_what_the_model_does(changes: dict[str, object]) -> None:
    model = tiny(**changes)
    outline = build_outline(model.config)
    assert all(tensor.is_meta for tensor in outline.state_dict().values())
    for looks in {0, len(model.config.looks)}:
        assert cost_by_module(outline, looks) == cost_by_module(model, looks)


def test_an_outline_needs_no_weights() -> None:
    config = tiny().config
    # Neither a file that is not there nor the network, which is out of bounds in tests.
    for backbone in (BackboneConfig("resnet10t", pretrained=True), BackboneConfig("resnet10t", weights="gone.pth")):
        outline = build_outline(replace(config, backbone=backbone, position=PositionConfig("none")))
        assert not outline.training and multiply_adds(outline) > 0


def test_statistics_of_batch_norm_count_once_however_many_sets_there_are() -> None:
    backbone = BackboneConfig("resnet10t", kwargs={"channels": [8, 8, 12, 16], "stem_width": 8})
    shared, apart = tiny(backbone=backbone), tiny(backbone=backbone, batch_norm="per_level")
    norms = [module for module in shared.modules() if isinstance(module, nn.BatchNorm2d)]
    count = count_parameters(shared)
    assert count.total - count.trainable == sum(2 * norm.num_features for norm in norms) > 0
    assert count_parameters(apart) == count
    assert multiply_adds(apart, 2) == multiply_adds(shared, 2)


def test_frozen_parameters_count_in_total_only() -> None:
    model = tiny()
    count = count_parameters(model)
    model.classifier.weight.requires_grad_(False)
    frozen = count_parameters(model)
    assert frozen.total == count.total
    assert count.trainable - frozen.trainable == model.classifier.weight.numel()


def test_a_backbone_of_fixed_size_does_not_take_the_whole_image() -> None:
    backbone = BackboneConfig("vit_tiny_patch16_224", kwargs={"embed_dim": 24, "depth": 1, "num_heads": 1})
    model = tiny(backbone=backbone, in_channels=3)
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224 does not take a whole image of 64 x 96 px"):
        full_image_multiply_adds(model, (64, 96))


def test_timing_runs_the_passes_it_says() -> None:
    model = tiny().train()
    calls: list[bool] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(module.training))
    timing = time_per_image_ms(model, torch.zeros(3, 1, 64, 64), 2, repeats=4, warmup=1)
    assert calls == [False] * 5
    assert model.training
    assert (timing.batch_size, timing.repeats) == (3, 4)
    assert 0 < timing.min_ms <= timing.median_ms <= timing.max_ms


def test_timing_takes_images_of_several_sizes() -> None:
    images = [torch.zeros(1, 64, 64, dtype=torch.uint8), torch.zeros(1, 70, 40, dtype=torch.uint8)]
    assert time_per_image_ms(tiny(), images, 1, repeats=1, warmup=0).batch_size == 2


def test_timing_needs_a_repeat() -> None:
    with pytest.raises(ConfigError, match="repeats is 0"):
        time_per_image_ms(tiny(), torch.zeros(1, 1, 64, 64), repeats=0)
