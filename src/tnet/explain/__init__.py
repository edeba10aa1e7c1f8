"""Pictures of where a network looked."""

from tnet.explain.figure import explain_image, save_explanation

__all__ = ["explain_image", "save_explanation"]
