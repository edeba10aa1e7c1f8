"""Models."""

from tnet.models.base import Images, Model, ModelConfig, ModelOutput
from tnet.models.config import LocatorConfig, PolicyConfig, PositionConfig, TNetConfig
from tnet.models.io import fill_from, load_model, save_model
from tnet.models.kinds import build_model
from tnet.models.tnet import TNet, TNetOutput

__all__ = [
    "Images",
    "LocatorConfig",
    "Model",
    "ModelConfig",
    "ModelOutput",
    "PolicyConfig",
    "PositionConfig",
    "TNet",
    "TNetConfig",
    "TNetOutput",
    "build_model",
    "fill_from",
    "load_model",
    "save_model",
]
