"""BagNet-77: size, feature maps and receptive field."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import TINY_BAGNET
from torch import Tensor, nn

from tnet.backbones import BackboneConfig, BagNet77, create_backbone
from tnet.backbones.bagnet import Bottleneck


def narrow(**changes: object) -> BagNet77:
    torch.manual_seed(0)
    settings = {"planes": (4, 4, 4, 4), "expansion": 1, "feature_dim": 8, "spatial_dropout": 0.0} | changes
    return BagNet77(1, **settings).eval()  # type: ignore[arg-type]


def last_map(model: BagNet77, glimpses: Tensor) -> Tensor:
    return model.stages[3](model(glimpses).cell_map)


def test_published_number_of_parameters() -> None:
    """20,546,664 with the baseline's classifier over 1000 classes."""
    with torch.device("meta"):
        model = BagNet77()
    backbone = sum(parameter.numel() for parameter in model.parameters())
    assert (backbone, backbone + 512 * 1000 + 1000) == (20_033_664, 20_546_664)
    assert (model.feature_dim, model.cell_dim) == (512, 1024)


@pytest.mark.parametrize(("side", "cells", "last"), [(77, 9, 7), (224, 27, 25), (27, 3, 1), (78, 9, 7), (85, 10, 8)])
def test_map_sizes(side: int, cells: int, last: int) -> None:
    model = narrow()
    described = model(torch.rand(2, 1, side, side))
    assert described.cell_map.shape == (2, 4, cells, cells)
    assert described.pooled.shape == (2, 8)
    assert last_map(model, torch.rand(1, 1, side, side)).shape[-2:] == (last, last)


def test_map_sizes_per_stage() -> None:
    sizes: list[int] = []
    model = narrow()
    for layer in (model.stem, *model.stages):
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    model(torch.rand(1, 1, 77, 77))
    assert sizes == [75, 38, 19, 9, 7]


def test_receptive_field_is_77_px() -> None:
    """Measured by the gradient, with all weights positive so that nothing cancels."""
    model = narrow()
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.05)
    image = torch.rand(1, 1, 224, 224, requires_grad=True)
    final = last_map(model, image)
    middle = final.shape[-1] // 2
    (gradient,) = torch.autograd.grad(final[0, :, middle, middle].sum(), image)
    rows, cols = (gradient[0, 0].abs().amax(dim=axis).nonzero().flatten() for axis in (1, 0))
    for seen in (rows, cols):
        assert (int(seen[-1] - seen[0]) + 1, len(seen)) == (77, 77)
    # The neighbour is shifted by the stride of 2 * 2 * 2 = 8 pixels.
    (gradient,) = torch.autograd.grad(last_map(model, image)[0, :, middle, middle + 1].sum(), image)
    assert int(gradient[0, 0].abs().amax(dim=0).nonzero()[0] - cols[0]) == 8


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (75, 3, 2, (1, 1)),
        (38, 3, 2, (0, 1)),
        (19, 3, 1, (1, 1)),
        (5, 1, 1, (0, 0)),
        (4, 1, 2, (0, 0)),
        (7, 3, 3, (1, 1)),
    ],
)
def test_a_block_pads_more_after_the_image(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    look, x = Bottleneck(1, 1, 1, kernel, stride, valid=False).look, torch.randn(1, 1, size, size)
    padded = F.pad(x, (*padding, *padding))
    torch.testing.assert_close(look(x), F.conv2d(padded, look.weight, look.bias, stride))


def test_valid_block_crops_its_shortcut() -> None:
    """With a zero main path, a block is its shortcut: the input without border, at every second position."""
    block = Bottleneck(2, 2, 1, kernel=3, stride=2, valid=True)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert block.shortcut is not None
    block.shortcut.weight.data[:, :, 0, 0] = torch.eye(2)
    x = torch.rand(1, 2, 9, 9)
    assert torch.equal(block(x), x[..., 1:-1, 1:-1][..., ::2, ::2])


def test_block_of_constant_size_adds_its_input() -> None:
    block = Bottleneck(4, 4, 1, kernel=3, stride=1, valid=False)
    assert block.shortcut is None
    x = torch.randn(2, 4, 6, 5)
    inner = F.leaky_relu(block.reduce(x), 0.2)
    inner = block.expand(F.leaky_relu(F.conv2d(inner, block.look.weight, block.look.bias, padding=1), 0.2))
    torch.testing.assert_close(block(x), F.leaky_relu(x + inner, 0.2))


def test_pooled_feature_is_the_average_over_positions() -> None:
    model = narrow()
    x = torch.rand(1, 1, 77, 77)
    expected = F.leaky_relu(model.head(last_map(model, x)), 0.2).mean(dim=(2, 3))
    torch.testing.assert_close(model(x).pooled, expected)


def test_dropout_drops_channels_of_the_pooled_feature_only() -> None:
    model = narrow(spatial_dropout=0.5, feature_dim=256).train()
    x = torch.rand(1, 1, 77, 77)
    with torch.no_grad():
        dropped, kept = model(x), model.eval()(x)
    off = dropped.pooled == 0
    assert 80 < int(off.sum()) < 176
    torch.testing.assert_close(dropped.pooled[~off], 2 * kept.pooled[~off])
    assert torch.equal(dropped.cell_map, kept.cell_map)


def test_no_batch_norm_and_all_biases() -> None:
    model = create_backbone(TINY_BAGNET, 1, 77, 5)
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and all(module.bias is not None for module in convolutions)


def test_glorot_initialisation() -> None:
    torch.manual_seed(0)
    model = create_backbone(BackboneConfig("bagnet77", kwargs={"planes": [64] * 4, "blocks": [1] * 4}), 3, 77, 5)
    layer = model.get_submodule("stages.0.0.look")
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    assert float(layer.weight.detach().std()) == pytest.approx((2 / (9 * 64 + 9 * 64)) ** 0.5, rel=0.02)
    assert not layer.bias.any()
