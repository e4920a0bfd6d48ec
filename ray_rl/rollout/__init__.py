"""Completions from vLLM engines."""
