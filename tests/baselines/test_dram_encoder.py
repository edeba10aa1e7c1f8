"""Parts of DRAM: strides and shortcuts of the encoder, the recurrent cell."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tnet.baselines.dram_encoder import PreActBottleneck, RecurrentCell, ResNetV2


def test_encoder_strides_in_the_last_unit_of_all_stages_but_the_last() -> None:
    with torch.device("meta"):
        encoder = ResNetV2(15, (64, 128, 256, 512), (3, 4, 6, 3), stem_dim=64, expansion=4, momentum=0.003).eval()
    sides: list[int] = []
    for unit in encoder.units:
        unit.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    feature = encoder(torch.zeros(1, 15, 77, 77, device="meta"))
    assert sides == [20, 20, 10, 10, 10, 10, 5, 5, 5, 5, 5, 5, 3, 3, 3, 3]
    assert feature.shape == (1, 2048)


def test_a_unit_whose_branch_is_silent_passes_on_every_second_position() -> None:
    unit = PreActBottleneck(8, 2, 4, stride=2, momentum=0.1).eval()
    nn.init.zeros_(unit.expand.weight)
    nn.init.zeros_(unit.expand.bias)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(unit(x), x[:, :, ::2, ::2])


def test_a_widening_units_shortcut_is_taken_after_norm_and_relu() -> None:
    unit = PreActBottleneck(4, 2, 4, stride=1, momentum=0.1).eval()
    nn.init.zeros_(unit.expand.weight)
    nn.init.zeros_(unit.expand.bias)
    assert unit.shortcut is not None
    x = torch.randn(2, 4, 5, 5)
    expected = F.conv2d(x.clamp_min(0) / math.sqrt(1 + 1e-5), unit.shortcut.weight, unit.shortcut.bias)
    torch.testing.assert_close(unit(x), expected)


def test_recurrent_cell_is_pytorchs_with_one_bias() -> None:
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


def test_forget_gate_starts_open() -> None:
    biases = RecurrentCell(5, 3).gates.bias.detach().chunk(4)
    assert [float(bias.sum()) for bias in biases] == [0, 3, 0, 0]
