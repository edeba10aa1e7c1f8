"""Custom searches, policies and aggregations; images with different numbers of looks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.helpers import awaken, three_levels, tiny_config
from torch import Tensor, nn

from tnet.errors import ConfigError
from tnet.models import PolicyConfig, TNet
from tnet.models.aggregation import AGGREGATIONS, Aggregated, Places
from tnet.objectives import Objective, ObjectiveConfig
from tnet.traversal import POLICIES, Choice, FixedCells, LevelByLevel, Policy, Search, Step, TopK, Trail


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Restore the registries afterwards."""
    before = [(registry, dict(registry._entries)) for registry in (POLICIES, AGGREGATIONS)]
    yield
    for registry, entries in before:
        registry._entries.clear()
        registry._entries.update(entries)  # type: ignore[arg-type]


def build(**changes: object) -> TNet:
    torch.manual_seed(1)
    return TNet(tiny_config(**changes)).eval()


# --- custom parts


def test_custom_policy() -> None:
    @POLICIES.register("worst")
    class Worst(Policy):
        def __call__(self, logits: Tensor, k: int) -> Choice:
            return Choice.of_cells(logits.topk(k, largest=False).indices.sort(dim=1).values)

    model = build(policy=PolicyConfig(eval="worst"))
    output = model(torch.rand(2, 1, 96, 96), looks=2)
    worst = output.location_logits.topk(2, largest=False).indices.sort(dim=1).values
    assert output.regions.at_level(1).cell.tolist() == worst.flatten().tolist()


def test_custom_aggregation() -> None:
    @AGGREGATIONS.register("first")
    class First(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()

        def forward(self, features: Tensor, seen: Tensor | None = None) -> Aggregated:
            return Aggregated(features[:, 0], torch.eye(features.shape[1])[0].expand(len(features), -1))

    output = build(aggregation="first")(torch.rand(2, 1, 96, 96))
    assert torch.equal(output.aggregate, output.features[:, 0])


class Deeper(Search):
    """Each look is at the best cell of the previous one; image ``i`` gets ``looks[i]``."""

    def __init__(self, *looks: int) -> None:
        self.looks = torch.tensor(looks)

    def __call__(self, trail: Trail) -> Step | None:
        last = trail.rows_at(trail.regions.depth)
        last = last[trail.looks[trail.regions.image[last]] < self.looks[trail.regions.image[last]]]
        best = trail.scores(last).argmax(dim=1, keepdim=True).cpu()
        return trail.step(last, Choice.of_cells(best)) if len(last) else None


def test_custom_search_with_different_looks_per_image() -> None:
    images = torch.rand(3, 1, 128, 128)
    for aggregation in ("mean", "max", "weighted", "attention", "canvas"):
        model = awaken(build(aggregation=aggregation))
        together = model(images, search=Deeper(1, 0, 3))
        assert together.regions.level.tolist() == [0, 0, 0, 1, 1, 2, 3]
        assert together.regions.image.tolist() == [0, 1, 2, 0, 2, 2, 2]
        assert together.features.shape[:2] == together.weights.shape == (3, 4)
        torch.testing.assert_close(together.weights.sum(dim=1), torch.ones(3))
        for i, looks in enumerate((1, 0, 3)):
            alone = model(images[i : i + 1], search=Deeper(looks))
            torch.testing.assert_close(together.logits[i], alone.logits[0])
            torch.testing.assert_close(together.features[i, : looks + 1], alone.features[0])
            torch.testing.assert_close(together.weights[i, : looks + 1], alone.weights[0])
            assert not together.weights[i, looks + 1 :].any()
            mine = together.regions.take(together.regions.image == i)
            assert torch.equal(mine.box_l0_yxyx, alone.regions.box_l0_yxyx)


class Mixed(Search):
    """One step that mixes levels: another cell of the whole image, and a cell of the previous look."""

    def __call__(self, trail: Trail) -> Step | None:
        if len(trail) == 1:
            return trail.step(torch.tensor([0]), Choice.of_cells(torch.tensor([[0]])))
        if len(trail) == 2:
            return trail.step(torch.tensor([0, 1]), Choice.of_cells(torch.tensor([[8], [4]])))
        return None


@pytest.mark.parametrize("batch_norm", ["shared", "per_level"])
def test_step_with_mixed_levels(batch_norm: str) -> None:
    """Features equal those of the same regions seen level by level."""
    model = build(batch_norm=batch_norm, levels=3, looks=(2, 1)).train()
    for _ in range(3):  # so that the two sets of statistics differ
        model(torch.rand(4, 1, 96, 96))
    model.eval()
    image = torch.rand(1, 1, 96, 96)
    mixed = model(image, search=Mixed())
    assert mixed.regions.level.tolist() == [0, 1, 1, 2] and mixed.regions.parent.tolist() == [-1, 0, 0, 1]
    expected = model(image, looks=(2, 1), policy=FixedCells([0, 8]))
    torch.testing.assert_close(mixed.features[:, :3], expected.features[:, :3])
    inner = model(image, looks=(1, 1), policy=TopK())
    assert inner.regions.level.tolist() == [0, 1, 2]


def test_whole_images_and_regions_in_one_batch() -> None:
    model = build(batch_norm="per_level").train()
    for _ in range(3):
        model(torch.rand(4, 1, 96, 96))
    model.eval()
    pixels, is_region = torch.rand(5, 1, 32, 32), torch.tensor([True, False, True, False, False])
    together = model.describe(pixels, is_region)
    for i in range(5):
        alone = model.describe(pixels[i : i + 1], is_region[i : i + 1])
        torch.testing.assert_close(together.pooled[i], alone.pooled[0])
        torch.testing.assert_close(together.cell_map[i], alone.cell_map[0])


# --- training


def test_training_with_different_looks_per_image() -> None:
    """Every term is finite and reaches the parameters, and padding is ignored."""
    model = build(levels=3, looks=(2, 1)).train()
    model.backbone.eval()  # batch norm cannot train on the last step's single region
    target = torch.tensor([0, 1, 2])
    images = torch.rand(3, 1, 128, 128)
    objective = Objective(ObjectiveConfig(worth_weight=1.0, entropy_weight=0.1))
    output = model(images, search=Deeper(1, 0, 3))
    loss = objective(output, target, model)
    assert all(bool(torch.isfinite(term)) for term in loss.terms.values())
    loss.total.backward()
    assert all(p.grad is not None for p in model.classifier.parameters())
    assert output.seen is not None
    logits = output.feature_logits[output.seen]
    repeated = target[:, None].expand(3, 4)[output.seen]
    expected = nn.functional.cross_entropy(logits, repeated) * 0.7
    torch.testing.assert_close(loss.terms["cross_entropy_per_feature"], expected)


# --- invalid arguments


def test_search_and_looks_are_exclusive() -> None:
    with pytest.raises(ConfigError, match="search"):
        build()(torch.rand(1, 1, 96, 96), looks=2, search=Deeper(1))


def test_plain_network_cannot_search() -> None:
    with pytest.raises(ConfigError, match=r"model\.levels is 1"):
        build(levels=1, looks=())(torch.rand(1, 1, 96, 96), search=Deeper(1))


def test_level_by_level_is_the_default_search() -> None:
    torch.manual_seed(1)
    model = TNet(three_levels()).eval()
    images = torch.rand(2, 1, 96, 96)
    actual, expected = model(images, search=LevelByLevel((2, 2), TopK())), model(images)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.regions.box_l0_yxyx, expected.regions.box_l0_yxyx)


# --- export


@pytest.mark.parametrize("aggregation", ["mean", pytest.param("canvas", marks=pytest.mark.slow)])
def test_tensor_parts_can_be_exported(aggregation: str) -> None:
    """See, locate and answer take tensors only; exported programs give the same numbers."""
    model = build(batch_norm="shared", aggregation=aggregation)
    output = model(torch.rand(2, 1, 96, 96), looks=2)
    places = () if output.places is None else tuple(output.places)
    pixels, position = torch.rand(3, 1, 32, 32), torch.rand(3, 3)

    class See(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.position = model.backbone, model.position

        def forward(self, pixels: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            described = self.backbone(pixels)
            return self.position(described.pooled, position), described.pooled, described.cell_map

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Tensor, *places: Tensor) -> Tensor:
            return self.model.decide(features, None, Places(*places) if places else None)[0]

    class Locate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, cell_map: Tensor, pooled: Tensor, y: Tensor, x: Tensor) -> Tensor:
            return self.model.score(cell_map, pooled, y, x)

    _, pooled, cell_map = See()(pixels, position)
    spans = torch.tensor([[[0.0, 0.5], [0.25, 0.75], [0.5, 1.0]]]).expand(3, -1, -1)
    for part, inputs in (
        (See(), (pixels, position)),
        (Locate(), (cell_map, pooled, spans, spans)),
        (Answer(), (output.features, *places)),
    ):
        part.eval()
        with torch.no_grad():
            expected = part(*inputs)
            actual = torch.export.export(part, tuple(item.detach() for item in inputs)).module()(*inputs)
        torch.testing.assert_close(actual, expected)
