"""Checks of machines, clusters, models and data before a run starts."""
