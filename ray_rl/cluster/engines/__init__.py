"""Engines as Ray actors: their processes, health, failures and weights."""
