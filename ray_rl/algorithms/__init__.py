"""What is optimised: pure functions of tensors, each with its source and its departures from it."""
