"""Suggest a recipe for a folder of images: survey it, choose a plan, say why."""
