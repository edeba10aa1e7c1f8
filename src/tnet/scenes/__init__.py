"""What can be looked at."""

from tnet.scenes.base import Scene
from tnet.scenes.tensor import TensorScene

__all__ = ["Scene", "TensorScene"]
