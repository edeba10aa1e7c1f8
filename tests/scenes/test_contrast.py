from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tnet.errors import GeometryError
from tnet.scenes import contrast
from tnet.scenes.base import BoxL0, Resize, Scene
from tnet.scenes.contrast import ContrastScene, contrast_overview


class ArrayScene:
    """Pixels in memory, in [0, 1]; coarse glimpses are of no interest here, except for what lies outside."""

    def __init__(self, pixels: Float[Tensor, "channels height width"]) -> None:
        self.name = "made"
        self.pixels = pixels
        self.boxes: list[BoxL0] = []

    @property
    def size_hw(self) -> tuple[int, int]:
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        return (self.size_hw,)

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        assert channels == len(self.pixels) and len(fill) in (1, channels)
        self.boxes.append(box_l0_yxyx)
        y0, x0, y1, x1 = box_l0_yxyx
        result = torch.tensor(list(fill) * (channels // len(fill)))[:, None, None].repeat(1, y1 - y0, x1 - x0)
        inside = self.pixels[:, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        top, left = max(-y0, 0), max(-x0, 0)
        result[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        return torch.nn.functional.interpolate(result[None], (size_px, size_px), mode="area")[0]


def noise(channels: int, height: int, width: int) -> ArrayScene:
    return ArrayScene(torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0)))


def test_cells_hold_the_range_of_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "_BLOCK_PX", 20)  # several blocks, also broken ones
    scene = noise(1, 71, 53)
    overview = contrast_overview(scene, 1, overview_px=15)
    assert (overview.size_hw, overview.cell_px, overview.darkest.shape) == ((71, 53), 5, (15, 11))
    for y in range(15):
        for x in range(11):
            cell = scene.pixels[0, 5 * y : 5 * y + 5, 5 * x : 5 * x + 5]
            assert overview.darkest[y, x] == cell.min() and overview.brightest[y, x] == cell.max()
    assert all(box[2] - box[0] == box[3] - box[1] == 20 for box in scene.boxes)


def test_luma_of_colours_and_the_mean_of_bands() -> None:
    for channels, weights in ((3, [0.299, 0.587, 0.114]), (4, [0.25] * 4)):
        scene = noise(channels, 8, 8)
        luma = (scene.pixels * torch.tensor(weights)[:, None, None]).sum(0)
        overview = contrast_overview(scene, channels, overview_px=1)
        assert overview.brightest[0, 0] == pytest.approx(float(luma.max()), abs=1e-6)
        assert overview.darkest[0, 0] == pytest.approx(float(luma.min()), abs=1e-6)


@pytest.mark.parametrize(("box", "size"), [((0, 0, 60, 60), 15), ((10, 5, 50, 45), 8), ((-20, 30, 60, 110), 16),
                                           ((3, 7, 58, 62), 13), ((0, 0, 64, 64), 1)])  # fmt: skip
def test_a_glimpse_shows_the_range_in_the_area_of_each_pixel(box: BoxL0, size: int) -> None:
    scene, cell = noise(1, 61, 78), 4
    found = contrast_overview(scene, 1, overview_px=20).contrast(box, size)
    for i in range(size):
        for j in range(size):
            spans = []
            for start, stop, limit, n in ((box[0], box[2], 61, i), (box[1], box[3], 78, j)):
                first, last = start + n * (stop - start) / size, start + (n + 1) * (stop - start) / size
                first, last = min(max(first, 0), limit), min(max(last, 0), limit)
                widened = (int(first // cell) * cell, int(-(-last // cell)) * cell) if first < last else (0, 0)
                spans.append(slice(*widened))
            area = scene.pixels[0, spans[0], spans[1]]
            expected = float(area.max() - area.min()) if area.numel() else 0.0
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-6)


def test_a_faint_speck_shows_in_contrast_but_not_in_the_average() -> None:
    pixels = torch.full((1, 1024, 1024), 0.5)
    pixels[0, 700, 300] = 0.7
    scene = ContrastScene(ArrayScene(pixels))
    seen = scene.glimpse((0, 0, 1024, 1024), 32, channels=2, resize="antialias", fill=(0.0,))
    assert float((seen[0] - 0.5).abs().max()) < 0.001
    assert float(seen[1, 700 // 32, 300 // 32]) == pytest.approx(0.2, abs=1e-6)
    assert int((seen[1] > 0).sum()) == 1


def test_fine_glimpses_get_zeros_and_read_no_overview() -> None:
    inner = noise(3, 100, 100)
    scene = ContrastScene(inner)
    seen = scene.glimpse((10, 10, 42, 42), 32, channels=4, resize="antialias", fill=(0.0,))
    assert torch.equal(seen[:3], inner.pixels[:, 10:42, 10:42]) and not seen[3].any()
    assert inner.boxes == [(10, 10, 42, 42)]
    assert not scene.glimpse((0, 0, 63, 63), 32, channels=4, resize="antialias", fill=(0.0,))[3].any()
    assert scene.glimpse((0, 0, 64, 64), 32, channels=4, resize="antialias", fill=(0.0,))[3].all()


def test_fill_is_for_the_other_channels() -> None:
    scene = ContrastScene(noise(3, 40, 40))
    seen = scene.glimpse((-80, -80, 0, 0), 20, channels=4, resize="antialias", fill=(0.1, 0.2, 0.3, 0.9))
    torch.testing.assert_close(seen[:, 0, 0], torch.tensor([0.1, 0.2, 0.3, 0.0]))


def test_the_overview_is_made_once_and_travels_with_the_scene() -> None:
    inner = noise(1, 300, 200)
    scene = ContrastScene(inner, overview_px=100)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: scene.prepare(1), range(8)))
    assert len(inner.boxes) == 1 and all(item is made[0] for item in made)
    copy = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(copy.prepare(1).darkest, made[0].darkest)
    assert len(copy.scene.boxes) == 1


def test_it_is_a_scene() -> None:
    inner = noise(1, 30, 20)
    scene = ContrastScene(inner)
    assert isinstance(scene, Scene)
    assert (scene.name, scene.size_hw, scene.levels) == ("made", (30, 20), ((30, 20),))


def test_what_cannot_be() -> None:
    with pytest.raises(GeometryError, match="at least 2 channels, not 1"):
        ContrastScene(noise(1, 30, 20)).glimpse((0, 0, 9, 9), 9, channels=1, resize="antialias", fill=(0.0,))
    with pytest.raises(GeometryError, match="overview of 0 cells"):
        contrast_overview(noise(1, 30, 20), 1, 0)
