"""Boxes of the baselines: patches cover their image, crops and windows lie where the originals place them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tnet.baselines.geometry import (
    chosen_patches,
    clip_boxes,
    crop_boxes,
    crop_sizes_px,
    patch_boxes,
    position_boxes,
    window_regions,
)
from tnet.errors import GeometryError
from tnet.geometry import whole_images


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 60), st.data())
def test_patches_cover_an_image_with_the_fewest(height: int, width: int, patch: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, patch))
    boxes = patch_boxes((height, width), patch, stride)
    for size, first, last, starts in (
        (height, boxes[0, 0, 0], boxes[-1, 0, 2], boxes[:, 0, 0]),
        (width, boxes[0, 0, 1], boxes[0, -1, 3], boxes[0, :, 1]),
    ):
        before, after = -int(first), int(last) - size
        assert 0 <= after <= before <= after + 1
        assert len(starts) == 1 or bool((starts.diff() == stride).all())
        # One patch fewer would leave pixels out.
        assert len(starts) == 1 or (len(starts) - 2) * stride + patch < size
    assert bool((boxes[..., 2:] - boxes[..., :2] == patch).all())


def test_patches_that_fit_have_no_padding() -> None:
    boxes = patch_boxes((100, 150), 50, 50)
    assert boxes.shape == (2, 3, 4)
    assert boxes[1, 2].tolist() == [50, 100, 100, 150]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 60))
def test_patches_of_a_map_are_centred_on_its_positions(size: int, count: int, patch: int) -> None:
    boxes = position_boxes((size, 2 * size), (count, count), patch)
    for index in range(count):
        for axis, side in enumerate((size, 2 * size)):
            start = math.floor(Fraction(2 * index + 1, 2 * count) * side - Fraction(patch, 2) + Fraction(1, 2))
            box = boxes[index, index].tolist()
            assert (box[axis], box[axis + 2]) == (start, start + patch)


def test_chosen_patches_keep_their_order_and_position() -> None:
    grids = [patch_boxes((100, 150), 50, 50), patch_boxes((50, 50), 50, 50)]
    chosen = chosen_patches(grids, [torch.tensor([5, 0, 5]), torch.tensor([0])], images=[2, 4])
    assert chosen.level.tolist() == [1, 1, 1, 1]
    assert chosen.image.tolist() == chosen.parent.tolist() == [2, 2, 2, 4]
    assert chosen.cell.tolist() == [5, 0, 5, 0]
    assert chosen.position_yx.tolist() == [[1, 2], [0, 0], [1, 2], [0, 0]]
    assert chosen.box_l0_yxyx.tolist() == [[50, 100, 100, 150], [0, 0, 50, 50], [50, 100, 100, 150], [0, 0, 50, 50]]


@pytest.mark.parametrize("index", [-1, 6])
def test_a_patch_outside_its_grid_raises(index: int) -> None:
    with pytest.raises(GeometryError, match=r"0\.\.5"):
        chosen_patches([patch_boxes((100, 150), 50, 50)], [torch.tensor([index])])


@pytest.mark.parametrize(("size", "patch", "stride"), [((0, 9), 5, 5), ((9, 9), 0, 0), ((9, 9), 5, 0), ((9, 9), 5, 6)])
def test_patches_that_cannot_cover_an_image_raise(size: tuple[int, int], patch: int, stride: int) -> None:
    with pytest.raises(GeometryError, match=f"patch_px {patch} and stride_px {stride}"):
        patch_boxes(size, patch, stride)


def test_a_map_without_positions_raises() -> None:
    with pytest.raises(GeometryError, match=r"map \(0, 3\)"):
        position_boxes((9, 9), (0, 3), 5)


def test_published_crop_sizes() -> None:
    assert crop_sizes_px(77, 224, 3) == (77, 150, 224)
    assert crop_sizes_px(77, 224, 1) == (77,)
    assert crop_sizes_px(32, 32, 2) == (32, 32)


def test_crops_cover_the_same_share_of_an_image_of_any_size() -> None:
    location = torch.tensor([[0.0, 0.0], [0.65625, -0.65625]])
    boxes = crop_boxes(location, [(448, 896), (1500, 1000)], 77, 224, keep_inside=True)
    assert boxes[0].tolist() == [(448 - 154) // 2, (896 - 308) // 2, (448 + 154) // 2, (896 + 308) // 2]
    assert boxes[1].tolist() == [1500 - 516, 0, 1500, 344]


@pytest.mark.parametrize("size_hw", [(1, 1), (2, 7), (31, 33), (224, 224)])
def test_the_finest_crop_lies_inside_the_image(size_hw: tuple[int, int]) -> None:
    location = (torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1) * (1 - 11 / 32)
    location[:4] = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (1 - 11 / 32)
    boxes = crop_boxes(location, [size_hw] * 200, 11, 32, keep_inside=True)
    assert bool((boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor(size_hw)).all())
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def test_clipped_boxes_keep_a_pixel() -> None:
    boxes = torch.tensor([[-3, 2, 5, 12], [-1, 0, 0, 1], [9, 9, 12, 12], [1, 2, 3, 4]])
    expected = [[0, 2, 5, 10], [0, 0, 1, 1], [8, 8, 9, 9], [1, 2, 3, 4]]
    assert clip_boxes(boxes, [(9, 10), (1, 1), (9, 9), (9, 9)]).tolist() == expected


def test_windows_at_the_published_size() -> None:
    """Centres at pos * (1 - 77/224) of half the image from its middle; the original rounds down."""
    regions = window_regions(whole_images([(224, 224)]), torch.arange(361)[None], 19, 77, 224)
    assert (regions.size_hw == 77).all()
    for boxes, axis in ((regions.box_l0_yxyx[::19], 0), (regions.box_l0_yxyx[:19], 1)):
        for number, box in enumerate(boxes.tolist()):
            centre = 112 * (1 + (-1 + 2 * number / 18) * (1 - 77 / 224))
            assert box[axis] == math.floor(centre - 38.5 + 1e-9)
    assert regions.box_l0_yxyx[[0, 180, 360]].tolist() == [[0, 0, 77, 77], [73, 73, 150, 150], [147, 147, 224, 224]]
    assert regions.position_yx[20].tolist() == [1, 1] and int(regions.cell[20]) == 20


def test_windows_at_other_sizes() -> None:
    """At 17 px the five 9 px windows start at 0, 2, ..., 8 px; images of any aspect ratio are resized to that."""
    whole = whole_images([(17, 17), (170, 34), (1, 3)])
    regions = window_regions(whole, torch.tensor([[0, 24], [7, 24], [0, 24]]), 5, 9, 17)
    assert regions.level.unique().tolist() == [1]
    assert regions.image.tolist() == regions.parent.tolist() == [0, 0, 1, 1, 2, 2]
    assert regions.box_l0_yxyx[:4].tolist() == [[0, 0, 9, 9], [8, 8, 17, 17], [20, 8, 110, 26], [80, 16, 170, 34]]
    # Windows of images smaller than a window keep a pixel and stay inside.
    assert regions.box_l0_yxyx[4:].tolist() == [[0, 0, 1, 2], [0, 1, 1, 3]]
    # A single position has its window in the corner.
    alone = window_regions(whole_images([(10, 10)]), torch.zeros(1, 1, dtype=torch.long), 1, 9, 10)
    assert alone.box_l0_yxyx.tolist() == [[0, 0, 9, 9]]
