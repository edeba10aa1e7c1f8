"""Backbones for inference: batch norm folded into convolutions, and activations computed with them.

On the CPU a convolution, its bias and its activation are one call of oneDNN with weights reordered in advance, as in
PyTorch's own compiler, but without compiling. Elsewhere only batch norm is folded.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import get_same_padding, pad_same
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tnet.backbones.base import Backbone, Described

TOLERANCE = 1e-4
"""Largest change of a backbone's outputs by fusion, relative to the largest output."""

_MAX_SIZES = 4  # of the input of a convolution, for which reordered weights are kept

_NAMES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {  # oneDNN's name, and attributes that it takes
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("hardtanh", ("min_val", "max_val")),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.SiLU: ("swish", ()),
    nn.Hardswish: ("hardswish", ()),
}


class FusedConv(nn.Module):
    """A convolution with what follows it: batch norm, folded into its weights, and an activation."""

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm | None, activation: nn.Module | None) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.kernel_size = conv.kernel_size
        # timm's and TensorFlow's "same" padding, which depends on the size of the input
        self.is_same = isinstance(conv, Conv2dSame)
        self.padding: Any = conv.padding
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        if norm is not None:
            assert norm.running_var is not None and norm.running_mean is not None
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight.detach().double()
            shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
            shift = shift * scale if norm.bias is None else shift * scale + norm.bias.detach().double()
            weight, bias = (weight.double() * scale[:, None, None, None]).to(weight), shift.to(weight)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.bias: Tensor | None
        self.register_buffer("bias", bias)
        self.activation = activation
        self._name, attributes = _NAMES.get(type(activation), ("none", ())) if activation else ("none", ())
        self._scalars = [getattr(activation, name) for name in attributes]
        self._packed: dict[torch.Size, Tensor] = {}  # weights in oneDNN's own order, for inputs of each size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # cannot be copied

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Apply the convolution and what follows."""
        weight, padding = self.get_buffer("weight"), self.padding
        if torch.compiler.is_compiling() or not (
            x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        ):
            if self.is_same:
                x, padding = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), (0, 0)
            y = F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)
            return y if self.activation is None else self.activation(y)
        is_shifted = False
        if self.is_same:
            x, padding, is_shifted = self._pad(x)
        packed = self._packed.get(x.shape[2:])
        if packed is None:
            if is_shifted:  # copying every image to pad it would take longer than multiplying by zeros
                weight = F.pad(weight, (1, 0, 1, 0))
            if len(self._packed) >= _MAX_SIZES:
                self._packed.clear()
            packed = self._packed[x.shape[2:]] = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, self.stride, self.dilation, self.groups, list(x.shape)
            )
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            x, packed, self.bias, padding, self.stride, self.dilation, self.groups, self._name, self._scalars, ""
        )
        return fused

    def _pad(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c i j"], tuple[int, int], bool]:
        """Return the input, its padding on both sides, and whether the weights must be shifted by one pixel for it.

        That is so where one more pixel is padded after the image than before, as convolutions pad both sides alike.
        """
        axes = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        total = [get_same_padding(*axis) for axis in axes]
        odd = [pad % 2 for pad in total]
        if odd == [0, 0] or (odd == [1, 1] and self.dilation == (1, 1)):
            return x, ((total[0] + 1) // 2, (total[1] + 1) // 2), odd == [1, 1]
        return pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), (0, 0), False


class FusedSqueezeExcite(nn.Module):
    """timm's ``SqueezeExcite`` as matrix products; changes its input in place."""

    def __init__(self, module: SqueezeExcite) -> None:
        super().__init__()
        for name in ("conv_reduce", "conv_expand"):
            conv = getattr(module, name)
            self.register_buffer(f"{name}_weight", conv.weight.detach().flatten(1))
            self.register_buffer(f"{name}_bias", conv.bias.detach())
        self.act1, self.gate = module.act1, module.gate

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Scale channels by what the whole map holds."""
        mean = F.adaptive_avg_pool2d(x, 1).flatten(1)
        reduced = self.act1(F.linear(mean, self.get_buffer("conv_reduce_weight"), self.get_buffer("conv_reduce_bias")))
        gate = F.linear(reduced, self.get_buffer("conv_expand_weight"), self.get_buffer("conv_expand_bias"))
        return x.mul_(self.gate(gate)[:, :, None, None])


@torch.inference_mode(False)  # whose tensors count no changes in place
@torch.no_grad()
def fuse(backbone: Backbone, in_channels: int, sides_px: Collection[int]) -> Backbone | None:
    """Return a copy of a backbone for inference, with batch norm folded and activations fused where that is possible.

    Which modules follow each other is observed in a forward pass. The copy is compared with the backbone at every size;
    ``None`` if an output differs by more than :data:`TOLERANCE`. The copy cannot be trained.

    Args:
        backbone: the backbone; it stays as it is.
        in_channels: channels of a glimpse.
        sides_px: sides of the glimpses that the copy is for.
    """
    training = backbone.training
    fused = copy.deepcopy(backbone).eval().requires_grad_(False)
    tensors = [*fused.parameters(), *fused.buffers()]
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, in_channels, side, side) for side in sorted({*sides_px})]
    glimpses = [torch.randn(shape, generator=generator).to(tensors[0] if tensors else "cpu") for shape in shapes]
    for name, module in [*fused.named_modules()]:
        if isinstance(module, SqueezeExcite):
            _set(fused, name, FusedSqueezeExcite(module))
    for chain in _chains(fused, glimpses[0]):
        _replace(fused, chain)
    try:
        backbone.eval()
        for images in glimpses:
            if not _agree(backbone(images), fused(images)):
                return None
    except Exception:  # backbones from elsewhere may use their modules in any way
        return None
    finally:
        backbone.train(training)
    return fused


@contextmanager
def fused_parts(backbone: Backbone, parts: Collection[nn.Module], in_channels: int, side_px: int) -> Iterator[None]:
    """Let parts of a backbone compute as :func:`fuse` does, while its tensors stay as they are.

    For parts in evaluation mode that are not trained, and whose running statistics do not change meanwhile. Nothing
    happens if an output would differ by more than :data:`TOLERANCE`.

    Args:
        backbone: the backbone, in any mode.
        parts: the modules; others compute as before.
        in_channels: channels of a glimpse.
        side_px: a side of its glimpses.
    """
    training = backbone.training
    backbone.eval()
    changed: list[nn.Module] = []
    device = next((tensor.device for tensor in backbone.parameters()), "cpu")
    glimpses = torch.randn(2, in_channels, side_px, side_px, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.no_grad():
            wanted = backbone(glimpses)
            for chain in _chains(backbone, glimpses):
                conv, norm, activation = _modules(backbone, chain)
                if conv not in parts or (norm is not None and norm not in parts):
                    continue
                fused, rest = _fused(conv, norm, activation)
                for module, instead in ((conv, fused), (norm, rest), (activation, nn.Identity())):
                    if module is not None:
                        vars(module)["forward"] = instead.eval().forward  # beside the class's own
                        changed.append(module)
            given = backbone(glimpses)
        if not _agree(wanted, given):
            _restore(changed)
        backbone.train(training)
        yield
    finally:
        _restore(changed)


def _agree(wanted: Described, given: Described) -> bool:
    """Return whether outputs differ by no more than the tolerance; not if any is NaN."""
    return all((a - b).abs().max() <= TOLERANCE * a.abs().max() for a, b in zip(wanted, given, strict=True))


def _restore(changed: list[nn.Module]) -> None:
    while changed:
        del vars(changed.pop())["forward"]


@dataclass
class _Call:
    """A call of a module in a forward pass, with the versions of its tensors, which count changes in place.

    While the tensors are kept, no two of them are the same object.
    """

    name: str
    module: nn.Module
    input: Tensor
    input_version: int
    output: Tensor | None = None
    output_version: int = -1


class _Chain(NamedTuple):
    """Names of modules that follow each other."""

    conv: str
    norm: str | None
    activation: str | None


def _chains(module: nn.Module, glimpses: Tensor) -> list[_Chain]:
    """Return the convolutions of a module and what follows each, as seen in a forward pass."""
    calls: list[_Call] = []

    def begin(name: str, part: nn.Module, inputs: Any) -> None:
        calls.append(_Call(name, part, inputs[0], inputs[0]._version))

    def end(part: nn.Module, inputs: Any, output: Tensor) -> None:
        call = next(call for call in reversed(calls) if call.module is part)
        call.output, call.output_version = output, output._version

    hooks = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | _BatchNorm) or type(part) in _NAMES:
            hooks += [part.register_forward_pre_hook(partial(begin, name)), part.register_forward_hook(end)]
    try:
        module(glimpses)
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(call.name for call in calls)
    calls = [call for call in calls if times[call.name] == 1]
    takers = defaultdict(list)  # of a tensor as it was at one version
    for call in calls:
        takers[id(call.input), call.input_version].append(call)
    chains = []
    for conv in calls:
        if not _is_plain_conv(conv.module):
            continue
        norm, activation = _follower(takers, conv, _BatchNorm), None
        if norm is not None and not _is_plain_norm(norm.module):
            norm = None
        if norm is None or not isinstance(norm.module, BatchNormAct2d):
            activation = _follower(takers, norm or conv, tuple(_NAMES))
        names = [None if call is None else call.name for call in (norm, activation)]
        chains.append(_Chain(conv.name, *names))
    return chains


def _follower(
    takers: Mapping[tuple[int, int], Sequence[_Call]],
    call: _Call,
    kind: type[nn.Module] | tuple[type[nn.Module], ...],
) -> _Call | None:
    """Return the call of this kind that alone takes the output of another as it is, if there is one."""
    found = takers.get((id(call.output), call.output_version), ())
    return found[0] if len(found) == 1 and isinstance(found[0].module, kind) else None


def _is_plain_conv(conv: nn.Module) -> bool:
    """Return whether a module convolves with its weights as they are; subclasses may standardise them."""
    return type(conv) in (nn.Conv2d, Conv2dSame) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _is_plain_norm(norm: nn.Module) -> bool:
    """Return whether batch norm has statistics, and nothing follows inside of it but an activation."""
    return norm.running_mean is not None and (
        not isinstance(norm, BatchNormAct2d) or isinstance(norm.drop, nn.Identity)
    )


def _replace(module: nn.Module, chain: _Chain) -> None:
    fused, rest = _fused(*_modules(module, chain))
    _set(module, chain.conv, fused)
    if chain.norm is not None:
        _set(module, chain.norm, rest)
    if chain.activation is not None:
        _set(module, chain.activation, nn.Identity())


def _modules(module: nn.Module, chain: _Chain) -> tuple[nn.Conv2d, _BatchNorm | None, nn.Module | None]:
    conv, norm, activation = (None if name is None else module.get_submodule(name) for name in chain)
    assert isinstance(conv, nn.Conv2d) and (norm is None or isinstance(norm, _BatchNorm))
    return conv, norm, activation


def _fused(conv: nn.Conv2d, norm: _BatchNorm | None, activation: nn.Module | None) -> tuple[FusedConv, nn.Module]:
    """Return a convolution with what follows it, and what is left to do in the norm's place."""
    rest: nn.Module = nn.Identity()
    if isinstance(norm, BatchNormAct2d):
        activation, rest = (norm.act, rest) if type(norm.act) in _NAMES else (None, norm.act)
    return FusedConv(conv, norm, activation), rest


def _set(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part.eval())
