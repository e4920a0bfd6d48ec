"""The update of the policy over DeepSpeed, and frozen models that score."""
