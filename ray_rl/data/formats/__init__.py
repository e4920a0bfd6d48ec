"""The forms in which data sets for offline training are published, each converted to the same four records."""
