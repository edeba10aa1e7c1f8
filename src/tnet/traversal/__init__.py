"""How a traversal decides where to look."""

from tnet.traversal.policies import Choice, FixedCells, Policy, RandomCells, SampleWithoutReplacement, TopK

__all__ = ["Choice", "FixedCells", "Policy", "RandomCells", "SampleWithoutReplacement", "TopK"]
