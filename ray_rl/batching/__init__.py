"""Packs rollouts and examples into arrays, and divides the arrays into micro-batches for each worker."""
