"""Engines as Ray actors: their processes, health, restarts and weights."""
