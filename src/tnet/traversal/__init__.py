"""Policies that choose cells of one region, and searches that choose the next regions of whole batches."""

from tnet.traversal.best_first import BestFirst
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
from tnet.traversal.stopping import CERTAINTIES, Calibrated, ExpectedGain, LookGain, StoppingRule, TimeLimit
from tnet.traversal.trail import Step, Trail

__all__ = [
    "CERTAINTIES", "POLICIES", "BestFirst", "Calibrated", "Choice", "ExpectedGain", "FixedCells", "LevelByLevel",
    "LookGain", "Policy", "PolicyConfig", "RandomCells", "SampleWithoutReplacement", "Search", "Step", "StoppingRule",
    "TimeLimit", "TopK", "Trail",
]  # fmt: skip
