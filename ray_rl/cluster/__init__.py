"""Places workers on a Ray cluster, calls them with limits, and restarts them."""
