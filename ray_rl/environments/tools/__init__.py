"""Tools that a policy calls: reading its calls, checking and running them, and the answers that it gets."""
