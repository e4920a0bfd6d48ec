"""Updates of models over DeepSpeed, and frozen models that score."""
