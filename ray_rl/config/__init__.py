"""The configuration of a run. Loads without torch."""

from ray_rl.config.run import RunConfig

__all__ = ["RunConfig"]
