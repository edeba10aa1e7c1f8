"""Images that can be glimpsed: in files, in memory, changed, and in batches.

What reads files is imported on first use, so that models import no reader.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tnet.scenes.base import BoxL0, Resize, Scene, SceneBatch
from tnet.scenes.batch import LazyBatch
from tnet.scenes.memory import MemoryScene
from tnet.scenes.tensor import TensorBatch
from tnet.scenes.transform import ImageChange, TransformedScene

if TYPE_CHECKING:
    from tnet.scenes.file import FileScene, SceneOptions, open_scene
    from tnet.scenes.overview import OverviewScene
    from tnet.scenes.reading import ReadOptions

_OF_FILES = {"FileScene": "file", "SceneOptions": "file", "open_scene": "file"}
_OF_FILES |= {"OverviewScene": "overview", "ReadOptions": "reading"}

__all__ = ["BoxL0", "FileScene", "ImageChange", "LazyBatch", "MemoryScene", "OverviewScene", "ReadOptions", "Resize"]
__all__ += ["Scene", "SceneBatch", "SceneOptions", "TensorBatch", "TransformedScene", "open_scene"]


def __getattr__(name: str) -> Any:
    if name not in _OF_FILES:
        raise AttributeError(f"module 'tnet.scenes' has no attribute {name!r}")
    return getattr(import_module(f"tnet.scenes.{_OF_FILES[name]}"), name)
