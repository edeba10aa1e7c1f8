"""The one interface between a traversal and a feature extractor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

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

    name: str = "tf_efficientnet_b0"
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


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every batch norm with running statistics in a module."""
    return [
        norm
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    ]


class PopulationNorms:
    """Running statistics of batch norm kept apart for whole images and for regions.

    Whole images and magnified regions are two populations: averaged into one set of running statistics they describe
    neither. This keeps a second set of buffers beside each batch norm (``region_mean``, ``region_var`` and their count
    ``region_batches``) and exchanges the two while regions are described; weights and biases stay shared.

    Args:
        module: the backbone; every batch norm with running statistics in it gets the second set.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = batch_norms(module)
        for norm in self.norms:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.register_buffer("region_mean", norm.running_mean.clone())
            norm.register_buffer("region_var", norm.running_var.clone())
            norm.register_buffer("region_batches", norm.get_buffer("num_batches_tracked").clone())

    def _exchange(self) -> None:
        for norm in self.norms:
            norm.running_mean, norm.region_mean = norm.get_buffer("region_mean"), norm.get_buffer("running_mean")
            norm.running_var, norm.region_var = norm.get_buffer("region_var"), norm.get_buffer("running_var")
            seen = norm.get_buffer("num_batches_tracked")
            norm.num_batches_tracked, norm.region_batches = norm.get_buffer("region_batches"), seen

    @contextmanager
    def of_level(self, level: int) -> Iterator[None]:
        """Use the statistics of this level's population inside the block."""
        if level == 0:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def reset(self) -> None:
        """Forget both sets of statistics."""
        for _ in range(2):
            for norm in self.norms:
                norm.reset_running_stats()
            self._exchange()
