"""Model types by the name used in recipes (``model.type``) and ``config.json`` (``model_type``)."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tnet.errors import ConfigError
from tnet.losses import ModelObjective
from tnet.models.base import Model, ModelConfig
from tnet.registry import Registry
from tnet.weights import MemoryLimit

DEFAULT_KIND = "tnet"


@dataclass(frozen=True)
class ModelKind:
    """A model and its objective; all fields of their configuration dataclasses have defaults."""

    config: type[ModelConfig]
    model: type[Model]
    objective_config: type[Any]
    objective: type[ModelObjective]


MODEL_KINDS: Registry[ModelKind] = Registry(
    "model type",
    lazy={
        DEFAULT_KIND: "tnet.objectives",
        "saccader": "tnet.baselines.saccader",
        "dram": "tnet.baselines.dram",
        "ips": "tnet.baselines.ips",
        "attention_sampling": "tnet.baselines.attention_sampling",
    },
)


def kind_of(config: object) -> str:
    """Return the model type of the configuration of a model or an objective."""
    for name, kind in MODEL_KINDS.items():
        if type(config) in (kind.config, kind.objective_config):
            return name
    raise ConfigError(f"no model type is registered for {type(config).__name__}; register one in MODEL_KINDS")


def build_model(config: ModelConfig, limit: MemoryLimit | None = None) -> Model:
    """Build the model that a configuration describes, with random weights or the pretrained ones it names.

    ``limit`` defaults to the machine's memory.
    """
    with limit or _machine_limit():
        return MODEL_KINDS[kind_of(config)].model(config)


def _machine_limit() -> AbstractContextManager[Any]:
    if not hasattr(os, "sysconf"):  # on Windows
        return nullcontext()
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    problem = f"the model needs more than the machine's memory of {available:,} bytes"
    return MemoryLimit(available, math.inf, f"{problem}; reduce its numbers of classes, channels or blocks")
