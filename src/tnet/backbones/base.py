"""The one interface between a traversal and a feature extractor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, SupportsIndex

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormMode = Literal["shared", "per_level"]

# Never Any: jsonargparse imports and calls what a value of that type names (a mapping with class_path), and
# configurations come from outside.
PlainValue = str | bool | int | float | None
PlainArgument = PlainValue | list[PlainValue | list[PlainValue]] | dict[str, PlainValue]


@dataclass(frozen=True)
class BackboneConfig:
    """What sees a glimpse.

    Attributes:
        name: ``bagnet77``, or the name of any timm model (``tnet models --backbones`` lists them).
        tap: where cell features are taken from: an index into the model's intermediate maps (-2 is the last but
            one), a module's name such as ``blocks.4.0``, or ``auto``: the deepest map with at least 1.5 positions
            for each grid cell and axis.
        pretrained: load the weights timm names for this model (from its cache, or downloaded by timm).
        weights: file of weights to start from instead: ``.safetensors``, or ``.pth`` (a plain state dict; never
            unpickled), of timm's model or of a model that tnet saved. All but the backbone is left out.
        kwargs: further arguments for the model's constructor, e.g. ``drop_path_rate: 0.2``. TensorFlow's
            EfficientNets also take ``width`` (factor on all channel counts) and ``stochastic_depth`` (as published).
    """

    name: str = "mobilenetv2_100"
    tap: str | int = "auto"
    pretrained: bool = False
    weights: str | None = None
    kwargs: dict[str, PlainArgument] = field(default_factory=dict)


class Described(NamedTuple):
    """What a backbone says of glimpses.

    Attributes:
        pooled: one feature a glimpse.
        cell_map: an intermediate map from which the features of grid cells are taken.
    """

    pooled: Float[Tensor, "glimpses features"]
    cell_map: Float[Tensor, "glimpses channels height width"]


class Backbone(nn.Module):
    """A feature extractor that can serve a traversal.

    Attributes:
        feature_dim: size of the pooled feature.
        cell_dim: channels of the map that cell features are taken from.
        min_px: smallest side of a glimpse it can describe.
    """

    feature_dim: int
    cell_dim: int
    min_px: int

    def forward(self, glimpses: Float[Tensor, "glimpses channels height width"]) -> Described:
        """Describe glimpses."""
        raise NotImplementedError


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Every batch norm with running statistics in a module."""
    return [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None]


_POPULATION: ContextVar[int] = ContextVar("population", default=0)
"""Whose running statistics batch norms use in this thread: 0 for whole images, 1 for regions."""

_REGION_BUFFERS = {
    "running_mean": "region_mean",
    "running_var": "region_var",
    "num_batches_tracked": "region_batches",
}


_MADE: dict[type[_BatchNorm], type[_BatchNorm]] = {}


def _with_populations(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """A batch norm class whose running statistics are those of the current population."""
    if kind in _MADE:
        return _MADE[kind]

    def statistic(whole: str, region: str) -> property:
        return property(lambda norm: norm._buffers[region if _POPULATION.get() else whole])

    def reduce(norm: _BatchNorm, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _rebuild, (kind,), norm.__dict__

    members = {whole: statistic(whole, region) for whole, region in _REGION_BUFFERS.items()}
    _MADE[kind] = type(kind.__name__, (kind,), {**members, "__reduce_ex__": reduce})
    return _MADE[kind]


def _rebuild(kind: type[_BatchNorm]) -> _BatchNorm:
    """An empty norm with two populations, for copies and pickles."""
    made = _with_populations(kind)
    norm: _BatchNorm = made.__new__(made)
    return norm


class PopulationNorms:
    """Running statistics of batch norm kept apart for whole images and for regions.

    Whole images and magnified regions are two populations: averaged into one set of running statistics they describe
    neither. Each batch norm gets a second set of buffers (``region_mean``, ``region_var`` and their count
    ``region_batches``); weights and biases stay shared. Which set is used is a property of the calling context, not of
    the module, so that threads can share a model.

    Args:
        module: the backbone; every batch norm with running statistics in it gets the second set.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = batch_norms(module)
        for norm in self.norms:
            for whole, region in _REGION_BUFFERS.items():
                norm.register_buffer(region, norm.get_buffer(whole).clone())
            norm.__class__ = _with_populations(type(norm))

    @contextmanager
    def of_level(self, level: int) -> Iterator[None]:
        """Use the statistics of whole images (level 0) or of regions (deeper levels) inside the block."""
        token = _POPULATION.set(int(level > 0))
        try:
            yield
        finally:
            _POPULATION.reset(token)

    def reset(self) -> None:
        """Reset both sets of statistics."""
        for level in (0, 1):
            with self.of_level(level):
                for norm in self.norms:
                    norm.reset_running_stats()
