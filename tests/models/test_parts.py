"""Modules around the backbone, each against its formula in plain loops."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import regions
from torch import Tensor, nn

from tnet.errors import ConfigError
from tnet.geometry import Grid, cell_boxes, cell_spans, choose_cells, whole_images
from tnet.models.aggregation import FeatureWeighting, MaxAggregation, MeanAggregation
from tnet.models.config import Activation, LocatorConfig, PositionConfig
from tnet.models.parts import (
    Coordinates,
    Locator,
    PositionModule,
    activation,
    normalize_logits,
    pool_cells,
    positional_encoding,
    sample_cells,
)

# --- positions


def encoded(y: float, x: float, level: float, dim: int) -> list[float]:
    """Numbers one by one: for row, column and level all sines, then all cosines; zeros at the end."""
    count, numbers = dim // 6, []
    for value in (y, x, level):
        frequencies = [100 ** (-i / (count - 1)) if count > 1 else 1.0 for i in range(count)]
        numbers += [math.sin(value * f) for f in frequencies] + [math.cos(value * f) for f in frequencies]
    return numbers + [0.0] * (dim - 6 * count)


@pytest.mark.parametrize("dim", [6, 12, 80, 320, 512])
def test_positional_encoding_of_the_paper(dim: int) -> None:
    positions = [(0, 0, 0), (2, 4, 1), (13, 7, 2)]
    found = positional_encoding(torch.tensor(positions, dtype=torch.float32), dim)
    expected = np.array([encoded(*position, dim) for position in positions])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_positional_encoding_of_the_reference_implementation() -> None:
    """Frequencies fall from 1 to 1/100; 512 and 80 leave two zeros; level 0 at (0, 0, 0) is not zero."""
    origin = positional_encoding(torch.zeros(1, 3), 512)[0]
    assert int(origin.sum()) == 3 * 85 and not origin[-2:].any()
    far = positional_encoding(torch.tensor([[math.pi / 2, 100 * math.pi / 2, 0.0]]), 80)[0]
    assert far[0].item() == pytest.approx(1) and far[26 + 12].item() == pytest.approx(1, abs=1e-5)
    assert not far[-2:].any() and far[-3].item() == pytest.approx(1)  # the last cosine of level 0


def at(*positions: tuple[int, int], level: int = 1) -> Tensor:
    found = regions([(0, 0, 4, 4)] * len(positions), level=level)
    found.position_yx[:] = torch.tensor(positions)
    return found.position_yxl


def test_position_concat() -> None:
    module = PositionModule(PositionConfig("concat"), 12)
    assert sum(p.numel() for p in module.parameters()) == 24 * 12 + 12
    feature, where = torch.rand(2, 12), at((1, 2), (0, 3), level=2)
    encoding = torch.tensor([encoded(1, 2, 2, 12), encoded(0, 3, 2, 12)])
    linear = module.linear
    assert isinstance(linear, nn.Linear)
    expected = torch.cat([feature, encoding], dim=1) @ linear.weight.T + linear.bias
    torch.testing.assert_close(module(feature, where), expected)


@pytest.mark.parametrize("name", get_args(Activation))
def test_position_add(name: Activation) -> None:
    module = PositionModule(PositionConfig("add", divisor=4, activation=name), 24)
    assert sum(p.numel() for p in module.parameters()) == 6 * 24 + 24
    feature, where = torch.randn(1, 24), at((3, 1))
    linear = module.linear
    assert isinstance(linear, nn.Linear)
    before = feature + torch.tensor([encoded(3, 1, 1, 6)]) @ linear.weight.T + linear.bias
    function = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2)}[name]
    torch.testing.assert_close(module(feature, where), function(before))
    torch.testing.assert_close(activation(name)(before), function(before))


def test_position_none() -> None:
    module = PositionModule(PositionConfig("none"), 3)
    feature = torch.rand(2, 3)
    assert not list(module.parameters()) and torch.equal(module(feature, at((1, 2), (0, 3))), feature)


@pytest.mark.parametrize(("kind", "dim", "left"), [("add", 20, 5), ("concat", 5, 5)])
def test_too_few_features_for_a_position(kind: str, dim: int, left: int) -> None:
    with pytest.raises(ConfigError, match=f"{left} of {dim}"):
        PositionModule(PositionConfig(kind), dim)  # type: ignore[arg-type]


# --- features of cells


def test_pool_cells_aligned_with_positions() -> None:
    """3 x 3 cells of half a parent over a 12 x 8 map: positions 0 to 5, 3 to 8, 6 to 11 down."""
    cell_map, grid = torch.rand(2, 3, 12, 8), Grid(3, 3, 0.5)
    pooled = pool_cells(cell_map, *cell_spans(whole_images([(96, 64)] * 2), grid))
    for row in range(3):
        for col in range(3):
            expected = cell_map[:, :, 3 * row : 3 * row + 6, 2 * col : 2 * col + 4].mean(dim=(2, 3))
            torch.testing.assert_close(pooled[:, :, row, col], expected)


@given(
    st.tuples(st.integers(20, 80), st.integers(20, 80)), st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 6), st.integers(1, 6), st.floats(0.2, 0.9),
)  # fmt: skip
def test_pool_cells_is_the_average_over_the_pixels_of_a_cell(
    size: tuple[int, int], map_size: tuple[int, int], rows: int, cols: int, extent: float
) -> None:
    """The map enlarged to the parent's pixels , each a whole number of samples."""
    grid, parents = Grid(rows, cols, extent), whole_images([size])
    cell_map = torch.rand(1, 2, *map_size)
    # Enlarged so far that every pixel and every position is a whole number of samples.
    fine = cell_map.repeat_interleave(size[0], dim=2).repeat_interleave(size[1], dim=3)
    pooled = pool_cells(cell_map, *cell_spans(parents, grid))
    for number, (y0, x0, y1, x1) in enumerate(cell_boxes(parents, grid)[0].tolist()):
        y0, x0, y1, x1 = max(y0, 0), max(x0, 0), min(y1, size[0]), min(x1, size[1])
        if y0 >= y1 or x0 >= x1:
            continue
        inside = fine[0, :, y0 * map_size[0] : y1 * map_size[0], x0 * map_size[1] : x1 * map_size[1]]
        found = pooled[0, :, number // cols, number % cols]
        torch.testing.assert_close(found, inside.mean(dim=(1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "grid"), [(7, Grid(5, 5, 0.34375)), (104, Grid(20, 20, 0.08)), (225, Grid(5, 5, 0.35))]
)
def test_pool_cells_of_a_constant(side: int, grid: Grid) -> None:
    """Including cells entirely in the padding."""
    pooled = pool_cells(torch.full((1, 2, 6, 6), 3.5), *cell_spans(whole_images([(side, side)]), grid))
    torch.testing.assert_close(pooled, torch.full_like(pooled, 3.5))


def test_pool_cells_uses_the_shape_of_each_parent() -> None:
    grid = Grid(2, 2, 0.6)
    parents = choose_cells(whole_images([(101, 37), (64, 64)]), grid, torch.tensor([[0, 3], [1, 2]]))
    cell_map = torch.rand(4, 2, 5, 5)
    together = pool_cells(cell_map, *cell_spans(parents, grid))
    for i in range(4):
        box = parents.box_l0_yxyx[i].tolist()
        alone = pool_cells(cell_map[i : i + 1], *cell_spans(regions([tuple(box)]), grid))  # type: ignore[list-item]
        torch.testing.assert_close(together[i : i + 1], alone)


def test_sample_cells_takes_the_published_positions() -> None:
    cell_map = torch.arange(14.0 * 14).reshape(1, 1, 14, 14)
    assert torch.equal(sample_cells(cell_map, Grid(3, 3, 0.5), 2, 4), cell_map[:, :, 2::4, 2::4])
    assert torch.equal(sample_cells(cell_map, Grid(5, 5, 0.35), 2, 2), cell_map[:, :, 2:12:2, 2:12:2])
    assert sample_cells(cell_map, Grid(2, 3, 0.5), 1, 5)[0, 0].tolist() == [[15.0, 20.0, 25.0], [85.0, 90.0, 95.0]]


@pytest.mark.parametrize("grid", [Grid(5, 3, 0.3), Grid(3, 5, 0.3)])
def test_positions_outside_the_map(grid: Grid) -> None:
    with pytest.raises(ConfigError, match="2::3"):
        sample_cells(torch.zeros(1, 1, 14, 14), grid, 2, 3)


# --- the locator


def test_coordinates_range_from_minus_one_to_one() -> None:
    module = Coordinates()
    found = module(torch.zeros(2, 7, 3, 5))
    assert found.shape == (2, 2, 3, 5)
    assert found[1, 0].tolist() == [[y] * 5 for y in (-1.0, 0.0, 1.0)]
    assert found[1, 1].tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3
    module.scale_y.weight.data.fill_(2.0)
    module.scale_x.bias.data.fill_(0.25)
    found = module(torch.zeros(1, 7, 3, 5))[0]
    assert found[0, :, 0].tolist() == [-2.0, 0.0, 2.0] and found[1, 0].tolist() == [-0.75, -0.25, 0.25, 0.75, 1.25]


def pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution at one place."""
    assert layer.bias is not None
    return layer.weight[:, :, 0, 0] @ x + layer.bias


def test_context_locator() -> None:
    locator = Locator(LocatorConfig("context", hidden=7, logits="l2"), cell_dim=4, context_dim=3)
    cells, context = torch.randn(2, 4, 2, 3), torch.randn(2, 3)
    found = locator(cells, context)
    for image in range(2):
        logits = []
        for row in range(2):
            for col in range(3):
                where = torch.tensor([2.0 * row - 1, col - 1.0])
                hidden = pointwise(locator.hidden, torch.cat([cells[image, :, row, col], context[image], where]))
                logits.append(pointwise(locator.output, F.leaky_relu(hidden, 0.2)))
        expected = torch.cat(logits)
        torch.testing.assert_close(found[image], expected / expected.square().sum().sqrt())
    assert Locator(LocatorConfig("context"), 4, 3).hidden.out_channels == 512


def test_squeeze_locator() -> None:
    """Squeeze-and-excitation over the grid at half width, before the coordinates are appended."""
    locator = Locator(LocatorConfig("squeeze", hidden=6, logits="none"), cell_dim=4, context_dim=3)
    cells = torch.randn(1, 4, 2, 2)
    reduced = {(r, c): F.silu(pointwise(locator.reduce, cells[0, :, r, c])) for r in range(2) for c in range(2)}
    mean = torch.stack(list(reduced.values())).mean(dim=0)
    assert locator.squeeze.out_channels == 3
    gate = torch.sigmoid(pointwise(locator.excite, F.silu(pointwise(locator.squeeze, mean))))
    logits = []
    for (row, col), x in reduced.items():
        where = torch.tensor([2.0 * row - 1, 2.0 * col - 1])
        logits.append(pointwise(locator.output, F.silu(pointwise(locator.hidden, torch.cat([x * gate, where])))))
    torch.testing.assert_close(locator(cells, torch.zeros(1, 3))[0], torch.cat(logits))
    assert Locator(LocatorConfig("squeeze"), 10, 3).hidden.out_channels == 10


def test_normalize_logits() -> None:
    logits = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert torch.equal(normalize_logits(logits, "none", None), logits)
    torch.testing.assert_close(normalize_logits(logits, "l2", None), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    scaled = normalize_logits(logits, "l2_scaled", torch.tensor(5.0).log())
    torch.testing.assert_close(scaled, torch.tensor([[3.0, 4.0], [0.0, -5.0]]))


def test_learned_scale_of_logits() -> None:
    locator = Locator(LocatorConfig("squeeze", logits="l2_scaled", initial_scale=2.5), 4, 3)
    found = locator(torch.randn(3, 4, 3, 3), torch.zeros(3, 3))
    torch.testing.assert_close(found.norm(dim=1), torch.full((3,), 2.5))
    found[:, 0].sum().backward()
    assert locator.log_scale is not None and locator.log_scale.grad is not None and locator.log_scale.grad.abs() > 0
    assert Locator(LocatorConfig("squeeze", logits="l2"), 4, 3).log_scale is None


@pytest.mark.parametrize("kind", ["context", "squeeze"])
def test_locator_input_gets_no_gradient(kind: str) -> None:
    locator = Locator(LocatorConfig(kind), 4, 3)  # type: ignore[arg-type]
    cells, context = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    locator(cells, context)[0, 0].backward()
    assert cells.grad is None and context.grad is None
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in locator.parameters())


# --- aggregation


def test_mean_aggregation() -> None:
    features = torch.rand(2, 4, 3)
    found = MeanAggregation(3)(features)
    assert found.weights.tolist() == [[0.25] * 4] * 2
    torch.testing.assert_close(found.feature, features.mean(dim=1))


def test_max_aggregation() -> None:
    features = torch.tensor([[[0.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, -1.0], [0.5, 1.0, -3.0, -2.0]]], requires_grad=True)
    found = MaxAggregation(4)(features)
    assert found.feature.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert found.weights.tolist() == [[0.75, 0.25, 0.0]]
    found.feature.sum().backward()
    assert features.grad is not None and features.grad.sum(dim=(0, 2)).tolist() == [3.0, 1.0, 0.0]


def test_feature_weighting() -> None:
    module = FeatureWeighting(8)
    assert module.squeeze.out_features == 2
    features = torch.randn(2, 5, 8)
    feature, found = module(features)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    for image in range(2):
        mean = features[image].mean(dim=0)
        gate = torch.sigmoid(module.excite(F.silu(module.squeeze(mean))))
        rated = torch.stack([module.rate(feature * gate)[0] for feature in features[image]])
        torch.testing.assert_close(found[image], rated.exp() / rated.exp().sum())
        torch.testing.assert_close(
            feature[image], sum(w * one for w, one in zip(found[image], features[image], strict=True))
        )
    assert FeatureWeighting(2)(torch.rand(1, 3, 2)).weights.shape == (1, 3)  # a quarter of 2 is still 1
