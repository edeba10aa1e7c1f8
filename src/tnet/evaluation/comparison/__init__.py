"""Comparisons: train and measure several systems alike, and put them in one table. A thin layer on the evaluator."""

from tnet.evaluation.comparison.run import Comparison, compare
from tnet.evaluation.comparison.suite import Suite, load_suite

__all__ = ["Comparison", "Suite", "compare", "load_suite"]
