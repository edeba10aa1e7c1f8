"""Models that compute in half precision, or compiled: close to the original, and refused where they cannot be."""

from __future__ import annotations

from functools import partial
from inspect import unwrap
from typing import Any

import pytest
import torch
from tests.export.forms import build, noise
from tests.helpers import TINY_RESNET, tiny_config
from torch import Tensor

from tnet.backbones import Precision, TimmBackbone, precision
from tnet.backbones.fusion import FusedConv
from tnet.backbones.precision import check_precision
from tnet.errors import ConfigError
from tnet.models import TNet

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU emulate what it may not support."""
    monkeypatch.setattr("tnet.models.base.check_precision", lambda *_: None)


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("changes", [{}, {"look_weights": "separate"}, {"batch_norm": "per_level"}])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_backbones_compute_in_half_precision_and_the_rest_in_single(kind: Precision, changes: dict[str, Any]) -> None:
    model, images = build(tiny_config(**changes)), noise(1, (96, 96))
    prepared = model.prepare_for_inference(kind)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    inside = {
        name.split(".")[0]: value.dtype for name, value in prepared.state_dict().items() if value.is_floating_point()
    }
    backbones = {"backbone", "look_backbone"} & {*inside}
    assert {name for name, dtype in inside.items() if dtype == half} == backbones
    with torch.inference_mode():
        wanted, given = model(images, looks=2), prepared(images, looks=2)
    assert given.logits.dtype == torch.float32 and given.features.dtype == torch.float32
    error = (given.features[:, 0] - wanted.features[:, 0]).abs().max() / wanted.features.abs().max()
    assert 1e-5 < error < 0.05  # it was rounded, and no more than that
    assert model.backbone.training is False
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the original


@pytest.mark.usefixtures("any_processor")
def test_a_prepared_model_is_not_prepared_in_another_way() -> None:
    prepared = TNet(tiny_config()).prepare_for_inference("bf16")
    assert prepared.prepare_for_inference() is prepared
    with pytest.raises(ConfigError, match="prepared again"):
        prepared.prepare_for_inference("fp16")
    with pytest.raises(ConfigError, match="prepared again"):
        prepared.prepare_for_inference(compiled=True)


@pytest.mark.parametrize(
    ("kind", "device", "capabilities", "is_supported"),
    [
        ("fp32", CPU, {}, True),
        ("fp16", CPU, {"avx512_bf16": True, "amx_bf16": True}, False),
        ("bf16", CPU, {"avx512_bf16": False, "avx512_f": True}, False),
        ("bf16", CPU, {"avx512_bf16": True}, True),
        ("bf16", CPU, {"bf16": True}, True),  # of ARM
        ("fp16", GPU, {}, True),
        ("bf16", GPU, {}, False),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    kind: Precision,
    device: torch.device,
    capabilities: dict[str, bool],
    is_supported: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    if is_supported:
        check_precision(kind, device)
        return
    with pytest.raises(ConfigError, match=f"precision is {kind}, which this {device.type}.*use fp32"):
        check_precision(kind, device)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int8'; give fp32, bf16 or fp16"):
        TNet(tiny_config()).prepare_for_inference("int8")  # type: ignore[arg-type]


@pytest.fixture
def eager_compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compile with a backend that computes as without compiling; returns the modes that were asked for."""
    modes: list[str] = []

    def compile_whole(function: Any, mode: str) -> Any:
        modes.append(mode)
        return original(function, backend="eager", fullgraph=True)

    original = torch.compile
    for checked in (TimmBackbone, FusedConv):
        monkeypatch.setattr(checked, "forward", unwrap(checked.forward))  # shape checks do not compile
    monkeypatch.setattr(torch, "compile", compile_whole)
    torch._dynamo.reset()
    return modes


@pytest.mark.parametrize("look_weights", ["shared", "separate"])
def test_compiled_backbones_compute_the_same(eager_compiler: list[str], look_weights: str) -> None:
    model = build(tiny_config(backbone=TINY_RESNET, look_weights=look_weights))
    prepared = model.prepare_for_inference(compiled=True)
    with torch.inference_mode():
        for count, looks in ((3, 2), (1, 2), (3, 4)):
            images = noise(1, (96, 96), count)
            wanted, given = model(images, looks=looks), prepared(images, looks=looks)
            assert torch.equal(given.regions.box_l0_yxyx, wanted.regions.box_l0_yxyx)
            torch.testing.assert_close(given.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    assert eager_compiler == ["default"] * (2 if look_weights == "separate" else 1)


def test_graphs_of_a_gpu_do_not_write_over_what_they_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = [torch.zeros(1, 4), torch.zeros(1, 2, 3, 3)]
    begun: list[bool] = []

    def graph(glimpses: Tensor) -> list[Tensor]:
        for value in kept:
            value.fill_(glimpses.sum())
        return kept

    def compile_as_graph(function: Any, mode: str) -> Any:
        assert mode == "reduce-overhead"
        return graph

    monkeypatch.setattr(torch, "compile", compile_as_graph)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", partial(begun.append, True))
    backbone = TNet(tiny_config(backbone=TINY_RESNET)).backbone
    precision.compile_backbone(backbone, GPU)
    first, second = backbone(torch.ones(1, 1, 2, 2)), backbone(torch.zeros(1, 1, 2, 2))
    assert first.pooled.eq(4).all() and first.cell_map.eq(4).all() and second.pooled.eq(0).all()
    assert len(begun) == 2


def test_a_backbone_that_cannot_be_compiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no C++ compiler")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: original(function, backend=fail))
    monkeypatch.setattr(TimmBackbone, "forward", unwrap(TimmBackbone.forward))
    torch._dynamo.reset()
    prepared = build(tiny_config(backbone=TINY_RESNET)).prepare_for_inference(compiled=True)
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"cannot be compiled.*no C\+\+ compiler"):
        prepared(noise(1, (96, 96)))
