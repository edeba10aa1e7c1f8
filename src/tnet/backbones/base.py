"""Interface of feature extractors, and batch norm with separate statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, SupportsIndex

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tnet.errors import ConfigError

BatchNormMode = Literal["shared", "per_level"]

# Not Any: jsonargparse imports and calls the class_path of such a value, and configurations are untrusted.
PlainValue = str | bool | int | float | None
_MAX_ARGUMENT = 8192
PlainArgument = PlainValue | list[PlainValue | list[PlainValue]] | dict[str, PlainValue]


@dataclass(frozen=True)
class BackboneConfig:
    """Feature extractor of glimpses.

    Attributes:
        name: ``bagnet77``, or any timm model (listed by ``tnet models --backbones``).
        tap: source of the cell features: an index into the model's intermediate maps (-2 is the last but one), a
            module's name such as ``blocks.4.0``, or ``auto``: the deepest map with at least 1.5 positions per grid cell
            and axis.
        pretrained: load timm's pretrained weights (cached or downloaded).
        weights: file to load instead: ``.safetensors``, or ``.pth`` (a plain state dict; never unpickled), of timm's
            model or of a model saved by tnet. Only the backbone's weights are used.
        kwargs: further arguments of the model, e.g. ``drop_path_rate: 0.2``. TensorFlow's EfficientNets also support
            ``width`` (factor on all channel counts) and ``stochastic_depth`` (as published).
    """

    name: str = "mobilenetv2_100"
    tap: str | int = "auto"
    pretrained: bool = False
    weights: str | None = None
    kwargs: dict[str, PlainArgument] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.kwargs.items():
            _check_argument(key, value)


def _check_argument(key: str, value: object) -> None:
    """Raise ConfigError for absurd numbers among the arguments of a backbone."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_argument(key, item)
    if isinstance(value, int | float) and not -_MAX_ARGUMENT <= value <= _MAX_ARGUMENT:
        remedy = f"give numbers of at most {_MAX_ARGUMENT:,}"
        raise ConfigError(f"model.backbone.kwargs.{key} has {str(value)[:40]}; {remedy}")


class Described(NamedTuple):
    """Output of a backbone: pooled features, and an intermediate map for the features of grid cells."""

    pooled: Float[Tensor, "glimpses features"]
    cell_map: Float[Tensor, "glimpses channels height width"]


class Backbone(nn.Module):
    """Base of feature extractors."""

    feature_dim: int  # size of the pooled feature
    cell_dim: int  # channels of the cell map
    min_px: int  # smallest supported side of a glimpse

    def forward(self, glimpses: Float[Tensor, "glimpses channels height width"]) -> Described:
        """Extract features of glimpses."""
        raise NotImplementedError

    def check_px(self, side_px: int) -> None:
        """Raise ConfigError unless glimpses of this side are supported, besides those it was built for."""
        if side_px < self.min_px:
            raise ConfigError(f"glimpses of {side_px} px are too small for the backbone; give at least {self.min_px}")


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return all batch norms with running statistics in a module."""
    return [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None]


_POPULATION: ContextVar[int] = ContextVar("population", default=0)
"""Running statistics that batch norms use in this thread: 0 for whole images, 1 for regions."""

_REGION_BUFFERS = {"running_mean": "region_mean", "running_var": "region_var", "num_batches_tracked": "region_batches"}


@cache
def _with_populations(base: type[_BatchNorm]) -> type[_BatchNorm]:
    """Return the batch norm class that uses the running statistics of the current population."""

    def statistic(whole: str, region: str) -> property:
        return property(lambda norm: norm._buffers[region if _POPULATION.get() else whole])

    def reduce(norm: _BatchNorm, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _rebuild, (base,), norm.__dict__

    members = {whole: statistic(whole, region) for whole, region in _REGION_BUFFERS.items()}
    return type(base.__name__, (base,), {**members, "__reduce_ex__": reduce})


def _rebuild(base: type[_BatchNorm]) -> _BatchNorm:
    """Return an empty norm with two populations, for copies and pickles."""
    cls = _with_populations(base)  # type: ignore[arg-type]
    norm: _BatchNorm = cls.__new__(cls)
    return norm


class PopulationNorms:
    """Separate running statistics of batch norm for whole images and regions.

    Whole images and magnified regions are two populations; their average describes neither. Each batch norm of the
    module gets a second set of buffers (``region_mean``, ``region_var`` and their count ``region_batches``); weights
    and biases stay shared. The set in use is a property of the calling context, so that threads can share a model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = batch_norms(module)
        for norm in self.norms:
            for whole, region in _REGION_BUFFERS.items():
                norm.register_buffer(region, norm.get_buffer(whole).clone())
            norm.__class__ = _with_populations(type(norm))  # type: ignore[arg-type]

    @contextmanager
    def of_level(self, level: int) -> Iterator[None]:
        """Use the statistics of whole images (level 0) or regions (deeper levels) within the block."""
        token = _POPULATION.set(int(level > 0))
        try:
            yield
        finally:
            _POPULATION.reset(token)

    def reset(self, norms: Iterable[_BatchNorm]) -> None:
        """Reset both sets of statistics of some of the batch norms."""
        for level in (0, 1):
            with self.of_level(level):
                for norm in norms:
                    norm.reset_running_stats()
