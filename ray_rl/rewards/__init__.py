"""Judges completions: reward functions, reward models, and the sum of their scores."""
