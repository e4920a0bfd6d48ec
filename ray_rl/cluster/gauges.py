"""Gauges that the agent of this node exports to Prometheus, together with Ray's own."""

from __future__ import annotations

from ray.util.metrics import Gauge

EXPORTED = "ray_"
"""Ray's prefix of the name of every gauge."""

RUN = "run"
"""The label with the name of the run."""


class RayGauges:
    """Gauges of one run. Each is created when it is first set, which needs a connection to Ray."""

    def __init__(self, run: str) -> None:
        """Makes no gauge yet; `run` is the value of their label `run`."""
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, name: str, value: float) -> None:
        """Sets the gauge that Prometheus sees as `name`; it exists until the driver ends.

        Raises:
            ValueError: `name` does not start with `EXPORTED`.
        """
        if name not in self._gauges:
            if not name.startswith(EXPORTED):
                raise ValueError(f"gauge {name!r}: Ray's names start with {EXPORTED!r}")
            gauge = Gauge(name.removeprefix(EXPORTED), description=f"{name} of the last step.", tag_keys=(RUN,))
            self._gauges[name] = gauge.set_default_tags({RUN: self._run})
        self._gauges[name].set(value)
