"""Models, their configurations, saving and loading."""

from tnet.models.aggregation import PlacedAggregation
from tnet.models.base import Images, Model, ModelConfig, ModelOutput
from tnet.models.canvas import CanvasAggregation
from tnet.models.config import LocatorConfig, PositionConfig, TNetConfig
from tnet.models.io import fill_from, load_model, save_model
from tnet.models.kind import build_model
from tnet.models.tnet import TNet, TNetOutput
from tnet.traversal import PolicyConfig

__all__ = [
    "CanvasAggregation", "Images", "LocatorConfig", "Model", "ModelConfig", "ModelOutput", "PlacedAggregation",
    "PolicyConfig", "PositionConfig", "TNet", "TNetConfig", "TNetOutput", "build_model", "fill_from", "load_model",
    "save_model",
]  # fmt: skip
