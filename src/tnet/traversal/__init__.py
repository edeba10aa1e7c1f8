"""Policies that choose cells of one region, and searches that choose the next regions of whole batches."""

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
