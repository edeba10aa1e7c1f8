"""Compiled backbones: whole, for few shapes, and in training.

The backend computes as without compiling, so that results are the same to the bit and no compiler is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod
from inspect import unwrap
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.backbones.test_timm_backbone import FAMILIES, build
from tests.helpers import TINY_RESNET, tiny_config, tiny_recipe
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from tnet.backbones import TimmBackbone
from tnet.data.sample import Batch
from tnet.errors import TrainingError
from tnet.models.tnet import TNet
from tnet.training.callbacks import recalibrate_norms
from tnet.training.run import train


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(TimmBackbone, "forward", unwrap(TimmBackbone.forward))  # shape checks do not compile
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("batch_norm", ["shared", pytest.param("per_level", marks=pytest.mark.slow)])
def test_backbones_compile_whole_and_few_times(batch_norm: Literal["shared", "per_level"]) -> None:
    model = TNet(tiny_config(backbone=TINY_RESNET, batch_norm=batch_norm)).eval()
    images = torch.rand(5, 1, 96, 96)
    plain = model(images, looks=3).logits
    model.backbone.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(images, looks=3).logits, plain, rtol=0, atol=0)
    for count in (2, 5, 4):
        for looks in (2, 7, 4):
            model(images[:count].clone(), looks=looks)
    # For one number of glimpses, for any number, and for few of them; per population.
    assert counters["stats"]["unique_graphs"] <= (6 if batch_norm == "per_level" else 3)


@pytest.mark.parametrize(
    ("name", "side", "kwargs"),
    [pytest.param(*item, marks=() if item[0] == "resnet10t" else pytest.mark.slow) for item in FAMILIES],
)
def test_a_backbone_of_each_family_compiles_whole(name: str, side: int, kwargs: dict[str, Any]) -> None:
    backbone = build(name, side, kwargs).eval()
    glimpses = torch.rand(2, 3, side, side)
    plain = backbone(glimpses)
    backbone.compile(backend="eager", fullgraph=True)
    for value, expected in zip(backbone(glimpses), plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_training_with_compiled_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"epochs": 1, "recalibrate_batches": 1, "keep": "last"}
    plain = train(tiny_recipe(model={"backbone": TINY_RESNET}, train=changes), tmp_path / "plain", progress=False)
    assert not counters["stats"]
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    recipe = tiny_recipe(model={"backbone": TINY_RESNET}, train={**changes, "compile": True})
    compiled = train(recipe, tmp_path / "compiled", progress=False)
    assert counters["stats"]["unique_graphs"]
    states = [result.model.state_dict() for result in (plain, compiled)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_statistics_are_measured_without_compiling() -> None:
    # A compiled norm that averages over all batches breaks the graph, and the limit of compilations is soon reached.
    model = TNet(tiny_config(backbone=TINY_RESNET, batch_norm="shared"))
    model.backbone.compile(backend="eager")
    before = {name: value.clone() for name, value in model.named_buffers()}
    recalibrate_norms(model, [Batch(torch.rand(4, 1, 96, 96), torch.zeros(4, dtype=torch.long), list("abcd"))])
    assert not counters["stats"]
    assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.eval()(torch.rand(4, 1, 96, 96))
    assert counters["stats"]["unique_graphs"]


def test_a_compiler_that_fails_ends_training_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no C++ compiler\nin 12 places")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=fail))
    recipe = tiny_recipe(model={"backbone": TINY_RESNET}, train={"epochs": 1, "compile": True})
    with pytest.raises(TrainingError, match=r"train\.compile is true.*no C\+\+ compiler") as caught:
        train(recipe, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value.__cause__, BackendCompilerFailed)
