"""Glimpses from windows: what tensors give, at exact fractions of a pixel, in bands."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.helpers import regions
from tests.scenes.fakes import noise

from tnet.scenes import TensorBatch, resample
from tnet.scenes.base import Resize
from tnet.scenes.resample import LevelPixels, Window

RESIZES: tuple[Resize, ...] = ("antialias", "bilinear")
FILL = (0.2, 0.4, 1.0)
BoxF = tuple[float, float, float, float]


def stored(
    pixels: NDArray[Any], extent_hw: tuple[int, int] | None = None, tile_rows: int | None = 8
) -> tuple[LevelPixels, list[Window]]:
    """A level of these pixels (uint8, or fractions), and the windows that are read of it."""
    asked: list[Window] = []

    def read(window: Window) -> NDArray[Any]:
        y0, x0, y1, x1 = window
        assert 0 <= y0 < y1 <= pixels.shape[0] and 0 <= x0 < x1 <= pixels.shape[1]
        asked.append(window)
        return pixels[y0:y1, x0:x1]

    size = pixels.shape[:2]
    level = LevelPixels(
        size, extent_hw or size, read, lambda p: p, pixels.shape[2], pixels.dtype, pixels[0, 0].nbytes, tile_rows
    )
    return level, asked


def in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CHUNK_BYTES", 900), ("BAND_BYTES", 300), ("_READ_BYTES", 600), ("_MAX_READ_BYTES", 5000)):
        monkeypatch.setattr(resample, name, value)


def painted(pixels: NDArray[Any], window: Window, fill: tuple[float, ...]) -> NDArray[Any]:
    """Looks up every pixel by its coordinates."""
    ys, xs = np.arange(window[0], window[2]), np.arange(window[1], window[3])
    height, width = pixels.shape[:2]
    found = pixels[ys.clip(0, height - 1)][:, xs.clip(0, width - 1)].astype(np.float64)
    inside = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))
    return np.where(inside[..., None], found, np.asarray(fill))


def weights(start: float, stop: float, size_px: int, resize: Resize) -> NDArray[Any]:
    """``[size, window]``: the filter written down as a matrix, in double precision."""
    first, count = math.floor(start), math.ceil(stop) - math.floor(start)
    scale = (stop - start) / size_px
    centre = start + (np.arange(size_px)[:, None] + 0.5) * scale
    if resize == "antialias":
        weight = (1 - np.abs(first + np.arange(count) + 0.5 - centre) / max(scale, 1)).clip(0)
    else:
        centre = centre.clip(first + 0.5, first + count - 0.5)
        weight = (1 - np.abs(first + np.arange(count) + 0.5 - centre)).clip(0)
    return weight / weight.sum(1, keepdims=True)


def naive(pixels: NDArray[Any], box: BoxF, size_px: int, resize: Resize, fill: tuple[float, ...]) -> NDArray[Any]:
    window = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    down, across = weights(box[0], box[2], size_px, resize), weights(box[1], box[3], size_px, resize)
    return np.einsum("yv,vhc,xh->cyx", down, painted(pixels, window, fill), across)


@st.composite
def fractional_boxes(draw: st.DrawFn) -> BoxF:
    """In 64ths of a pixel: nothing here is so close to a whole pixel that it counts as one."""
    y0, x0, height, width = (draw(st.integers(*ends)) for ends in ((-400, 1600), (-400, 2100), (32, 1900), (32, 2500)))
    return y0 / 64, x0 / 64, (y0 + height) / 64, (x0 + width) / 64


@pytest.mark.parametrize("banded", [False, True])
@pytest.mark.parametrize("resize", RESIZES)
@given(fractional_boxes(), st.integers(1, 12))
def test_a_fractional_box_has_its_exact_place(banded: bool, resize: Resize, box: BoxF, size_px: int) -> None:
    pixels = noise(22, 30, dtype=np.float32)
    level, _ = stored(pixels)
    with pytest.MonkeyPatch.context() as patch:
        if banded:
            in_bands(patch)
        glimpse = resample.resample(level, box, size_px, resize=resize, fill=FILL)
    assert glimpse.shape == (3, size_px, size_px) and glimpse.dtype == torch.float32
    np.testing.assert_allclose(glimpse.numpy(), naive(pixels, box, size_px, resize, FILL), rtol=0, atol=5e-6)


@pytest.mark.parametrize("resize", RESIZES)
@given(fractional_boxes(), st.integers(1, 12))
def test_eight_bits_at_fractions_are_not_rounded(resize: Resize, box: BoxF, size_px: int) -> None:
    pixels = noise(22, 30)
    level, _ = stored(pixels)
    paint = (51 / 255, 102 / 255, 1.0)
    box = (*box[:3], box[3] + 0.123)
    glimpse = resample.resample(level, box, size_px, resize=resize, fill=paint)
    expected = naive(pixels / 255, box, size_px, resize, paint)
    np.testing.assert_allclose(glimpse.numpy(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("banded", [False, True])
@pytest.mark.parametrize("resize", RESIZES)
@given(st.tuples(st.integers(-6, 21), st.integers(-6, 29), st.integers(1, 30), st.integers(1, 40)), st.integers(1, 24))
def test_whole_pixels_of_eight_bits_are_bit_for_bit_those_of_a_tensor(
    banded: bool, resize: Resize, box: Window, size_px: int
) -> None:
    pixels = noise(22, 30)
    box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    level, _ = stored(pixels)
    tensor = TensorBatch(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(), resize, FILL)
    with pytest.MonkeyPatch.context() as patch:
        if banded:
            in_bands(patch)
            patch.setattr("tnet.scenes.tensor.CHUNK_BYTES", 900)
        glimpse = resample.resample(level, box, size_px, resize=resize, fill=FILL)
        assert torch.equal(glimpse, tensor.glimpse(regions([box]), size_px)[0])


@pytest.mark.parametrize("resize", RESIZES)
def test_what_arithmetic_leaves_of_a_whole_number_is_whole(resize: Resize) -> None:
    level, asked = stored(noise(22, 30))
    exact = resample.resample(level, (3, 6, 9, 12), 4, resize=resize, fill=FILL)
    close = resample.resample(level, (3 - 1e-9, 6 + 1e-9, 9 + 1e-9, 12 - 1e-9), 4, resize=resize, fill=FILL)
    assert torch.equal(exact, close) and asked == [(3, 6, 9, 12)] * 2


@pytest.mark.parametrize("resize", RESIZES)
def test_the_last_pixel_goes_on_where_a_level_was_cut_to_whole_pixels(resize: Resize) -> None:
    """An image of 21 pixels halved to 10: half a pixel is not stored, and is still not outside the image."""
    pixels = np.full((10, 10, 1), 0.75, np.float32)
    pixels[-1] = 0.5
    level, asked = stored(pixels, extent_hw=(11, 11))
    glimpse = resample.resample(level, (0, 0, 10.5, 10.5), 7, resize=resize, fill=(0.0,))
    assert glimpse.min() >= 0.5 - 1e-6 and asked == [(0, 0, 10, 10)]
    glimpse = resample.resample(level, (10.1, 10.1, 10.5, 10.5), 2, resize=resize, fill=(0.0,))
    assert torch.allclose(glimpse, torch.tensor(0.5)) and asked[-1] == (9, 9, 10, 10)
    beyond = resample.resample(level, (10.0, 0, 13.0, 3.0), 3, resize=resize, fill=(0.0,))
    assert beyond[0, 0].tolist() == [0.5] * 3 and not beyond[0, 1:].any()


@pytest.mark.parametrize("box", [(-9.5, -9, -1.2, -1), (30, 2, 40, 12), (2.5, 40, 12, 50), (-4, 3, 0, 7)])
def test_nothing_is_read_for_a_box_outside(box: BoxF) -> None:
    level, asked = stored(noise(22, 30))
    glimpse = resample.resample(level, box, 5, resize="antialias", fill=(0.2, 0.4, 1.0))
    assert torch.allclose(glimpse, torch.tensor([0.2, 0.4, 1.0])[:, None, None].expand(3, 5, 5), atol=1e-6)
    assert asked == []


def test_bands_are_read_in_whole_tiles_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    in_bands(monkeypatch)
    level, asked = stored(noise(60, 30, dtype=np.float32), tile_rows=8)
    resample.resample(level, (3, 2.5, 59, 28), 6, resize="antialias", fill=FILL)
    rows = [(y0, y1) for y0, _, y1, _ in asked]
    assert len(rows) > 3 and rows[0][0] == 3 and rows[-1][1] == 59
    assert all(end == start and end % 8 == 0 for (_, end), (start, _) in pairwise(rows))
    assert {(x0, x1) for _, x0, _, x1 in asked} == {(2, 28)}


def test_a_row_of_tiles_beyond_the_limit_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    in_bands(monkeypatch)
    level, asked = stored(noise(60, 30, dtype=np.float32), tile_rows=30)
    resample.resample(level, (0, 0, 60, 30), 6, resize="antialias", fill=FILL)
    assert len(asked) > 2 and max((y1 - y0) * (x1 - x0) * 12 for y0, x0, y1, x1 in asked) <= 5000


@pytest.mark.parametrize(("dtype", "shift"), [(np.uint8, 0.0), (np.uint8, 0.3), (np.float32, 0.3)])
def test_memory_follows_the_glimpse_not_the_window(dtype: Any, shift: float) -> None:
    """48 MB of 8-bit pixels, 192 MB of fractions; read 8 MiB at a time, and prepared 1 MiB at a time."""
    side = 4_000
    largest = 0

    def read(window: Window) -> NDArray[Any]:
        nonlocal largest
        pixels = np.ones((window[2] - window[0], window[3] - window[1], 3), dtype)
        largest = max(largest, pixels.nbytes)
        return pixels

    size = (side, side)
    level = LevelPixels(size, size, read, lambda p: p, 3, np.dtype(dtype), 3 * np.dtype(dtype).itemsize, 256)
    tracemalloc.start()
    glimpse = resample.resample(level, (shift, shift, side - 1, side - 1), 64, resize="antialias", fill=(0.0,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.allclose(glimpse, torch.tensor(1 / 255 if dtype == np.uint8 else 1.0))
    # A row of tiles; and the columns' result, the height of the window times 64, in the type it is made in.
    assert largest <= max(8 * 2**20, 256 * level.pixel_bytes * side)
    assert peak < 2 * largest + side * 64 * 3 * 4 + 12 * 2**20


@pytest.mark.parametrize("size_hw", [(64, 64), (7, 30), (3, 2), (64, 700)])
def test_skipping_rows_changes_nothing(size_hw: tuple[int, int]) -> None:
    """Large reductions without a filter look at few rows; the result is bit for bit that of all of them."""
    pixels = torch.randint(256, (2, 3, 1201, 700), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        resample.interpolate(pixels, size_hw, "bilinear"), resample._interpolate(pixels, size_hw, "bilinear")
    )
    rows = resample._rows_between(pixels.shape[-2], size_hw[0])
    assert len(rows) <= 4 * size_hw[0]
    skipped = torch.ones(pixels.shape[-2], dtype=torch.bool).index_fill(0, rows, False)
    unseen = pixels.masked_fill(skipped[:, None], 0)
    assert torch.equal(
        resample.interpolate(unseen, size_hw, "bilinear"), resample._interpolate(pixels, size_hw, "bilinear")
    )
