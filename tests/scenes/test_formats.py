"""One picture, written in every format, gives the same glimpses: at every reduction, at the edges and past them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.helpers import regions, tiny_config
from tests.scenes.readers import make

from tnet.models.tnet import TNet
from tnet.scenes import FileScene, TensorBatch, open_scene
from tnet.scenes.pyramid import write_pyramid

HEIGHT, WIDTH = SIZE_HW = (1021, 1533)
FILL = (0.25, 0.5, 1.0)

# The picture: along an axis a ramp, which says where in the image, and a wave, which says where to a fraction of a
# pixel. All bounds below follow from how steep and how curved it is.
RISE, SWING, PERIOD_PX = 100.0, 60.0, 128.0
STEEPNESS = SWING * 2 * math.pi / PERIOD_PX + RISE / HEIGHT  # levels of 255 a pixel
CURVATURE = SWING * (2 * math.pi / PERIOD_PX) ** 2


class Form(NamedTuple):
    """How a format keeps the picture.

    Attributes:
        levels: how many resolutions.
        level0: most that a pixel of level 0 is off, in levels of 255.
        coarser: most that one of the other levels is, beyond a mean of level-0 pixels.
    """

    levels: int
    level0: float
    coarser: float


LOSSLESS = (0.0, 2.0)  # GDAL and OME-Zarr make each level of the rounded one before: half a level each time, 3 times
JPEG = (3.0, 4.0)  # quality 95: a few levels of 255 a pixel, and at 1/2 to 1/8 with fewer of its waves
FORMS = {
    **{"png": Form(1, *LOSSLESS), "tiled.tif": Form(1, *LOSSLESS), "jpeg": Form(4, *JPEG)},
    **{"cog.tif": Form(5, *LOSSLESS), "pages.tif": Form(4, *LOSSLESS), "own.tif": Form(4, *LOSSLESS)},
    **{"ome.tif": Form(4, *LOSSLESS), "0_4.zarr": Form(4, *LOSSLESS), "0_5.zarr": Form(4, *LOSSLESS)},
}
FLAT = [name for name, form in FORMS.items() if form.levels == 1]

INTERIOR = (203, 311)
SIZE_PX = 64
REDUCTIONS = (1.0, 1.5, 2.0, 3.7, 8.0)
BOXES = {
    **{f"reduced {down}": (*INTERIOR, 203 + round(64 * down), 311 + round(64 * down)) for down in REDUCTIONS},
    "whole": (0, 0, HEIGHT, WIDTH),
    **{"left": (300, 0, 550, 250), "right": (300, WIDTH - 250, 550, WIDTH)},
    **{"top": (0, 400, 250, 650), "bottom": (HEIGHT - 250, 400, HEIGHT, 650)},
    **{"top left": (0, 0, 130, 130), "top right": (0, WIDTH - 130, 130, WIDTH)},
    **{"bottom left": (HEIGHT - 530, 0, HEIGHT, 530), "bottom right": (HEIGHT - 530, WIDTH - 530, HEIGHT, WIDTH)},
    **{"oblong": (100, 200, 612, 400), "upscaled": (500, 700, 520, 720), "upscaled at the end": (1001, 1513, *SIZE_HW)},
}
OUTSIDE = {
    **{"over the left": (300, -77, 556, 179), "over the right": (301, WIDTH - 100, 557, WIDTH + 156)},
    **{"over the top": (-130, 300, 382, 812), "over the bottom": (HEIGHT - 131, 300, HEIGHT + 381, 812)},
    **{"over a corner": (HEIGHT - 55, WIDTH - 41, HEIGHT + 73, WIDTH + 87), "all around": (-300, -100, 1321, 1633)},
    "upscaled over a corner": (-7, -3, 13, 17),
}


def wave(position_px: NDArray[np.float64], size_px: int) -> NDArray[np.float64]:
    """The picture along one axis, by the distance from its start."""
    return 70 + RISE * position_px / size_px + SWING * np.sin(2 * np.pi * position_px / PERIOD_PX)


def picture(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Red by the column, green by the row, blue by both, ``[rows, columns, 3]``."""
    across, down = np.broadcast_arrays(wave(x, WIDTH)[None], wave(y, HEIGHT)[:, None])
    return np.stack([across, down, (across + down) / 2], axis=2)


def areas(pixels: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    """Levels whose edges coincide: a pixel is the mean over what it covers, parts of pixels included."""
    levels = []
    for power in range(count):
        level = pixels.astype(np.float64)
        for size in pixels.shape[:2]:
            ends = np.linspace(0, size, -(-size // 2**power) + 1)
            sums = np.concatenate([np.zeros((1, *level.shape[1:])), level.cumsum(0)])
            below = np.minimum(ends.astype(int), size - 1)
            upto = sums[below] + (ends - below)[:, None, None] * level[below]
            level = (np.diff(upto, axis=0) / np.diff(ends)[:, None, None]).swapaxes(0, 1)
        levels.append(np.rint(level).astype(np.uint8))
    return levels


def centres(start: int, stop: int, size_px: int) -> NDArray[np.float64]:
    return start + (np.arange(size_px) + 0.5) * (stop - start) / size_px


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.rint(picture(centres(0, HEIGHT, HEIGHT), centres(0, WIDTH, WIDTH))).astype(np.uint8)


@pytest.fixture(scope="module")
def direct(pixels: NDArray[np.uint8]) -> TensorBatch:
    """The picture in memory: what is seen of it directly, antialiased in one go."""
    return TensorBatch([torch.from_numpy(pixels).permute(2, 0, 1)], "antialias", FILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.uint8]) -> Path:
    folder = tmp_path_factory.mktemp("picture")
    make.png(folder / "png", pixels)
    make.jpeg(folder / "jpeg", pixels)
    make.cog(folder / "cog.tif", pixels)
    make.tiled_tiff(folder / "tiled.tif", pixels, tile=256)
    levels = areas(pixels, 4)
    make.pyramid_tiff(folder / "pages.tif", levels, tile=128)
    write_pyramid(folder / "tiled.tif", folder / "own.tif", smallest_px=256)
    make.ome_tiff(folder / "ome.tif", levels, tile=128)
    for version in ("0.4", "0.5"):
        make.ome_zarr(folder / f"{version.replace('.', '_')}.zarr", make.pyramid(pixels, 4), version=version, chunk=256)
    return folder


@pytest.fixture(scope="module", params=FORMS)
def scene(request: pytest.FixtureRequest, folder: Path) -> FileScene:
    return open_scene(folder / request.param)


def form_of(scene: FileScene) -> Form:
    return FORMS[scene.path.name]


def look(scene: FileScene, box: tuple[int, int, int, int], size_px: int = SIZE_PX) -> NDArray[np.float64]:
    """A glimpse in levels of 255, ``[rows, columns, 3]``."""
    glimpse = scene.glimpse(box, size_px, channels=3, resize="antialias", fill=FILL)
    return 255 * glimpse.permute(1, 2, 0).numpy().astype(np.float64)


def look_directly(scene: TensorBatch, box: tuple[int, int, int, int], size_px: int = SIZE_PX) -> NDArray[np.float64]:
    return 255 * scene.glimpse(regions([box]), size_px)[0].permute(1, 2, 0).numpy().astype(np.float64)


def most_apart(scene: FileScene, box: tuple[int, int, int, int], size_px: int = SIZE_PX) -> float:
    """How much a glimpse may differ from one made directly of level 0, in levels of 255, where nothing else is near.

    A filter changes a curved picture by half its curvature times the filter's variance, along each axis. Directly, that
    is d^2 / 6 of a triangle for a reduction by d. From a level of means over l pixels it is the l^2 / 12 of those, and
    what the triangle adds: nothing if d = l, else up to d^2 / 6. Both have at most l^2 / 12 + d^2 / 6, and the
    difference is at most the larger of l^2 / 12 and d^2 / 6. To that comes rounding: of level 0 and of the glimpse,
    here and there, and what the format adds. A triangle of few taps, of 1 to 2 pixels of the level, is a tenth of such
    a pixel off its place (not on the mean).
    """
    form, index = form_of(scene), scene.level_for(box, size_px)
    y0, x0, y1, x1 = box
    if index == 0:
        return form.level0 + (1.0 if form.level0 else 1e-4)
    apart = 0.0
    for down, level in zip(
        ((y1 - y0) / size_px, (x1 - x0) / size_px), scene.info.levels[index].downsample_yx, strict=True
    ):
        curved = CURVATURE / 2 * max(level**2 / 12, down**2 / 6)
        shifted = STEEPNESS * 0.1 * level if level * 1.02 < down < 2 * level else 0.0
        apart = max(apart, curved + shifted)
    return apart + 1.0 + form.coarser


def offset_px(glimpse: NDArray[np.float64], box: tuple[int, int, int, int]) -> tuple[float, float]:
    """How far down and to the right a glimpse is of its place, level-0 pixels.

    Along an axis it is fitted by the picture there, its slope (what a shift adds), its curvature (what a filter adds)
    and a constant.
    """
    y0, x0, y1, x1 = box
    offsets = []
    for axis, channel, start, stop, size in ((1, 1, y0, y1, HEIGHT), (0, 0, x0, x1, WIDTH)):
        at = centres(start, stop, glimpse.shape[1 - axis])
        phase = 2 * np.pi / PERIOD_PX
        slope = SWING * phase * np.cos(phase * at) + RISE / size
        columns = np.stack([slope, np.sin(phase * at), np.ones_like(at)], axis=1)[1:-1]
        off = (glimpse[..., channel].mean(axis) - wave(at, size))[1:-1]
        offsets.append(-float(np.linalg.lstsq(columns, off, rcond=None)[0][0]))
    return offsets[0], offsets[1]


def test_every_format_has_its_levels(scene: FileScene) -> None:
    assert scene.size_hw == SIZE_HW
    assert len(scene.levels) == form_of(scene).levels


def test_glimpses_inside_equal_those_of_the_image_in_memory(scene: FileScene, direct: TensorBatch) -> None:
    looks = [*((where, SIZE_PX) for where in BOXES), *(("whole", size_px) for size_px in (24, 48, 96, 200))]
    for where, size_px in looks:
        box = BOXES[where]
        off = np.abs(look(scene, box, size_px) - look_directly(direct, box, size_px))
        assert off.max() <= most_apart(scene, box, size_px), (where, size_px)
        if scene.path.name in FLAT:
            assert off.max() == 0.0, (where, size_px)


def test_nothing_is_shifted(scene: FileScene, direct: TensorBatch) -> None:
    """Compared with the analytic image itself, not with what the same code shows of it in memory."""
    for reduction in REDUCTIONS:
        box = BOXES[f"reduced {reduction}"]
        level_px = max(scene.info.levels[scene.level_for(box, SIZE_PX)].downsample_yx)
        for offset in (*offset_px(look(scene, box), box), *offset_px(look_directly(direct, box), box)):
            assert abs(offset) < 0.1 * level_px, reduction


def test_a_shift_would_be_found(direct: TensorBatch) -> None:
    """What the bounds above are worth: half a pixel of the level is five times what they allow."""
    for reduction in REDUCTIONS[1:]:
        y0, x0, y1, x1 = BOXES[f"reduced {reduction}"]
        moved = (y0 + 1, x0 - 2, y1 + 1, x1 - 2)
        down, right = offset_px(look_directly(direct, moved), (y0, x0, y1, x1))
        assert abs(down + 1) < 0.1 * reduction and abs(right - 2) < 0.1 * reduction


def test_over_an_edge_there_is_fill(scene: FileScene, direct: TensorBatch) -> None:
    for box in OUTSIDE.values():
        check_over_an_edge(scene, direct, box)


def check_over_an_edge(scene: FileScene, direct: TensorBatch, box: tuple[int, int, int, int]) -> None:
    y0, x0, y1, x1 = box
    seen, expected = look(scene, box), look_directly(direct, box)
    level = scene.info.levels[scene.level_for(box, SIZE_PX)]
    down_yx = ((y1 - y0) / SIZE_PX, (x1 - x0) / SIZE_PX)
    far = [  # how far inside the image, along each axis; the filter reaches as far as it reduces, of a level's pixel
        np.minimum(at, size - at) / (max(down, 1.0) + (max(level.downsample_yx) if max(level.downsample_yx) > 1 else 0))
        for at, size, down in zip((centres(y0, y1, SIZE_PX), centres(x0, x1, SIZE_PX)), SIZE_HW, down_yx, strict=True)
    ]
    inside = (far[0][:, None] > 1) & (far[1] > 1)
    outside = (far[0][:, None] < -1) | (far[1] < -1)
    assert inside.any() and outside.any() and not (inside & outside).any()
    assert np.abs(seen - expected)[inside].max() <= most_apart(scene, box)
    fill = np.rint(255 * np.asarray(FILL))
    assert np.abs(seen[outside] - fill).max() < 1e-3
    if scene.path.name in FLAT:
        assert np.abs(seen - expected).max() == 0.0
    # The last stored pixel of a level may reach past the image, by less than itself: what is image and what is fill is
    # off by no more than that in all.
    edge_px = max(level.downsample_yx) if max(level.downsample_yx) > 1 else 0.0
    share = edge_px * (1 / (y1 - y0) + 1 / (x1 - x0))
    assert np.abs(seen.mean((0, 1)) - expected.mean((0, 1))).max() <= 255 * share + most_apart(scene, box)


def test_single_pixels(scene: FileScene, pixels: NDArray[np.uint8]) -> None:
    for y, x in [(0, 0), (0, WIDTH - 1), (HEIGHT - 1, 0), (HEIGHT - 1, WIDTH - 1), (511, 767), (512, 768)]:
        for size_px in (1, 3):
            seen = look(scene, (y, x, y + 1, x + 1), size_px)
            assert np.abs(seen - pixels[y, x]).max() <= form_of(scene).level0 + 1e-4
    assert np.abs(look(scene, (-2, 5, -1, 6), 1) - np.rint(255 * np.asarray(FILL))).max() < 1e-3


def test_a_model_goes_the_same_way(scene: FileScene, pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    model = TNet(tiny_config(in_channels=3, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)).eval()
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.inference_mode():
        seen, expected = model(scene, looks=3), model([image], looks=3)
        nothing = model([torch.full_like(image, 128)], looks=3)
    assert torch.equal(seen.regions.at_level(1).box_l0_yxyx, expected.regions.at_level(1).box_l0_yxyx)
    # Of the very same pixels the same; else within a twentieth of what is the picture's own in the answer.
    apart, matter = ((output.logits - expected.logits).abs().max() for output in (seen, nothing))
    assert matter > 0.1
    assert apart <= (1e-6 if scene.path.name in FLAT else 0.05 * matter)
