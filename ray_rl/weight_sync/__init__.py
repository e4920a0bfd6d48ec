"""Publishes new weights from the trainer to every engine."""
