"""The kinds of model there are, by the name that recipes and ``config.json`` give them."""

from __future__ import annotations

from typing import Any

from tnet.baselines.attention_sampling import AttentionSampling, AttentionSamplingConfig
from tnet.baselines.dram import DRAM, DRAMConfig
from tnet.baselines.ips import IPS, IPSConfig
from tnet.baselines.saccader import Saccader, SaccaderConfig
from tnet.errors import ConfigError
from tnet.models.base import Model, ModelConfig
from tnet.models.config import TNetConfig
from tnet.models.tnet import TNet

DEFAULT_KIND = "tnet"

_KINDS: dict[str, tuple[type[ModelConfig], type[Any]]] = {
    "tnet": (TNetConfig, TNet),
    "saccader": (SaccaderConfig, Saccader),
    "dram": (DRAMConfig, DRAM),
    "ips": (IPSConfig, IPS),
    "attention_sampling": (AttentionSamplingConfig, AttentionSampling),
}
KIND_NAMES = tuple(_KINDS)
"""Names of the kinds: what ``model.type`` in a recipe and ``model_type`` in ``config.json`` can be."""


def config_class(kind: str) -> type[ModelConfig]:
    """The configuration of a kind of model.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in _KINDS:
        raise ConfigError(f"model type {kind!r} is not known; give one of {', '.join(KIND_NAMES)}")
    return _KINDS[kind][0]


def kind_of(config: ModelConfig) -> str:
    """The name of the kind of model that a configuration describes."""
    return next(name for name, (known, _) in _KINDS.items() if type(config) is known)


def build_model(config: ModelConfig) -> Model:
    """Build the model that a configuration describes, with random weights or those its backbone names.

    Raises:
        ConfigError: a configuration that cannot be built.
    """
    model: Model = _KINDS[kind_of(config)][1](config)
    return model
