from __future__ import annotations

import pytest
import torch
from tests.helpers import pictures, regions

from tnet.evaluation.masking import MaskedBatch, blurred
from tnet.geometry import pixel_cover
from tnet.scenes import LazyBatch, MemoryScene, TensorBatch

IMAGES = pictures((64, 64), (48, 64), channels=3)
BOXES = torch.tensor([[[0, 0, 32, 32], [16, 16, 40, 40]], [[-8, 50, 48, 90], [0, 0, 4, 4]]])
GREY = torch.tensor([0.25, 0.5, 0.75])
COPIES = torch.stack([GREY, GREY])[:, :, None, None]


def inside(image: int) -> torch.Tensor:
    """Mask of the pixels of an image in its boxes, by hand."""
    mask = torch.zeros(IMAGES[image].shape[1:], dtype=torch.bool)
    for y0, x0, y1, x1 in BOXES[image].tolist():
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return mask


@pytest.mark.parametrize("image", [0, 1])
def test_boxes_are_covered_to_the_pixel(image: int) -> None:
    masked = MaskedBatch(TensorBatch(IMAGES), BOXES, COPIES)
    height, width = IMAGES[image].shape[1:]
    frame = regions([(0, 0, min(height, width), min(height, width))], [image])
    side = min(height, width)
    found = masked.glimpse(frame, side)[0]
    expected = IMAGES[image].float() / 255
    expected[:, inside(image)] = GREY[:, None]
    assert torch.allclose(found, expected[:, :side, :side], atol=1e-6)
    assert masked.sizes_hw == [(64, 64), (48, 64)] and not masked.is_normalized


def test_what_is_kept_is_all_that_is_sharp() -> None:
    scene = TensorBatch(IMAGES)
    copies = blurred(scene)
    assert copies.shape == (2, 3, 16, 16)
    masked = MaskedBatch(scene, BOXES, copies, keep=True)
    found, plain = (one.glimpse(regions([(0, 0, 64, 64)]), 64)[0] for one in (masked, scene))
    mask = inside(0)
    assert torch.equal(found[:, mask], plain[:, mask])
    assert float((found - plain)[:, ~mask].abs().mean()) > 0.1
    # Far from the boxes, the blurred image is the mean over squares of 4 pixels, interpolated between their centres.
    means = plain.unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
    ratio = found[:, ~mask].var() / plain[:, ~mask].var()
    assert float(ratio) < 0.25 and found[:, 50:60, 50:60].mean() == pytest.approx(
        float(means[:, 12:15, 12:15].mean()), abs=0.03
    )


def test_padding_stays_as_it_is() -> None:
    scene = LazyBatch([MemoryScene(image) for image in IMAGES], 3, fill=(0.9,))
    frame = regions([(-16, 40, 48, 104)], [1])
    nothing = torch.zeros(2, 1, 4, dtype=torch.long)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[16:, :24] = False
    for masked in (MaskedBatch(scene, BOXES, COPIES), MaskedBatch(scene, nothing, blurred(scene), keep=True)):
        found = masked.glimpse(frame, 64)[0]
        assert torch.allclose(found[:, outside], torch.tensor(0.9), atol=0.003)  # of 8 bits
        assert float((found[:, ~outside] - 0.9).abs().max()) > 0.1


def test_pixels_at_the_edge_of_a_box_count_by_what_it_covers() -> None:
    frame = torch.tensor([[0, 0, 8, 8]])
    found = pixel_cover(frame, torch.tensor([[[0, 0, 3, 8]]]), 4)[0]  # pixels of 2 x 2
    assert found[:, 0].tolist() == [1, 0.5, 0, 0]
    two = pixel_cover(frame, torch.tensor([[[0, 0, 3, 8], [3, 0, 4, 8]]]), 4)[0]  # side by side
    assert two[:, 3].tolist() == [1, 1, 0, 0]
    assert pixel_cover(frame, torch.tensor([[[0, 0, 8, 8], [0, 0, 8, 8]]]), 2).max() == 1
