"""Labelled images: made, from folders, from tables."""
