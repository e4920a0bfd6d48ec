"""Reads the data of a run: prompts to answer, and examples to learn from."""
