"""Pipelines: several runs in order, of which later ones load the models that earlier ones made."""
