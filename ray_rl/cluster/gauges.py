"""Gauges that the agent of this node exports to Prometheus, beside Ray's own."""

from __future__ import annotations

from ray.util.metrics import Gauge

EXPORTED = "ray_"
"""What Ray puts before the name of every gauge."""

RUN = "run"
"""The label with the name of the run."""


class RayGauges:
    """Gauges of one run, made when they are first set: that needs a connection to Ray."""

    def __init__(self, run: str) -> None:
        """Args: run: value of the label `run`."""
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, name: str, value: float) -> None:
        """Sets the gauge that Prometheus sees as `name`; it stays until the driver ends.

        Raises:
            ValueError: `name` does not begin with `EXPORTED`.
        """
        if name not in self._gauges:
            if not name.startswith(EXPORTED):
                raise ValueError(f"gauge {name!r}: Ray's names begin with {EXPORTED!r}")
            gauge = Gauge(name.removeprefix(EXPORTED), description=f"{name} of the last step.", tag_keys=(RUN,))
            self._gauges[name] = gauge.set_default_tags({RUN: self._run})
        self._gauges[name].set(value)
