"""Packs rollouts into arrays, and divides the arrays into micro-batches for each worker."""
