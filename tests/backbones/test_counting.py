"""Counting without what is elementwise: the same numbers as PyTorch's counter, and nothing is changed."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tnet.backbones.counting import SkipElementwise, counting


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050", "resnet10t", "test_vit"])
def test_counts_are_those_of_all_operations(name: str) -> None:
    model = timm.create_model(name, img_size=64) if "vit" in name else timm.create_model(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as wanted:
        model.eval()(images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with counting() as found:
        output = model(images)
    assert found.get_total_flops() == wanted.get_total_flops() > 0
    assert output.shape == (2, 1000) and not output.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_elementwise_operations_are_left_out_only_inside() -> None:
    images, mean, var = torch.randn(2, 3, 4, 4), torch.ones(3), torch.full((3,), 4.0)
    with SkipElementwise():
        assert F.batch_norm(images, mean, var) is images
        assert F.batch_norm(input=images, running_mean=mean, running_var=var) is images
        assert F.silu(images) is images
        assert F.group_norm(images, 3) is not images
    assert not torch.equal(F.batch_norm(images, mean, var), images)
