"""Facts about known models: shapes, weight files, packaged models. Loads without torch."""
