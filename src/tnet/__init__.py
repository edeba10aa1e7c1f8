"""tnet: classify images that are too large to process whole, by looking at a few regions of them.

The names below are imported on first use, so that ``import tnet`` and the command line's ``--help`` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "tnet.backbones": "BackboneConfig",
    "tnet.errors": "CheckpointError ConfigError DataError ExportError GeometryError ImageError ImageSizeError "
    "OutputError RecipeError ResourceError SlowImageWarning TnetError TrainingError",
    "tnet.explain": "explain_image",
    "tnet.export": "export_model",
    "tnet.geometry": "Grid Regions fit_grid",
    "tnet.inference": "Prediction predict",
    "tnet.models": "TNet TNetConfig TNetOutput load_model save_model",
    "tnet.models.registry": "create_model list_models",
    "tnet.objectives": "Objective ObjectiveConfig",
    "tnet.scenes": "FileScene Scene TensorBatch open_scene",
    "tnet.training.recipe": "Recipe load_recipe",
    "tnet.training.run": "train",
    "tnet.traversal": "BestFirst Search StoppingRule",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    __version__: str
    # isort: off
    from tnet.backbones import BackboneConfig as BackboneConfig
    from tnet.errors import CheckpointError as CheckpointError, ConfigError as ConfigError, DataError as DataError
    from tnet.errors import ExportError as ExportError, GeometryError as GeometryError, ImageError as ImageError
    from tnet.errors import ImageSizeError as ImageSizeError, OutputError as OutputError
    from tnet.errors import RecipeError as RecipeError, ResourceError as ResourceError, TnetError as TnetError
    from tnet.errors import SlowImageWarning as SlowImageWarning, TrainingError as TrainingError
    from tnet.explain import explain_image as explain_image
    from tnet.export import export_model as export_model
    from tnet.geometry import Grid as Grid, Regions as Regions, fit_grid as fit_grid
    from tnet.inference import Prediction as Prediction, predict as predict
    from tnet.models import TNet as TNet, TNetConfig as TNetConfig, TNetOutput as TNetOutput, load_model as load_model
    from tnet.models import save_model as save_model
    from tnet.models.registry import create_model as create_model, list_models as list_models
    from tnet.objectives import Objective as Objective, ObjectiveConfig as ObjectiveConfig
    from tnet.scenes import FileScene as FileScene, Scene as Scene, TensorBatch as TensorBatch, open_scene as open_scene
    from tnet.training.recipe import Recipe as Recipe, load_recipe as load_recipe
    from tnet.training.run import train as train
    from tnet.traversal import BestFirst as BestFirst, Search as Search, StoppingRule as StoppingRule


def __getattr__(name: str) -> Any:
    """Import a public name on first use, from the module that defines it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tnet")
    if name not in _HOME:
        raise AttributeError(f"module 'tnet' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
