"""Runs code that is not ours in a process that can be killed."""
