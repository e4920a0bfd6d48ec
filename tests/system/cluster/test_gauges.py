"""What the driver logs reaches Prometheus through a real Ray agent."""

import re
import time
from urllib.request import urlopen

import ray

from ray_rl.cluster.gauges import RayGauges
from ray_rl.config import RunConfig
from ray_rl.metrics.prometheus import GaugeSink

EXPORTED_S = 60.0
"""Ray collects gauges every ten seconds."""


def exported() -> dict[tuple[str, str], float]:
    """Value by name and run of the gauges of runs, on all nodes."""
    ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    texts = [urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode() for port in ports]
    found = re.findall(r'^(ray_rl_\w+)\{.*\brun="([^"]*)".*\} (\S+)$', "\n".join(texts), re.MULTILINE)
    return {(name, run): float(value) for name, run, value in found}


def until(wanted: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """What is exported when it holds what is wanted, or after the limit."""
    deadline = time.monotonic() + EXPORTED_S
    while True:
        seen = exported()
        if wanted.items() <= seen.items() or time.monotonic() > deadline:
            return seen
        time.sleep(0.5)


def test_a_step_is_in_the_text_that_prometheus_scrapes(connected: RunConfig):
    sink = GaugeSink(RayGauges(connected.run.name).set)
    sink.write({"step": 1, "policy/loss": 0.25, "reward/mean": 0.5})
    sink.write({"step": 2, "policy/loss": float("nan"), "reward/mean": 0.75})
    run = connected.run.name
    wanted = {("ray_rl_step", run): 2.0, ("ray_rl_policy_loss", run): 0.25, ("ray_rl_reward_mean", run): 0.75}
    assert until(wanted) == wanted
