"""The driver of a run. It knows roles only as Protocols, and imports no Ray."""
