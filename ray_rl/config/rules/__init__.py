"""Rules between fields of the configuration. Loads without torch."""
