"""Weights and models exchanged with other frameworks."""
