"""Ray: placement, actor shells, and bounded calls. Nothing outside this folder imports it."""
