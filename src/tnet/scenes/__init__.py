"""Images that can be glimpsed: in files, in memory, changed, and in batches."""

from tnet.scenes.base import BoxL0, Resize, Scene, SceneBatch
from tnet.scenes.batch import LazyBatch
from tnet.scenes.file import FileScene, SceneOptions, open_scene
from tnet.scenes.memory import MemoryScene
from tnet.scenes.overview import OverviewScene
from tnet.scenes.readers.base import ReaderOptions
from tnet.scenes.tensor import TensorBatch
from tnet.scenes.transform import ImageChange, TransformedScene

__all__ = [
    "BoxL0",
    "FileScene",
    "ImageChange",
    "LazyBatch",
    "MemoryScene",
    "OverviewScene",
    "ReaderOptions",
    "Resize",
    "Scene",
    "SceneBatch",
    "SceneOptions",
    "TensorBatch",
    "TransformedScene",
    "open_scene",
]
