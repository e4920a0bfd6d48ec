"""Reward functions, and the code that reads and compares answers."""
