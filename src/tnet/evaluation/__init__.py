"""Accuracy and cost of models: measurements, tables and plots."""
