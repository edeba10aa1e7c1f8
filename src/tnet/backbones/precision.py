"""Backbones that compute in half precision, or compiled, for inference; the rest of a model stays as it is."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tnet.backbones.base import Backbone, Described
from tnet.errors import ConfigError, first_line

Precision = Literal["fp32", "bf16", "fp16"]
"""In which backbones compute; ``fp32``, single precision, is as trained."""

_HALF: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise ConfigError unless a device computes in this precision by itself, rather than by emulation."""
    if precision == "fp32":
        return
    if precision not in _HALF:
        raise ConfigError(f"precision is {precision!r}; give fp32, bf16 or fp16")
    if precision == "fp16":
        is_supported = device.type != "cpu"
    elif device.type == "cpu":
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        is_supported = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        is_supported = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if not is_supported:
        raise ConfigError(f"precision is {precision}, which this {device.type} does not compute in; use fp32")


def lower_precision(backbone: Backbone, precision: Precision) -> None:
    """Let a backbone compute in another precision, in place; it takes and returns single precision as before."""
    if precision != "fp32":
        backbone.to(_HALF[precision])
        backbone.register_forward_pre_hook(partial(_to_half, _HALF[precision]))
        backbone.register_forward_hook(_to_single)


def _to_half(dtype: torch.dtype, backbone: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.to(dtype) for value in inputs)


def _to_single(backbone: nn.Module, inputs: Any, output: Described) -> Described:
    return Described(*(value.float() for value in output))


def compile_backbone(backbone: Backbone, device: torch.device) -> None:
    """Compile a backbone in place when it is first used, on GPUs with CUDA graphs.

    Graphs spare the time in which operations are launched, which is most of the time of a small batch.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing the compiler takes a second

    on_gpu = device.type == "cuda"
    compiled = torch.compile(backbone.forward, mode="reduce-overhead" if on_gpu else "default")

    def forward(glimpses: Tensor) -> Described:
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            pooled, cell_map = compiled(glimpses)
        except TorchDynamoException as error:
            reason = first_line(getattr(error, "inner_exception", error))
            remedy = "install a C++ compiler, or leave out compiled (--compile)"
            raise ConfigError(f"the backbone cannot be compiled ({reason}); {remedy}") from None
        # A graph writes over what it returned before.
        return Described(pooled.clone(), cell_map.clone()) if on_gpu else Described(pooled, cell_map)

    vars(backbone)["forward"] = forward  # beside the class's own, so that what lower_precision added stays outside
