"""New weights from the trainer to every engine."""
