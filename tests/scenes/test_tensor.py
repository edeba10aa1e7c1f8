"""Looking at tensors: right pixels for every box, and no memory for what is not looked at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import pictures, regions
from torch import Tensor

from tnet.backbones import BackboneConfig
from tnet.errors import GeometryError
from tnet.geometry import Grid, choose_cells, whole_images
from tnet.models.config import PositionConfig, TNetConfig
from tnet.models.tnet import TNet
from tnet.scenes import SceneBatch, TensorBatch
from tnet.scenes import tensor as tensor_module
from tnet.scenes.base import Resize

RESIZES: tuple[Resize, ...] = ("antialias", "bilinear")
Box = tuple[int, int, int, int]


def padded_crop(image: Tensor, box: Box, fill: float = 0.0) -> Tensor:
    """Looks up every pixel by its coordinates; fractions in double precision."""
    ys, xs = torch.arange(box[0], box[2]), torch.arange(box[1], box[3])
    height, width = image.shape[1:]
    found = image[:, ys.clamp(0, height - 1)][:, :, xs.clamp(0, width - 1)].double()
    inside = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))
    return torch.where(inside, found / (255 if image.dtype == torch.uint8 else 1), fill)


def naive(image: Tensor, box: Box, size_px: int, resize: Resize, fill: float = 0.0) -> Tensor:
    crop = padded_crop(image, box, fill)[None]
    return F.interpolate(crop, (size_px, size_px), mode="bilinear", antialias=resize == "antialias")[0]


def tolerance(image: Tensor) -> float:
    # uint8 is resized in whole grey levels, once an axis.
    return 1.51 / 255 if image.dtype == torch.uint8 else 2e-6


boxes = st.tuples(st.integers(-6, 22), st.integers(-6, 30), st.integers(1, 30), st.integers(1, 30)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@pytest.mark.parametrize("resize", RESIZES)
@given(st.lists(boxes, min_size=1, max_size=6), st.integers(1, 24), st.booleans())
def test_a_glimpse_is_a_padded_crop_resized(resize: Resize, taken: list[Box], size_px: int, is_float: bool) -> None:
    image = pictures((22, 30), channels=2)[0]
    image = image / 255 if is_float else image
    fill = 0.0 if is_float else 51 / 255
    glimpses = TensorBatch(image[None], resize, fill).glimpse(regions(taken), size_px)
    assert glimpses.shape == (len(taken), 2, size_px, size_px) and glimpses.dtype == torch.float32
    for glimpse, box in zip(glimpses, taken, strict=True):
        torch.testing.assert_close(
            glimpse.double(), naive(image, box, size_px, resize, fill), rtol=0, atol=tolerance(image)
        )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("box", [(-9, -9, -1, -1), (30, 2, 40, 12), (2, 40, 12, 50), (-4, 3, 0, 7)])
def test_a_box_altogether_outside_is_filled(resize: Resize, box: Box) -> None:
    image = pictures((22, 30), channels=3)[0]
    glimpse = TensorBatch(image[None], resize, fill=(0.2, 0.4, 1.0)).glimpse(regions([box]), 5)[0]
    assert torch.equal(glimpse, torch.tensor([51, 102, 255])[:, None, None].expand(3, 5, 5) / 255)


def test_antialias_is_the_default_and_differs_where_it_should() -> None:
    image = torch.zeros(1, 1, 64, 64)
    image[..., ::2] = 1.0  # stripes of one pixel: their mean is a half
    whole = whole_images([(64, 64)])
    default = TensorBatch(image).glimpse(whole, 8)
    assert torch.allclose(default[..., 1:-1], torch.tensor(0.5), atol=0.02)
    assert torch.equal(default, TensorBatch(image, "antialias").glimpse(whole, 8))
    # A reduction by 7 has its centres on pixels, whatever lies between them: stripes or nothing.
    two_taps = TensorBatch(image, "bilinear").glimpse(regions([(0, 0, 56, 56)]), 8)
    assert set(two_taps.unique().tolist()) == {0.0, 1.0}


def test_bilinear_has_half_pixel_centres() -> None:
    """A ramp halved: each result is the mean of two neighbours, as in the reference implementation."""
    ramp = torch.arange(8.0)[None, None, None].expand(1, 1, 8, 8).contiguous()
    glimpse = TensorBatch(ramp, "bilinear").glimpse(whole_images([(8, 8)]), 4)
    assert glimpse[0, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    third = TensorBatch(ramp[..., :6], "bilinear").glimpse(whole_images([(8, 6)]), 2)
    assert third[0, 0, 0].tolist() == [1.0, 4.0]  # no more taps where the reduction is larger: not the mean of three


def test_a_region_of_the_right_size_is_given_out_as_it_is() -> None:
    image = pictures((20, 20))[0]
    glimpse = TensorBatch(image[None]).glimpse(regions([(3, 4, 13, 14)]), 10)
    assert torch.equal(glimpse[0], image[:, 3:13, 4:14] / 255)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("is_float", [True, False])
def test_images_of_different_sizes_as_if_each_were_alone(resize: Resize, is_float: bool) -> None:
    images = pictures((40, 30), (25, 60), (40, 30))
    images = [image / 255 for image in images] if is_float else images
    grid = Grid(2, 2, 0.6)
    cells = torch.tensor([[0, 3], [1, 2], [0, 1]])
    chosen = choose_cells(whole_images([(40, 30), (25, 60), (40, 30)]), grid, cells)
    together = TensorBatch(images, resize).glimpse(chosen, 12)
    assert TensorBatch(images).sizes_hw == [(40, 30), (25, 60), (40, 30)]
    alone = [
        TensorBatch(image[None], resize).glimpse(
            choose_cells(whole_images([image.shape[1:]]), grid, cells[i][None]), 12
        )
        for i, image in enumerate(images)
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("is_float", [True, False])
@pytest.mark.parametrize("box", [(0, 0, 61, 47), (-7, 5, 60, 70), (3, 2, 40, 20)])
def test_large_crops_in_bands_are_the_same(
    resize: Resize, is_float: bool, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures((61, 47), channels=3)
    images = [image / 255 for image in images] if is_float else images
    scene = TensorBatch(images, resize)
    in_one_go = scene.glimpse(regions([box, box]), 16)
    asked: list[int] = []

    def counted(pixels: Tensor, size_hw: tuple[int, int], how: Resize) -> Tensor:
        asked.append(pixels.shape[-2])
        return interpolate(pixels, size_hw, how)

    interpolate = tensor_module.interpolate
    monkeypatch.setattr(tensor_module, "interpolate", counted)
    monkeypatch.setattr(tensor_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(tensor_module, "BAND_BYTES", 500)
    in_bands = scene.glimpse(regions([box, box]), 16)
    assert len(asked) > 4  # otherwise this compares the same thing with itself
    # Only the order of rounding differs: uint8 is rounded between the two axes either way.
    torch.testing.assert_close(in_bands, in_one_go, rtol=0, atol=1 / 255 + 1e-6 if not is_float else 2e-6)


def test_grouping_of_crops_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many regions of two shapes, resized in groups: still the regions asked for, in their order."""
    images = pictures((32, 32), (32, 32))
    taken = [(i, i, i + 8, i + 8) for i in range(10)] + [(0, 0, 32, 32)] + [(2 * i, 0, 2 * i + 8, 8) for i in range(10)]
    where = regions(taken, images=[i % 2 for i in range(21)])
    in_one_go = TensorBatch(images).glimpse(where, 6)
    monkeypatch.setattr(tensor_module, "CHUNK_BYTES", 3 * 64)
    assert torch.equal(TensorBatch(images).glimpse(where, 6), in_one_go)
    one_by_one = [TensorBatch([images[i % 2]]).glimpse(regions([box]), 6) for i, box in enumerate(taken)]
    assert torch.equal(in_one_go, torch.cat(one_by_one))


def test_uint8_and_float_scenes_differ_in_scale_alone() -> None:
    image = pictures((30, 30))[0]
    whole = whole_images([(30, 30)])
    assert not TensorBatch(image[None]).is_normalized
    assert TensorBatch(image[None] / 255).is_normalized
    difference = TensorBatch(image[None]).glimpse(whole, 10) - TensorBatch(image[None] / 255).glimpse(whole, 10)
    assert difference.abs().max() < 1.51 / 255
    assert TensorBatch(image[None].double()).glimpse(whole, 10).dtype == torch.float64


def test_a_scene_gives_its_gradient_to_the_image() -> None:
    image = torch.rand(1, 1, 20, 20, requires_grad=True)
    TensorBatch(image).glimpse(regions([(0, 0, 10, 10)]), 5).sum().backward()
    assert image.grad is not None and float(image.grad[..., :10, :10].min()) > 0
    assert float(image.grad[..., 10:, :].abs().max()) == 0


def test_it_is_a_scene() -> None:
    scene = TensorBatch(torch.zeros(2, 1, 4, 6))
    assert isinstance(scene, SceneBatch)
    assert scene.sizes_hw == [(4, 6), (4, 6)] and scene.device == torch.device("cpu")


@pytest.mark.parametrize("images", [[], torch.zeros(0, 3, 4, 4)])
def test_no_images_are_refused(images: Tensor | Sequence[Tensor]) -> None:
    with pytest.raises(GeometryError, match="images are missing"):
        TensorBatch(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)], "torch.float32 .* and torch.uint8"),
        ([torch.zeros(1, 4, 4), torch.zeros(3, 4, 4)], r"with 1 channel\(s\) and torch.float32 with 3"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "images are torch.int64; give uint8"),
    ],
)
def test_mixed_images_are_refused(images: Tensor | list[Tensor], message: str) -> None:
    """Taken for one type, the pixels of the other would be off by a factor of 255."""
    with pytest.raises(GeometryError, match=message):
        TensorBatch(images)


# --- memory


def tiny_tnet() -> TNet:
    backbone = BackboneConfig("resnet10t", kwargs={"channels": [8, 8, 16, 16], "stem_width": 8})
    grid, position = Grid(3, 3, 0.5), PositionConfig(divisor=2)
    return TNet(TNetConfig(backbone=backbone, base_px=64, grid=grid, looks=(4,), position=position)).eval()


def allocated(side: int, dtype: torch.dtype) -> int:
    """Most bytes that tensors hold at a time in a forward at four looks, the image not counted."""
    model, image = tiny_tnet(), torch.ones(1, 3, side, side, dtype=dtype)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.inference_mode(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        model(image, looks=4)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    assert len(changes) > 100
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("side", [896, 3584])
def test_what_a_forward_allocates_does_not_depend_on_the_image(side: int, dtype: torch.dtype) -> None:
    # Crops are resized up to 8 MiB at a time, from a copy, into little; the image is up to 147 MiB, a region of it up
    # to 37, so that a copy of either is far above.
    assert allocated(side, dtype) < 14 * 2**20


# Not ru_maxrss, which on Linux begins with what the process that started this one held.
PEAK = """
import sys, torch
from tests.scenes.test_tensor import tiny_tnet
from tnet.evaluation.memory import peak_bytes
model, image = tiny_tnet(), torch.ones(1, 3, int(sys.argv[1]), int(sys.argv[1]), dtype=torch.uint8)
with torch.inference_mode():
    model(image, looks=4)
print(peak_bytes())
"""


@pytest.mark.slow  # processes that import everything
def test_the_peak_of_the_process_grows_by_the_image_and_what_resizing_takes(repository: Path) -> None:
    def peak(side: int) -> int:
        command = [sys.executable, "-c", PEAK, str(side)]
        return int(subprocess.run(command, cwd=repository, capture_output=True, check=True, timeout=300).stdout)

    image_bytes = 3 * (3584**2 - 896**2)
    # The smaller of two, because the peak of equal processes varies by up to 10 MB.
    growth = min(peak(3584) for _ in range(2)) - min(peak(896) for _ in range(2))
    # Beyond the image the 14 MiB of the test above, and what varies; a copy of the image would be 37 MiB at least.
    assert image_bytes - 8 * 2**20 < growth < image_bytes + (14 + 10) * 2**20
