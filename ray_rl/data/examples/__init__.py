"""Tokenised examples for training without rollouts, from the records of any data set."""
