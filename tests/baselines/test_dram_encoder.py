from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tnet.baselines.dram_encoder import PreActBottleneck, RecurrentCell, ResNetV2
from tnet.geometry import clip_boxes, crop_boxes, crop_sizes_px


def test_encoder_strides_in_the_last_unit_of_all_stages_but_the_last():
    with torch.device("meta"):
        encoder = ResNetV2(15, (64, 128, 256, 512), (3, 4, 6, 3), stem_dim=64, expansion=4, norm_momentum=0.003).eval()
    sides: list[int] = []
    for unit in encoder.units:
        unit.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    feature = encoder(torch.zeros(1, 15, 77, 77, device="meta"))
    assert sides == [20, 20, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 3, 3, 3, 3]
    assert feature.shape == (1, 2048)


def test_a_unit_whose_branch_is_silent_passes_on_every_second_position():
    unit = PreActBottleneck(8, 2, 4, stride=2, momentum=0.1).eval()
    nn.init.zeros_(unit.expand.weight)
    nn.init.zeros_(unit.expand.bias)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(unit(x), x[:, :, ::2, ::2])


def test_a_widening_units_shortcut_is_taken_after_norm_and_relu():
    unit = PreActBottleneck(4, 2, 4, stride=1, momentum=0.1).eval()
    nn.init.zeros_(unit.expand.weight)
    nn.init.zeros_(unit.expand.bias)
    assert unit.shortcut is not None
    x = torch.randn(2, 4, 5, 5)
    expected = F.conv2d(x.clamp_min(0) / math.sqrt(1 + 1e-5), unit.shortcut.weight, unit.shortcut.bias)
    torch.testing.assert_close(unit(x), expected)


def test_recurrent_cell_is_pytorchs_with_one_bias():
    cell, theirs = RecurrentCell(5, 3), nn.LSTMCell(5, 3)
    torch.nn.init.normal_(cell.gates.bias)
    write, forget, read, value = range(4)
    order = [write, forget, value, read]  # PyTorch's
    with torch.no_grad():
        weight = torch.cat([cell.gates.weight.chunk(4)[gate] for gate in order])
        theirs.weight_ih.copy_(weight[:, :5])
        theirs.weight_hh.copy_(weight[:, 5:])
        theirs.bias_ih.copy_(torch.cat([cell.gates.bias.chunk(4)[gate] for gate in order]))
        theirs.bias_hh.zero_()
    x, state = torch.randn(2, 5), (torch.randn(2, 3), torch.randn(2, 3))
    torch.testing.assert_close(cell(x, state), theirs(x, state))
    torch.testing.assert_close(cell(x, None), theirs(x))


def test_forget_gate_starts_open():
    biases = RecurrentCell(5, 3).gates.bias.detach().chunk(4)
    assert [float(bias.sum()) for bias in biases] == [0, 3, 0, 0]


def test_the_published_crops():
    assert crop_sizes_px(77, 224, 3) == (77, 150, 224)
    assert crop_sizes_px(77, 224, 1) == (77,)
    assert crop_sizes_px(32, 32, 2) == (32, 32)


def test_crops_cover_the_same_share_of_an_image_of_any_size():
    location = torch.tensor([[0.0, 0.0], [0.65625, -0.65625]])
    boxes = crop_boxes(location, [(448, 896), (1500, 1000)], 77, 224, keep_inside=True)
    assert boxes[0].tolist() == [(448 - 154) // 2, (896 - 308) // 2, (448 + 154) // 2, (896 + 308) // 2]
    assert boxes[1].tolist() == [1500 - 516, 0, 1500, 344]


@pytest.mark.parametrize("size_hw", [(1, 1), (2, 7), (31, 33), (224, 224)])
def test_the_finest_crop_lies_in_the_image_wherever_it_is(size_hw: tuple[int, int]):
    location = (torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1) * (1 - 11 / 32)
    location[:4] = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (1 - 11 / 32)
    boxes = crop_boxes(location, [size_hw] * 200, 11, 32, keep_inside=True)
    assert bool((boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor(size_hw)).all())
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def test_clipped_boxes_keep_a_pixel():
    boxes = torch.tensor([[-3, 2, 5, 12], [-1, 0, 0, 1], [9, 9, 12, 12], [1, 2, 3, 4]])
    expected = [[0, 2, 5, 10], [0, 0, 1, 1], [8, 8, 9, 9], [1, 2, 3, 4]]
    assert clip_boxes(boxes, [(9, 10), (1, 1), (9, 9), (9, 9)]).tolist() == expected
