"""Which role runs where, in pure numbers."""
