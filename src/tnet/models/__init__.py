"""Models."""

from tnet.models.config import LocatorConfig, PolicyConfig, PositionConfig, TNetConfig
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet, TNetOutput

__all__ = [
    "LocatorConfig",
    "PolicyConfig",
    "PositionConfig",
    "TNet",
    "TNetConfig",
    "TNetOutput",
    "load_model",
    "save_model",
]
