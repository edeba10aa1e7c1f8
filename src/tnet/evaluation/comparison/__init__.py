"""Comparisons: train and evaluate several systems under the same conditions, and tabulate the results."""

from tnet.evaluation.comparison.run import Comparison, compare
from tnet.evaluation.comparison.suite import Suite, load_suite

__all__ = ["Comparison", "Suite", "compare", "load_suite"]
