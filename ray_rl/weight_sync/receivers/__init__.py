"""vLLM's side of a publish."""
