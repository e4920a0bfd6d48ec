"""Environments, which answer a policy between its turns and reward it."""
