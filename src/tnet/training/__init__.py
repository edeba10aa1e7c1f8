"""Training by a recipe, into a run directory."""
