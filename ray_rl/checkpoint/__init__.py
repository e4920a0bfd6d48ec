"""The policy on disk."""
