"""The trainer's side of a publish."""
