"""Batch norm with separate running statistics for whole images and regions."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tests.helpers import TINY_BAGNET, TINY_RESNET, tiny_config
from torch import Tensor, nn

from tnet.backbones import PopulationNorms, TimmBackbone, create_backbone
from tnet.errors import ConfigError
from tnet.models.tnet import TNet


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, track_running_stats=False))


def statistics(model: nn.Module, population: str) -> list[Tensor]:
    return [
        value.clone()
        for name, value in model.state_dict().items()
        if name.endswith((f"{population}_mean", f"{population}_var"))
    ]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    assert len(before) == len(after) > 0
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_each_population_updates_its_own_statistics() -> None:
    model = network()
    norms = PopulationNorms(model)
    images, regions = torch.rand(4, 1, 8, 8), 5 + 3 * torch.rand(4, 1, 8, 8)
    whole, region = statistics(model, "running"), statistics(model, "region")
    assert same(whole, region)  # both start from the same, pretrained ones for instance
    with norms.of_level(0):
        model(images)
    assert not same(whole, statistics(model, "running")) and same(region, statistics(model, "region"))
    whole = statistics(model, "running")
    for level in (1, 2):
        with norms.of_level(level):
            model(regions)
        assert same(whole, statistics(model, "running")) and not same(region, statistics(model, "region"))
        region = statistics(model, "region")


def test_statistics_equal_those_of_separate_networks() -> None:
    model, for_images, for_regions = network(), network(), network()
    norms = PopulationNorms(model)
    batches = [torch.rand(4, 1, 8, 8) for _ in range(3)]
    for batch in batches:
        model(batch)
        for_images(batch)
        with norms.of_level(1):
            model(2 * batch + 1)
        for_regions(2 * batch + 1)
    assert same(statistics(for_images, "running"), statistics(model, "running"))
    assert same(statistics(for_regions, "running"), statistics(model, "region"))
    for each in (model, for_images, for_regions):
        each.eval()
    assert torch.equal(model(batches[0]), for_images(batches[0]))
    with norms.of_level(2):
        assert torch.equal(model(batches[0]), for_regions(batches[0]))
    assert torch.equal(model(batches[0]), for_images(batches[0]))


def test_error_keeps_the_statistics() -> None:
    model = network()
    norms = PopulationNorms(model)
    with norms.of_level(1):
        model(5 + torch.rand(4, 1, 8, 8))
    whole, region = statistics(model, "running"), statistics(model, "region")
    with pytest.raises(RuntimeError), norms.of_level(1):
        model(torch.rand(4, 2, 8, 8))
    assert same(whole, statistics(model, "running")) and same(region, statistics(model, "region"))


def test_copy_has_its_own_statistics() -> None:
    model = TNet(tiny_config(batch_norm="per_level"))
    other = copy.deepcopy(model)
    before = statistics(model, "region")
    other.train()(torch.rand(4, 1, 96, 96))
    assert same(before, statistics(model, "region")) and not same(before, statistics(other, "region"))


def test_threads_can_share_a_model() -> None:
    """The population in use belongs to the call: threads do not disturb each other."""
    model = TNet(tiny_config(batch_norm="per_level")).train()
    for _ in range(3):
        model(torch.rand(4, 1, 96, 96))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(4, 1, 1, 96, 96)
    with torch.inference_mode():
        alone = [model(image).logits for image in images]

        def answers() -> list[Tensor]:
            with torch.inference_mode():
                return [model(image).logits for image in images]

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(answers) for _ in range(4)]:
                for actual, expected in zip(future.result(), alone, strict=True):
                    torch.testing.assert_close(actual, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tap", ["auto", "layer2"])
def test_eight_threads_answer_as_one_while_a_copy_trains(tap: str) -> None:
    """Neither the statistics in use nor the tapped map may be kept in the module."""
    backbone = replace(TINY_RESNET, tap=tap)
    model = TNet(tiny_config(batch_norm="per_level", backbone=backbone)).eval()
    for norm in model.population_norms.norms:  # type: ignore[union-attr]
        norm.region_mean.uniform_(-1, 1), norm.region_var.uniform_(0.5, 2)  # type: ignore[operator]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(8, 1, 1, 96, 96)
    with torch.inference_mode():
        alone = [model(image).logits for image in images]
    trained, stop = copy.deepcopy(model).train(), threading.Event()

    def train() -> None:
        while not stop.is_set():
            trained(torch.rand(4, 1, 96, 96)).logits.sum().backward()

    def answers(number: int) -> list[Tensor]:
        with torch.inference_mode():
            return [model(images[number]).logits for _ in range(5)]

    with ThreadPoolExecutor(9) as pool:
        training = pool.submit(train)
        answered = [pool.submit(answers, number) for number in range(8)]
        try:
            for expected, future in zip(alone, answered, strict=True):
                assert all(torch.allclose(actual, expected, atol=1e-5) for actual in future.result())
        finally:
            stop.set()
        training.result()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_population_can_be_exported() -> None:
    model = TNet(tiny_config(batch_norm="per_level")).eval()
    norms, glimpses = model.population_norms, torch.rand(2, 1, 32, 32)
    assert norms is not None
    for norm in norms.norms:
        norm.region_mean.fill_(3)  # type: ignore[operator]
    for level in (0, 1):
        with norms.of_level(level), torch.no_grad():
            exported = torch.export.export(model.backbone, (glimpses,), strict=False)
            expected = model.backbone(glimpses).pooled
        assert torch.allclose(exported.module()(glimpses)[0], expected, atol=1e-5)


def test_norms_can_be_pickled() -> None:
    model = network()
    PopulationNorms(model)
    copied = pickle.loads(pickle.dumps(model))
    assert same(statistics(copied, "region"), statistics(model, "region"))
    with PopulationNorms(copied).of_level(1):
        copied(5 + torch.rand(4, 1, 8, 8))
    assert not same(statistics(copied, "region"), statistics(model, "region"))


def test_shared_statistics() -> None:
    assert TNet(tiny_config()).population_norms is None
    assert not [name for name in TNet(tiny_config()).state_dict() if "region_" in name]
    plain = tiny_config(levels=1, looks=(), batch_norm="per_level")
    assert TNet(plain).population_norms is None  # only whole images there


def test_training_updates_statistics() -> None:
    """Without looks only those of level 0 change; with looks both do."""
    model = TNet(tiny_config(batch_norm="per_level")).train()
    images = torch.rand(4, 1, 96, 96)
    whole, region = statistics(model, "running"), statistics(model, "region")
    model(images, looks=0)
    assert not same(whole, statistics(model, "running")) and same(region, statistics(model, "region"))
    model(images, looks=2)
    assert not same(region, statistics(model, "region"))


def test_statistics_are_saved_and_loaded() -> None:
    model = TNet(tiny_config(batch_norm="per_level")).train()
    for _ in range(3):
        model(torch.rand(4, 1, 96, 96))
    other = TNet(tiny_config(batch_norm="per_level"))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    image = torch.rand(1, 1, 96, 96)
    model.eval(), other.eval()
    assert torch.equal(model(image).logits, other(image).logits)
    # With the statistics of whole images for regions the answer differs.
    for norm in other.population_norms.norms:  # type: ignore[union-attr]
        norm.region_mean.copy_(norm.running_mean), norm.region_var.copy_(norm.running_var)  # type: ignore[operator]
    assert not torch.equal(model(image).logits, other(image).logits)


# --- choosing a backbone


def test_create_backbone() -> None:
    assert isinstance(create_backbone(TINY_RESNET, 1, 32, 3), TimmBackbone)
    assert create_backbone(TINY_BAGNET, 1, 32, 3).feature_dim == 16


@pytest.mark.parametrize(
    ("changes", "base_px", "message"),
    [
        ({"pretrained": True}, 77, "pretrained"),
        ({}, 26, "base_px 26 .* at least 27"),
        ({"kwargs": {"depth": 3}}, 77, "depth"),
        ({"kwargs": {"spatial_dropout": -1}}, 77, "spatial_dropout"),
        ({"kwargs": {"planes": [4, 4, 4]}}, 77, r"planes \(4, 4, 4\)"),
        ({"kwargs": {"blocks": [1, 1, 0, 1]}}, 77, r"blocks \(1, 1, 0, 1\)"),
    ],
)
def test_invalid_bagnet(changes: dict[str, object], base_px: int, message: str) -> None:
    config = type(TINY_BAGNET)("bagnet77", **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        create_backbone(config, 3, base_px, 5)
