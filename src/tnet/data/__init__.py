"""Labelled images: synthetic, in folders, in tables, and published datasets."""
