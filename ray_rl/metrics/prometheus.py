"""The numbers of a step as Prometheus gauges."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

NAMESPACE = "ray_rl_"
"""Before every name. Ray exports gauges of its users below "ray_"; see `cluster/gauges.py`."""

SetGauge = Callable[[str, float], None]
"""Name and value of a gauge to set."""


def gauge_name(key: str) -> str:
    """The name in Prometheus of a key of `metrics.jsonl`: ray_rl_policy_kl_reference of policy/kl_reference.

    What a name of Prometheus may not hold becomes an underscore: a reward part may have any name.
    """
    return NAMESPACE + re.sub(r"[^a-zA-Z0-9_]", "_", key)


class GaugeSink:
    """One gauge for each key, set after every step.

    What a step does not say, or says as nan or inf, keeps its last value: the seconds of a checkpoint, for example.
    """

    def __init__(self, set_gauge: SetGauge) -> None:
        """Args: set_gauge: told the value of every key of every step; quick, as the driver waits."""
        self._set_gauge = set_gauge

    def write(self, values: Mapping[str, float]) -> None:
        """Sets the gauges."""
        for key, value in values.items():
            # Ray would leave the gauge out, without a word.
            if math.isfinite(value):
                self._set_gauge(gauge_name(key), value)
