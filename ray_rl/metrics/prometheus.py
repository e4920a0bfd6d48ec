"""Exports the numbers of a step as Prometheus gauges."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

NAMESPACE = "ray_rl_"
"""Prefix of every name. Ray exports gauges of its users with the prefix "ray_"; see `cluster/gauges.py`."""

SetGauge = Callable[[str, float], None]
"""Name and value of a gauge to set."""


def gauge_name(key: str) -> str:
    """Returns the Prometheus name of a key of `metrics.jsonl`: ray_rl_policy_kl_reference for policy/kl_reference.

    Characters that Prometheus does not allow become underscores: a reward part may have any name.
    """
    return NAMESPACE + re.sub(r"[^a-zA-Z0-9_]", "_", key)


class GaugeSink:
    """One gauge for each key, set after every step.

    A gauge keeps its last value if a step does not have its key (the seconds of a checkpoint), or has nan or inf.
    """

    def __init__(self, set_gauge: SetGauge) -> None:
        """Makes a sink that calls `set_gauge`, which must be fast, for every key of every step."""
        self._set_gauge = set_gauge

    def write(self, values: Mapping[str, float]) -> None:
        """Sets the gauges."""
        for key, value in values.items():
            # Ray would drop the gauge silently.
            if math.isfinite(value):
                self._set_gauge(gauge_name(key), value)
