"""Where to look: policies choose cells of one region, searches the next regions of whole batches.

Independent of networks, images and pixels.
"""

from tnet.traversal.policies import (
    POLICIES,
    Choice,
    FixedCells,
    Policy,
    PolicyConfig,
    RandomCells,
    SampleWithoutReplacement,
    TopK,
)
from tnet.traversal.search import LevelByLevel, Search
from tnet.traversal.trail import Step, Trail

__all__ = [
    "POLICIES", "Choice", "FixedCells", "LevelByLevel", "Policy", "PolicyConfig", "RandomCells",
    "SampleWithoutReplacement", "Search", "Step", "TopK", "Trail",
]  # fmt: skip
