"""From YAML files and overrides to a checked configuration. Loads without torch."""
