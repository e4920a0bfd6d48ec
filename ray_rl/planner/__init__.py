"""Plans which role runs on which devices, with pure functions."""
