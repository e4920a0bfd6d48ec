"""What a model is trained on: one class an objective, next to the Protocol that the trainer knows them by."""
