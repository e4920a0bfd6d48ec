"""The side of vLLM in a publish."""
