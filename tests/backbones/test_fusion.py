"""Tests of fused backbones: the same outputs, and nothing changed that may not be."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers import as_trained
from torch import nn

from tnet.backbones import TimmBackbone, create_backbone
from tnet.backbones.base import Backbone, BackboneConfig, Described, batch_norms
from tnet.backbones.fusion import TOLERANCE, FusedConv, fuse, fused_parts

# One of each way in which convolutions, batch norm and activations follow each other.
FAMILIES = {
    "tf_efficientnet_b0": 0,  # squeeze and excitation, "same" padding, batch norm with activation
    "mobilenetv2_100": 0,
    "mobilenetv3_small_050": 0,  # hard gates
    "resnet18": 0,  # activations in place after sums in place
    "resnetv2_50x1_bit": 0,  # standardised weights, group norm
    "regnety_002": 0,
    "densenet121": 62,  # batch norm before convolutions: what is left cannot be folded
    "convnext_atto": 0,
    "ghostnet_050": 0,
    "bagnet77": 0,
}


def trained(name: str, side_px: int = 64) -> Backbone:
    """A backbone whose batch norms have statistics unlike those of a new one."""
    kwargs = {"planes": [4, 4, 8, 8], "feature_dim": 8} if name == "bagnet77" else {}
    torch.manual_seed(1)
    return as_trained(create_backbone(BackboneConfig(name, kwargs=kwargs), 3, side_px, 4).eval())  # type: ignore[arg-type]


def difference(one: Described, other: Described) -> float:
    """Largest difference relative to the largest value."""
    return max(float(((a - b).abs().max() / a.abs().max()).detach()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param(*item, marks=() if item[0] in ("tf_efficientnet_b0", "resnet18", "bagnet77") else pytest.mark.slow)
        for item in FAMILIES.items()
    ],
)
def test_outputs_stay_the_same(name: str, left: int) -> None:
    backbone = trained(name)
    state = copy.deepcopy(backbone.state_dict())
    fused = fuse(backbone, 3, {64})
    assert fused is not None
    assert len(batch_norms(fused)) == left
    assert any(isinstance(module, FusedConv) for module in fused.modules()) == (name != "resnetv2_50x1_bit")
    with torch.inference_mode():
        for shape in ((1, 3, 64, 64), (2, 3, 65, 64)):  # odd sizes pad otherwise
            glimpses = torch.randn(shape)
            assert difference(backbone(glimpses), fused(glimpses)) < 1e-5
    after = backbone.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(state[key], after[key]) for key in state)


def test_copies_and_other_precisions_work() -> None:
    backbone = trained("tf_efficientnet_b0")
    fused = fuse(backbone, 3, {64})
    assert fused is not None
    glimpses = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = backbone(glimpses)
        assert difference(wanted, copy.deepcopy(fused)(glimpses)) < 1e-5
        # Not oneDNN's single precision: the other path of each convolution.
        double = copy.deepcopy(fused).double()(glimpses.double())
        assert difference(wanted, Described(double.pooled.float(), double.cell_map.float())) < 1e-5


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18"])
def test_frozen_stages_compute_the_same_while_the_rest_is_trained(name: str) -> None:
    backbone = trained(name)
    assert isinstance(backbone, TimmBackbone)
    backbone.freeze(2)
    backbone.train()
    copied, glimpses = copy.deepcopy(backbone), torch.randn(2, 3, 65, 64)
    norms = [norm for norm in batch_norms(backbone) if norm in backbone.frozen]
    called: list[bool] = []
    for norm in norms:
        norm.register_forward_hook(lambda norm, inputs, output: called.append(output is inputs[0]))
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    with fused_parts(backbone, backbone.frozen, 3, 64):
        assert backbone.training and not any(part.training for part in backbone.frozen)
        assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
        with torch.no_grad():
            assert difference(copied.eval()(glimpses), backbone.eval()(glimpses)) < 1e-5
        copied.train()
        backbone.train()
        called.clear()
        found = backbone(glimpses)
        assert len(called) == len(norms) > 2 and all(called), "norms pass on what they are given"
        # Batch norm over few positions, in what is trained, amplifies rounding.
        assert difference(copied(glimpses), found) < 1e-3
        found.pooled.sum().backward()
    frozen = {parameter for part in backbone.frozen for parameter in part.parameters()}
    assert all((parameter.grad is None) == (parameter in frozen) for parameter in backbone.parameters())
    called.clear()
    backbone(glimpses)
    assert not any(called), "as before"
    assert all("forward" not in vars(module) for module in backbone.modules())


def test_parts_that_would_compute_something_else_stay() -> None:
    backbone = Reused()
    backbone.norm.running_mean.normal_()  # type: ignore[union-attr]
    glimpses = torch.randn(1, 3, 8, 8)
    wanted = backbone.eval()(glimpses)
    with fused_parts(backbone, [*backbone.modules()], 3, 8):
        assert difference(wanted, backbone(glimpses)) == 0.0
    fine = trained("resnet18")
    with pytest.raises(KeyError), fused_parts(fine, [*fine.modules()], 3, 64):
        assert any("forward" in vars(module) for module in fine.modules())
        raise KeyError
    assert all("forward" not in vars(module) for module in fine.modules())


class Reused(Backbone):
    """Uses the output of a convolution in a way that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, glimpses: torch.Tensor) -> Described:
        x = self.conv(glimpses)
        x = self.norm(x) + x
        return Described(x.mean((2, 3)), x)


class Shared(Backbone):
    """Calls one batch norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, glimpses: torch.Tensor) -> Described:
        x = self.norm(self.conv(self.norm(glimpses)))
        return Described(x.mean((2, 3)), x)


def test_a_hidden_use_of_a_tensor_is_noticed() -> None:
    backbone = Reused()
    backbone.norm.running_mean.normal_()  # type: ignore[union-attr]
    assert fuse(backbone, 3, {16}) is None


def test_a_module_that_is_called_twice_stays() -> None:
    backbone = Shared()
    backbone.norm.running_mean.normal_()  # type: ignore[union-attr]
    fused = fuse(backbone, 3, {16})
    assert fused is not None and len(batch_norms(fused)) == 1
    glimpses = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert difference(backbone.eval()(glimpses), fused(glimpses)) < TOLERANCE


def test_the_mode_of_the_backbone_stays() -> None:
    backbone = trained("mobilenetv2_100").train()
    assert fuse(backbone, 3, {64}) is not None
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())
