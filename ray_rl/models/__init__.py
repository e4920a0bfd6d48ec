"""Loading models, and the forward pass that the losses need."""
