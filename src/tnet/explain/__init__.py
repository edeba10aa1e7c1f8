"""Figures and GeoJSON of where a model looked."""

from tnet.explain.batch import explain_paths, explain_samples
from tnet.explain.explanation import look
from tnet.explain.figure import explain_image, save_explanation

__all__ = ["explain_image", "explain_paths", "explain_samples", "look", "save_explanation"]
