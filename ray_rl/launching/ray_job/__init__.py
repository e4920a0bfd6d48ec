"""Launches runs as jobs of a Ray cluster."""
