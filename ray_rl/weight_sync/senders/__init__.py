"""The side of the trainer in a publish."""
