"""BagNet-77-lowD: size, cost, receptive fields and shortcuts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tnet.baselines.bagnet_lowd import BagNetLowD, NormBottleneck, PositionGrid, ShortcutNorm
from tnet.cost import count_parameters
from tnet.errors import ConfigError

CLASSIFIER = 512 * 1001 + 1001


def narrow(**changes: object) -> BagNetLowD:
    settings = {"planes": (4, 4, 4, 4), "expansion": 1} | changes
    return BagNetLowD(1, **settings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("shortcut_norm", ["branch", "shortcut"])
def test_size_and_cost_of_the_published_network(shortcut_norm: ShortcutNorm) -> None:
    """20,628,393 parameters with all four vectors of each batch norm and 1001 classes; 14.109 G multiply-adds."""
    with torch.device("meta"):
        model = BagNetLowD(shortcut_norm=shortcut_norm).eval()
        image = torch.zeros(1, 3, 224, 224)
    count = count_parameters(model)
    assert (count.trainable + CLASSIFIER, count.total + CLASSIFIER) == (20_574_249, 20_628_393)
    with FlopCounterMode(display=False) as counter:
        maps = model.describe(image)
    assert maps.features.shape == (1, 2048, 19, 19) and maps.what.shape == (1, 512, 19, 19)
    assert counter.get_total_flops() // 2 + 361 * 512 * 1001 == pytest.approx(14.109e9, rel=1e-3)
    assert (model.feature_dim, model.cell_dim, model.min_px) == (512, 2048, 77)
    # No bias anywhere: batch norm has its own.
    assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Conv2d))
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}


@pytest.mark.parametrize("image_px", [77, 84, 85, 93, 224])
def test_number_of_positions(image_px: int) -> None:
    model = narrow()
    maps = model.describe(torch.rand(1, 1, image_px, image_px))
    side = (image_px - 77) // 8 + 1
    assert maps.what.shape[2:] == maps.features.shape[2:] == (side, side)
    assert model.grid.side(image_px) == side and model.grid.side(76) == 0


def positive(model: BagNetLowD) -> BagNetLowD:
    """All weights positive, so that no gradient cancels or is cut off."""
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.05)
    return model


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, PositionGrid(77, 8)),
        ({"wide_blocks": (1, 1, 1, 1)}, PositionGrid(33, 8)),
        ({"planes": (4, 4), "blocks": (1, 2), "strides": (3, 1), "wide_blocks": (0, 2)}, PositionGrid(15, 3)),
        # More wide blocks than a stage has look no further.
        ({"planes": (4, 4), "blocks": (1, 2), "strides": (2, 2), "wide_blocks": (5, 1)}, PositionGrid(9, 4)),
    ],
)
def test_a_position_sees_its_receptive_field(changes: dict[str, object], grid: PositionGrid) -> None:
    model = positive(narrow(**changes))
    assert model.grid == grid
    side = 3
    image = torch.rand(1, 1, *[grid.field_px + (side - 1) * grid.stride_px] * 2, requires_grad=True)
    what = model.describe(image).what
    assert what.shape[2:] == (side, side)
    for row, col in ((0, 0), (1, 2)):
        (gradient,) = torch.autograd.grad(what[0, :, row, col].sum(), image, retain_graph=True)
        for axis, place in ((1, row), (0, col)):
            seen = gradient[0, 0].abs().amax(dim=axis).nonzero().flatten()
            assert seen.tolist() == list(range(place * grid.stride_px, place * grid.stride_px + grid.field_px))


def test_pooled_feature_is_the_mean_over_positions() -> None:
    model = narrow(feature_dim=3)
    images = torch.rand(2, 1, 85, 85)
    maps, described = model.describe(images), model(images)
    torch.testing.assert_close(described.pooled, maps.what.mean(dim=(2, 3)))
    torch.testing.assert_close(described.cell_map, maps.features)
    assert described.pooled.shape == (2, 3) and (maps.what >= 0).all()


@pytest.mark.parametrize("norms_branch", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "in_dim"), [(3, 2, 4), (3, 1, 4), (1, 2, 4), (1, 1, 2), (3, 1, 2)])
def test_a_block_starts_as_its_shortcut(kernel: int, stride: int, in_dim: int, norms_branch: bool) -> None:
    """A last scale of 0; the shortcut is cropped, then strided, and only there does the choice of norm show."""
    block = NormBottleneck(in_dim, 4, 1, kernel, stride, norms_branch)
    nn.init.zeros_(block.expand_norm.weight)
    x = torch.rand(3, in_dim, 9, 9)
    expected = x[..., 1:-1, 1:-1] if kernel == 3 else x
    if stride == 2 or in_dim == 2:
        assert block.shortcut is not None
        expected = torch.einsum("dc,nchw->ndhw", block.shortcut.weight[:, :, 0, 0], expected[..., ::stride, ::stride])
        if not norms_branch:
            mean, variance = expected.mean(dim=(0, 2, 3)), expected.var(dim=(0, 2, 3), unbiased=False)
            expected = (expected - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    else:
        assert block.shortcut is None
    torch.testing.assert_close(block(x), expected.relu(), atol=1e-5, rtol=1e-5)


def test_the_last_scale_of_every_block_starts_at_0() -> None:
    blocks = [layer for layer in narrow().modules() if isinstance(layer, NormBottleneck)]
    assert len(blocks) == 16
    assert all(not block.expand_norm.weight.any() and block.look_norm.weight.all() for block in blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planes": (4, 4)}, r"planes \(4, 4\)"),
        ({"planes": (4, 4, 0, 4)}, r"planes \(4, 4, 0, 4\)"),
        ({"expansion": 0}, "expansion 0"),
        ({"feature_dim": -1}, "feature_dim -1"),
        ({"strides": (2, 2)}, r"strides \(2, 2\)"),
        ({"blocks": (1, 1, 1, 0)}, r"blocks \(1, 1, 1, 0\)"),
        ({"wide_blocks": (2, 2, 2, -1)}, r"wide_blocks \(2, 2, 2, -1\)"),
        ({"shortcut_norm": "none"}, "shortcut_norm is 'none'"),
    ],
)
def test_invalid_sizes_raise(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        narrow(**changes)


def test_a_grid_needs_stages() -> None:
    with pytest.raises(ConfigError, match=r"blocks \(\)"):
        PositionGrid.of((), (), ())
