"""Pictures of where a network looked."""

from tnet.explain.figure import explain_image, save_explanation
from tnet.explain.many import explain_paths, explain_samples

__all__ = ["explain_image", "explain_paths", "explain_samples", "save_explanation"]
